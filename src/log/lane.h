/*-------------------------------------------------------------------------
 *
 * lane.h
 *	  A database's lanes: building the shared entry, handing out ids.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LANE_H
#define OUTBOX_LANE_H

#include "shmem.h"

/* What our heavyweight locks on the extension protect (objsubid of the tag). */
typedef enum OutboxLockKind
{
	OUTBOX_LOCK_BUILD = 1,		/* building the shared entry */
	OUTBOX_LOCK_IDS,			/* reserving ids */
	OUTBOX_LOCK_FREEING			/* servers and positions, while segments are
								 * freed */
} OutboxLockKind;

extern bool outbox_lock(Oid extoid, OutboxLockKind kind, bool wait);
extern void outbox_unlock(Oid extoid, OutboxLockKind kind);

/* Is the entry still that of this database's extension? */
extern bool outbox_db_is(const OutboxDb *db, Oid extoid, uint64 incarnation);

/* Reserve ids, so that next_id < limit_id again. */
extern void outbox_reserve_ids(OutboxDb *db, Oid extoid);

/* No id from this one on was used yet, and a crash brings none below it again. */
extern uint64 outbox_end_of_ids(OutboxDb *db);

/* Make a prepared segment the lane's current one. */
extern void outbox_lane_switch(OutboxDb *db, int lane, Oid relid,
							   uint64 generation);

/* Read a counter, ordered against everything around it. */
static inline uint64
outbox_atomic_read(pg_atomic_uint64 *counter)
{
	uint64		value;

	pg_memory_barrier();
	value = pg_atomic_read_u64(counter);
	pg_memory_barrier();
	return value;
}

/* The extension that this transaction made and whose entry it built. */
extern Oid	outbox_uncommitted_extension(void);

/* Raise if the extension is not in the catalog any more. */
extern void outbox_extension_check(Oid extoid);

extern void outbox_lane_init(void);

#endif							/* OUTBOX_LANE_H */
