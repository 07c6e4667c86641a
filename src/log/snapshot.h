/*-------------------------------------------------------------------------
 *
 * snapshot.h
 *	  Snapshots as numbers, as far as only the server's side needs them; the
 *	  rest stands in reader.h.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SNAPSHOT_H
#define OUTBOX_SNAPSHOT_H

#include "log/reader.h"
#include "utils/snapshot.h"

extern OutboxSnapshot *outbox_snapshot_from(Snapshot snapshot);
extern OutboxSnapshot *outbox_snapshot_parse(const char *text);
extern bool outbox_snapshot_equal(const OutboxSnapshot *a, const OutboxSnapshot *b);

/* Which of two snapshots of this server was taken earlier?  < 0: a; 0: they
 * are equal. */
extern int	outbox_snapshot_compare(const OutboxSnapshot *a, const OutboxSnapshot *b);

#endif							/* OUTBOX_SNAPSHOT_H */
