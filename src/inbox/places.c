/*-------------------------------------------------------------------------
 *
 * places.c
 *	  Where a subscription stands in each partition: inbox.position.
 *
 * The row of a partition is moved on in the transaction that has the effects of
 * what it passes, and only from where this worker believes it to be.  So of two
 * workers that have the same partition (one is a zombie that does not know yet
 * that the broker gave it away) the one that is late finds the row moved, its
 * transaction fails, and nothing of it remains.  What the broker remembers of the
 * group is never read; it is told, for its own tools.
 *
 * Where a partition begins.  At the first assignment of a subscription's life, at
 * its start, which is resolved to offsets then, of all partitions in one
 * transaction.  A partition that turns up later (it was added, or a topic that
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
#include "utils/snapmgr.h"

void
inbox_partitions_assigned(InboxWorker *worker, const OutboxPlace *places, int n)
{
	MemoryContext old = CurrentMemoryContext;

	/* text of another encoding can't be had outside of one */
	StartTransactionCommand();
	MemoryContextSwitchTo(worker->context);
	for (int i = 0; i < n; i++)
	{
		InboxPartition *partition = inbox_partition_find(worker, places[i].topic,
														 places[i].partition);

		if (partition != NULL)
			continue;
		partition = palloc0(sizeof(InboxPartition));
		partition->topic = pstrdup(places[i].topic);
		partition->topic_local = pstrdup(pg_any_to_server(partition->topic,
														  strlen(partition->topic), PG_UTF8));
		partition->partition = places[i].partition;
		partition->found = -1;
		worker->partitions = lappend(worker->partitions, partition);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	pg_atomic_write_u32(&worker->slot->partitions, list_length(worker->partitions));
}

/* What we know of their places is to be looked up anew. */
void
inbox_partitions_unplace(InboxWorker *worker)
{
	ListCell   *lc;

	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		partition->placed = partition->stopped = partition->skips = false;
		partition->found = -1;
	}
}

void
inbox_partitions_gone(InboxWorker *worker)
{
	ListCell   *lc;

	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		pfree(partition->topic);
		pfree(partition->topic_local);
		pfree(partition);
	}
	list_free(worker->partitions);
	worker->partitions = NIL;
	pg_atomic_write_u32(&worker->slot->partitions, 0);
	pg_atomic_write_u64(&worker->slot->lag, 0);
}

InboxPartition *
inbox_partition_find(InboxWorker *worker, const char *topic, int32 number)
{
	ListCell   *lc;

	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (partition->partition == number && strcmp(partition->topic, topic) == 0)
			return partition;
	}
	return NULL;
}

static void
begin(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
}

static void
commit(InboxWorker *worker)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker->context);
}

/* The stored place of a partition; -1: it has none. */
static int64
stored_place(InboxWorker *worker, const InboxPartition *partition)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(worker->subscription->name),
		CStringGetTextDatum(partition->topic_local), Int32GetDatum(partition->partition)};
	bool		isnull;

	/* a zombie's transaction that is not over yet is waited for */
	if (SPI_execute_with_args("SELECT next FROM inbox.position WHERE subscription = $1::name AND topic = $2"
							  " AND partition = $3 FOR UPDATE", 3, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.position");
	return SPI_processed == 0 ? -1 :
		DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

static void
store_first_place(InboxWorker *worker, const InboxPartition *partition)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT4OID, INT8OID};
	Datum		values[] = {CStringGetTextDatum(worker->subscription->name),
		CStringGetTextDatum(partition->topic_local), Int32GetDatum(partition->partition),
	Int64GetDatum(partition->next)};

	if (SPI_execute_with_args("INSERT INTO inbox.position (subscription, topic, partition, next)"
							  " VALUES ($1::name, $2, $3, $4)"
							  " ON CONFLICT (subscription, topic, partition) DO UPDATE SET next = excluded.next",
							  4, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write inbox.position");
}

/*
 * Ask the broker where a partition is to begin; false: not known yet.  It tells
 * once, and others may not be known by then.
 */
static bool
find_start(InboxWorker *worker, InboxPartition *partition)
{
	const char *start = worker->subscription->started || partition->skips ? "earliest" :
		worker->subscription->start;
	OutboxFrom	from = OUTBOX_FROM_TIME;
	int64		time_ms = 0;
	int64_t		offset;
	OutboxError error = {0};
	OutboxFailure failure;

	if (partition->found >= 0)
		return true;
	if (strcmp(start, "earliest") == 0)
		from = OUTBOX_FROM_EARLIEST;
	else if (strcmp(start, "latest") == 0)
		from = OUTBOX_FROM_LATEST;
	else
		time_ms = DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(start),
														  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1))) / 1000 +
			(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000;
	time_ms = Max(time_ms, 0);
	failure = worker->source->find(worker->client, partition->topic, partition->partition, from,
								   time_ms, &offset, &error);
	if (failure == OUTBOX_OK)
	{
		partition->found = offset;
		return true;
	}
	if (error.text[0] != '\0' && (failure != OUTBOX_RETRY || error.name[0] != '\0'))
		inbox_set_error(worker->slot, error.text, error.hint);
	return false;
}

/* Have a partition begin where the broker told. */
static void
begin_there(InboxWorker *worker, InboxPartition *partition)
{
	if (partition->skips)
		ereport(LOG,
				(errmsg("pg_outbox subscription \"%s\" passes over messages that the broker does not have any more",
						worker->subscription->name),
				 errdetail("Partition %d of topic \"%s\", from offset %lld to %lld.",
						   partition->partition, partition->topic_local,
						   (long long) partition->next, (long long) partition->found)));
	partition->next = partition->found;
	store_first_place(worker, partition);
}

/* Read where partitions stand; those without a place get the one they begin at. */
static bool
look_up_places(InboxWorker *worker)
{
	bool		all = true;
	ListCell   *lc;

	begin();
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (partition->placed)
			continue;
		partition->next = stored_place(worker, partition);
		if ((partition->next < 0 || partition->skips) && !find_start(worker, partition))
			all = false;
	}
	if (all)
	{
		Oid			types[] = {TEXTOID};
		Datum		values[] = {CStringGetTextDatum(worker->subscription->name)};

		foreach(lc, worker->partitions)
			if (((InboxPartition *) lfirst(lc))->found >= 0)
				begin_there(worker, lfirst(lc));
		if (!worker->subscription->started)
			(void) SPI_execute_with_args("UPDATE inbox.subscription SET started = true WHERE name = $1::name",
										 1, types, values, NULL, false, 0);
	}
	commit(worker);
	if (all)
		worker->subscription->started = true;
	return all;
}

/*
 * Tell the client where to go on in partitions that are new to us.  False: they
 * are not known yet.
 */
bool
inbox_partitions_place(InboxWorker *worker)
{
	OutboxPlace *places;
	OutboxError error = {0};
	OutboxFailure failure;
	int			n = 0;
	ListCell   *lc;

	foreach(lc, worker->partitions)
		n += !((InboxPartition *) lfirst(lc))->placed;
	if (n == 0)
		return true;
	if (!look_up_places(worker))
		return false;
	places = MemoryContextAlloc(worker->scratch, n * sizeof(OutboxPlace));
	n = 0;
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (!partition->placed)
			places[n++] = (OutboxPlace) {partition->topic, partition->partition, partition->next};
	}
	failure = worker->source->seek(worker->client, places, n, &error);
	if (failure != OUTBOX_OK)
		return false;			/* what has happened, receive() tells */
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		partition->placed = true;
		partition->skips = false;
		partition->found = -1;
	}
	return true;
}

/*
 * Move on, as part of the current transaction: next has a place for each partition,
 * -1 where it stays.  False: another worker has moved one meanwhile.
 */
bool
inbox_places_advance(InboxWorker *worker, const int64 *next)
{
	Oid			types[] = {TEXTOID, TEXTARRAYOID, INT4ARRAYOID, INT8ARRAYOID, INT8ARRAYOID};
	int			all = list_length(worker->partitions);
	Datum	   *topics = palloc(4 * all * sizeof(Datum));
	Datum	   *numbers = topics + all;
	Datum	   *was = numbers + all;
	Datum	   *becomes = was + all;
	Datum		values[5];
	int			n = 0;
	uint64		moved;

	for (int i = 0; i < all; i++)
	{
		InboxPartition *partition = list_nth(worker->partitions, i);

		if (next[i] < 0)
			continue;
		topics[n] = CStringGetTextDatum(partition->topic_local);
		numbers[n] = Int32GetDatum(partition->partition);
		was[n] = Int64GetDatum(partition->next);
		becomes[n++] = Int64GetDatum(next[i]);
	}
	values[0] = CStringGetTextDatum(worker->subscription->name);
	values[1] = PointerGetDatum(construct_array(topics, n, TEXTOID, -1, false, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(numbers, n, INT4OID, 4, true, TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(was, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[4] = PointerGetDatum(construct_array(becomes, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	SPI_connect();
	if (SPI_execute_with_args("UPDATE inbox.position p SET next = v.next"
							  " FROM unnest($2, $3, $4, $5) v (topic, partition, was, next)"
							  " WHERE p.subscription = $1::name AND p.topic = v.topic"
							  " AND p.partition = v.partition AND p.next = v.was",
							  5, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write inbox.position");
	moved = SPI_processed;
	SPI_finish();
	return moved == n;
}

/* Tell the broker how far we are. */
void
inbox_places_tell(InboxWorker *worker, int wait_ms)
{
	OutboxPlace *places;
	OutboxError error = {0};
	int			n = 0;
	ListCell   *lc;

	if (worker->partitions == NIL)
		return;
	places = MemoryContextAlloc(worker->scratch, list_length(worker->partitions) * sizeof(OutboxPlace));
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (partition->placed && partition->next >= 0)
			places[n++] = (OutboxPlace) {partition->topic, partition->partition, partition->next};
	}
	if (n > 0)
		(void) worker->source->commit(worker->client, places, n, wait_ms, &error);
}

/*
 * What follows a place is gone at the broker: it kept messages for too short a
 * time, or the topic was made anew.  Never passed over unless told so.
 */
void
inbox_place_gap(InboxWorker *worker, const OutboxPlace *place)
{
	InboxPartition *partition = inbox_partition_find(worker, place->topic, place->partition);
	char		text[256];

	if (partition == NULL)
		return;
	if (!worker->subscription->skip_gaps)
	{
		partition->stopped = true;
		snprintf(text, sizeof(text), "the broker has no message at offset %lld of partition %d of topic \"%.100s\" any more",
				 (long long) place->offset, place->partition, partition->topic_local);
		inbox_set_error(worker->slot, text,
						"Messages may be lost. Go on with inbox.seek(), or set on_gap to \"skip\".");
		return;
	}
	partition->skips = true;
	partition->placed = false;
}
