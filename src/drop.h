/*-------------------------------------------------------------------------
 *
 * drop.h
 *	  Before and after the extension, or servers of it, are dropped.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DROP_H
#define OUTBOX_DROP_H

#include "nodes/pg_list.h"
#include "nodes/nodes.h"

/* Before a statement; what it finds is for outbox_drop_done(). */
extern List *outbox_drop_prepare(Node *stmt);

/* After the statement. */
extern void outbox_drop_done(List *backlogs);

/* At commit: see whether the extension is gone. */
extern void outbox_drop_check_at_commit(void);

/* Remove entries of extensions that are gone.  Needs a transaction. */
extern void outbox_forget_dropped(void);

extern void outbox_drop_init(void);

#endif							/* OUTBOX_DROP_H */
