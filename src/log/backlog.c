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

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "log/backlog.h"
#include "log/merge.h"
#include "log/own_work.h"
#include "log/reader.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "transport/patterns.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define MAX_COUNTED			100000
#define MESSAGES_PER_PASS	1000

/* Where the server stands with a topic, or with all others. */
typedef struct Stream
{
	char	   *topic;			/* UTF-8; NULL: all that have none of their own */
	OutboxPosition pos;
	ArrayType  *acked;			/* ranges of ids beyond the cursor, or NULL */
} Stream;

typedef struct Counting
{
	const OutboxServer *server;
	List	   *streams;		/* of Stream, the one of all others first */
	bool		redriven_only;
} Counting;

static Stream *
read_stream(HeapTuple row, TupleDesc desc)
{
	Stream	   *stream = palloc0(sizeof(Stream));
	char	   *topic = SPI_getvalue(row, desc, 5);
	bool		isnull;
	Datum		acked = SPI_getbinval(row, desc, 6, &isnull);

	if (!isnull)
		stream->acked = DatumGetArrayTypePCopy(acked);
	if (topic != NULL)
		stream->topic = pg_server_to_any(topic, strlen(topic), PG_UTF8);
	stream->pos.s1 = outbox_snapshot_in(SPI_getvalue(row, desc, 1));
	stream->pos.s2 = outbox_snapshot_in(SPI_getvalue(row, desc, 2));
	stream->pos.cursor = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
	stream->pos.low = (uint64) DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
	return stream;
}

/* The stored positions, in the current context. */
static List *
read_streams(Oid serverid)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(serverid)};
	OutboxOwnWork work;
	List	   *streams = NIL;

	outbox_own_work_begin(&work);
	if (SPI_execute_with_args("SELECT DISTINCT ON (topic) s1::text, s2::text, cursor, low, topic, acked"
							  " FROM outbox.position_log WHERE server = $1"
							  " ORDER BY topic NULLS FIRST, n DESC",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read outbox.position_log");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext spi = MemoryContextSwitchTo(caller);

		streams = lappend(streams, read_stream(SPI_tuptable->vals[i], SPI_tuptable->tupdesc));
		MemoryContextSwitchTo(spi);
	}
	outbox_own_work_end(&work);
	return streams;
}

/* Is a message done, by a stream's position? */
static bool
is_done(const Stream *stream, uint64 xid, uint64 id)
{
	if (outbox_snapshot_contains(stream->pos.s1, xid))
		return true;
	if (!outbox_snapshot_contains(stream->pos.s2, xid))
		return false;
	if (id <= stream->pos.cursor)
		return true;
	if (stream->acked != NULL)
	{
		const int64 *range = (const int64 *) ARR_DATA_PTR(stream->acked);
		int			n = ArrayGetNItems(ARR_NDIM(stream->acked), ARR_DIMS(stream->acked));

		for (int i = 0; i + 1 < n; i += 2)
			if (id >= (uint64) range[i] && id <= (uint64) range[i + 1])
				return true;
	}
	return false;
}

/* Here the topic is not known yet: rows that are done in every stream go. */
static OutboxVerdict
take_undelivered(void *arg, int lane, const OutboxRow *row)
{
	ListCell   *lc;

	if (!row->visible)
		return OUTBOX_SKIP;
	foreach(lc, ((Counting *) arg)->streams)
		if (!is_done(lfirst(lc), row->xid, row->id))
			return OUTBOX_TAKE;
	return OUTBOX_SKIP;
}

/* Is a message done in the stream that it belongs to? */
static bool
message_is_done(const Counting *counting, const OutboxMessage *m)
{
	ListCell   *lc;

	foreach(lc, counting->streams)
	{
		const Stream *stream = lfirst(lc);

		if (stream->topic != NULL && m->target == NULL && strcmp(stream->topic, m->topic) == 0)
			return is_done(stream, m->xid, m->id);
	}
	return is_done(linitial(counting->streams), m->xid, m->id);
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

/* The lowest id that may be undelivered. */
static uint64
lowest_id(const Counting *counting)
{
	uint64		low = PG_UINT64_MAX - 1;
	ListCell   *lc;

	foreach(lc, counting->streams)
		low = Min(low, ((Stream *) lfirst(lc))->pos.low);
	return Max(low, 1);
}

/* Count from an id on, in one pass; where to go on. */
static uint64
count_pass(Counting *counting, const OutboxRanges *ranges, uint64 from,
		   Snapshot snapshot, HTAB *known, OutboxBacklog *backlog)
{
	OutboxMerge *merge = outbox_merge_begin(ranges, from, snapshot, known,
											take_undelivered, counting);
	HeapTupleData tuple;
	OutboxRow	row;
	uint64		resume;

	for (int n = 0; n < MESSAGES_PER_PASS && outbox_merge_next(merge, &tuple, &row); n++)
	{
		OutboxMessage *m = outbox_message_read(merge, &tuple, &row, CurrentMemoryContext, 0,
											   wanted, counting);

		CHECK_FOR_INTERRUPTS();
		if (m == NULL)
			continue;
		if (!message_is_done(counting, m))
		{
			backlog->messages++;
			backlog->bytes += m->topic_len + m->key_len + m->headers_len + m->payload_len;
		}
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
	Counting	counting = {server, NIL, redriven_only};
	OutboxRange range = {1, PG_UINT64_MAX - 1};
	OutboxRanges ranges[OUTBOX_LANES];
	MemoryContext pass;
	MemoryContext old;
	Snapshot	snapshot;
	HTAB	   *known;
	uint64		from;

	memset(backlog, 0, sizeof(*backlog));
	counting.streams = read_streams(server->oid);
	if (counting.streams == NIL)
		return;
	from = range.from = lowest_id(&counting);
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		ranges[lane].ranges = &range;
		ranges[lane].n = 1;
	}
	known = outbox_merge_known(CurrentMemoryContext);
	pass = AllocSetContextCreate(CurrentMemoryContext, "pg_outbox backlog",
								 ALLOCSET_DEFAULT_SIZES);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	old = MemoryContextSwitchTo(pass);
	while (from != PG_UINT64_MAX && backlog->messages < MAX_COUNTED)
	{
		from = count_pass(&counting, ranges, from, snapshot, known, backlog);
		MemoryContextReset(pass);
	}
	backlog->more = from != PG_UINT64_MAX;
	MemoryContextSwitchTo(old);
	UnregisterSnapshot(snapshot);
	hash_destroy(known);
	MemoryContextDelete(pass);
}
