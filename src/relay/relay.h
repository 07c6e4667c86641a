/*-------------------------------------------------------------------------
 *
 * relay.h
 *	  The relay's state, shared by its loop and its parts.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RELAY_H
#define OUTBOX_RELAY_H

#include "portability/instr_time.h"
#include "relay/route.h"
#include "relay/window.h"
#include "shmem.h"
#include "storage/latch.h"
#include "transport/registry.h"

typedef struct Relay
{
	OutboxRelaySlot *slot;
	Oid			extoid;
	Oid			serverid;
	MemoryContext context;
	MemoryContext server_context;
	OutboxServer *server;
	OutboxRouter *router;
	OutboxReader *reader;
	OutboxWindow *window;
	OutboxMessage **fetched;	/* scratch for a fetch */

	/* the client */
	const OutboxTransport *transport;
	OutboxClient *client;
	bool		careful;
	uint64		careful_until;	/* sequence number behind the last suspect */
	int			back_off_ms;
	instr_time	retry_at;
	uint64		errors_seen;
	WaitEventSet *wait_set;

	/* topics that are missing or forbidden (of OutboxTopicTrouble) */
	List	   *troubles;

	/* the position as stored */
	int64		position_n;
	uint64		stored_cursor;
	uint64		stored_low;
	uint64		stored_xmax;
	instr_time	stored_at;
	bool		caught_up;		/* nothing to read at the last look */
	uint64		caught_up_count;
} Relay;

/* client.c */
extern bool relay_client_ensure(Relay *relay);
extern void relay_client_close(Relay *relay, bool drain);
extern void relay_collect(Relay *relay);
extern void relay_send(Relay *relay);
extern void relay_handle_refused(Relay *relay);
extern void relay_probe_topics(Relay *relay);
extern bool relay_client_check(Relay *relay);

/* relay.c */
extern void relay_set_state(Relay *relay, OutboxRelayState state);
extern void relay_set_error(Relay *relay, const char *text, const char *hint);
extern long relay_ms_since(instr_time since);
extern void relay_drop_wait_set(Relay *relay);

#endif							/* OUTBOX_RELAY_H */
