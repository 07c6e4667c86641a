/*-------------------------------------------------------------------------
 *
 * hold_off.h
 *	  Keeping our workers out of a database that a statement needs alone.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HOLD_OFF_H
#define OUTBOX_HOLD_OFF_H

/*
 * Keep workers out of a database until this transaction ends, and wait until
 * those that are in have left.  Returns also when some don't leave in time:
 * PostgreSQL's own checks decide then.
 */
extern void outbox_hold_off(Oid dboid);

/* Is a worker to stay out of, or leave, this database? */
extern bool outbox_held_off(Oid dboid);

/*
 * First thing that a worker does for a database, before it connects: says that
 * it is there.  False when it has to stay out.
 */
extern bool outbox_hold_off_enter(Oid dboid);

extern void outbox_hold_off_init(void);

#endif							/* OUTBOX_HOLD_OFF_H */
