/*-------------------------------------------------------------------------
 *
 * backlog.c
 *	  What a server has not been sent yet, counted exactly.
 *
 * For a warning, when a server is dropped, so it reads only so far.  The log
 * is read as outbox.messages() does it, from the server's stored position: a
 * relay stores it every 100 ms, so a message that was sent just now may still
 * be counted.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "log/backlog.h"
#include "log/merge.h"
#include "log/reader.h"
#include "miscadmin.h"
#include "transport/patterns.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define MAX_COUNTED			100000
#define MESSAGES_PER_PASS	1000

typedef struct Counting
{
	const OutboxServer *server;
	OutboxPosition position;
	bool		redriven_only;
} Counting;

/* The stored position, or false. */
static bool
read_position(Oid serverid, OutboxPosition *pos)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(serverid)};
	Oid			userid;
	int			context;
	bool		found;
	bool		isnull;

	GetUserIdAndSecContext(&userid, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT s1::pg_catalog.text, s2::pg_catalog.text, cursor, low"
							  " FROM outbox.position_log"
							  " WHERE server OPERATOR(pg_catalog.=) $1 ORDER BY n DESC LIMIT 1",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.position_log");
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext spi;

		pos->cursor = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
		pos->low = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
		spi = MemoryContextSwitchTo(caller);
		pos->s1 = outbox_snapshot_in(SPI_getvalue(row, desc, 1));
		pos->s2 = outbox_snapshot_in(SPI_getvalue(row, desc, 2));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(userid, context);
	return found;
}

static OutboxVerdict
take_undelivered(void *arg, int lane, const OutboxRow *row)
{
	const OutboxPosition *pos = &((Counting *) arg)->position;

	if (!row->visible || outbox_snapshot_contains(pos->s1, row->xid) ||
		(row->id <= pos->cursor && outbox_snapshot_contains(pos->s2, row->xid)))
		return OUTBOX_SKIP;
	return OUTBOX_TAKE;
}

static bool
wanted(void *arg, const char *topic, int topic_len, const char *target, uint64 id)
{
	Counting   *counting = arg;

	if (target != NULL)
		return strcmp(target, counting->server->name) == 0;
	return !counting->redriven_only &&
		outbox_patterns_match(counting->server->core.patterns, topic, topic_len);
}

/* Count from an id on, in one pass; where to go on. */
static uint64
count_pass(Counting *counting, const OutboxRanges *ranges, uint64 from,
		   Snapshot snapshot, HTAB *first_ids, OutboxBacklog *backlog)
{
	OutboxMerge *merge = outbox_merge_begin(ranges, from, snapshot, first_ids,
											take_undelivered, counting);
	HeapTupleData tuple;
	OutboxRow	row;
	uint64		resume;

	for (int n = 0; n < MESSAGES_PER_PASS && outbox_merge_next(merge, &tuple, &row); n++)
	{
		OutboxMessage *m = outbox_message_read(merge, &tuple, &row, CurrentMemoryContext,
											   wanted, counting);

		CHECK_FOR_INTERRUPTS();
		if (m == NULL)
			continue;
		backlog->messages++;
		backlog->bytes += m->topic_len + m->key_len + m->headers_len + m->payload_len;
		pfree(m);
	}
	resume = outbox_merge_resume(merge);
	outbox_merge_end(merge);
	return resume;
}

void
outbox_backlog_count(const OutboxServer *server, bool redriven_only,
					 OutboxBacklog *backlog)
{
	Counting	counting = {server, {0}, redriven_only};
	OutboxRange range = {1, PG_UINT64_MAX - 1};
	OutboxRanges ranges[OUTBOX_LANES];
	MemoryContext pass;
	MemoryContext old;
	Snapshot	snapshot;
	HTAB	   *first_ids;
	uint64		from;

	memset(backlog, 0, sizeof(*backlog));
	if (!read_position(server->oid, &counting.position))
		return;
	from = range.from = Max(counting.position.low, 1);
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		ranges[lane].ranges = &range;
		ranges[lane].n = 1;
	}
	first_ids = outbox_merge_first_ids(CurrentMemoryContext);
	pass = AllocSetContextCreate(CurrentMemoryContext, "pg_outbox backlog",
								 ALLOCSET_DEFAULT_SIZES);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	old = MemoryContextSwitchTo(pass);
	while (from != PG_UINT64_MAX && backlog->messages < MAX_COUNTED)
	{
		from = count_pass(&counting, ranges, from, snapshot, first_ids, backlog);
		MemoryContextReset(pass);
	}
	backlog->more = from != PG_UINT64_MAX;
	MemoryContextSwitchTo(old);
	UnregisterSnapshot(snapshot);
	hash_destroy(first_ids);
	MemoryContextDelete(pass);
}
