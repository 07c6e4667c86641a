/*-------------------------------------------------------------------------
 *
 * waiting.c
 *	  Messages that wait: those whose handler raised, and those behind them.
 *
 * A message whose handler raised lies in inbox.waiting, with the time when it is
 * due again, which grows with each attempt.  Messages of the same key (and topic
 * and partition) that come behind it are put there too, without a time: so the
 * place in the partition moves on, and the key's order is kept.  When the first is
 * handled, or given up, the next becomes due.  A message without a key has nobody
 * behind it.
 *
 * Which keys have messages there is kept in memory, as hashes of 64 bits.  It is read
 * anew whenever a transaction failed that may have changed it, and when a partition
 * was taken over (places.c), after the row of its place was: so what the worker before
 * us has added is seen, and it can add no more.
 *
 * A retry is a transaction of its own, which locks the message's row; one that is
 * locked is left alone.  It may be that of a worker that had the partition before: so
 * who adds a message behind others waits for the first of them, and makes it due where
 * none is left.  What is long overdue is retried by any worker, and what waits in the
 * same partition too: no worker of this database has it, since the topic is not consumed
 * any more, or another member of a shared group has it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "compat.h"
#include "executor/spi.h"
#include "fault.h"
#include "fmgr.h"
#include "inbox/mark.h"
#include "inbox/worker.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define ERRCODE_RETRY_LATER	MAKE_SQLSTATE('O', 'B', '0', '0', '1')
#define ERRCODE_REJECTED	MAKE_SQLSTATE('O', 'B', '0', '0', '2')
#define MAX_BACKOFF_MS		(3600 * 1000)
#define LONG_OVERDUE		"interval '10 s'"

PG_FUNCTION_INFO_V1(inbox_retry_later);
PG_FUNCTION_INFO_V1(inbox_reject);

/* What the handler that runs asked for. */
static int64 asked_ms = -1;

/* inbox.retry_later(interval): for a handler that knows. */
Datum
inbox_retry_later(PG_FUNCTION_ARGS)
{
	Interval   *interval = PG_GETARG_INTERVAL_P(0);
	int64		us = interval->time +
		((int64) interval->month * DAYS_PER_MONTH + interval->day) * USECS_PER_DAY;

	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("interval must not be negative")));
	asked_ms = us / 1000;
	ereport(ERROR,
			(errcode(ERRCODE_RETRY_LATER),
			 errmsg("the handler wants this message again later")));
	PG_RETURN_VOID();
}

/* inbox.reject(reason) */
Datum
inbox_reject(PG_FUNCTION_ARGS)
{
	ereport(ERROR,
			(errcode(ERRCODE_REJECTED),
			 errmsg_internal("%s", text_to_cstring(PG_GETARG_TEXT_PP(0)))));
	PG_RETURN_VOID();
}

void
inbox_failure_take(InboxFailure *failure, const ErrorData *edata)
{
	strlcpy(failure->sqlstate, unpack_sql_state(edata->sqlerrcode), sizeof(failure->sqlstate));
	failure->message = edata->message ? edata->message : "";
	failure->context = edata->context;
	failure->rejected = edata->sqlerrcode == ERRCODE_REJECTED;
	failure->again_ms = edata->sqlerrcode == ERRCODE_RETRY_LATER ? asked_ms : -1;
}

/* --- keys ------------------------------------------------------------------------- */

static uint64
key_hash(const char *topic, int32 partition, const text *key)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) topic, (int) strlen(topic), partition);

	return hash_bytes_extended((const unsigned char *) VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key), hash);
}

static uint64
hash_of(const InboxMessage *message)
{
	return key_hash(message->partition->topic_local, message->partition->partition,
					DatumGetTextPP(message->key));
}

/* Read which keys wait.  Without a transaction; in one of its own. */
void
inbox_waiting_load(InboxWorker *worker)
{
	MemoryContext caller = CurrentMemoryContext;
	HASHCTL		control = {.keysize = sizeof(uint64), .entrysize = sizeof(uint64),
	.hcxt = worker->context};
	Oid			types[] = {TEXTOID};
	Datum		values[1];

	if (worker->waiting_keys != NULL)
		hash_destroy(worker->waiting_keys);
	worker->waiting_keys = hash_create("pg_outbox inbox keys", 64, &control,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	values[0] = CStringGetTextDatum(worker->subscription->name);
	if (SPI_execute_with_args("SELECT DISTINCT topic, partition, key FROM inbox.waiting_message"
							  " WHERE subscription = $1::name AND key IS NOT NULL",
							  1, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.waiting");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		uint64		hash = key_hash(SPI_getvalue(row, desc, 1),
									DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull)),
									DatumGetTextPP(SPI_getbinval(row, desc, 3, &isnull)));

		(void) hash_search(worker->waiting_keys, &hash, HASH_ENTER, NULL);
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	worker->stale = false;
}

bool
inbox_waiting_has(InboxWorker *worker, const InboxMessage *message)
{
	uint64		hash;

	if (message->no_key || hash_get_num_entries(worker->waiting_keys) == 0)
		return false;
	hash = hash_of(message);
	return hash_search(worker->waiting_keys, &hash, HASH_FIND, NULL) != NULL;
}

/* --- rows ------------------------------------------------------------------------- */

/* How long until the next attempt: doubled each time, and spread. */
static int64
backoff_ms(const InboxSubscription *subscription, int attempts)
{
	int64		ms = subscription->backoff_ms;

	for (int i = 1; i < attempts && ms < MAX_BACKOFF_MS; i++)
		ms *= 2;
	ms = Min(ms, MAX_BACKOFF_MS);
	return ms / 2 + (int64) (pg_prng_double(&pg_global_prng_state) * ms);
}

static void
execute(const char *sql, int n, Oid *types, Datum *values, const char *nulls, int expected)
{
	SPI_connect();
	if (SPI_execute_with_args(sql, n, types, values, nulls, false, 0) != expected)
		elog(ERROR, "could not write the inbox's tables");
	SPI_finish();
}

/* The columns that inbox.waiting and inbox.dead_letter have in common. */
static void
insert_row(InboxWorker *worker, const char *sql, const InboxMessage *message, int attempts,
		   bool due, int64 due_ms, const InboxFailure *failure)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT4OID, INT8OID, TEXTOID, TEXTOID, JSONBOID, BYTEAOID,
	TIMESTAMPTZOID, INT4OID, INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(worker->subscription->name),
		CStringGetTextDatum(message->partition->topic_local),
		Int32GetDatum(message->partition->partition), Int64GetDatum(message->offset), message->id,
		message->key, message->headers, message->payload, TimestampTzGetDatum(message->timestamp),
		Int32GetDatum(attempts), Int64GetDatum(due_ms),
		failure ? CStringGetTextDatum(failure->sqlstate) : 0,
		failure ? CStringGetTextDatum(failure->message) : 0,
		failure && failure->context ? CStringGetTextDatum(failure->context) : 0,
	message->subject};
	char		nulls[] = "               ";

	nulls[5] = message->no_key ? 'n' : ' ';
	nulls[7] = message->no_payload ? 'n' : ' ';
	nulls[8] = message->no_timestamp ? 'n' : ' ';
	nulls[10] = due ? ' ' : 'n';
	nulls[11] = nulls[12] = failure ? ' ' : 'n';
	nulls[13] = failure && failure->context ? ' ' : 'n';
	nulls[14] = message->no_subject ? 'n' : ' ';
	execute(sql, lengthof(types), types, values, nulls, SPI_OK_INSERT);
}

/*
 * Is there a message of the same key that waits?  Another worker may be about to
 * finish it: that is waited for, else it would not see the one that is added, and
 * nobody would make that due.
 */
static bool
has_one_before(InboxWorker *worker, const InboxMessage *message)
{
	Oid			types[] = {TEXTOID, TEXTOID, INT4OID, TEXTOID};
	Datum		values[] = {CStringGetTextDatum(worker->subscription->name),
		CStringGetTextDatum(message->partition->topic_local),
	Int32GetDatum(message->partition->partition), message->key};
	bool		found;

	SPI_connect();
	if (SPI_execute_with_args("SELECT FROM inbox.waiting_message WHERE subscription = $1::name AND topic = $2"
							  " AND partition = $3 AND hashtext(key) = hashtext($4) AND key = $4"
							  " ORDER BY \"offset\" LIMIT 1 FOR UPDATE",
							  4, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.waiting");
	found = SPI_processed > 0;
	SPI_finish();
	return found;
}

/* Failure: why it waits; NULL: for the one before it. */
void
inbox_waiting_add(InboxWorker *worker, const InboxMessage *message, const InboxFailure *failure)
{
	int64		ms = failure == NULL ? 0 : failure->again_ms >= 0 ? failure->again_ms :
		backoff_ms(worker->subscription, message->attempt);
	bool		due = failure != NULL ||
		(OUTBOX_RULE("inbox-one-before") && !has_one_before(worker, message));

	/* it may be there, and come again after inbox.seek() */
	insert_row(worker, "INSERT INTO inbox.waiting_message (subscription, topic, partition, \"offset\", message_id, key,"
			   " headers, payload, \"timestamp\", attempts, due, sqlstate, error, context, subject)"
			   " VALUES ($1::name, $2, $3, $4, $5, $6, $7, $8, $9, $10,"
			   " clock_timestamp() + $11 * interval '1 millisecond', $12, $13, $14, $15)"
			   " ON CONFLICT (subscription, topic, partition, \"offset\") DO NOTHING",
			   message, failure == NULL ? 0 : message->attempt, due, ms, failure);
	if (!message->no_key)
	{
		uint64		hash = hash_of(message);

		(void) hash_search(worker->waiting_keys, &hash, HASH_ENTER, NULL);
	}
}

void
inbox_dead_letter(InboxWorker *worker, const InboxMessage *message, const InboxFailure *failure)
{
	insert_row(worker, "INSERT INTO inbox.dead_message (subscription, topic, partition, \"offset\", message_id, key,"
			   " headers, payload, \"timestamp\", attempts, sqlstate, error, context, subject)"
			   " SELECT $1::name, $2, $3, $4, $5, $6, $7, $8, $9, $10, $12, $13, $14, $15 WHERE $11::bigint IS NULL"
			   " ON CONFLICT (subscription, topic, partition, \"offset\") DO NOTHING",
			   message, message->attempt, false, 0, failure);
}

/* --- retries ---------------------------------------------------------------------- */

static InboxPartition *
find_local(List *partitions, const char *topic, int32 number)
{
	ListCell   *lc;

	foreach(lc, partitions)
	{
		InboxPartition *partition = lfirst(lc);

		if (partition->partition == number && strcmp(partition->topic_local, topic) == 0)
			return partition;
	}
	return NULL;
}

/* The partitions whose messages we retry, for a query: arrays of topics and numbers. */
static void
our_partitions(InboxWorker *worker, Datum *topics, Datum *numbers)
{
	List	   *all = list_concat_copy(worker->partitions, worker->adopted);
	Datum	   *names = palloc(2 * Max(list_length(all), 1) * sizeof(Datum));
	Datum	   *places = names + list_length(all);
	int			n = 0;
	ListCell   *lc;

	foreach(lc, all)
	{
		InboxPartition *partition = lfirst(lc);

		if (!partition->placed)
			continue;
		names[n] = CStringGetTextDatum(partition->topic_local);
		places[n++] = Int32GetDatum(partition->partition);
	}
	*topics = PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
	*numbers = PointerGetDatum(construct_array(places, n, INT4OID, 4, true, TYPALIGN_INT));
}

/*
 * The partition of a message that waited.  One that nobody has retried for long is
 * ours from now on, until partitions are given anew, in what waits there.
 */
static InboxPartition *
partition_of(InboxWorker *worker, const char *topic, int32 number)
{
	InboxPartition *partition = find_local(worker->partitions, topic, number);
	MemoryContext caller;

	if (partition == NULL)
		partition = find_local(worker->adopted, topic, number);
	if (partition != NULL)
		return partition;
	caller = MemoryContextSwitchTo(worker->context);
	partition = palloc0(sizeof(InboxPartition));
	partition->topic_local = pstrdup(topic);
	partition->topic = pstrdup(pg_server_to_any(partition->topic_local, (int) strlen(topic), PG_UTF8));
	partition->partition = number;
	partition->placed = true;
	worker->adopted = lappend(worker->adopted, partition);
	MemoryContextSwitchTo(caller);
	return partition;
}

/* Lock the message that is due first; false: there is none. */
static bool
take_due(InboxWorker *worker, InboxMessage *message)
{
	static SPIPlanPtr plan = NULL;
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {TEXTOID, TEXTARRAYOID, INT4ARRAYOID, TIMESTAMPTZOID};
	Datum		values[4];
	HeapTuple	row;
	TupleDesc	desc;
	bool		isnull;
	bool		found;

	values[0] = CStringGetTextDatum(worker->subscription->name);
	our_partitions(worker, &values[1], &values[2]);
	/* a search in an index can't end at a volatile function */
	values[3] = TimestampTzGetDatum(GetCurrentTimestamp());
	SPI_connect();
	if (inbox_execute(&plan, "SELECT topic, partition, \"offset\", message_id, key, headers, payload, \"timestamp\","
					  " attempts, due, subject FROM inbox.waiting_message w WHERE subscription = $1::name AND due <= $4"
					  " AND (due < $4 - " LONG_OVERDUE
					  " OR EXISTS (SELECT FROM unnest($2, $3) v (topic, partition)"
					  " WHERE v.topic = w.topic AND v.partition = w.partition))"
					  " ORDER BY due LIMIT 1 FOR UPDATE SKIP LOCKED",
					  4, types, values) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.waiting");
	found = SPI_processed == 1;
	if (found)
	{
		MemoryContext spi = MemoryContextSwitchTo(context);

		row = SPI_tuptable->vals[0];
		desc = SPI_tuptable->tupdesc;
		message->partition = partition_of(worker, SPI_getvalue(row, desc, 1),
										  DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull)));
		message->offset = DatumGetInt64(SPI_getbinval(row, desc, 3, &isnull));
		message->id = PointerGetDatum(DatumGetTextPCopy(SPI_getbinval(row, desc, 4, &isnull)));
		message->key = SPI_getbinval(row, desc, 5, &message->no_key);
		if (!message->no_key)
			message->key = PointerGetDatum(DatumGetTextPCopy(message->key));
		message->headers = PointerGetDatum(DatumGetJsonbPCopy(SPI_getbinval(row, desc, 6, &isnull)));
		message->payload = SPI_getbinval(row, desc, 7, &message->no_payload);
		if (!message->no_payload)
			message->payload = PointerGetDatum(DatumGetByteaPCopy(message->payload));
		message->timestamp = DatumGetTimestampTz(SPI_getbinval(row, desc, 8, &message->no_timestamp));
		message->attempt = DatumGetInt32(SPI_getbinval(row, desc, 9, &isnull)) + 1;
		message->due = DatumGetTimestampTz(SPI_getbinval(row, desc, 10, &isnull));
		message->subject = SPI_getbinval(row, desc, 11, &message->no_subject);
		if (!message->no_subject)
			message->subject = PointerGetDatum(DatumGetTextPCopy(message->subject));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return found;
}

#define THIS_ROW	" WHERE subscription = $1::name AND topic = $2 AND partition = $3 AND \"offset\" = $4"

static void
this_row(InboxWorker *worker, const InboxMessage *message, Oid *types, Datum *values)
{
	types[0] = types[1] = TEXTOID;
	types[2] = INT4OID;
	types[3] = INT8OID;
	values[0] = CStringGetTextDatum(worker->subscription->name);
	values[1] = CStringGetTextDatum(message->partition->topic_local);
	values[2] = Int32GetDatum(message->partition->partition);
	values[3] = Int64GetDatum(message->offset);
}

/* It is done with: the next of its key is due as it was, so that all follow at once. */
static void
finish_row(InboxWorker *worker, const InboxMessage *message, bool *last)
{
	Oid			types[6];
	Datum		values[6];

	this_row(worker, message, types, values);
	execute("DELETE FROM inbox.waiting_message" THIS_ROW, 4, types, values, NULL, SPI_OK_DELETE);
	*last = false;
	if (message->no_key)
		return;
	types[4] = TEXTOID;
	values[4] = message->key;
	types[5] = TIMESTAMPTZOID;
	values[5] = TimestampTzGetDatum(message->due);
	SPI_connect();
	if (SPI_execute_with_args("UPDATE inbox.waiting_message w SET due = $6 FROM ("
							  "SELECT \"offset\" FROM inbox.waiting_message WHERE subscription = $1::name AND topic = $2"
							  " AND partition = $3 AND hashtext(key) = hashtext($5) AND key = $5"
							  " AND \"offset\" <> $4 ORDER BY \"offset\" LIMIT 1) n"
							  " WHERE w.subscription = $1::name AND w.topic = $2 AND w.partition = $3"
							  " AND w.\"offset\" = n.\"offset\"",
							  6, types, values, NULL, false, 0) != SPI_OK_UPDATE)
		elog(ERROR, "could not write inbox.waiting");
	*last = SPI_processed == 0;
	SPI_finish();
}

static void
postpone_row(InboxWorker *worker, const InboxMessage *message, const InboxFailure *failure)
{
	Oid			types[9];
	Datum		values[9];
	char		nulls[] = "         ";
	bool		asked = failure->again_ms >= 0;

	this_row(worker, message, types, values);
	types[4] = INT4OID;
	values[4] = Int32GetDatum(message->attempt);
	types[5] = INT8OID;
	values[5] = Int64GetDatum(asked ? failure->again_ms : backoff_ms(worker->subscription, message->attempt));
	types[6] = types[7] = types[8] = TEXTOID;
	values[6] = CStringGetTextDatum(failure->sqlstate);
	values[7] = CStringGetTextDatum(failure->message);
	values[8] = failure->context ? CStringGetTextDatum(failure->context) : 0;
	nulls[8] = failure->context ? ' ' : 'n';
	execute("UPDATE inbox.waiting_message SET attempts = $5, due = clock_timestamp() + $6 * interval '1 millisecond',"
			" sqlstate = $7, error = $8, context = $9" THIS_ROW,
			9, types, values, nulls, SPI_OK_UPDATE);
}

/* A message that is tried once more. */
typedef struct Retry
{
	InboxWorker *worker;
	InboxHandler handler;
	InboxMessage message;
	bool		is_new;
} Retry;

/* The mark and the handler. */
static bool
handle_again(void *arg)
{
	Retry	   *retry = arg;
	InboxSubscription *subscription = retry->worker->subscription;
	InboxMessage *message = &retry->message;

	retry->is_new = true;
	if (subscription->dedup != INBOX_DEDUP_NONE)
	{
		InboxMarks *marks = inbox_marks_open(subscription->dedup_ttl_us);

		retry->is_new = inbox_mark_set(marks, CStringGetTextDatum(subscription->name), message->id);
		inbox_marks_close(marks);
	}
	if (retry->is_new)
		inbox_handler_call(retry->worker, &retry->handler, &message, 1);
	return true;
}

/* It has failed once more. */
static void
settle_failure(InboxWorker *worker, const InboxMessage *message, const InboxFailure *failure, bool *last)
{
	const InboxSubscription *subscription = worker->subscription;

	if (failure->rejected ||
		(failure->again_ms < 0 && !subscription->block &&
		 message->attempt >= subscription->max_attempts))
	{
		inbox_dead_letter(worker, message, failure);
		finish_row(worker, message, last);
	}
	else
		postpone_row(worker, message, failure);
}

/* Lock the row of a message that was tried; false: another worker has tried it since. */
static bool
lock_again(InboxWorker *worker, const InboxMessage *message)
{
	Oid			types[5];
	Datum		values[5];
	bool		found;

	this_row(worker, message, types, values);
	types[4] = INT4OID;
	values[4] = Int32GetDatum(message->attempt - 1);
	SPI_connect();
	if (SPI_execute_with_args("SELECT FROM inbox.waiting_message" THIS_ROW " AND attempts = $5 FOR UPDATE",
							  5, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.waiting");
	found = SPI_processed == 1;
	SPI_finish();
	return found;
}

/* What its handler left for the commit raised, so this is a transaction without it. */
static void
settle_commit_failure(InboxWorker *worker, const InboxMessage *message, const InboxFailure *failure,
					  bool *last)
{
	MemoryContext context = CurrentMemoryContext;

	*last = false;
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	inbox_subscription_begin_retry(worker->subscription->name);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (lock_again(worker, message))
		settle_failure(worker, message, failure, last);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/* Retry the one that is due first; false: none is. */
bool
inbox_waiting_retry(InboxWorker *worker)
{
	MemoryContext context = CurrentMemoryContext;
	Retry		retry = {.worker = worker};
	InboxMessage *message = &retry.message;
	InboxFailure failure = {{0}};
	bool		tried;
	bool		last = false;

	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	inbox_subscription_begin_retry(worker->subscription->name);
	PushActiveSnapshot(GetTransactionSnapshot());
	/* where another worker has it by now, it is that one's */
	if (!take_due(worker, message))
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		return false;
	}
	inbox_handler_find(worker, &retry.handler);
	tried = inbox_handler_try(worker, handle_again, &retry, &failure);
	if (tried)
		finish_row(worker, message, &last);
	else
		settle_failure(worker, message, &failure, &last);
	OUTBOX_FAULT("inbox-retry-before-commit");
	PopActiveSnapshot();
	if (!inbox_commit_as_owner(worker, &failure))
		settle_commit_failure(worker, message, &failure, &last);
	else if (tried)
		pg_atomic_fetch_add_u64(retry.is_new ? &worker->slot->handled : &worker->slot->duplicates, 1);
	if (last)
	{
		uint64		hash = hash_of(message);

		(void) hash_search(worker->waiting_keys, &hash, HASH_REMOVE, NULL);
	}
	return true;
}
