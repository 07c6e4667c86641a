/*-------------------------------------------------------------------------
 *
 * mark.c
 *	  Marks of messages that a consumer has seen: the table inbox.seen.
 *
 * A mark is a row, unique by consumer and message id.  It is set as INSERT ...
 * ON CONFLICT sets one, by the executor's own parts: insert it speculatively, so
 * that of two who do so at a time one sees the other's, and look the row up where
 * there is one.  Whoever finds the mark of a transaction in progress waits for
 * its end.  What is left out is all around it (a statement, its plan, rights,
 * triggers), so that a call costs what a bare INSERT does.
 *
 * Many marks are cheaper: they are inserted together, in a subtransaction, and not
 * speculatively.  Where one was there already, or is about to be, all of them are
 * undone at once, before anybody is waited for, and set one by one.
 *
 * An expired mark counts as absent: it is updated in place.  Of two who find it
 * expired, one updates it, and the other waits, sees that it was updated, and
 * looks again.
 *
 * Time.  What counts is the clock after a wait: else a mark that is set then would
 * have lost that much of its time, all of it perhaps.  Marks of a batch share the
 * time of a millisecond, which keeps the index on it small.
 *
 * Isolation.  A mark that was committed after the caller's snapshot counts, though
 * the caller can't see what else that transaction did; that is what is wanted of
 * a mark.  Only in a SERIALIZABLE transaction it would break what is promised
 * there, and is a serialization failure.
 *
 * The lookup sees the newest committed row, and the caller's snapshot keeps what
 * is deleted afterwards from being removed, so the row can be fetched by its
 * address.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "common/int.h"
#include "compat.h"
#include "executor/executor.h"
#include "inbox/mark.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "subtransaction.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Columns of inbox.seen */
#define SEEN_CONSUMER	0
#define SEEN_MESSAGE_ID	1
#define SEEN_EXPIRES_AT	2
#define SEEN_NCOLUMNS	3

/* After one that was known, so many are looked up before they are inserted. */
#define LOOK_FIRST		256

/* Fewer are not worth a subtransaction. */
#define MIN_TOGETHER	16

#define CLOCK_STEP_US	1000

/* So many messages of this session are looked up before they are inserted. */
static int	look_first = 0;

struct InboxMarks
{
	Relation	rel;
	EState	   *estate;
	ResultRelInfo *result;
	TupleTableSlot *mark;		/* to be set */
	TupleTableSlot *found;		/* NULL: nothing was looked up so far */
	TupleTableSlot **together;	/* to be set together */
	int			ntogether;
	TupleDesc	desc;			/* of both; NULL: they are not needed so far */
	int			key;			/* number of the index of the primary key */
	List	   *unique;			/* that index, as a list of oids */
	TimestampTz now;
	int64		ttl_us;
};

static Relation
open_seen(void)
{
	Oid			relid = get_relname_relid("seen", get_namespace_oid("inbox", false));

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"inbox.seen\" does not exist"),
				 errhint("Create the extension pg_outbox again.")));
	return table_open(relid, RowExclusiveLock);
}

InboxMarks *
inbox_marks_open(int64 ttl_us)
{
	InboxMarks *marks = palloc0(sizeof(InboxMarks));

	marks->now = GetCurrentTimestamp();
	marks->ttl_us = ttl_us;
	marks->rel = open_seen();
	marks->estate = CreateExecutorState();
	marks->result = makeNode(ResultRelInfo);
	InitResultRelInfo(marks->result, marks->rel, 0, NULL, 0);
	ExecOpenIndices(marks->result, false);
	for (int i = 0; i < marks->result->ri_NumIndices; i++)
	{
		Relation	index = marks->result->ri_IndexRelationDescs[i];

		if (index->rd_index->indisprimary)
		{
			marks->unique = list_make1_oid(RelationGetRelid(index));
			marks->key = i;
		}
	}
	if (marks->unique == NIL || RelationGetNumberOfAttributes(marks->rel) != SEEN_NCOLUMNS)
		elog(ERROR, "table \"inbox.seen\" is not as the extension made it");
	marks->mark = MakeSingleTupleTableSlot(RelationGetDescr(marks->rel), &TTSOpsVirtual);
	GetPerTupleExprContext(marks->estate)->ecxt_scantuple = marks->mark;
	return marks;
}

void
inbox_marks_close(InboxMarks *marks)
{
	ExecDropSingleTupleTableSlot(marks->mark);
	if (marks->found != NULL)
		ExecDropSingleTupleTableSlot(marks->found);
	for (int i = 0; i < marks->ntogether; i++)
		ExecDropSingleTupleTableSlot(marks->together[i]);
	ExecCloseIndices(marks->result);
	FreeExecutorState(marks->estate);
	table_close(marks->rel, NoLock);
	pfree(marks);
}

/* A descriptor of our own: the relation's would be pinned for a subtransaction. */
static TupleDesc
own_desc(InboxMarks *marks)
{
	if (marks->desc == NULL)
		marks->desc = CreateTupleDescCopy(RelationGetDescr(marks->rel));
	return marks->desc;
}

static void
prepare_to_look(InboxMarks *marks)
{
	ResultRelInfo *result = marks->result;

	marks->found = MakeSingleTupleTableSlot(own_desc(marks), table_slot_callbacks(marks->rel));
	BuildSpeculativeIndexInfo(result->ri_IndexRelationDescs[marks->key],
							  result->ri_IndexRelationInfo[marks->key]);
}

/*
 * Find the mark that has the slot's key, waiting for transactions that may set or
 * remove it; false: there is none.  Else it is in "found".
 */
static bool
find_mark(InboxMarks *marks)
{
	if (marks->found == NULL)
		prepare_to_look(marks);
	for (;;)
	{
		ItemPointerData tid;

		ExecClearTuple(marks->found);
		if (outbox_check_index_constraints(marks->result, marks->mark, marks->estate,
										   &tid, marks->unique))
			return false;
		if (table_tuple_fetch_row_version(marks->rel, &tid, SnapshotAny, marks->found))
			return true;
	}
}

/* The row that was found is of this transaction. */
static bool
is_own(InboxMarks *marks)
{
	bool		isnull;
	Datum		xmin = slot_getsysattr(marks->found, MinTransactionIdAttributeNumber, &isnull);

	return TransactionIdIsCurrentTransactionId(DatumGetTransactionId(xmin));
}

static void
check_serializable(InboxMarks *marks)
{
	if (IsolationIsSerializable() && !is_own(marks) &&
		!table_tuple_satisfies_snapshot(marks->rel, marks->found, GetTransactionSnapshot()))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update")));
}

/* Insert the slot's row; false: somebody was faster. */
static bool
insert_mark(InboxMarks *marks)
{
	TransactionId xid = GetCurrentTransactionId();
	uint32		token = SpeculativeInsertionLockAcquire(xid);
	bool		conflict = false;

	table_tuple_insert_speculative(marks->rel, marks->mark, GetCurrentCommandId(true), 0,
								   NULL, token);
	list_free(outbox_insert_index_tuples(marks->result, marks->mark, marks->estate, false,
										 true, &conflict, marks->unique));
	table_tuple_complete_speculative(marks->rel, marks->mark, token, !conflict);
	SpeculativeInsertionLockRelease(xid);
	return !conflict;
}

/* Put the slot's row in the place of the one that was found; false: look again. */
static bool
update_mark(InboxMarks *marks)
{
	ItemPointerData tid = marks->found->tts_tid;
	TM_FailureData failure;
	LockTupleMode mode;
	OutboxUpdateIndexes indexes;
	TM_Result	result = table_tuple_update(marks->rel, &tid, marks->mark,
											GetCurrentCommandId(true), GetActiveSnapshot(),
											InvalidSnapshot, true, &failure, &mode, &indexes);

	if (result == TM_Updated || result == TM_Deleted)
		return false;
	if (result != TM_Ok)
		elog(ERROR, "unexpected result %d of updating a mark", (int) result);
	if (OUTBOX_UPDATES_INDEXES(indexes))
		list_free(outbox_insert_index_tuples(marks->result, marks->mark, marks->estate, true,
											 false, NULL, NIL));
	return true;
}

static void
fill_mark(InboxMarks *marks, Datum consumer, Datum message_id)
{
	TupleTableSlot *slot = marks->mark;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, false, SEEN_NCOLUMNS * sizeof(bool));
	slot->tts_values[SEEN_CONSUMER] = consumer;
	slot->tts_values[SEEN_MESSAGE_ID] = message_id;
	slot->tts_values[SEEN_EXPIRES_AT] = TimestampTzGetDatum(0);
	slot->tts_tableOid = RelationGetRelid(marks->rel);
	ExecStoreVirtualTuple(slot);
}

TimestampTz
inbox_mark_expiry(TimestampTz at, int64 ttl_us)
{
	TimestampTz expires_at;

	return pg_add_s64_overflow(at, ttl_us, &expires_at) ? DT_NOEND : expires_at;
}

/* What time is it, and when does the slot's mark expire? */
static void
look_at_clock(InboxMarks *marks)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now - marks->now >= CLOCK_STEP_US)
		marks->now = now;
	marks->mark->tts_values[SEEN_EXPIRES_AT] =
		TimestampTzGetDatum(inbox_mark_expiry(marks->now, marks->ttl_us));
}

/* The mark that was found still counts. */
static bool
is_live(InboxMarks *marks)
{
	bool		isnull;

	return DatumGetTimestampTz(slot_getattr(marks->found, SEEN_EXPIRES_AT + 1, &isnull)) >
		marks->now;
}

/*
 * Most messages are new, so they are inserted without a look, which is a good
 * part of the work, until one is known.  That one costs a dead row.
 *
 * A mark of one's own is never expired: its row may be of the same command, which
 * can't update it.
 */
bool
inbox_mark_set(InboxMarks *marks, Datum consumer, Datum message_id)
{
	bool		set = false;
	bool		known = false;

	while (!set && !known)
	{
		bool		look = look_first > 0;
		bool		found;

		CHECK_FOR_INTERRUPTS();
		fill_mark(marks, consumer, message_id);
		found = look && find_mark(marks);
		look_at_clock(marks);
		if (!found)
			set = insert_mark(marks);
		else if (is_live(marks) || is_own(marks))
			known = true;
		else
			set = update_mark(marks);

		if (found || !set)
			look_first = LOOK_FIRST;
		else if (look)
			look_first--;
	}
	if (known)
		check_serializable(marks);
	if (marks->found != NULL)
		ExecClearTuple(marks->found);
	ResetPerTupleExprContext(marks->estate);
	return set;
}

/* Marks that are inserted together. */
typedef struct Together
{
	InboxMarks *marks;
	Datum		consumer;
	const Datum *ids;
	int			n;
} Together;

/*
 * Make the entries of one index for the rows that were inserted; false: the key is
 * there already.
 */
static bool
fill_index(InboxMarks *marks, int number, int n)
{
	Relation	index = marks->result->ri_IndexRelationDescs[number];
	IndexInfo  *info = marks->result->ri_IndexRelationInfo[number];
	ExprContext *context = GetPerTupleExprContext(marks->estate);
	IndexUniqueCheck unique = number == marks->key ? UNIQUE_CHECK_PARTIAL :
		index->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO;

	if (!info->ii_ReadyForInserts)
		return true;
	if (info->ii_Predicate != NIL && info->ii_PredicateState == NULL)
		info->ii_PredicateState = ExecPrepareQual(info->ii_Predicate, marks->estate);
	for (int i = 0; i < n; i++)
	{
		TupleTableSlot *slot = marks->together[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];
		bool		is_new;

		context->ecxt_scantuple = slot;
		if (info->ii_Predicate != NIL && !ExecQual(info->ii_PredicateState, context))
			continue;
		FormIndexDatum(info, slot, marks->estate, values, isnull);
		is_new = index_insert(index, values, isnull, &slot->tts_tid, marks->rel, unique, false, info);
		if (number == marks->key && !is_new)
			return false;
	}
	return true;
}

/*
 * False: one of them is there, or somebody is about to set it.  One index after the
 * other, so that its pages stay at hand; first the key's, which may say no.
 */
static bool
insert_together(void *arg)
{
	Together   *together = arg;
	InboxMarks *marks = together->marks;
	TupleTableSlot *mark = marks->mark;
	MemoryContext context = MemoryContextSwitchTo(GetPerTupleMemoryContext(marks->estate));
	Datum		expires_at = 0;
	bool		is_new;

	for (int i = 0; i < together->n; i++)
	{
		fill_mark(marks, together->consumer, together->ids[i]);
		if (i == 0)
		{
			look_at_clock(marks);
			expires_at = mark->tts_values[SEEN_EXPIRES_AT];
		}
		mark->tts_values[SEEN_EXPIRES_AT] = expires_at;
		ExecStoreHeapTuple(heap_form_tuple(marks->desc, mark->tts_values, mark->tts_isnull),
						   marks->together[i], true);
	}
	table_multi_insert(marks->rel, marks->together, together->n, GetCurrentCommandId(true), 0, NULL);
	is_new = fill_index(marks, marks->key, together->n);
	for (int i = 0; i < marks->result->ri_NumIndices && is_new; i++)
		if (i != marks->key)
			(void) fill_index(marks, i, together->n);
	for (int i = 0; i < together->n; i++)
		ExecClearTuple(marks->together[i]);
	MemoryContextSwitchTo(context);
	ResetPerTupleExprContext(marks->estate);
	return is_new;
}

static void
prepare_together(InboxMarks *marks, int n)
{
	if (n <= marks->ntogether)
		return;
	marks->together = marks->together == NULL ? palloc(n * sizeof(TupleTableSlot *)) :
		repalloc(marks->together, n * sizeof(TupleTableSlot *));
	while (marks->ntogether < n)
		marks->together[marks->ntogether++] = MakeSingleTupleTableSlot(own_desc(marks), &TTSOpsHeapTuple);
}

void
inbox_marks_set_ordered(InboxMarks *marks, Datum consumer, const Datum *ids, int n, bool *set)
{
	Together	together = {marks, consumer, ids, n};
	ErrorData  *error = NULL;

	if (look_first == 0 && n >= MIN_TOGETHER)
	{
		CHECK_FOR_INTERRUPTS();
		prepare_together(marks, n);
		if (outbox_attempt(insert_together, &together, &error))
		{
			memset(set, true, n * sizeof(bool));
			return;
		}
		if (error != NULL)
			ReThrowError(error);
		look_first = LOOK_FIRST;
	}
	for (int i = 0; i < n; i++)
		set[i] = inbox_mark_set(marks, consumer, ids[i]);
}

/* The row that was found is of this command, which can't delete it. */
static bool
is_of_this_command(InboxMarks *marks)
{
	HeapTuple	row = ExecFetchSlotHeapTuple(marks->found, false, NULL);

	return is_own(marks) && HeapTupleHeaderGetCmin(row->t_data) >= GetCurrentCommandId(false);
}

bool
inbox_mark_forget(InboxMarks *marks, Datum consumer, Datum message_id)
{
	TM_FailureData failure;
	TM_Result	result = TM_Deleted;
	bool		counted = false;

	while (result == TM_Updated || result == TM_Deleted)
	{
		CHECK_FOR_INTERRUPTS();
		fill_mark(marks, consumer, message_id);
		if (!find_mark(marks))
			return false;
		if (is_of_this_command(marks))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot forget a message in the statement that accepts it")));
		look_at_clock(marks);
		counted = is_live(marks) || is_own(marks);
		result = table_tuple_delete(marks->rel, &marks->found->tts_tid,
									GetCurrentCommandId(true), GetActiveSnapshot(),
									InvalidSnapshot, true, &failure, false);
	}
	if (result != TM_Ok)
		elog(ERROR, "unexpected result %d of deleting a mark", (int) result);
	ExecClearTuple(marks->found);
	return counted;
}
