/*-------------------------------------------------------------------------
 *
 * position.h
 *	  Where servers stand in the log, as the database keeps it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_POSITION_H
#define OUTBOX_POSITION_H

#include "log/reader.h"
#include "nodes/pg_list.h"

/* A server's first position, in the transaction that creates it. */
extern void outbox_position_create(Oid serverid, const char *name, bool earliest);

/* A position as it is stored: the main stream's, or that of a lagging topic. */
typedef struct OutboxStoredPosition
{
	char	   *topic;			/* UTF-8; NULL: main */
	OutboxPosition pos;
	uint64		epoch;			/* of the log, when it was stored; 0: by no relay */
	int			nacked;			/* ids that were acknowledged beyond the cursor: */
	int64	   *acked;			/* ranges, from .. to */
} OutboxStoredPosition;

/*
 * The latest positions of a server, the main one first (list of
 * OutboxStoredPosition; NIL: there are none), and the highest number.  Own
 * transaction.
 */
extern List *outbox_positions_load(Oid serverid, int64 *n);

/* Append a position.  Inside a transaction of the caller's. */
extern void outbox_position_store(Oid serverid, const char *name, int64 n,
								  const OutboxStoredPosition *position);

/* Forget a topic that lags no more.  Inside a transaction of the caller's. */
extern void outbox_position_forget_topic(Oid serverid, const char *topic);

/* The highest low id of any position, 0 when there are none. */
extern uint64 outbox_position_highest_low(void);

/* Keep the table small: what is not a server's latest goes. */
extern void outbox_position_compact(void);

#endif							/* OUTBOX_POSITION_H */
