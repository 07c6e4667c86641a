/*-------------------------------------------------------------------------
 *
 * start.c
 *	  Where a subscription begins: once, for all partitions of its topics.
 *
 * The subscription's start (latest, earliest, a time) is resolved to offsets when
 * its first worker is connected, of all partitions that the broker lists, not only
 * of those that the group gave to this worker: else what another worker gets
 * later, or after a rebalance, would begin at another moment, and what came in
 * between would be lost or repeated.  They are stored in one transaction, with the
 * note that it has started.  Whichever worker is first does it; what the others
 * found is then of no use.
 *
 * A partition without a row that turns up later (it was added, or a topic that
 * matches a pattern was made) is new, so it is read from its beginning.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "inbox/worker.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

/* A partition, and where it begins; offset -1: not known yet. */
struct InboxStart
{
	MemoryContext context;
	int			n;
	OutboxPlace places[FLEXIBLE_ARRAY_MEMBER];
};

void
inbox_start_forget(InboxWorker *worker)
{
	if (worker->start != NULL)
		MemoryContextDelete(worker->start->context);
	worker->start = NULL;
}

/* Have the list of partitions; false: not known yet. */
static bool
list_partitions(InboxWorker *worker)
{
	const OutboxPlace *places;
	OutboxError error = {0};
	OutboxFailure failure;
	MemoryContext context;
	int			n;

	if (worker->start != NULL)
		return true;
	failure = worker->source->list(worker->client, &places, &n, &error);
	if (failure != OUTBOX_OK)
	{
		inbox_show_failure(worker, failure, &error);
		return false;
	}
	context = AllocSetContextCreate(worker->context, "pg_outbox inbox start", ALLOCSET_SMALL_SIZES);
	worker->start = MemoryContextAllocZero(context, offsetof(InboxStart, places) + n * sizeof(OutboxPlace));
	worker->start->context = context;
	worker->start->n = n;
	for (int i = 0; i < n; i++)
		worker->start->places[i] = (OutboxPlace) {
			MemoryContextStrdup(context, places[i].topic), places[i].partition, -1
		};
	return true;
}

/* A subscription's start, as the transport wants it. */
static OutboxFrom
start_of(const char *start, int64 *time_ms)
{
	*time_ms = 0;
	if (strcmp(start, "earliest") == 0)
		return OUTBOX_FROM_EARLIEST;
	if (strcmp(start, "latest") == 0)
		return OUTBOX_FROM_LATEST;
	*time_ms = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(start),
													   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1))) / 1000 +
		(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000;
	/* the broker knows no time before */
	*time_ms = Max(*time_ms, 0);
	return OUTBOX_FROM_TIME;
}

/* Ask where they begin; false: not all is known yet. */
static bool
find_starts(InboxWorker *worker)
{
	int64		time_ms;
	OutboxFrom	from = start_of(worker->subscription->start, &time_ms);
	bool		all = true;

	for (int i = 0; i < worker->start->n; i++)
	{
		OutboxPlace *place = &worker->start->places[i];
		OutboxError error = {0};
		OutboxFailure failure;

		if (place->offset >= 0)
			continue;
		failure = worker->source->find(worker->client, place->topic, place->partition, from, time_ms,
									   &place->offset, &error);
		if (failure == OUTBOX_OK)
			continue;
		place->offset = -1;
		inbox_show_failure(worker, failure, &error);
		all = false;
	}
	return all;
}

static void
store_starts(InboxWorker *worker)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, INT4ARRAYOID, INT8ARRAYOID, BOOLOID};
	int			n = worker->start->n;
	Datum	   *topics = palloc(3 * n * sizeof(Datum));
	Datum	   *numbers = topics + n;
	Datum	   *offsets = numbers + n;
	Datum		values[5];

	for (int i = 0; i < n; i++)
	{
		OutboxPlace *place = &worker->start->places[i];

		topics[i] = CStringGetTextDatum(pg_any_to_server(place->topic, strlen(place->topic), PG_UTF8));
		numbers[i] = Int32GetDatum(place->partition);
		offsets[i] = Int64GetDatum(place->offset);
	}
	values[0] = CStringGetTextDatum(worker->subscription->name);
	values[1] = PointerGetDatum(construct_array(topics, n, TEXTOID, -1, false, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(numbers, n, INT4OID, 4, true, TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(offsets, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[4] = BoolGetDatum(worker->subscription->generation > 0);
	if (SPI_execute_with_args("INSERT INTO inbox.position (subscription, topic, partition, next, epoch)"
							  " SELECT $1::name, v.*, CASE WHEN $5 THEN -1 ELSE 0 END FROM unnest($2, $3, $4) v",
							  5, types, values, NULL, false, 0) != SPI_OK_INSERT ||
		SPI_execute_with_args("UPDATE inbox.subscription SET started = true WHERE name = $1::name",
							  1, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write inbox.position");
}

static bool
is_there(const char *topic, const OutboxPlace *places, int n)
{
	for (int i = 0; i < n; i++)
		if (strcmp(places[i].topic, topic) == 0)
			return true;
	return false;
}

/*
 * Show a topic that is missing, once after each rebalance: while others are consumed
 * nothing else would.
 */
void
inbox_check_topics(InboxWorker *worker)
{
	const OutboxPlace *places;
	OutboxError error = {0};
	int			n;

	if (worker->source->places_are_streams || worker->topics_checked ||
		!worker->subscription->started ||
		worker->source->list(worker->client, &places, &n, &error) != OUTBOX_OK)
		return;
	worker->topics_checked = true;
	for (int i = 0; i < worker->subscription->ntopics; i++)
	{
		const char *topic = worker->subscription->topics[i];

		if (strchr(topic, '*') != NULL || is_there(topic, places, n))
			continue;
		worker->topic_missing = true;
		inbox_set_error(worker->slot, psprintf("topic \"%.200s\" is not there, or this user may not see it", topic),
						"Create it, or grant Read and Describe on it; the others are consumed.");
		return;
	}
	if (worker->topic_missing)
		inbox_clear_error(worker->slot);
	worker->topic_missing = false;
}

/* Resolve the start; false: not known yet, or the subscription is to be read anew. */
bool
inbox_start(InboxWorker *worker)
{
	bool		ours;

	if (!list_partitions(worker) || !find_starts(worker))
		return false;
	inbox_begin();
	ours = inbox_subscription_lock(worker, true);
	if (ours)
		store_starts(worker);
	inbox_end(worker);
	inbox_start_forget(worker);
	worker->subscription->started = ours;
	return ours;
}
