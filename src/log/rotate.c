/*-------------------------------------------------------------------------
 *
 * rotate.c
 *	  Rotating and freeing segments: the keeper's part of the log.
 *
 * Rotation.  Past outbox.segment_size the next segment is prepared (taken from
 * the pool or made, and listed with the next generation) in a transaction, and
 * made current under the lane's lock after its commit.  A crash in between
 * leaves a prepared segment without rows behind, which the next rotation uses.
 *
 * Freeing.  A segment that is not current takes no more rows: publishers check
 * under the lane's lock that theirs is current.  When its highest id is below
 * the low id of every server's committed position, nobody wants a row of it
 * any more, also not one of a transaction that is still open, since low is at
 * most the lowest undecided id.  It then gets a new relfilenode and leaves its
 * lane in one transaction, under an AccessExclusiveLock that is only taken if
 * it is free.  The transaction's commit is flushed (it deletes files), and so
 * is, before it in WAL, the position that it rests on.
 *
 * The freeing lock is held from before servers and positions are read to the
 * commit.  CREATE SERVER takes it too: a server whose first position was not
 * seen here starts behind what is freed.  With no server at all everything is
 * kept, and so it is for a server that has no position yet.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fault.h"
#include "guc.h"
#include "log/lane.h"
#include "log/rotate.h"
#include "log/segment.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "transport/registry.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* After this long without a publication small segments are rotated too. */
#define QUIET_MS		1000
#define LONG_QUIET_MS	(5 * 60 * 1000)

/* Bytes in a segment; 0 when it can't be had at once. */
static uint64
segment_bytes(Oid relid)
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

static void
execute(const char *sql, int nargs, Oid *types, Datum *args, int expected)
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

	execute("UPDATE outbox.segments SET lane = $2, generation = $3 WHERE relid = $1",
			3, types, args, SPI_OK_UPDATE);
	if (SPI_processed == 0)
		execute("INSERT INTO outbox.segments (relid, lane, generation) VALUES ($1, $2, $3)",
				3, types, args, SPI_OK_INSERT);
}

static void
begin(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
}

static void
finish(void)
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

	begin();
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
	finish();
	OUTBOX_FAULT("rotate-before-switch");
	outbox_lane_switch(db, lane, next.relid, next.generation);
}

/*
 * The lowest low id of all servers; false when nothing may be freed.  Counts
 * the servers for others on the way.
 */
static bool
lowest_position(OutboxDb *db, uint64 *low)
{
	List	   *servers = registry_list_servers(CurrentMemoryContext);
	ListCell   *lc;

	*low = PG_UINT64_MAX;
	pg_atomic_write_u32(&db->nservers, list_length(servers));
	foreach(lc, servers)
	{
		Oid			types[1] = {OIDOID};
		Datum		args[1] = {ObjectIdGetDatum(lfirst_oid(lc))};
		bool		isnull;
		Datum		value;

		execute("SELECT min(low) FROM (SELECT DISTINCT ON (topic) low FROM outbox.position_log"
				" WHERE server = $1 ORDER BY topic, n DESC) latest",
				1, types, args, SPI_OK_SELECT);
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		if (isnull)
			return false;
		*low = Min(*low, (uint64) DatumGetInt64(value));
	}
	return servers != NIL;
}

static bool
is_current(const OutboxDb *db, const OutboxSegment *segment)
{
	return segment->lane >= 0 &&
		segment->generation >= db->lanes[segment->lane].lane.generation;
}

/* Is all of a segment done, and old enough to go? */
static bool
is_free(const OutboxSegment *segment, uint64 low)
{
	uint64		last;
	TimestampTz published;

	if (!outbox_segment_last_id(segment->relid, &last, &published))
		return true;
	if (last >= low && OUTBOX_RULE("free-below-low"))
		return false;
	return outbox_retention == 0 ||
		TimestampDifferenceExceeds(published, GetCurrentTimestamp(),
								   outbox_retention * 1000);
}

/* Empty a segment and put it into the pool, unless somebody is at it. */
static bool
free_segment(const OutboxSegment *segment)
{
	Relation	rel;
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(segment->relid)};

	if (!ConditionalLockRelationOid(segment->relid, AccessExclusiveLock))
		return false;
	rel = RelationIdGetRelation(segment->relid);
	if (rel == NULL)
		return false;
	outbox_new_relfilenumber(rel);
	RelationClose(rel);
	execute("UPDATE outbox.segments SET lane = NULL, generation = NULL WHERE relid = $1",
			1, types, args, SPI_OK_UPDATE);
	return true;
}

/* Free what is done; returns how many bytes the log still retains. */
static uint64
free_segments(OutboxDb *db, bool *caught_up)
{
	uint64		low = 0;
	uint64		retained = 0;
	bool		may_free;
	ListCell   *lc;

	*caught_up = false;
	begin();
	if (!outbox_lock(db->extoid, OUTBOX_LOCK_FREEING, false))
	{
		finish();
		return pg_atomic_read_u64(&db->backlog_bytes);
	}
	/* a snapshot taken under the lock */
	PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());
	may_free = lowest_position(db, &low);
	foreach(lc, outbox_segment_list())
	{
		const OutboxSegment *segment = lfirst(lc);
		uint64		bytes;

		if (segment->lane < 0)
			continue;
		bytes = segment_bytes(segment->relid);
		if (!may_free || is_current(db, segment) ||
			!is_free(segment, low) || !free_segment(segment))
			retained += bytes;
	}
	OUTBOX_FAULT("free-before-commit");
	*caught_up = may_free && low >= pg_atomic_read_u64(&db->next_id);
	/* the lock goes with the transaction, not before its commit */
	finish();
	return retained;
}

/* How large may a lane's current segment be, given how quiet it has been? */
static uint64
rotation_size(OutboxDb *db, bool caught_up)
{
	static uint64 last_count = 0;
	static TimestampTz last_moved = 0;
	uint64		full = (uint64) outbox_segment_size * 1024;
	uint64		count = pg_atomic_read_u64(&db->publish_count);
	TimestampTz now = GetCurrentTimestamp();

	if (count != last_count || last_moved == 0)
	{
		last_count = count;
		last_moved = now;
	}
	if (!caught_up)
		return full;
	if (TimestampDifferenceExceeds(last_moved, now, LONG_QUIET_MS))
		return BLCKSZ;
	if (TimestampDifferenceExceeds(last_moved, now, QUIET_MS))
		return Max(full / OUTBOX_LANES, BLCKSZ);
	return full;
}

/* Rotate full segments and free delivered ones. */
bool
outbox_keeper_maintain(OutboxDb *db)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		caught_up;
	bool		rotated = false;
	uint64		size;
	uint64		retained = free_segments(db, &caught_up);

	pg_atomic_write_u64(&db->backlog_bytes, retained);
	size = rotation_size(db, caught_up);
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		uint64		bytes;

		StartTransactionCommand();
		bytes = segment_bytes(db->lanes[lane].lane.relid);
		CommitTransactionCommand();
		if (bytes >= size)
		{
			rotate_lane(db, lane);
			rotated = true;
		}
	}
	MemoryContextSwitchTo(caller);
	return rotated;
}
