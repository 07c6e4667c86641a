/*-------------------------------------------------------------------------
 *
 * wake.h
 *	  Waking our workers when what they have to see is there to be seen.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WAKE_H
#define OUTBOX_WAKE_H

/* Wake launcher, keeper and relays of this database once this commits. */
extern void outbox_wake_at_commit(void);

/* Have the launcher look into a database once this commits. */
extern void outbox_look_into_at_commit(Oid dboid);

extern void outbox_wake_init(void);

#endif							/* OUTBOX_WAKE_H */
