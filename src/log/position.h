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

/* A server's first position, in the transaction that creates it. */
extern void outbox_position_create(Oid serverid, const char *name, bool earliest);

/* Forget a server. */
extern void outbox_position_drop(Oid serverid);

/* The latest position; false when there is none.  Own transaction. */
extern bool outbox_position_load(Oid serverid, OutboxPosition *pos, int64 *n);

/* Append a position.  Inside a transaction of the caller's. */
extern void outbox_position_store(Oid serverid, const char *name,
								  const OutboxPosition *pos, int64 n);

/* Keep the table small: what is not a server's latest goes. */
extern void outbox_position_compact(void);

#endif							/* OUTBOX_POSITION_H */
