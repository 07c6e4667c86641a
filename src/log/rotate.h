/*-------------------------------------------------------------------------
 *
 * rotate.h
 *	  Making, rotating and freeing segments: the keeper's part of the log.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROTATE_H
#define OUTBOX_ROTATE_H

#include "shmem.h"

/*
 * Rotate full segments and free delivered ones, in short transactions of its
 * own.  True when there is likely more to do at once.
 */
extern bool outbox_keeper_maintain(OutboxDb *db);

/*
 * Free what is done (free.c).  How many bytes the log still retains, and
 * whether every server has all that was published.  True when there is more to
 * do at once.
 */
extern bool outbox_free_segments(OutboxDb *db, uint64 *retained, bool *caught_up);

/* The keeper's transactions, and what it does in them. */
extern void outbox_keeper_begin(void);
extern void outbox_keeper_commit(void);
extern void outbox_keeper_execute(const char *sql, int nargs, Oid *types,
								  Datum *args, int expected);
extern uint64 outbox_keeper_segment_bytes(Oid relid);

/* Make a segment; a member of the extension.  Returns its oid. */
extern Oid	outbox_create_segment(Oid extoid);

#endif							/* OUTBOX_ROTATE_H */
