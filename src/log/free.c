/*-------------------------------------------------------------------------
 *
 * free.c
 *	  Freeing segments whose messages are done.
 *
 * A segment that is not current takes no more rows: publishers check under the
 * lane's lock that theirs is current.  So once all of its rows are done, it can
 * go.  What is done is said by the committed positions of all servers, of
 * paused ones and of lagging topics too: the newest row of each server and
 * topic in outbox.position_log is a position, and all of them have to agree.
 *
 * Mostly the highest id answers: below the low id of every position nobody
 * wants a row any more, also not one of a transaction that is still open, since
 * low is at most the lowest undecided id.  But low stays where a transaction
 * that published stays open, and the log must not grow behind it without bound.
 * So beyond low the rows are asked, one by one: a row is done when its
 * transaction is in S1, or in S2 and its id is not behind the cursor, or when
 * it was rolled back.  The first row that is not done is remembered with its
 * transaction; until the positions pass that one, the segment is not looked at
 * again, so each is scanned about once.  Rows can't come back from being done,
 * except for a server with an older position, and then the low id and the
 * remembered row are asked again like everything else.
 *
 * A segment that is free gets a new relfilenode and leaves its lane in one
 * transaction, under an AccessExclusiveLock that is only taken if it is free.
 * The transaction's commit is flushed (it deletes files), and so is, before it
 * in WAL, the position that it rests on.
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

#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fault.h"
#include "guc.h"
#include "log/lane.h"
#include "log/reader.h"
#include "log/rotate.h"
#include "log/segment.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "transport/registry.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* One transaction frees so many segments (each is a lock) ... */
#define FREED_AT_ONCE		64
/* ... and begins no further scan once it has looked at so many pages. */
#define SCANNED_AT_ONCE		16384

/* What is known of a segment that takes no more rows. */
typedef struct Closed
{
	uint64		generation;		/* key */
	uint64		bytes;
	bool		known;			/* last and published are */
	uint64		last;			/* highest id, 0: holds nothing */
	TimestampTz published;		/* of that id */
	uint64		blocker;		/* a row that was not done, 0: none known */
	uint64		blocker_xid;
	uint32		turn;			/* when it was listed last */
} Closed;

/* One look at all segments. */
typedef struct Freeing
{
	OutboxDb   *db;
	List	   *positions;		/* of OutboxPosition */
	uint64		low;			/* the lowest of them */
	bool		may_free;
	int			freed;
	BlockNumber scanned;
	bool		more;			/* stopped before the end */
} Freeing;

static HTAB *closed_segments = NULL;
static uint64 closed_incarnation = 0;
static uint32 turn = 0;

/* What was remembered belongs to one life of the database's entry. */
static void
reset_closed(const OutboxDb *db)
{
	HASHCTL		ctl;

	if (closed_segments != NULL && closed_incarnation == db->incarnation)
		return;
	if (closed_segments != NULL)
		hash_destroy(closed_segments);
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Closed);
	ctl.hcxt = TopMemoryContext;
	closed_segments = hash_create("pg_outbox closed segments", 64, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	closed_incarnation = db->incarnation;
}

static Closed *
remember_closed(const OutboxSegment *segment)
{
	bool		found;
	Closed	   *closed = hash_search(closed_segments, &segment->generation,
									 HASH_ENTER, &found);

	if (!found)
	{
		memset(closed, 0, sizeof(Closed));
		closed->generation = segment->generation;
	}
	closed->turn = turn;
	return closed;
}

static void
forget_unlisted(void)
{
	HASH_SEQ_STATUS status;
	Closed	   *closed;

	hash_seq_init(&status, closed_segments);
	while ((closed = hash_seq_search(&status)) != NULL)
		if (closed->turn != turn)
			(void) hash_search(closed_segments, &closed->generation, HASH_REMOVE, NULL);
}

/* The positions of one server; false when it has none yet. */
static bool
load_positions(Freeing *f, Oid serverid)
{
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(serverid)};
	bool		isnull;

	outbox_keeper_execute("SELECT DISTINCT ON (topic) s1::text, s2::text, cursor, low"
						  " FROM outbox.position_log WHERE server = $1"
						  " ORDER BY topic, n DESC",
						  1, types, args, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		OutboxPosition *pos = palloc(sizeof(OutboxPosition));

		pos->s1 = outbox_snapshot_in(SPI_getvalue(row, desc, 1));
		pos->s2 = outbox_snapshot_in(SPI_getvalue(row, desc, 2));
		pos->cursor = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
		pos->low = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
		f->low = Min(f->low, pos->low);
		f->positions = lappend(f->positions, pos);
	}
	return SPI_processed > 0;
}

/* The positions of all servers. */
static void
load_all_positions(Freeing *f)
{
	List	   *servers = registry_list_servers(CurrentMemoryContext);
	ListCell   *lc;

	f->low = PG_UINT64_MAX;
	f->may_free = servers != NIL;
	foreach(lc, servers)
		if (!load_positions(f, lfirst_oid(lc)))
			f->may_free = false;
}

/* Is a row done by all positions? */
static bool
row_is_done(const Freeing *f, uint64 xid, uint64 id)
{
	ListCell   *lc;

	if (id < f->low)
		return true;
	foreach(lc, f->positions)
	{
		const OutboxPosition *pos = lfirst(lc);

		if (id >= pos->low &&
			!outbox_snapshot_contains(pos->s1, xid) &&
			!(outbox_snapshot_contains(pos->s2, xid) && id <= pos->cursor))
			return false;
	}
	return true;
}

/* The first row of a page that is neither done nor rolled back. */
static bool
page_has_blocker(const Freeing *f, Relation rel, BlockNumber blkno,
				 BufferAccessStrategy strategy, Closed *closed)
{
	Buffer		buffer = ReadBufferExtended(rel, MAIN_FORKNUM, blkno, RBM_NORMAL, strategy);
	Page		page;
	OffsetNumber last;
	bool		found = false;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	last = PageIsNew(page) ? 0 : PageGetMaxOffsetNumber(page);
	for (OffsetNumber off = last; off >= FirstOffsetNumber && !found; off--)
	{
		ItemId		item = PageGetItemId(page, off);
		HeapTupleData tuple;
		OutboxRow	row;
		TransactionId dead_after;

		if (!ItemIdIsNormal(item))
			continue;
		tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
		tuple.t_len = ItemIdGetLength(item);
		tuple.t_tableOid = RelationGetRelid(rel);
		ItemPointerSet(&tuple.t_self, blkno, off);
		outbox_row_read(&tuple, &row);
		if (row_is_done(f, row.xid, row.id) ||
			HeapTupleSatisfiesVacuumHorizon(&tuple, buffer, &dead_after) == HEAPTUPLE_DEAD)
			continue;
		closed->blocker = row.id;
		closed->blocker_xid = row.xid;
		found = true;
	}
	UnlockReleaseBuffer(buffer);
	return found;
}

/*
 * Are all rows of a segment done?  From its end, where the row that comes last
 * is, so that a backlog's segments cost one page each.
 */
static bool
scan_segment(Freeing *f, Oid relid, Closed *closed)
{
	BufferAccessStrategy strategy;
	Relation	rel;
	BlockNumber blkno;
	bool		blocked = false;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	rel = RelationIdGetRelation(relid);
	if (rel == NULL)
	{
		UnlockRelationOid(relid, AccessShareLock);
		return false;
	}
	closed->blocker = 0;
	strategy = GetAccessStrategy(BAS_BULKREAD);
	for (blkno = RelationGetNumberOfBlocks(rel); blkno > 0 && !blocked; blkno--)
	{
		CHECK_FOR_INTERRUPTS();
		blocked = page_has_blocker(f, rel, blkno - 1, strategy, closed);
		f->scanned++;
	}
	FreeAccessStrategy(strategy);
	RelationClose(rel);
	UnlockRelationOid(relid, AccessShareLock);
	return !blocked;
}

/* Is all of a segment done? */
static bool
is_done(Freeing *f, const OutboxSegment *segment, Closed *closed)
{
	if (closed->last < f->low || !OUTBOX_RULE("free-below-low"))
		return true;
	if (!OUTBOX_RULE("free-by-scan"))
		return false;
	if (closed->blocker != 0 &&
		!row_is_done(f, closed->blocker_xid, closed->blocker))
		return false;
	if (f->scanned >= SCANNED_AT_ONCE)
	{
		f->more = true;
		return false;
	}
	return scan_segment(f, segment->relid, closed);
}

/* Is all of a segment done, and old enough to go? */
static bool
is_free(Freeing *f, const OutboxSegment *segment, Closed *closed)
{
	if (!closed->known)
	{
		/* not to wait with the freeing lock in hand */
		if (!ConditionalLockRelationOid(segment->relid, AccessShareLock))
			return false;
		if (!outbox_segment_last_id(segment->relid, &closed->last, &closed->published))
			closed->last = 0;
		closed->known = true;
		UnlockRelationOid(segment->relid, AccessShareLock);
	}
	if (closed->last == 0)
		return true;
	if (outbox_retention > 0 &&
		!TimestampDifferenceExceeds(closed->published, GetCurrentTimestamp(),
									outbox_retention * 1000))
		return false;
	return is_done(f, segment, closed);
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
	outbox_keeper_execute("UPDATE outbox.segments SET lane = NULL, generation = NULL WHERE relid = $1",
						  1, types, args, SPI_OK_UPDATE);
	return true;
}

/* Free a segment if it can be; returns the bytes that it retains. */
static uint64
look_at_segment(Freeing *f, const OutboxSegment *segment)
{
	Closed	   *closed;

	if (segment->generation >= f->db->lanes[segment->lane].lane.generation)
		return outbox_keeper_segment_bytes(segment->relid);
	closed = remember_closed(segment);
	if (closed->bytes == 0)
		closed->bytes = outbox_keeper_segment_bytes(segment->relid);
	if (!f->may_free || !is_free(f, segment, closed))
		return closed->bytes;
	if (f->freed >= FREED_AT_ONCE)
	{
		f->more = true;
		return closed->bytes;
	}
	if (!free_segment(segment))
		return closed->bytes;
	f->freed++;
	return 0;
}

/* Free what is done, see rotate.h. */
bool
outbox_free_segments(OutboxDb *db, uint64 *retained, bool *caught_up)
{
	Freeing		f = {0};
	uint64		bytes = 0;
	ListCell   *lc;

	*retained = pg_atomic_read_u64(&db->backlog_bytes);
	*caught_up = false;
	outbox_keeper_begin();
	if (OUTBOX_RULE("freeing-lock") &&
		!outbox_lock(db->extoid, OUTBOX_LOCK_FREEING, false))
	{
		outbox_keeper_commit();
		return false;
	}
	/* what was committed under the lock before is seen */
	AcceptInvalidationMessages();
	InvalidateCatalogSnapshot();
	PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());

	f.db = db;
	reset_closed(db);
	turn++;
	load_all_positions(&f);
	foreach(lc, outbox_segment_list())
	{
		const OutboxSegment *segment = lfirst(lc);

		if (segment->lane >= 0)
			bytes += look_at_segment(&f, segment);
	}
	forget_unlisted();
	*retained = bytes;
	*caught_up = f.may_free && f.low >= outbox_end_of_ids(db);
	OUTBOX_FAULT("free-before-commit");
	/* the lock goes with the transaction, not before its commit */
	outbox_keeper_commit();
	if (f.freed > 0)
		OUTBOX_FAULT("free-after-commit");
	return f.more;
}
