/*-------------------------------------------------------------------------
 *
 * window.h
 *	  Messages between the log and the broker's answer.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WINDOW_H
#define OUTBOX_WINDOW_H

#include "log/reader.h"
#include "transport/transport.h"

typedef enum OutboxEntryState
{
	OUTBOX_ENTRY_QUEUED,		/* to be sent */
	OUTBOX_ENTRY_SENT,			/* no report yet */
	OUTBOX_ENTRY_REFUSED,		/* refused alone: to become a dead letter */
	OUTBOX_ENTRY_DONE			/* acknowledged, or a dead letter */
} OutboxEntryState;

/* A topic that is missing or forbidden. */
typedef struct OutboxTopicTrouble
{
	char	   *topic;
	OutboxError error;
	instr_time	since;
	instr_time	probed;
} OutboxTopicTrouble;

typedef struct OutboxEntry
{
	OutboxMessage *message;
	OutboxHeader *headers;		/* in one chunk with a derived message id */
	int			nheaders;
	OutboxEntryState state;
	bool		suspect;		/* refused together with others */
	int			attempts;
	char	   *error;			/* of a refusal */
	char	   *reason;
} OutboxEntry;

/*
 * A ring of entries in log order.  A sequence number names an entry for as
 * long as it is in the window; its tag in the transport is that number.
 */
typedef struct OutboxWindow
{
	MemoryContext context;		/* of messages and what belongs to them */
	OutboxEntry *entries;
	uint64		first;			/* sequence number of the oldest */
	uint64		next;			/* of the one to come */
	uint64		unsent;			/* all before it are sent or done */
	uint64		in_flight;		/* sent, without a report */
} OutboxWindow;

#define OUTBOX_WINDOW_ENTRIES	131072	/* a power of 2 */

extern OutboxWindow *outbox_window_create(MemoryContext parent);
extern void outbox_window_add(OutboxWindow *window, OutboxMessage *message);
extern int	outbox_window_room(const OutboxWindow *window);
extern Size outbox_window_bytes(const OutboxWindow *window);

static inline OutboxEntry *
outbox_window_entry(OutboxWindow *window, uint64 seq)
{
	return &window->entries[seq & (OUTBOX_WINDOW_ENTRIES - 1)];
}

/* Hand an entry to the transport. */
extern OutboxFailure outbox_window_send(OutboxWindow *window, uint64 seq,
										const OutboxTransport *transport,
										OutboxClient *client, OutboxError *error);

/* Free the entries that are done, oldest first; how many. */
extern int	outbox_window_pop(OutboxWindow *window);

/* Everything without an answer has to be sent again (the client is gone). */
extern void outbox_window_rewind(OutboxWindow *window);

#endif							/* OUTBOX_WINDOW_H */
