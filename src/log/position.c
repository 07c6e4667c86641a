/*-------------------------------------------------------------------------
 *
 * position.c
 *	  Where servers stand in the log, as the database keeps it.
 *
 * Positions are appended to outbox.position_log, numbered by server; the
 * highest number counts.  An UPDATE instead would leave as many dead rows
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
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "log/position.h"
#include "log/snapshot.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#define COMPACT_BYTES	(2 * 1024 * 1024)

/* Run a statement; raises unless it returns what is expected. */
static void
execute(const char *sql, int nargs, Oid *types, Datum *args, int expected)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, args, NULL, false, 0);

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

/* Append a position.  Inside a transaction of the caller's. */
void
outbox_position_store(Oid serverid, const char *name, const OutboxPosition *pos,
					  int64 n)
{
	Oid			types[7] = {OIDOID, TEXTOID, INT8OID, TEXTOID, TEXTOID, INT8OID, INT8OID};
	Datum		args[7];

	args[0] = ObjectIdGetDatum(serverid);
	args[1] = CStringGetTextDatum(name);
	args[2] = Int64GetDatum(n);
	args[3] = CStringGetTextDatum(outbox_snapshot_out(pos->s1));
	args[4] = CStringGetTextDatum(outbox_snapshot_out(pos->s2));
	args[5] = Int64GetDatum((int64) pos->cursor);
	args[6] = Int64GetDatum((int64) pos->low);

	SPI_connect();
	execute("INSERT INTO outbox.position_log (server, server_name, n, s1, s2, cursor, low)"
			" VALUES ($1, $2, $3, $4::pg_catalog.pg_snapshot,"
			" $5::pg_catalog.pg_snapshot, $6, $7)",
			7, types, args, SPI_OK_INSERT);
	SPI_finish();
}

/* A server's first position. */
void
outbox_position_create(Oid serverid, const char *name, bool earliest)
{
	OutboxPosition pos;

	pos.s1 = pos.s2 = earliest ? outbox_snapshot_empty() : snapshot_with_self_running();
	pos.cursor = 0;
	pos.low = 1;
	outbox_position_store(serverid, name, &pos, 1);
}

/* Forget a server. */
void
outbox_position_drop(Oid serverid)
{
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(serverid)};

	SPI_connect();
	execute("DELETE FROM outbox.position_log WHERE server = $1", 1, types, args,
			SPI_OK_DELETE);
	SPI_finish();
}

/* The latest position; allocated in the caller's context. */
bool
outbox_position_load(Oid serverid, OutboxPosition *pos, int64 *n)
{
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(serverid)};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext spi;
	bool		found;
	bool		isnull;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	execute("SELECT n, s1, s2, cursor, low FROM outbox.position_log"
			" WHERE server = $1 ORDER BY n DESC LIMIT 1",
			1, types, args, SPI_OK_SELECT);
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;

		*n = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
		pos->cursor = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
		pos->low = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 5, &isnull));
		spi = MemoryContextSwitchTo(caller);
		pos->s1 = outbox_snapshot_in(SPI_getvalue(row, desc, 2));
		pos->s2 = outbox_snapshot_in(SPI_getvalue(row, desc, 3));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	if (found && pos->s2->xmax > U64FromFullTransactionId(ReadNextFullTransactionId()))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("position of server %u is ahead of the database", serverid),
				 errdetail("It names transaction " UINT64_FORMAT ", which has not happened here.",
						   pos->s2->xmax - 1)));
	return found;
}

/* Give the table a new file that holds only each server's latest row. */
static void
rewrite_latest(Oid relid)
{
	Relation	rel;
	SPITupleTable *latest;
	uint64		n;

	execute("SELECT DISTINCT ON (server) * FROM outbox.position_log ORDER BY server, n DESC",
			0, NULL, NULL, SPI_OK_SELECT);
	latest = SPI_tuptable;
	n = SPI_processed;
	rel = table_open(relid, AccessExclusiveLock);
	outbox_new_relfilenumber(rel);
	CommandCounterIncrement();
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	row = heap_copytuple(latest->vals[i]);

		simple_heap_insert(rel, row);
		heap_freetuple(row);
	}
	pgstat_count_truncate(rel);
	table_close(rel, NoLock);
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
	if (bytes >= COMPACT_BYTES && ConditionalLockRelationOid(relid, AccessExclusiveLock))
	{
		PushActiveSnapshot(GetLatestSnapshot());
		SPI_connect();
		rewrite_latest(relid);
		SPI_finish();
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
}
