/*-------------------------------------------------------------------------
 *
 * append.c
 *	  Appending messages to the log.
 *
 * A message becomes one row, or several with one id when it is longer than
 * about a quarter page: so no row is ever long enough for TOAST, whose index
 * would be opened, and waited for, under the lane's lock.
 *
 * Why the log stays sorted.  Ids are taken from the shared counter, and their
 * rows inserted at the end of the lane's current segment, under one hold of
 * the lane's exclusive lock.  The page is always the last one: the relation's
 * target block is forgotten when the lock has been taken (what we remember of
 * our last visit may be pages behind; under the lock nobody else adds any),
 * the free space map is skipped, and without a bulk-insert state a relation
 * grows by one page at a time.  So within a lane a later page never has a
 * smaller id.
 *
 * Why ids are causal.  What is published after another transaction's commit
 * was seen takes its id after that transaction took its own: the counter only
 * grows, whatever the lane.
 *
 * What happens under the lock: heap_insert(), nothing else.  Transaction ids
 * are assigned, the segment is locked and opened, and rows are formed before.
 * The segment's lock is taken conditionally, so that DDL queued on a segment
 * (which would put us behind it in the queue) makes a publisher go to another
 * lane and not wait; where the others are all busy, for one of those.  It is
 * then kept until the transaction ends.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/heaptoast.h"
#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fault.h"
#include "log/append.h"
#include "log/lane.h"
#include "log/segment.h"
#include "message.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"

/* Bytes of key, headers and payload in one row: about a quarter page. */
#define ROW_BYTES		1700
/* Rows inserted under one hold of a lane's lock by one call. */
#define ROWS_PER_HOLD	256

/* Rows to append: a new id is taken at each row that starts a message. */
typedef struct RowSet
{
	HeapTuple  *rows;
	bool	   *starts;
	int			nrows;
	int			allocated;
} RowSet;

/* A lane that we hold, and its segment. */
typedef struct HeldLane
{
	OutboxDb   *db;
	OutboxLane *lane;
	Relation	rel;
} HeldLane;

/* The lane where this backend found room last. */
static int	my_lane = 0;

/* Where column i's value stands in a formed row: the id is the first. */
static inline void
set_row_id(HeapTuple row, uint64 id)
{
	memcpy((char *) row->t_data + row->t_data->t_hoff, &id, sizeof(id));
}

/* A bytea datum in its short form where it fits, which needs no padding. */
static Datum
short_bytea(const char *data, int len)
{
	struct varlena *v;

	if (len + VARHDRSZ_SHORT <= VARATT_SHORT_MAX)
	{
		v = palloc(len + VARHDRSZ_SHORT);
		SET_VARSIZE_SHORT(v, len + VARHDRSZ_SHORT);
		memcpy(VARDATA_SHORT(v), data, len);
	}
	else
	{
		v = palloc(len + VARHDRSZ);
		SET_VARSIZE(v, len + VARHDRSZ);
		memcpy(VARDATA(v), data, len);
	}
	return PointerGetDatum(v);
}

static void
add_row(RowSet *set, HeapTuple row, bool starts)
{
	if (set->nrows == set->allocated)
	{
		set->allocated = Max(8, set->allocated * 2);
		set->rows = set->rows ?
			repalloc_huge(set->rows, set->allocated * sizeof(HeapTuple)) :
			palloc(set->allocated * sizeof(HeapTuple));
		set->starts = set->starts ?
			repalloc_huge(set->starts, set->allocated * sizeof(bool)) :
			palloc(set->allocated * sizeof(bool));
	}
	set->rows[set->nrows] = row;
	set->starts[set->nrows] = starts;
	set->nrows++;
}

/* Take up to *room bytes of a field that goes over several rows. */
static void
take_piece(Datum *values, bool *nulls, OutboxColumn column,
		   const char *data, int len, int *done, int *room)
{
	int			n = Min(len - *done, *room);

	/* an empty field must be told from none: it stands in the first row */
	if (data == NULL || (n == 0 && (len > 0 || *done < 0)))
		return;
	values[column - 1] = short_bytea(data + *done, n);
	nulls[column - 1] = false;
	*done += n;
	*room -= n;
}

/* The columns that stand in every row of a message. */
static void
fill_fixed_columns(Datum *values, bool *nulls, const OutboxNewMessage *m,
				   uint64 epoch, TimestampTz now)
{
	memset(nulls, true, OUTBOX_NCOLUMNS * sizeof(bool));
#define SET(column, datum) \
	(values[(column) - 1] = (datum), nulls[(column) - 1] = false)
	SET(OUTBOX_COL_ID, Int64GetDatum(0));	/* known under the lock */
	SET(OUTBOX_COL_XID, UInt64GetDatum(U64FromFullTransactionId(GetTopFullTransactionId())));
	SET(OUTBOX_COL_EPOCH, Int64GetDatum((int64) epoch));
	SET(OUTBOX_COL_PUBLISHED, TimestampTzGetDatum(now));
	SET(OUTBOX_COL_VERSION, Int16GetDatum(OUTBOX_FORMAT_VERSION));
	SET(OUTBOX_COL_KIND, CharGetDatum(m->kind));
	if (m->partition >= 0)
		SET(OUTBOX_COL_PARTITION, Int32GetDatum(m->partition));
#undef SET
}

/* Form the rows of one message. */
static void
form_rows(RowSet *set, const OutboxNewMessage *m, uint64 epoch)
{
	Datum		values[OUTBOX_NCOLUMNS];
	bool		nulls[OUTBOX_NCOLUMNS];
	TupleDesc	desc = outbox_segment_desc();
	int			key = 0;
	int			headers = 0;
	int			payload = 0;
	TimestampTz now = m->published != 0 ? m->published : GetCurrentTimestamp();
	int			total = m->key_len + m->headers_len + m->payload_len;
	int			fixed = m->topic_len + m->message_id_len + m->target_len;
	int			parts;

	/* what is left of the first row beside topic, message id and target */
	parts = fixed + total <= ROW_BYTES ? 1 :
		1 + Max(0, total - Max(0, ROW_BYTES - fixed) + ROW_BYTES - 1) / ROW_BYTES;

	for (int part = 0; part < parts; part++)
	{
		int			room = part == 0 ? Max(0, ROW_BYTES - fixed) : ROW_BYTES;

		fill_fixed_columns(values, nulls, m, epoch, now);
		if (parts > 1)
		{
			values[OUTBOX_COL_PART - 1] = Int32GetDatum(part);
			values[OUTBOX_COL_PARTS - 1] = Int32GetDatum(parts);
			nulls[OUTBOX_COL_PART - 1] = nulls[OUTBOX_COL_PARTS - 1] = false;
		}
		if (part == 0)
		{
			values[OUTBOX_COL_TOPIC - 1] = short_bytea(m->topic, m->topic_len);
			nulls[OUTBOX_COL_TOPIC - 1] = false;
			if (m->message_id != NULL)
			{
				values[OUTBOX_COL_MESSAGE_ID - 1] = short_bytea(m->message_id, m->message_id_len);
				nulls[OUTBOX_COL_MESSAGE_ID - 1] = false;
			}
			if (m->target != NULL)
			{
				values[OUTBOX_COL_TARGET - 1] = short_bytea(m->target, m->target_len);
				nulls[OUTBOX_COL_TARGET - 1] = false;
			}
		}
		if (part == 0 || key < m->key_len)
			take_piece(values, nulls, OUTBOX_COL_KEY, m->key, m->key_len, &key, &room);
		if (part == 0 || headers < m->headers_len)
			take_piece(values, nulls, OUTBOX_COL_HEADERS, m->headers, m->headers_len, &headers, &room);
		if (part == 0 || payload < m->payload_len)
			take_piece(values, nulls, OUTBOX_COL_PAYLOAD, m->payload, m->payload_len, &payload, &room);
		add_row(set, heap_form_tuple(desc, values, nulls), part == 0);
		Assert(set->rows[set->nrows - 1]->t_len <= TOAST_TUPLE_THRESHOLD);
	}
	Assert(key == m->key_len && headers == m->headers_len && payload == m->payload_len);
}

/*
 * Lock and open a lane's current segment.  NULL when refused (or gone: then
 * the lane has another one by now).
 */
static Relation
open_segment(OutboxLane *lane, bool wait)
{
	Oid			relid = *(volatile Oid *) &lane->relid;
	Relation	rel;

	if (wait)
		LockRelationOid(relid, RowExclusiveLock);
	else if (!ConditionalLockRelationOid(relid, RowExclusiveLock))
		return NULL;
	rel = RelationIdGetRelation(relid);
	if (rel == NULL)
		UnlockRelationOid(relid, RowExclusiveLock);
	return rel;
}

/*
 * With the lane's lock held: is the opened segment still the one to use?  The
 * lane may have been rotated, the extension dropped, since we looked.
 */
static bool
still_current(const HeldLane *held, Oid extoid, uint64 incarnation)
{
	return outbox_db_is(held->db, extoid, incarnation) &&
		(held->lane->relid == RelationGetRelid(held->rel) ||
		 !OUTBOX_RULE("append-recheck"));
}

static void
release_lane(HeldLane *held)
{
	LWLockRelease(&held->lane->lock);
	RelationClose(held->rel);
}

/*
 * Try the lanes in turn; false when all are busy or refused.  Then says which
 * one is worth waiting for: busy is a matter of microseconds, refused lasts as
 * long as somebody's transaction.
 */
static bool
try_lanes(HeldLane *held, int *busy)
{
	*busy = -1;
	for (int i = 0; i < OUTBOX_LANES; i++)
	{
		int			n = (my_lane + i) % OUTBOX_LANES;

		held->lane = &held->db->lanes[n].lane;
		held->rel = open_segment(held->lane, false);
		if (held->rel == NULL)
			continue;
		OUTBOX_FAULT("append-after-open");
		if (LWLockConditionalAcquire(&held->lane->lock, LW_EXCLUSIVE))
		{
			my_lane = n;
			return true;
		}
		RelationClose(held->rel);
		if (*busy < 0)
			*busy = n;
	}
	return false;
}

/* Take a lane, waiting when all are busy. */
static void
acquire_lane(Oid extoid, HeldLane *held)
{
	uint64		incarnation;
	int			busy;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		held->db = outbox_db_get(extoid);
		incarnation = held->db->incarnation;
		if (!try_lanes(held, &busy))
		{
			if (!OUTBOX_RULE("wait-for-busy-lane"))
				busy = -1;
			held->lane = &held->db->lanes[busy >= 0 ? busy : my_lane].lane;
			held->rel = open_segment(held->lane, busy < 0);
			if (held->rel == NULL)
			{
				/* rotated and freed meanwhile, or the extension was dropped */
				outbox_extension_check(extoid);
				continue;
			}
			LWLockAcquire(&held->lane->lock, LW_EXCLUSIVE);
		}
		if (still_current(held, extoid, incarnation))
			return;
		release_lane(held);
	}
}

/* The next id, or 0 when the reserve is used up. */
static uint64
take_id(OutboxDb *db)
{
	uint64		id = pg_atomic_fetch_add_u64(&db->next_id, 1);

	return id < pg_atomic_read_u64(&db->limit_id) ? id : 0;
}

/* For tests: what may happen between the rows of a message. */
static inline void
between_parts(HeldLane *held)
{
	if (!OUTBOX_RULE("one-hold"))
		LWLockRelease(&held->lane->lock);
	OUTBOX_FAULT("append-between-parts");
	if (!OUTBOX_RULE("one-hold"))
		LWLockAcquire(&held->lane->lock, LW_EXCLUSIVE);
}

/*
 * Insert rows from the first not yet inserted on, under one hold of a lane's
 * lock: a few hundred, to the end of a message, or until ids run out.
 */
static int
insert_some(Oid extoid, RowSet *set, int from, uint64 *id)
{
	HeldLane	held;
	CommandId	cid = GetCurrentCommandId(true);
	int			i;
	bool		out_of_ids = false;

	acquire_lane(extoid, &held);
	if (!OUTBOX_RULE("ids-under-lock"))
		LWLockRelease(&held.lane->lock);
	RelationSetTargetBlock(held.rel, InvalidBlockNumber);
	for (i = from; i < set->nrows; i++)
	{
		if (set->starts[i])
		{
			uint64		next;

			if (i - from >= ROWS_PER_HOLD)
				break;
			next = take_id(held.db);
			if (next == 0)
			{
				out_of_ids = true;
				break;
			}
			*id = next;
		}
		OUTBOX_FAULT("append-after-id");
		if (!OUTBOX_RULE("nothing-under-lock"))
		{
			LockRelationOid(ClassOidIndexId, AccessShareLock);
			UnlockRelationOid(ClassOidIndexId, AccessShareLock);
		}
		set_row_id(set->rows[i], *id);
		heap_insert(held.rel, set->rows[i], cid,
					HEAP_INSERT_SKIP_FSM | HEAP_INSERT_NO_LOGICAL, NULL);
		if (!set->starts[i])
			between_parts(&held);
	}
	if (!OUTBOX_RULE("ids-under-lock"))
		LWLockAcquire(&held.lane->lock, LW_EXCLUSIVE);
	release_lane(&held);
	if (out_of_ids)
	{
		OUTBOX_FAULT("append-out-of-ids");
		outbox_reserve_ids(held.db, extoid);
	}
	return i;
}

/* Append messages, in order; returns the last one's id. */
uint64
outbox_append(Oid extoid, const OutboxNewMessage *messages, int n)
{
	RowSet		set = {0};
	uint64		id = 0;
	OutboxDb   *db = outbox_db_get(extoid);
	MemoryContext context;
	MemoryContext old;
	int			done = 0;

	/*
	 * Both before any lane lock: assigning a transaction id takes locks of
	 * its own, and the reader relies on ids being taken after it.
	 */
	(void) GetCurrentTransactionId();
	(void) GetTopFullTransactionId();

	context = AllocSetContextCreate(CurrentMemoryContext, "pg_outbox append",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	while (done < n)
	{
		int			row = 0;

		/* a bounded amount of rows in memory, whatever the batch */
		set.nrows = 0;
		do
			form_rows(&set, &messages[done++], db->epoch);
		while (done < n && set.nrows < ROWS_PER_HOLD);

		while (row < set.nrows)
			row = insert_some(extoid, &set, row, &id);
		if (done < n)
		{
			MemoryContextReset(context);
			memset(&set, 0, sizeof(set));
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return id;
}
