/*-------------------------------------------------------------------------
 *
 * places.c
 *	  Where a subscription stands in each partition: inbox.position.
 *
 * The row of a partition is moved on in the transaction that has the effects of
 * what it passes, and only by the worker that took it last, and from where that one
 * believes it to be.  Taking it gives it another epoch, the id of the transaction that
 * does, so that no two are the same.  So of two workers that have
 * the same partition (one is a zombie that does not know yet that the broker gave it
 * away) the one that was there first finds the epoch changed, its transaction fails,
 * and nothing of it remains; what it had under way when the row was to be taken was
 * waited for, by the lock on the row.
 *
 * What the broker remembers of the group is told to it for its own tools, and is not
 * read.  But where the group is shared with other databases or subscriptions, their
 * progress is known to the broker only: then a partition goes on at the greater of
 * row and group, and one that this subscription has never had (its epoch is 0, the
 * row says where it would have begun) goes on where the group is.  After inbox.seek()
 * (the epoch is -1) it begins where the row says, and the group is told so.  There the group is
 * told only what is durable (worker.c sets synchronous_commit): a place that the
 * broker has and this database has lost in a crash would be passed over.
 *
 * Where a partition begins that has no row: see start.c.
 *
 * Locks: the subscription's row before rows of places, in all that takes both.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fault.h"
#include "inbox/mark.h"
#include "inbox/worker.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define PLACE_TIMEOUT_MS	2000
#define MARKS_MARGIN_US		(10 * USECS_PER_MINUTE)	/* until what comes again is handled */

/*
 * Where places are numbers of ours, only marks tell what has been handled of that
 * which comes again.  Those that have expired while we were away count again;
 * nobody has removed them (expire.c).
 */
static void
refresh_marks(InboxWorker *worker)
{
	TimestampTz now = GetCurrentTimestamp();
	Oid			types[] = {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID};

	/* times as values, since a search in an index can't end at a volatile function */
	Datum		values[] = {CStringGetTextDatum(worker->subscription->name),
		TimestampTzGetDatum(inbox_mark_expiry(now, worker->subscription->dedup_ttl_us)),
	TimestampTzGetDatum(now + MARKS_MARGIN_US)};

	if (!worker->source->own_numbers)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("UPDATE inbox.seen SET expires_at = $2 WHERE consumer = $1 AND expires_at < $3",
							  3, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write inbox.seen");
	SPI_finish();
	PopActiveSnapshot();
}

void
inbox_partitions_assigned(InboxWorker *worker, const OutboxPlace *places, int n)
{
	MemoryContext old = CurrentMemoryContext;

	/* text of another encoding can't be had outside of one */
	StartTransactionCommand();
	refresh_marks(worker);
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
		partition->earliest = partition->group_next = -1;
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

		partition->placed = partition->stopped = partition->skips = partition->renews = partition->group_asked = false;
		partition->earliest = partition->group_next = -1;
	}
}

static void
free_partitions(List **partitions)
{
	ListCell   *lc;

	foreach(lc, *partitions)
	{
		InboxPartition *partition = lfirst(lc);

		pfree(partition->topic);
		pfree(partition->topic_local);
		pfree(partition);
	}
	list_free(*partitions);
	*partitions = NIL;
}

void
inbox_partitions_gone(InboxWorker *worker)
{
	free_partitions(&worker->partitions);
	free_partitions(&worker->adopted);
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

/* A transaction of the worker's own, with SPI. */
void
inbox_begin(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
}

void
inbox_end(InboxWorker *worker)
{
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker->context);
}

/*
 * Lock the subscription's row against inbox.seek() until the transaction ends, or
 * against other workers too.  False: it is another one than we know, and is to be
 * read anew.
 */
bool
inbox_subscription_lock(InboxWorker *worker, bool exclusive)
{
	Oid			types[] = {TEXTOID, INT8OID, BOOLOID};
	Datum		values[] = {CStringGetTextDatum(worker->subscription->name),
		Int64GetDatum(worker->subscription->generation),
	BoolGetDatum(worker->subscription->started)};

	if (SPI_execute_with_args(exclusive ?
							  "SELECT FROM inbox.subscription WHERE name = $1::name AND generation = $2"
							  " AND started = $3 FOR NO KEY UPDATE" :
							  "SELECT FROM inbox.subscription WHERE name = $1::name AND generation = $2"
							  " AND started = $3 FOR SHARE",
							  3, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.subscription");
	worker->reload = SPI_processed == 0;
	return !worker->reload;
}

#define THIS_PLACE	" WHERE subscription = $1::name AND topic = $2 AND partition = $3"

static void
this_place(InboxWorker *worker, const InboxPartition *partition, Oid *types, Datum *values)
{
	types[0] = types[1] = TEXTOID;
	types[2] = INT4OID;
	values[0] = CStringGetTextDatum(worker->subscription->name);
	values[1] = CStringGetTextDatum(partition->topic_local);
	values[2] = Int32GetDatum(partition->partition);
}

/* The stored place of a partition, into next (-1: it has none) and epoch. */
static void
read_place(InboxWorker *worker, InboxPartition *partition, bool locks)
{
	Oid			types[3];
	Datum		values[3];
	char	   *incarnation;
	bool		isnull;

	this_place(worker, partition, types, values);
	if (SPI_execute_with_args(locks ? "SELECT next, epoch, incarnation FROM inbox.position" THIS_PLACE " FOR UPDATE" :
							  "SELECT next, epoch, incarnation FROM inbox.position" THIS_PLACE,
							  3, types, values, NULL, !locks, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.position");
	partition->next = -1;
	partition->epoch = 0;
	partition->incarnation[0] = '\0';
	if (SPI_processed == 0)
		return;
	partition->next = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	partition->epoch = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	incarnation = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3);
	strlcpy(partition->incarnation, incarnation ? incarnation : "", sizeof(partition->incarnation));
}

static void
write_place(InboxWorker *worker, const InboxPartition *partition)
{
	Oid			types[6];
	Datum		values[6];

	this_place(worker, partition, types, values);
	types[3] = types[4] = INT8OID;
	types[5] = TEXTOID;
	values[3] = Int64GetDatum(partition->next);
	values[4] = Int64GetDatum(partition->epoch);
	values[5] = CStringGetTextDatum(partition->incarnation);
	if (SPI_execute_with_args("INSERT INTO inbox.position (subscription, topic, partition, next, epoch, incarnation)"
							  " VALUES ($1::name, $2, $3, $4, $5, nullif($6, ''))"
							  " ON CONFLICT (subscription, topic, partition)"
							  " DO UPDATE SET next = excluded.next, epoch = excluded.epoch,"
							  " incarnation = excluded.incarnation",
							  6, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write inbox.position");
}

/* Show why the broker's answer is not there; no error: it only takes its time. */
void
inbox_show_failure(InboxWorker *worker, OutboxFailure failure, const OutboxError *error)
{
	if (error->text[0] != '\0' && (failure != OUTBOX_RETRY || error->name[0] != '\0'))
		inbox_set_error(worker->slot, error->text, error->hint);
}

/* Ask the broker once for a place of this partition; true: *known has it. */
static bool
ask(InboxWorker *worker, InboxPartition *partition, OutboxFrom from, int64 *known)
{
	OutboxError error = {0};
	OutboxFailure failure;
	int64_t		offset;

	failure = worker->source->find(worker->client, partition->topic, partition->partition, from, 0,
								   &offset, &error);
	if (failure == OUTBOX_OK)
		*known = offset;
	else
		inbox_show_failure(worker, failure, &error);
	return failure == OUTBOX_OK;
}

/* What must be known besides the row, see the banner; false: not all of it is yet. */
static bool
ask_what_is_missing(InboxWorker *worker, InboxPartition *partition)
{
	bool		known = true;

	if ((partition->next < 0 || partition->skips) && partition->earliest < 0)
		known = ask(worker, partition, OUTBOX_FROM_EARLIEST, &partition->earliest);
	if (worker->subscription->shared_group && !partition->group_asked)
	{
		partition->group_asked = ask(worker, partition, OUTBOX_FROM_GROUP, &partition->group_next);
		known = known && partition->group_asked;
	}
	return known;
}

/* Where a partition goes on, of what is stored and what the broker told. */
static int64
place_of(const InboxPartition *partition)
{
	int64		next = partition->next < 0 || partition->skips ? partition->earliest : partition->next;

	if (partition->group_next < 0 || partition->skips || partition->epoch < 0)
		return next;
	return partition->epoch == 0 ? partition->group_next : Max(next, partition->group_next);
}

/*
 * A shared group that is nowhere in a partition, or elsewhere, is told where we begin
 * before we handle anything: another member that takes it over goes on from there.
 */
static bool
begin_for_the_group(InboxWorker *worker, InboxPartition *partition)
{
	OutboxPlace place = {partition->topic, partition->partition, place_of(partition), NULL};
	OutboxError error = {0};
	OutboxFailure failure;

	if (!worker->subscription->shared_group ||
		(partition->group_next >= 0 && partition->epoch >= 0))
		return true;
	failure = worker->source->commit(worker->client, &place, 1, PLACE_TIMEOUT_MS, &error);
	if (failure == OUTBOX_OK)
		partition->group_next = place.offset;
	else
		inbox_show_failure(worker, failure, &error);
	return failure == OUTBOX_OK;
}

/* Learn what new partitions need; false: not all is known yet. */
static bool
prepare_places(InboxWorker *worker)
{
	bool		all = true;
	ListCell   *lc;

	inbox_begin();
	foreach(lc, worker->partitions)
		if (!((InboxPartition *) lfirst(lc))->placed)
			read_place(worker, lfirst(lc), false);
	inbox_end(worker);
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (!partition->placed)
			all = ask_what_is_missing(worker, partition) && all;
	}
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (all && !partition->placed)
			all = begin_for_the_group(worker, partition);
	}
	return all;
}

static void
log_skip(InboxWorker *worker, const InboxPartition *partition, int64 to)
{
	ereport(LOG,
			(errmsg("pg_outbox subscription \"%s\" passes over messages that the broker does not have any more",
					worker->subscription->name),
			 errdetail("Partition %d of topic \"%s\", from offset %lld to %lld.",
					   partition->partition, partition->topic_local,
					   (long long) partition->next, (long long) to)));
}

/* Take the rows of new partitions for this worker; false: something has changed. */
static bool
take_places(InboxWorker *worker)
{
	bool		ours;
	ListCell   *lc;

	inbox_begin();
	ours = inbox_subscription_lock(worker, false);
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);
		int64		next;

		if (!ours || partition->placed)
			continue;
		/* a zombie's transaction that is not over yet is waited for */
		read_place(worker, partition, true);
		next = place_of(partition);
		if (next < 0)
		{
			ours = false;		/* somebody has deleted the row by hand */
			continue;
		}
		if (partition->skips)
			log_skip(worker, partition, next);
		if (worker->source->incarnation != NULL &&
			(partition->incarnation[0] == '\0' || partition->skips || partition->renews))
			worker->source->incarnation(worker->client, partition->incarnation);
		partition->next = next;
		partition->epoch = (int64) U64FromFullTransactionId(GetTopFullTransactionId());
		write_place(worker, partition);
	}
	inbox_end(worker);
	return ours;
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
	if ((!worker->subscription->started && !inbox_start(worker)) ||
		!prepare_places(worker) || !take_places(worker))
		return false;
	/* what the one before us has left waiting there */
	inbox_waiting_load(worker);
	places = MemoryContextAlloc(worker->scratch, n * sizeof(OutboxPlace));
	n = 0;
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (!partition->placed)
			places[n++] = (OutboxPlace) {partition->topic, partition->partition, partition->next,
			partition->incarnation[0] ? partition->incarnation : NULL};
	}
	failure = worker->source->seek(worker->client, places, n, &error);
	if (failure != OUTBOX_OK)
		return false;			/* what has happened, receive() tells */
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		partition->placed = true;
		partition->skips = partition->renews = false;
		partition->earliest = -1;
	}
	return true;
}

/* Another worker has taken partitions of ours, or seek() has: begin anew from there. */
void
inbox_places_lost(InboxWorker *worker)
{
	inbox_partitions_unplace(worker);
	worker->stale = true;
	worker->lost = true;
	INSTR_TIME_SET_CURRENT(worker->lost_at);
}

/*
 * Move on, as part of the current transaction: next has a place for each partition,
 * -1 where it stays.  False: another worker has moved one meanwhile.
 */
bool
inbox_places_advance(InboxWorker *worker, const int64 *next)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {TEXTOID, TEXTARRAYOID, INT4ARRAYOID, INT8ARRAYOID, INT8ARRAYOID, INT8ARRAYOID};
	int			all = list_length(worker->partitions);
	Datum	   *topics = palloc(5 * all * sizeof(Datum));
	Datum	   *numbers = topics + all;
	Datum	   *epochs = numbers + all;
	Datum	   *was = epochs + all;
	Datum	   *becomes = was + all;
	Datum		values[6];
	int			n = 0;
	uint64		moved;

	for (int i = 0; i < all; i++)
	{
		InboxPartition *partition = list_nth(worker->partitions, i);

		if (next[i] < 0)
			continue;
		topics[n] = CStringGetTextDatum(partition->topic_local);
		numbers[n] = Int32GetDatum(partition->partition);
		epochs[n] = Int64GetDatum(partition->epoch);
		was[n] = Int64GetDatum(partition->next);
		becomes[n++] = Int64GetDatum(next[i]);
	}
	values[0] = CStringGetTextDatum(worker->subscription->name);
	values[1] = PointerGetDatum(construct_array(topics, n, TEXTOID, -1, false, TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_array(numbers, n, INT4OID, 4, true, TYPALIGN_INT));
	values[3] = PointerGetDatum(construct_array(epochs, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[4] = PointerGetDatum(construct_array(was, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[5] = PointerGetDatum(construct_array(becomes, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	SPI_connect();
	if (inbox_execute(&plan, "UPDATE inbox.position p SET next = v.next"
					  " FROM unnest($2, $3, $4, $5, $6) v (topic, partition, epoch, was, next)"
					  " WHERE p.subscription = $1::name AND p.topic = v.topic"
					  " AND p.partition = v.partition AND p.epoch = v.epoch AND p.next = v.was",
					  6, types, values) != SPI_OK_UPDATE)
		elog(ERROR, "could not write inbox.position");
	moved = SPI_processed;
	SPI_finish();
	return moved == n || !OUTBOX_RULE("inbox-fence");
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
			places[n++] = (OutboxPlace) {partition->topic, partition->partition, partition->next, NULL};
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

/* The topic is the same, though the broker tells another incarnation by now. */
void
inbox_place_same(InboxWorker *worker, const OutboxPlace *place)
{
	InboxPartition *partition = inbox_partition_find(worker, place->topic, place->partition);

	if (partition == NULL)
		return;
	partition->renews = true;
	partition->placed = false;
}

/* There is nothing for us before a place: go on from there. */
void
inbox_place_passed(InboxWorker *worker, const OutboxPlace *place)
{
	InboxPartition *partition = inbox_partition_find(worker, place->topic, place->partition);
	int64	   *next;
	bool		ours;

	if (partition == NULL || !partition->placed || place->offset <= partition->next)
		return;
	inbox_begin();
	next = palloc(list_length(worker->partitions) * sizeof(int64));
	for (int i = 0; i < list_length(worker->partitions); i++)
		next[i] = list_nth(worker->partitions, i) == partition ? place->offset : -1;
	ours = inbox_places_advance(worker, next);
	inbox_end(worker);
	if (ours)
		partition->next = place->offset;
	else
		inbox_places_lost(worker);
}
