/*-------------------------------------------------------------------------
 *
 * rotate.c
 *	  The keeper's part of the log: rotating segments, and all of its turn.
 *
 * Past outbox.segment_size the next segment is prepared (taken from the pool or
 * made, and listed with the next generation) in a transaction, and made current
 * under the lane's lock after its commit.  A crash in between leaves a prepared
 * segment without rows behind, which the next rotation uses.  The commit needs
 * no flush: rows of the segment come behind it in WAL.
 *
 * When all is delivered and nobody publishes, current segments that hold
 * something are rotated too, so that they can be freed (free.c): a good part of
 * a segment after a second, the rest after minutes, as each rotation writes to
 * the catalogs; at once where outbox.max_backlog refuses publishers meanwhile.
 *
 * A turn that fails (a full disk, say) is taken again at the next.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "elapsed.h"
#include "executor/spi.h"
#include "fault.h"
#include "guc.h"
#include "log/lane.h"
#include "log/position.h"
#include "log/rotate.h"
#include "log/segment.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

/* After this long without a publication small segments are rotated too. */
#define QUIET_MS		1000
#define LONG_QUIET_MS	(5 * 60 * 1000)

/* Bytes in a segment; 0 when it can't be had at once. */
uint64
outbox_keeper_segment_bytes(Oid relid)
{
	Relation	rel;
	uint64		bytes;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return 0;
	rel = RelationIdGetRelation(relid);
	if (rel == NULL)
	{
		UnlockRelationOid(relid, AccessShareLock);
		return 0;
	}
	bytes = (uint64) RelationGetNumberOfBlocks(rel) * BLCKSZ;
	RelationClose(rel);
	UnlockRelationOid(relid, AccessShareLock);
	return bytes;
}

void
outbox_keeper_execute(const char *sql, int nargs, Oid *types, Datum *args, int expected)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, args, NULL, false, 0);

	if (rc != expected)
		elog(ERROR, "SPI_execute_with_args returned %d for \"%s\"", rc, sql);
}

static void
list_segment(Oid relid, int lane, uint64 generation)
{
	Oid			types[3] = {OIDOID, INT4OID, INT8OID};
	Datum		args[3] = {
		ObjectIdGetDatum(relid), Int32GetDatum(lane), Int64GetDatum((int64) generation)
	};

	outbox_keeper_execute("UPDATE outbox.segments SET lane = $2, generation = $3 WHERE relid = $1",
						  3, types, args, SPI_OK_UPDATE);
	if (SPI_processed == 0)
		outbox_keeper_execute("INSERT INTO outbox.segments (relid, lane, generation) VALUES ($1, $2, $3)",
							  3, types, args, SPI_OK_INSERT);
}

void
outbox_keeper_begin(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
}

void
outbox_keeper_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* Have a next segment for a lane, and make it current. */
static void
rotate_lane(OutboxDb *db, int lane)
{
	uint64		current = db->lanes[lane].lane.generation;
	uint64		highest = 0;
	OutboxSegment next = {InvalidOid, -1, 0};
	ListCell   *lc;

	outbox_keeper_begin();
	foreach(lc, outbox_segment_list())
	{
		const OutboxSegment *segment = lfirst(lc);

		highest = Max(highest, segment->generation);
		/* one that is prepared already wins over one of the pool */
		if (segment->lane == lane && segment->generation > current)
			next = *segment;
		else if (segment->lane < 0 && !OidIsValid(next.relid))
			next = *segment;
	}
	if (!OidIsValid(next.relid))
		next.relid = outbox_create_segment(db->extoid);
	if (next.lane != lane)
	{
		next.generation = highest + 1;
		list_segment(next.relid, lane, next.generation);
	}
	OUTBOX_FAULT("rotate-before-commit");
	outbox_keeper_commit();
	OUTBOX_FAULT("rotate-before-switch");
	outbox_lane_switch(db, lane, next.relid, next.generation);
	OUTBOX_FAULT("rotate-after-switch");
}

/* How large may a lane's current segment be, given how quiet it has been? */
static uint64
rotation_size(OutboxDb *db, bool caught_up, uint64 retained)
{
	static uint64 last_count = 0;
	static int64 last_moved = 0;
	uint64		full = (uint64) outbox_segment_size * 1024;
	uint64		count = pg_atomic_read_u64(&db->publish_count);

	if (count != last_count || last_moved == 0)
	{
		last_count = count;
		last_moved = outbox_clock_ms();
	}
	if (!caught_up)
		return full;
	if (outbox_elapsed(last_moved, LONG_QUIET_MS) ||
		(outbox_max_backlog > 0 &&
		 retained / (1024 * 1024) >= (uint64) outbox_max_backlog))
		return BLCKSZ;
	if (outbox_elapsed(last_moved, QUIET_MS))
		return Max(full / OUTBOX_LANES, BLCKSZ);
	return full;
}

/* Free, then rotate, then the table of positions; see rotate.h. */
bool
outbox_keeper_maintain(OutboxDb *db)
{
	bool		caught_up;
	bool		more;
	uint64		retained;
	uint64		size;

	more = outbox_free_segments(db, &retained, &caught_up);
	pg_atomic_write_u64(&db->backlog_bytes, retained);
	size = rotation_size(db, caught_up, retained);
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		uint64		bytes;

		StartTransactionCommand();
		bytes = outbox_keeper_segment_bytes(db->lanes[lane].lane.relid);
		CommitTransactionCommand();
		if (bytes >= size)
		{
			rotate_lane(db, lane);
			more = true;
		}
	}
	outbox_position_compact();
	return more;
}
