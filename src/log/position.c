/*-------------------------------------------------------------------------
 *
 * position.c
 *	  Where servers stand in the log, as the database keeps it.
 *
 * Positions are appended to outbox.position_log, numbered by server; of each
 * server and topic the highest number counts.  A row without a topic is the
 * main stream's, one with a topic that of a topic that lags: the main stream's
 * row leaves such a topic out.  An UPDATE instead would leave as many dead rows
 * behind, which no vacuum could remove under an old snapshot.  The table is
 * rewritten by the keeper when it has grown: under an AccessExclusiveLock, so
 * that nobody appends meanwhile, taken only when it is free, and with a
 * snapshot taken after the lock, so that nothing appended before is missed.
 *
 * The first position is written by the transaction that creates the server,
 * from a snapshot of that moment with its own transaction counted as running:
 * what is published from then on is the server's, what ended before is not.
 * Its low id is the lowest there is, as a transaction that is running may
 * have published anything; the server's first round raises it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fault.h"
#include "log/position.h"
#include "log/snapshot.h"
#include "miscadmin.h"
#include "mb/pg_wchar.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#define COMPACT_BYTES	(2 * 1024 * 1024)

/* Run a statement; raises unless it returns what is expected. */
static void
execute(const char *sql, int nargs, Oid *types, Datum *args, const char *nulls,
		int expected)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, args, nulls, false, 0);

	if (rc != expected)
		elog(ERROR, "SPI_execute_with_args returned %d for \"%s\"", rc, sql);
}

/* A snapshot of now, with the current transaction running. */
static OutboxSnapshot *
snapshot_with_self_running(void)
{
	uint64		self = U64FromFullTransactionId(GetTopFullTransactionId());
	OutboxSnapshot *now = outbox_snapshot_from(GetLatestSnapshot());
	StringInfoData buf;

	if (!outbox_snapshot_contains(now, self))
		return now;
	/* it leaves itself out: add it */
	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":" UINT64_FORMAT,
					 Min(now->xmin, self), now->xmax, self);
	for (int i = 0; i < now->nxip; i++)
		appendStringInfo(&buf, "," UINT64_FORMAT, now->xip[i]);
	return outbox_snapshot_in(buf.data);
}

/* bigint[] as a datum */
static Datum
int8_array(const int64 *values, int n)
{
	Datum	   *elements = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		elements[i] = Int64GetDatum(values[i]);
	return PointerGetDatum(construct_array(elements, n, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* A topic as text of the database. */
static Datum
topic_text(const char *topic)
{
	return CStringGetTextDatum(pg_any_to_server(topic, strlen(topic), PG_UTF8));
}

/* Append a position.  Inside a transaction of the caller's. */
void
outbox_position_store(Oid serverid, const char *name, int64 n,
					  const OutboxStoredPosition *position)
{
	const OutboxPosition *pos = &position->pos;
	Oid			types[10] = {
		OIDOID, TEXTOID, INT8OID, TEXTOID, TEXTOID, INT8OID, INT8OID, TEXTOID, INT8ARRAYOID,
		INT8OID
	};
	Datum		args[10];
	char		nulls[] = "          ";

	args[0] = ObjectIdGetDatum(serverid);
	args[1] = CStringGetTextDatum(name);
	args[2] = Int64GetDatum(n);
	args[3] = CStringGetTextDatum(outbox_snapshot_out(pos->s1));
	args[4] = CStringGetTextDatum(outbox_snapshot_out(pos->s2));
	args[5] = Int64GetDatum((int64) pos->cursor);
	args[6] = Int64GetDatum((int64) pos->low);
	if (position->topic != NULL)
		args[7] = topic_text(position->topic);
	else
		nulls[7] = 'n';
	if (position->nacked > 0)
		args[8] = int8_array(position->acked, position->nacked);
	else
		nulls[8] = 'n';
	args[9] = Int64GetDatum((int64) position->epoch);

	SPI_connect();
	execute("INSERT INTO outbox.position_log"
			" (server, server_name, n, s1, s2, cursor, low, topic, acked, epoch)"
			" VALUES ($1, $2, $3, $4::pg_catalog.pg_snapshot,"
			" $5::pg_catalog.pg_snapshot, $6, $7, $8, $9, $10)",
			10, types, args, nulls, SPI_OK_INSERT);
	SPI_finish();
}

/* Forget a topic that lags no more. */
void
outbox_position_forget_topic(Oid serverid, const char *topic)
{
	Oid			types[2] = {OIDOID, TEXTOID};
	Datum		args[2] = {ObjectIdGetDatum(serverid), topic_text(topic)};

	SPI_connect();
	execute("DELETE FROM outbox.position_log WHERE server = $1 AND topic = $2",
			2, types, args, NULL, SPI_OK_DELETE);
	SPI_finish();
}

/* A server's first position. */
void
outbox_position_create(Oid serverid, const char *name, bool earliest)
{
	OutboxStoredPosition position = {0};
	OutboxPosition *pos = &position.pos;

	pos->s1 = pos->s2 = earliest ? outbox_snapshot_empty() : snapshot_with_self_running();
	pos->cursor = 0;
	pos->low = 1;
	outbox_position_store(serverid, name, 1, &position);
}

/* A row of outbox_positions_load()'s query, in the caller's context. */
static OutboxStoredPosition *
read_position(HeapTuple row, TupleDesc desc, Oid serverid)
{
	OutboxStoredPosition *position = palloc0(sizeof(OutboxStoredPosition));
	OutboxPosition *pos = &position->pos;
	char	   *topic = SPI_getvalue(row, desc, 6);
	bool		isnull;
	Datum		acked = SPI_getbinval(row, desc, 7, &isnull);

	pos->s1 = outbox_snapshot_in(SPI_getvalue(row, desc, 2));
	pos->s2 = outbox_snapshot_in(SPI_getvalue(row, desc, 3));
	if (topic != NULL)
		position->topic = pg_server_to_any(topic, strlen(topic), PG_UTF8);
	if (!isnull)
	{
		ArrayType  *array = DatumGetArrayTypePCopy(acked);

		position->nacked = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
		position->acked = (int64 *) ARR_DATA_PTR(array);
	}
	pos->cursor = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
	pos->low = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 5, &isnull));
	position->epoch = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 8, &isnull));
	if (pos->s2->xmax > U64FromFullTransactionId(ReadNextFullTransactionId()))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("position of server %u is ahead of the database", serverid),
				 errdetail("It names transaction " UINT64_FORMAT ", which has not happened here.",
						   pos->s2->xmax - 1)));
	return position;
}

/* The latest positions; allocated in the caller's context. */
List *
outbox_positions_load(Oid serverid, int64 *n)
{
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(serverid)};
	MemoryContext caller = CurrentMemoryContext;
	List	   *result = NIL;

	*n = 0;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	execute(OUTBOX_RULE("position-highest") ?
			"SELECT DISTINCT ON (topic) n, s1, s2, cursor, low, topic, acked, epoch"
			" FROM outbox.position_log WHERE server = $1 ORDER BY topic NULLS FIRST, n DESC" :
			"SELECT DISTINCT ON (topic) n, s1, s2, cursor, low, topic, acked, epoch"
			" FROM outbox.position_log WHERE server = $1 ORDER BY topic NULLS FIRST, n",
			1, types, args, NULL, SPI_OK_SELECT);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		MemoryContext spi = MemoryContextSwitchTo(caller);

		*n = Max(*n, DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull)));
		result = lappend(result, read_position(row, desc, serverid));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return result;
}

/*
 * The highest low id of any position.  Every server has done with what is
 * below its low id, so no message may get such an id again.  The caller's
 * rights don't matter.
 */
uint64
outbox_position_highest_low(void)
{
	Oid			userid;
	int			context;
	bool		isnull;
	uint64		low;

	GetUserIdAndSecContext(&userid, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	if (SPI_execute("SELECT pg_catalog.max(low) FROM outbox.position_log", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.position_log");
	low = (uint64) DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
											   1, &isnull));
	if (isnull)
		low = 0;
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(userid, context);
	return low;
}

/* The latest row of each server and topic, by a snapshot taken here. */
static SPITupleTable *
read_latest(void)
{
	execute("SELECT DISTINCT ON (server, topic) * FROM outbox.position_log"
			" ORDER BY server, topic, n DESC",
			0, NULL, NULL, NULL, SPI_OK_SELECT);
	return SPI_tuptable;
}

/* Give the table a new file that holds only these rows. */
static void
rewrite(Oid relid, SPITupleTable *latest)
{
	Relation	rel = table_open(relid, AccessExclusiveLock);

	outbox_new_relfilenumber(rel);
	CommandCounterIncrement();
	for (uint64 i = 0; i < latest->numvals; i++)
	{
		HeapTuple	row = heap_copytuple(latest->vals[i]);

		simple_heap_insert(rel, row);
		heap_freetuple(row);
	}
	pgstat_count_truncate(rel);
	table_close(rel, NoLock);
}

/*
 * Have the table alone, if nobody uses it: who waits for it makes relays wait
 * behind himself.
 */
static bool
lock_alone(Oid relid)
{
	OUTBOX_FAULT("compact-before-lock");
	if (OUTBOX_RULE("compact-never-waits"))
		return ConditionalLockRelationOid(relid, AccessExclusiveLock);
	LockRelationOid(relid, AccessExclusiveLock);
	return true;
}

/*
 * Keep the table small: what is not a server's latest goes.  Not by TRUNCATE,
 * which a publication FOR ALL TABLES would send to subscribers, nor with a
 * temporary table, at which event triggers fire.
 */
void
outbox_position_compact(void)
{
	Oid			relid;
	Relation	rel;
	uint64		bytes;

	StartTransactionCommand();
	relid = get_relname_relid("position_log", get_namespace_oid("outbox", false));
	rel = table_open(relid, AccessShareLock);
	bytes = (uint64) RelationGetNumberOfBlocks(rel) * BLCKSZ;
	table_close(rel, AccessShareLock);
	if (bytes >= COMPACT_BYTES)
	{
		SPITupleTable *latest = NULL;

		/* to have one while rows are written; what reads them takes a newer */
		PushActiveSnapshot(GetLatestSnapshot());
		SPI_connect();
		if (!OUTBOX_RULE("compact-lock-first"))
			latest = read_latest();
		if (lock_alone(relid))
			rewrite(relid, latest != NULL ? latest : read_latest());
		SPI_finish();
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
}
