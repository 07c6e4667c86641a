/*-------------------------------------------------------------------------
 *
 * reader_test.c
 *	  The log's reader, driven from SQL; compiled for tests only.
 *
 * A relay's reader runs when the relay wants, so a test could only hope to hit
 * a race.  Here a session has a reader of its own, and each step of a round is
 * a function call.  The reader runs transactions of its own, which inside a
 * transaction block only count commands: the functions ask for a block, and
 * tests put each call into one of its own (BEGIN; SELECT ...; COMMIT).
 *
 * test/support/reader.sql has the SQL declarations.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef OUTBOX_FAULT_POINTS

#include "access/relation.h"
#include "access/xact.h"
#include "commands/extension.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "log/reader.h"
#include "log/segment.h"
#include "log/snapshot.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(outbox_test_reader_open);
PG_FUNCTION_INFO_V1(outbox_test_reader_resume);
PG_FUNCTION_INFO_V1(outbox_test_reader_begin);
PG_FUNCTION_INFO_V1(outbox_test_reader_fetch);
PG_FUNCTION_INFO_V1(outbox_test_reader_state);
PG_FUNCTION_INFO_V1(outbox_test_pages);

#define MAX_MESSAGES	10000

static OutboxReader *test_reader = NULL;

static OutboxReader *
the_reader(void)
{
	if (!IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_NO_ACTIVE_SQL_TRANSACTION),
				 errmsg("the test's reader must be called in a transaction block")));
	if (test_reader == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no reader is open")));
	return test_reader;
}

static void
create_reader(const OutboxPosition *pos)
{
	test_reader = outbox_reader_create(TopMemoryContext,
									   get_extension_oid("pg_outbox", false), pos);
}

/* A reader of all that is retained, or of what ends from now on. */
Datum
outbox_test_reader_open(PG_FUNCTION_ARGS)
{
	OutboxPosition pos = {0};

	pos.s1 = pos.s2 = PG_GETARG_BOOL(0) ? outbox_snapshot_empty() :
		outbox_snapshot_from(GetLatestSnapshot());
	pos.cursor = 0;
	pos.low = 1;
	create_reader(&pos);
	PG_RETURN_VOID();
}

/* Forget all but the position, as a relay that died. */
Datum
outbox_test_reader_resume(PG_FUNCTION_ARGS)
{
	OutboxPosition pos;

	outbox_reader_position(the_reader(), &pos);
	outbox_reader_free(test_reader);
	create_reader(&pos);
	PG_RETURN_VOID();
}

/* Begin a round; false: there is nothing new. */
Datum
outbox_test_reader_begin(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(outbox_reader_begin(the_reader()));
}

/* Fetch up to so many messages of the round: id, topic, payload, damaged. */
Datum
outbox_test_reader_fetch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxReader *reader = the_reader();
	int			max = Min(PG_GETARG_INT32(0), MAX_MESSAGES);
	OutboxMessage **messages = palloc(MAX_MESSAGES * sizeof(OutboxMessage *));
	int			n = 0;

	InitMaterializedSRF(fcinfo, 0);
	if (outbox_reader_batch(reader) == NULL)
		return (Datum) 0;
	outbox_reader_fetch(reader, TopMemoryContext, 0, messages, &n, max, MaxAllocSize,
						NULL, NULL);
	for (int i = 0; i < n; i++)
	{
		OutboxMessage *m = messages[i];
		Datum		values[4];
		bool		nulls[4] = {false, false, m->payload == NULL, false};

		values[0] = Int64GetDatum((int64) m->id);
		values[1] = CStringGetTextDatum(m->topic);
		values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(m->payload);
		values[3] = BoolGetDatum(m->damaged);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		outbox_message_free(m);
	}
	return (Datum) 0;
}

/*
 * Is a round under way; how many open transactions are tracked; the position;
 * pages read by this session so far.
 */
Datum
outbox_test_reader_state(PG_FUNCTION_ARGS)
{
	OutboxReader *reader = the_reader();
	OutboxPosition pos;
	TupleDesc	desc;
	Datum		values[7];
	bool		nulls[7] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	outbox_reader_position(reader, &pos);
	values[0] = BoolGetDatum(outbox_reader_batch(reader) != NULL);
	values[1] = Int32GetDatum(outbox_reader_open_count(reader));
	values[2] = CStringGetTextDatum(outbox_snapshot_out(pos.s1));
	values[3] = CStringGetTextDatum(outbox_snapshot_out(pos.s2));
	values[4] = Int64GetDatum((int64) pos.cursor);
	values[5] = Int64GetDatum((int64) pos.low);
	values[6] = Int64GetDatum((int64) outbox_pages_read);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* The pages of one segment that hold rows. */
static void
put_pages(ReturnSetInfo *rsinfo, const OutboxSegment *segment, OutboxPage *page)
{
	Relation	rel = relation_open(segment->relid, AccessShareLock);
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);

	for (BlockNumber blkno = 0; blkno < nblocks; blkno++)
	{
		Datum		values[7];
		bool		nulls[7] = {false, segment->lane < 0, segment->lane < 0, false, false, false, false};

		if (!outbox_page_read(rel, blkno, NULL, page))
			continue;
		values[0] = ObjectIdGetDatum(segment->relid);
		values[1] = Int32GetDatum(segment->lane);
		values[2] = Int64GetDatum((int64) segment->generation);
		values[3] = Int32GetDatum((int32) blkno);
		values[4] = Int32GetDatum(page->nrows);
		values[5] = Int64GetDatum((int64) page->rows[0].id);
		values[6] = Int64GetDatum((int64) page->rows[page->nrows - 1].id);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	relation_close(rel, AccessShareLock);
}

/* All pages of the log that hold rows, with their lowest and highest id. */
Datum
outbox_test_pages(PG_FUNCTION_ARGS)
{
	ListCell   *lc;
	OutboxPage *page = palloc(sizeof(OutboxPage));

	InitMaterializedSRF(fcinfo, 0);
	foreach(lc, outbox_segment_list())
		put_pages((ReturnSetInfo *) fcinfo->resultinfo, lfirst(lc), page);
	return (Datum) 0;
}

#endif							/* OUTBOX_FAULT_POINTS */
