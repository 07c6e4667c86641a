/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Reading the log by snapshot difference.
 *
 * A round reads a batch: what is in a snapshot S2 and was not in the last
 * one, S1.  Every transaction ends once, so every row is in one batch, however
 * long its transaction stayed open, and nobody waits for anybody.
 *
 * A round reads the id counter, C; then touches each lane's lock, so that
 * every id below C is in its lane, since ids are taken and rows inserted under
 * one hold; then takes S2; then reads the counter again, E.
 *
 * Where are the rows of S2 \ S1?  With C' the last round's C:
 * - Ids from C' on: read up to E.  A row of S2 was written before S2 was taken,
 *   so its id is below E.
 * - Ids below C': the row was in its lane before S1 was taken, so its
 *   transaction had its xid by then, and since it is not in S1 it was running.
 *   The last round saw the row, and put its transaction on the open list
 *   with the range of its ids.  When a transaction of the list is in S2, its
 *   range is read again.
 * So what a round reads does not grow while a transaction stays open, and the
 * open list is bounded by connections and prepared transactions.
 *
 * A batch may be longer than memory: it is fetched piece by piece, each in a
 * transaction of its own.  What is in S2 is decided for ever, so a live
 * snapshot taken later judges its rows alike; it is asked because a
 * subtransaction may have rolled back.
 *
 * Position.  Within a batch: (S1, S2, the last id handed out, low), where low
 * is at most the lowest id seen that S2 does not decide, and at most C.  A
 * reader that starts from it has an empty open list: it finishes the batch
 * behind the cursor, and its next round reads from low on, which brings
 * every undecided row, and with it the open list, back.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "compat.h"
#include "fault.h"
#include "log/lane.h"
#include "log/merge.h"
#include "log/open_list.h"
#include "log/reader.h"
#include "log/snapshot.h"
#include "log/wal.h"
#include "message.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* How often a round looks at ids alone, see nothing_new(). */
#define IDS_ONLY_MS		1000

struct OutboxReader
{
	MemoryContext context;
	Oid			extoid;
	OutboxSnapshot *last;		/* everything in it was handed out, but for
								 * the batch under way */
	uint64		from;			/* C: the next round reads from here on */
	uint64		end;			/* E: what is in last lies below; 0: unknown */
	XLogRecPtr	last_lsn;		/* of last; 0: safe */
	uint64		last_count;		/* of last; 0: unknown */
	bool		has_count;
	uint64		publish_count;	/* as read before the last s2 */
	instr_time	begun_at;		/* start of the last round */
	OutboxOpenList open;
	HTAB	   *known;

	/* the batch under way */
	OutboxBatch *batch;
	OutboxRanges ranges[OUTBOX_LANES];
	MemoryContext range_context;
	uint64		next;			/* ids below are behind us */
	uint64		track_from;		/* undecided ids from here ... */
	uint64		track_to;		/* ... to before here join the open list */
	uint64		next_from;		/* C of this round */
	uint64		next_end;		/* E of this round */

	/* the verdict on the row before, often the same transaction's */
	uint64		cached_xid;
	bool		cached_wanted;
	bool		cached_undecided;
};

static OutboxBatch *
new_batch(OutboxReader *reader, const OutboxSnapshot *s1, const OutboxSnapshot *s2)
{
	MemoryContext old = MemoryContextSwitchTo(MemoryContextGetParent(reader->context));
	OutboxBatch *batch = palloc0(sizeof(OutboxBatch));

	batch->refcount = 1;
	batch->s1 = outbox_snapshot_copy(s1);
	batch->s2 = outbox_snapshot_copy(s2);
	MemoryContextSwitchTo(old);
	return batch;
}

void
outbox_batch_release(OutboxBatch *batch)
{
	if (--batch->refcount > 0)
		return;
	pfree(batch->s1);
	pfree(batch->s2);
	pfree(batch);
}

/* Make room for the ranges of a new batch. */
static void
reset_ranges(OutboxReader *reader)
{
	MemoryContextReset(reader->range_context);
	memset(reader->ranges, 0, sizeof(reader->ranges));
}

/* Add a range to a lane's; sorted and merged by outbox_ranges_sort(). */
static void
add_range(OutboxReader *reader, int lane, uint64 from, uint64 to)
{
	OutboxRanges *r = &reader->ranges[lane];

	if (from > to)
		return;
	if (r->ranges == NULL)
		r->ranges = MemoryContextAlloc(reader->range_context,
									   (reader->open.n + 1) * sizeof(OutboxRange));
	r->ranges[r->n].from = from;
	r->ranges[r->n].to = to;
	r->n++;
}

/* A reader that goes on from a position. */
OutboxReader *
outbox_reader_create(MemoryContext parent, Oid extoid, const OutboxPosition *start)
{
	MemoryContext context = AllocSetContextCreate(parent, "pg_outbox reader",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	OutboxReader *reader = palloc0(sizeof(OutboxReader));

	reader->context = context;
	reader->range_context = AllocSetContextCreate(context, "pg_outbox ranges",
												  ALLOCSET_SMALL_SIZES);
	reader->extoid = extoid;
	reader->known = outbox_merge_known(context);
	reader->last = outbox_snapshot_copy(start->s2);
	reader->from = reader->next_from = start->low;
	MemoryContextSwitchTo(old);

	if (!outbox_snapshot_equal(start->s1, start->s2))
	{
		/* finish the position's batch; low stays what it is */
		reader->batch = new_batch(reader, start->s1, start->s2);
		reader->batch->undecided = start->low;
		reader->next = start->cursor + 1;
		for (int lane = 0; lane < OUTBOX_LANES; lane++)
			add_range(reader, lane, start->cursor + 1, PG_UINT64_MAX - 1);
	}
	return reader;
}

/*
 * Free a reader.  Batches are allocated in the context around it, since
 * messages may still refer to them.
 */
void
outbox_reader_free(OutboxReader *reader)
{
	if (reader->batch != NULL)
		outbox_batch_release(reader->batch);
	MemoryContextDelete(reader->context);
}

/* A second reader that stands just where this one stands. */
OutboxReader *
outbox_reader_clone(MemoryContext parent, OutboxReader *reader)
{
	OutboxPosition pos;
	OutboxReader *clone;
	MemoryContext old;

	outbox_reader_position(reader, &pos);
	pos.s1 = pos.s2;			/* no batch of its own: it shares ours */
	clone = outbox_reader_create(parent, reader->extoid, &pos);
	old = MemoryContextSwitchTo(clone->context);
	pfree(clone->last);
	clone->last = outbox_snapshot_copy(reader->last);
	clone->from = reader->from;
	clone->end = reader->end;
	clone->last_lsn = reader->last_lsn;
	clone->last_count = reader->last_count;
	clone->next_from = reader->next_from;
	clone->next_end = reader->next_end;
	open_list_copy(&clone->open, &reader->open);
	MemoryContextSwitchTo(old);
	if (reader->batch != NULL)
	{
		clone->batch = reader->batch;
		clone->batch->refcount++;
		clone->next = reader->next;
		clone->track_from = reader->track_from;
		clone->track_to = reader->track_to;
		for (int lane = 0; lane < OUTBOX_LANES; lane++)
		{
			OutboxRanges *r = &reader->ranges[lane];

			if (r->n == 0)
				continue;
			clone->ranges[lane].ranges =
				MemoryContextAlloc(clone->range_context, r->n * sizeof(OutboxRange));
			memcpy(clone->ranges[lane].ranges, r->ranges, r->n * sizeof(OutboxRange));
			clone->ranges[lane].n = r->n;
		}
	}
	return clone;
}

/* The position when everything fetched so far is done. */
void
outbox_reader_position(OutboxReader *reader, OutboxPosition *pos)
{
	if (reader->batch != NULL)
	{
		pos->s1 = outbox_snapshot_copy(reader->batch->s1);
		pos->s2 = outbox_snapshot_copy(reader->batch->s2);
		pos->cursor = reader->next - 1;
		pos->low = Min(reader->batch->undecided, reader->next);
		pos->lsn = reader->batch->lsn;
	}
	else
	{
		pos->s1 = outbox_snapshot_copy(reader->last);
		pos->s2 = outbox_snapshot_copy(reader->last);
		pos->low = Min(open_list_lowest(&reader->open), reader->from);
		pos->cursor = reader->from - 1;
		pos->lsn = reader->last_lsn;
	}
}

/* The lowest id that it reads next. */
uint64
outbox_reader_next_id(const OutboxReader *reader)
{
	return reader->batch != NULL ? reader->next : reader->from;
}

/* The position with everything before this message done, it not. */
void
outbox_position_before(const OutboxMessage *message, OutboxPosition *pos)
{
	pos->s1 = outbox_snapshot_copy(message->batch->s1);
	pos->s2 = outbox_snapshot_copy(message->batch->s2);
	pos->cursor = message->id - 1;
	pos->low = Min(message->batch->undecided, message->id);
	pos->lsn = message->batch->lsn;
}

/* The position before all of a batch; false when it is not known. */
bool
outbox_position_before_batch(const OutboxBatch *batch, OutboxPosition *pos)
{
	if (batch->s1_low == 0)
		return false;
	pos->s1 = outbox_snapshot_copy(batch->s1);
	pos->s2 = outbox_snapshot_copy(batch->s1);
	pos->cursor = batch->s1_low - 1;
	pos->low = batch->s1_low;
	pos->lsn = batch->s1_lsn;
	return true;
}

/*
 * Can nothing have changed since the last round?  Ids that were handed out and
 * belong to nothing that committed (they were rolled back, or are still open)
 * are looked at once a second at most, so that low gets past them.
 */
static bool
nothing_new(OutboxReader *reader, OutboxDb *db, uint64 count)
{
	instr_time	elapsed;

	if (!reader->has_count || count != reader->publish_count ||
		open_list_any_ended(&reader->open))
		return false;
	if (outbox_end_of_ids(db) == reader->from)
		return true;
	INSTR_TIME_SET_CURRENT(elapsed);
	INSTR_TIME_SUBTRACT(elapsed, reader->begun_at);
	return INSTR_TIME_GET_MILLISEC(elapsed) < IDS_ONLY_MS || !OUTBOX_RULE("ids-only-round");
}

/* Make sure that every id handed out so far is in its lane. */
static void
touch_lanes(OutboxDb *db)
{
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		LWLockAcquire(&db->lanes[lane].lane.lock, LW_SHARED);
		LWLockRelease(&db->lanes[lane].lane.lock);
	}
}

/* Split the open list: what is in s2 is read now, the rest stays. */
static void
take_ended(OutboxReader *reader, const OutboxSnapshot *s2)
{
	open_list_mark_ended(&reader->open, s2);
	if (!OUTBOX_RULE("open-list"))
		return;
	for (int i = 0; i < reader->open.n; i++)
	{
		const OpenXact *open = &reader->open.xacts[i];

		for (int lane = 0; open->ended && lane < OUTBOX_LANES; lane++)
			if (open->lanes & (1U << lane))
				add_range(reader, lane, open->lowest, open->highest);
	}
}

/* Where the ranges of a round begin: no row before is wanted in it. */
static uint64
lowest_range(const OutboxReader *reader, uint64 none)
{
	uint64		lowest = none;

	for (int lane = 0; lane < OUTBOX_LANES; lane++)
		if (reader->ranges[lane].n > 0)
			lowest = Min(lowest, reader->ranges[lane].ranges[0].from);
	return lowest;
}

/*
 * Set up a batch up to a snapshot, in whose time the counter stood at c before
 * the lanes were touched, and at e after the snapshot was taken.  The reader
 * has its batch only when all that may fail is over: half of the ranges would
 * pass for all of them.
 */
static void
begin_batch(OutboxReader *reader, const OutboxSnapshot *s2, uint64 c, uint64 e)
{
	uint64		s1_low = Min(open_list_lowest(&reader->open), reader->from);

	reset_ranges(reader);
	take_ended(reader, s2);
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		add_range(reader, lane, reader->from, e - 1);
		outbox_ranges_sort(&reader->ranges[lane]);
	}
	reader->batch = new_batch(reader, reader->last, s2);
	reader->batch->s1_count = reader->last_count;
	reader->batch->s1_low = s1_low;
	reader->batch->s1_lsn = reader->last_lsn;
	reader->track_from = reader->from;
	reader->track_to = c;
	reader->next_from = c;
	reader->next_end = e;
	reader->next = lowest_range(reader, c);
	reader->batch->undecided = Min(open_list_lowest(&reader->open), c);
}

/* Begin a round, see the banner. */
bool
outbox_reader_begin(OutboxReader *reader)
{
	MemoryContext caller = CurrentMemoryContext;
	OutboxDb   *db;
	OutboxSnapshot *s2;
	uint64		count;
	uint64		c;
	uint64		e;
	XLogRecPtr	lsn;

	Assert(reader->batch == NULL);
	StartTransactionCommand();
	db = outbox_db_get(reader->extoid);
	count = outbox_atomic_read(&db->publish_count);
	if (nothing_new(reader, db, count))
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(caller);
		return false;
	}
	INSTR_TIME_SET_CURRENT(reader->begun_at);
	c = outbox_end_of_ids(db);
	if (OUTBOX_RULE("touch-lanes"))
		touch_lanes(db);
	OUTBOX_FAULT("reader-before-snapshot");
	s2 = outbox_snapshot_from(GetTransactionSnapshot());
	e = outbox_end_of_ids(db);
	lsn = outbox_flush_wal();

	begin_batch(reader, s2, c, e);
	reader->batch->lsn = lsn;
	reader->batch->publish_count = count;
	reader->publish_count = count;
	reader->has_count = true;
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return true;
}

/*
 * Begin a round up to where another reader stands.  Its C, E and flushed WAL
 * hold for this one too, being those of the same snapshot.
 */
bool
outbox_reader_follow(OutboxReader *reader, const OutboxReader *leader)
{
	uint64		e = leader->end;
	int			compared = outbox_snapshot_compare(reader->last, leader->last);

	Assert(reader->batch == NULL);
	/* the same snapshot, taken again: what it sees was handed out here too */
	if (compared == 0)
		reader->last_count = Max(reader->last_count, leader->last_count);
	if (compared >= 0)
		return false;
	if (e == 0)
		e = outbox_end_of_ids(outbox_db_get(reader->extoid));
	begin_batch(reader, leader->last, leader->from, e);
	reader->batch->lsn = leader->last_lsn;
	reader->batch->publish_count = leader->last_count;
	return true;
}

/* Is a row of this batch?  Those that s2 leaves open are tracked. */
static OutboxVerdict
judge_row(void *arg, int lane, const OutboxRow *row)
{
	OutboxReader *reader = arg;

	if (row->xid != reader->cached_xid)
	{
		bool		decided = outbox_snapshot_contains(reader->batch->s2, row->xid);

		reader->cached_xid = row->xid;
		reader->cached_undecided = !decided;
		reader->cached_wanted = decided &&
			!outbox_snapshot_contains(reader->batch->s1, row->xid);
	}
	if (reader->cached_wanted)
		return row->visible ? OUTBOX_TAKE : OUTBOX_SKIP;
	if (reader->cached_undecided &&
		row->id >= reader->track_from && row->id < reader->track_to)
	{
		open_list_track(&reader->open, reader->context, lane, row);
		reader->batch->undecided = Min(reader->batch->undecided, row->id);
	}
	return OUTBOX_SKIP;
}

/* The batch is read: its s2 is the next one's s1. */
static void
finish_batch(OutboxReader *reader)
{
	MemoryContext old = MemoryContextSwitchTo(reader->context);
	OutboxSnapshot *s2 = outbox_snapshot_copy(reader->batch->s2);

	open_list_drop_ended(&reader->open);
	pfree(reader->last);
	reader->last = s2;
	reader->from = reader->next_from;
	reader->end = reader->next_end;
	reader->last_lsn = reader->batch->lsn;
	reader->last_count = reader->batch->publish_count;
	outbox_batch_release(reader->batch);
	reader->batch = NULL;
	reset_ranges(reader);
	MemoryContextSwitchTo(old);
}

OutboxBatch *
outbox_reader_batch(OutboxReader *reader)
{
	return reader->batch;
}

const OutboxSnapshot *
outbox_reader_last(OutboxReader *reader)
{
	return reader->last;
}

#ifdef OUTBOX_FAULT_POINTS
int
outbox_reader_open_count(OutboxReader *reader)
{
	return reader->open.n;
}
#endif

uint64
outbox_reader_confirmed(const OutboxReader *reader)
{
	return reader->batch != NULL ? reader->batch->s1_count : reader->last_count;
}

/* Fetch a piece of the batch, see reader.h. */
void
outbox_reader_fetch(OutboxReader *reader, MemoryContext mcxt, Size room,
					OutboxMessage **messages, int *n, int max,
					Size max_bytes, OutboxWanted wanted, void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	Snapshot	snapshot;
	OutboxMerge *merge;
	HeapTupleData tuple;
	OutboxRow	row;
	Size		bytes = 0;
	uint64		next;

	Assert(reader->batch != NULL);
	StartTransactionCommand();
	if (XLogRecPtrIsInvalid(reader->batch->lsn))
		reader->batch->lsn = outbox_flush_wal();
	snapshot = RegisterSnapshot(GetTransactionSnapshot());
	reader->cached_xid = 0;
	merge = outbox_merge_begin(reader->ranges, reader->next, snapshot,
							   reader->known, judge_row, reader);
	while (*n < max && bytes < max_bytes &&
		   outbox_merge_next(merge, &tuple, &row))
	{
		OutboxMessage *message = outbox_message_read(merge, &tuple, &row, mcxt,
													 room, wanted, arg);

		if (message == NULL)
			continue;
		message->batch = reader->batch;
		reader->batch->refcount++;
		bytes += message->bytes;
		messages[(*n)++] = message;
	}
	next = outbox_merge_resume(merge);
	outbox_merge_end(merge);
	UnregisterSnapshot(snapshot);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	/* only now are they handed out: what raised is read again */
	if (next == PG_UINT64_MAX)
		finish_batch(reader);
	else
		reader->next = next;
}
