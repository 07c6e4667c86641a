/*-------------------------------------------------------------------------
 *
 * expire.c
 *	  Removing marks that have expired: inbox.expire(), and the keeper's part.
 *
 * An index on the time of expiry gives the oldest.  The keeper removes them in
 * batches, each in a short transaction, so that it never holds anything for long,
 * and goes on where the last batch ended: entries of removed marks stay in the
 * index until VACUUM may take them, and as long as somebody holds an old snapshot a
 * search from the beginning would pass all of them again and again.  Only now and
 * then it begins there: a transaction may have committed a mark late, or have had
 * one locked.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "elapsed.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "inbox/expire.h"
#include "inbox/slot.h"
#include "log/own_work.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define KEEPER_BATCH	5000
#define BEGIN_ANEW_MS	60000

PG_FUNCTION_INFO_V1(inbox_expire);

/*
 * Whose marks are kept: where the broker has no places, what had come when the
 * connection was lost comes again whenever it is there again.
 */
static Datum
kept_consumers(void)
{
	Datum	   *names;
	int			n = 0;

	if (SPI_execute("SELECT s.name FROM inbox.subscription s WHERE s.own_numbers", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.subscription");
	names = palloc((SPI_processed + 1) * sizeof(Datum));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *name = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);

		if (!inbox_is_consuming(name))
			names[n++] = CStringGetTextDatum(name);
	}
	return PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/*
 * Remove up to so many that expired at a time or later; gives when the last of
 * them did.  Those that somebody has locked, to replace them, are left out.
 */
static uint64
expire(int64 max, TimestampTz from, TimestampTz *last)
{
	Oid			types[] = {INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTARRAYOID};
	/* now: as a value, since a search in an index can't end at a volatile function */
	Datum		values[] = {Int64GetDatum(max), TimestampTzGetDatum(from),
	TimestampTzGetDatum(GetCurrentTimestamp()), 0};
	bool		isnull;
	uint64		n;
	Datum		datum;

	SPI_connect();
	values[3] = kept_consumers();
	if (SPI_execute_with_args("WITH expired AS MATERIALIZED (SELECT s.ctid AS row, s.expires_at FROM inbox.seen s"
							  " WHERE s.expires_at OPERATOR(pg_catalog.<=) $3"
							  " AND s.expires_at OPERATOR(pg_catalog.>=) $2"
							  " AND s.consumer OPERATOR(pg_catalog.<>) ALL ($4)"
							  " ORDER BY s.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED),"
							  " removed AS (DELETE FROM inbox.seen s USING expired e"
							  " WHERE s.ctid OPERATOR(pg_catalog.=) e.row RETURNING s.expires_at)"
							  " SELECT pg_catalog.count(*), pg_catalog.max(expires_at) FROM removed",
							  4, types, values, NULL, false, 0) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not remove marks from inbox.seen");
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull);
	if (!isnull)
		*last = DatumGetTimestampTz(datum);
	SPI_finish();
	return n;
}

Datum
inbox_expire(PG_FUNCTION_ARGS)
{
	int			max = PG_GETARG_INT32(0);
	TimestampTz last;
	OutboxOwnWork work;
	uint64		n;

	PreventCommandDuringRecovery("inbox.expire()");
	PreventCommandIfReadOnly("inbox.expire()");
	if (max < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_marks must be 1 or more, not %d", max)));
	outbox_own_work_begin(&work);
	n = expire(max, DT_NOBEGIN, &last);
	outbox_own_work_end(&work);
	PG_RETURN_INT64((int64) n);
}

bool
inbox_keeper_expire(void)
{
	static TimestampTz from = DT_NOBEGIN;
	static int64 begun = 0;
	uint64		n;

	if (outbox_elapsed(begun, BEGIN_ANEW_MS))
	{
		from = DT_NOBEGIN;
		begun = outbox_clock_ms();
	}
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	n = expire(KEEPER_BATCH, from, &from);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return n == KEEPER_BATCH;
}
