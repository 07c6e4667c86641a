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

/* Make a segment; a member of the extension.  Returns its oid. */
extern Oid	outbox_create_segment(Oid extoid);

#endif							/* OUTBOX_ROTATE_H */
