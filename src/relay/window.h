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
#include "relay/topics.h"
#include "transport/transport.h"

typedef enum OutboxEntryState
{
	OUTBOX_ENTRY_QUEUED,		/* to be sent */
	OUTBOX_ENTRY_SENT,			/* no report yet */
	OUTBOX_ENTRY_HELD,			/* acknowledged, in a transaction that is not
								 * committed yet */
	OUTBOX_ENTRY_REFUSED,		/* refused alone: to become a dead letter */
	OUTBOX_ENTRY_DONE			/* acknowledged, or a dead letter */
} OutboxEntryState;

#define OUTBOX_UUID_BYTES	37

/*
 * A message in a window.  Its address is the record's tag in the transport.  It
 * is the room before the message (reader.h), so both are one chunk of memory.
 */
typedef struct OutboxEntry
{
	OutboxTopic *topic;
	struct OutboxWindow *window;
	uint64		seq;			/* place in the window */
	Size		cost;			/* memory counted for it: its own, and until it is
								 * held the client library's */
	OutboxEntryState state;
	bool		suspect;		/* refused together with others */
	int			attempts;
	uint32		library_bytes;	/* what the library uses while it is in flight */
	char	   *error;			/* of a refusal, in a chunk with reason */
	char	   *reason;
	char		uuid[OUTBOX_UUID_BYTES];	/* message id, where it is derived */
	OutboxMessage message;		/* and what belongs to it */
} OutboxEntry;

/* The entry of a message that was read with room for it. */
static inline OutboxEntry *
outbox_entry_of(OutboxMessage *message)
{
	return (OutboxEntry *) ((char *) message - offsetof(OutboxEntry, message));
}

/*
 * Thousands of entries are under way, more than caches hold: what goes through many of
 * them has them loaded some entries ahead.
 */
#define PREFETCH_ENTRIES	8
#define PREFETCH_BYTES		64		/* of a usual processor's cache line */

/* ... as far as it looks at each when that was answered. */
static inline void
outbox_entry_prefetch(const OutboxEntry *entry)
{
#ifdef __GNUC__
	/* a window has holes */
	if (entry == NULL)
		return;
	__builtin_prefetch(entry);
	__builtin_prefetch(&entry->message.published);
	__builtin_prefetch(&entry->message.target);
#endif
}

/* ... all of it, but for what the message points to. */
static inline void
outbox_entry_prefetch_whole(const OutboxEntry *entry)
{
#ifdef __GNUC__
	if (entry == NULL)
		return;
	for (Size at = 0; at < sizeof(OutboxEntry); at += PREFETCH_BYTES)
		__builtin_prefetch((const char *) entry + at);
#endif
}

/* What all windows of a relay share. */
typedef struct OutboxWindows
{
	MemoryContext context;		/* of messages and entries */
	OutboxTopics *topics;
	Size		bytes;			/* of all entries, without the library's */
	Size		library_bytes;	/* of those in flight */
	uint64		in_flight;		/* sent, without a report */
	uint64		suspects;		/* refused together with others */
	uint64		held;			/* acknowledged, not committed */
	Size		record_overhead;	/* of the client library */
	Size		header_overhead;
	Size		copied_payload;
	OutboxHeader *headers;		/* of the record being sent */
	int			headers_size;
} OutboxWindows;

/*
 * A ring of entries in log order.  An entry that was moved to another window
 * leaves a hole behind.
 */
typedef struct OutboxWindow
{
	OutboxWindows *all;
	OutboxEntry **ring;
	uint64		size;			/* of the ring, a power of two */
	uint64		first;			/* sequence number of the oldest */
	uint64		next;			/* of the one to come */
	uint64		unsent;			/* all before it are sent or done */
	uint64		refused;
	Size		bytes;
} OutboxWindow;

extern OutboxWindows *outbox_windows_create(MemoryContext parent);

extern OutboxWindow *outbox_window_create(OutboxWindows *all, MemoryContext parent);
extern void outbox_window_free(OutboxWindow *window);

/* Add a message behind the others; done: it is acknowledged already. */
extern void outbox_window_add(OutboxWindow *window, OutboxMessage *message, bool done);

/* An entry's own memory. */
static inline Size
outbox_entry_bytes(const OutboxEntry *entry)
{
	return entry->message.bytes + OUTBOX_UUID_BYTES;
}

static inline OutboxEntry *
outbox_window_entry(const OutboxWindow *window, uint64 seq)
{
	return window->ring[seq & (window->size - 1)];
}

static inline bool
outbox_window_is_empty(const OutboxWindow *window)
{
	return window->first == window->next;
}

/* Hand an entry to the transport. */
extern OutboxFailure outbox_entry_send(OutboxEntry *entry,
									   const OutboxTransport *transport,
									   OutboxClient *client, OutboxError *error);

/* The report of an entry is there: it is not in flight any more. */
extern void outbox_entry_answered(OutboxEntry *entry);

/* What becomes of it then. */
extern void outbox_entry_hold(OutboxEntry *entry);
extern void outbox_entry_done(OutboxEntry *entry);
extern void outbox_entry_queue(OutboxEntry *entry);
extern void outbox_entry_suspect(OutboxEntry *entry);
extern void outbox_entry_clear(OutboxEntry *entry);	/* of suspicion */
extern void outbox_window_clear(OutboxWindow *window);	/* all of its entries */
extern void outbox_entry_refuse(OutboxEntry *entry, const char *error, const char *reason);

/* Free the entries that are done, oldest first. */
extern void outbox_window_pop(OutboxWindow *window);

/*
 * Everything without an answer has to be sent again (the client is gone); with
 * held, also what was acknowledged in a transaction that is aborted.
 */
extern void outbox_window_rewind(OutboxWindow *window, bool held);

/* Move a topic's entries, in their order, to an empty window. */
extern void outbox_window_move_topic(OutboxWindow *from, OutboxWindow *to,
									 OutboxTopic *topic);

/*
 * Drop entries at the end that were not sent, as far as there is nothing but
 * such, but for the first "keep" of the window; gives the position before the
 * first of them.  False: there is none.
 */
extern bool outbox_window_trim(OutboxWindow *window, int keep, OutboxPosition *pos);

#endif							/* OUTBOX_WINDOW_H */
