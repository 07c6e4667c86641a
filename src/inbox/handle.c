/*-------------------------------------------------------------------------
 *
 * handle.c
 *	  Has messages handled: marks, handler and place in one transaction.
 *
 * A batch is one transaction.  First it moves the place on, which fails if another
 * worker was there meanwhile; then it sets the marks, and calls the handler for
 * what is new.  So after a crash at any moment either all of it is there, or none.
 *
 * At first without subtransactions, which cost a transaction id each.  When the
 * handler raises, the batch is rolled back and done once more, with care: the part
 * that failed is halved (or, where it is known which message failed, cut there),
 * each part in a subtransaction, until what fails is one message.  That one goes to
 * inbox.waiting, and all of the same key behind it too (see waiting.c), so that the
 * others go on and a key's order is kept.
 *
 * The handler runs as the subscription's owner, who can't be left by it; what it
 * sets lasts until it returns.  What it leaves for the commit (deferred triggers,
 * cursors WITH HOLD) is the owner's code, too, so the transaction is committed as
 * the owner: else that would run with all rights.
 *
 * When that raises (a constraint that is deferred, say), nobody knows for which
 * message, and no subtransaction can be undone any more.  So each message of the batch
 * gets a transaction of its own then, with its place and its mark; and one whose
 * commit raises is put aside by a further one, as if its handler had raised.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fault.h"
#include "inbox/mark.h"
#include "inbox/worker.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/typcache.h"

typedef enum Outcome
{
	HANDLED,
	NOT_OURS,					/* another worker has moved a place meanwhile */
	RAISED,						/* the handler did */
	COMMIT_RAISED				/* what the handler left for the commit did */
} Outcome;

/* A batch under way. */
typedef struct Batch
{
	InboxHandler handler;
	InboxMessage *messages;
	int			n;
	InboxMarks *marks;			/* NULL: without */
	Datum		consumer;		/* whose marks they are */
	uint64		handled;
	uint64		duplicates;
	int			failed;			/* the message whose handler raised; -1: not known */
} Batch;

/* Raises, for a person to see, when it can't be used. */
void
inbox_handler_find(InboxWorker *worker, InboxHandler *handler)
{
	const InboxSubscription *subscription = worker->subscription;
	Oid			schema = get_namespace_oid("inbox", false);
	LOCAL_FCINFO(call, 1);
	Oid			oid;
	HeapTuple	tuple;
	Form_pg_proc form;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(subscription->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the subscription's owner does not exist any more"),
				 errhint("End it with inbox.unsubscribe(), and subscribe again.")));
	InitFunctionCallInfoData(*call, NULL, 1, InvalidOid, NULL, NULL);
	call->args[0].value = CStringGetTextDatum(subscription->handler);
	call->args[0].isnull = false;
	oid = DatumGetObjectId(to_regprocedure(call));
	if (call->isnull)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("handler %s does not exist", subscription->handler),
				 errhint("Create it, or name another one with inbox.alter_subscription().")));
	handler->message_type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
											CStringGetDatum("message"), ObjectIdGetDatum(schema));
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", oid);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	handler->takes_array = form->proargtypes.values[0] != handler->message_type;
	if (form->prorettype != VOIDOID || form->prokind != PROKIND_FUNCTION)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("handler %s must be a function that returns void", subscription->handler)));
	ReleaseSysCache(tuple);
	if (!outbox_may_execute(oid, subscription->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the subscription's owner \"%s\" may not execute handler %s",
						GetUserNameFromId(subscription->owner, false), subscription->handler),
				 errhint("Grant EXECUTE on it.")));
	handler->message_desc = lookup_rowtype_tupdesc_copy(handler->message_type, -1);
	fmgr_info_cxt(oid, &handler->function, CurrentMemoryContext);
}

/* Let what the handler publishes continue the message's trace. */
static void
set_trace(const InboxMessage *message)
{
	static const char *const names[] = {"traceparent", "tracestate"};
	Jsonb	   *headers = DatumGetJsonbP(message->headers);

	for (int i = 0; i < lengthof(names); i++)
	{
		JsonbValue	buffer;
		JsonbValue *value = getKeyJsonValueFromContainer(&headers->root, names[i],
														 (int) strlen(names[i]), &buffer);

		if (value != NULL && value->type == jbvString)
			(void) set_config_option(psprintf("outbox.%s", names[i]),
									 pnstrdup(value->val.string.val, value->val.string.len),
									 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	}
}

static void
invoke(FunctionCallInfo call, int timeout_ms)
{
	if (timeout_ms == 0)
	{
		(void) FunctionCallInvoke(call);
		return;
	}
	enable_timeout_after(STATEMENT_TIMEOUT, timeout_ms);
	PG_TRY();
	{
		(void) FunctionCallInvoke(call);
	}
	PG_FINALLY();
	{
		disable_timeout(STATEMENT_TIMEOUT, false);
	}
	PG_END_TRY();
}

/* One call; an error while in_handler is set is the handler's. */
static void
call(InboxWorker *worker, InboxHandler *handler, Datum argument, const InboxMessage *traced)
{
	LOCAL_FCINFO(call, 1);
	int			level = NewGUCNestLevel();
	Oid			userid;
	int			context;

	GetUserIdAndSecContext(&userid, &context);
	if (traced != NULL)
		set_trace(traced);
	SetUserIdAndSecContext(worker->subscription->owner, context | SECURITY_LOCAL_USERID_CHANGE);
	worker->in_handler = true;
	/* a SIGTERM that came before the transaction began, see worker.c */
	if (ShutdownRequestPending)
		InterruptPending = ProcDiePending = true;
	CHECK_FOR_INTERRUPTS();
	InitFunctionCallInfoData(*call, &handler->function, 1, DEFAULT_COLLATION_OID, NULL, NULL);
	call->args[0].value = argument;
	call->args[0].isnull = false;
	invoke(call, worker->subscription->timeout_ms);
	worker->in_handler = false;
	SetUserIdAndSecContext(userid, context);
	AtEOXact_GUC(false, level);
	CommandCounterIncrement();
}

void
inbox_handler_call(InboxWorker *worker, InboxHandler *handler, InboxMessage **messages, int n)
{
	Datum	   *elements;
	int16		length;
	bool		by_value;
	char		align;

	if (!handler->takes_array)
	{
		for (int i = 0; i < n; i++)
			call(worker, handler, inbox_message_datum(handler, messages[i]), messages[i]);
		return;
	}
	elements = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
		elements[i] = inbox_message_datum(handler, messages[i]);
	get_typlenbyvalalign(handler->message_type, &length, &by_value, &align);
	call(worker, handler,
		 PointerGetDatum(construct_array(elements, n, handler->message_type, length, by_value, align)),
		 n == 1 ? messages[0] : NULL);
}

/*
 * Commit what handlers have done, see the banner; in the caller's context.  False:
 * what they left for the commit raised, for that reason, and nothing has happened.
 */
bool
inbox_commit_as_owner(InboxWorker *worker, InboxFailure *failure)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			userid;
	int			security;
	volatile bool done = false;

	GetUserIdAndSecContext(&userid, &security);
	SetUserIdAndSecContext(worker->subscription->owner, security | SECURITY_LOCAL_USERID_CHANGE);
	PG_TRY();
	{
		CommitTransactionCommand();
		done = true;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		inbox_failure_take(failure, CopyErrorData());
		FlushErrorState();
		AbortOutOfAnyTransaction();
	}
	PG_END_TRY();
	SetUserIdAndSecContext(userid, security);
	MemoryContextSwitchTo(context);
	if (!done)
		inbox_waiting_load(worker);
	return done;
}

/* Leave out what has a mark, and mark the others; how many are left. */
static int
drop_seen(Batch *batch, InboxMessage **messages, int n)
{
	Datum	   *ids = palloc(n * sizeof(Datum));
	bool	   *is_new = palloc(n * sizeof(bool));
	int			left = 0;

	for (int i = 0; i < n; i++)
		ids[i] = messages[i]->id;
	inbox_marks_set(batch->marks, batch->consumer, ids, n, is_new);
	for (int i = 0; i < n; i++)
		if (is_new[i] || !OUTBOX_RULE("inbox-mark"))
			messages[left++] = messages[i];
	return left;
}

/* A part of the batch. */
typedef struct Part
{
	InboxWorker *worker;
	Batch	   *batch;
	int			first;
	int			end;
} Part;

/* This kind of broker may deliver a message again, and nothing would tell. */
static const InboxFailure no_id = {
	.sqlstate = "22004",
	.message = "the message has no id by which it would be known again: dedup_by finds none",
	.again_ms = -1
};

/* Handle a part, all of it or raise. */
static bool
handle_part(void *arg)
{
	Part	   *part = arg;
	InboxWorker *worker = part->worker;
	Batch	   *batch = part->batch;
	InboxMessage **messages = palloc((part->end - part->first) * sizeof(InboxMessage *));
	int			came = 0;
	int			n;

	for (int i = part->first; i < part->end; i++)
	{
		InboxMessage *message = &batch->messages[i];

		if (message->anonymous)
			inbox_dead_letter(worker, message, &no_id);
		else if (OUTBOX_RULE("inbox-order") && inbox_waiting_has(worker, message))
			inbox_waiting_add(worker, message, NULL);
		else
			messages[came++] = message;
	}
	n = batch->marks == NULL ? came : drop_seen(batch, messages, came);
	if (batch->handler.takes_array && n > 0)
		inbox_handler_call(worker, &batch->handler, messages, n);
	for (int i = 0; i < n && !batch->handler.takes_array; i++)
	{
		batch->failed = (int) (messages[i] - batch->messages);
		inbox_handler_call(worker, &batch->handler, &messages[i], 1);
	}
	batch->failed = -1;
	batch->handled += n;
	batch->duplicates += came - n;
	return true;
}

/* Try it in a subtransaction; false: the handler raised, for that reason. */
bool
inbox_handler_try(InboxWorker *worker, OutboxAttempt attempt, void *arg, InboxFailure *failure)
{
	ErrorData  *error;

	if (outbox_attempt(attempt, arg, &error))
		return true;
	if (!worker->in_handler)
		ReThrowError(error);
	worker->in_handler = false;
	inbox_failure_take(failure, error);
	return false;
}

/* What becomes of a message whose handler raised. */
static void
put_aside(InboxWorker *worker, const InboxMessage *message, const InboxFailure *failure)
{
	if (failure->rejected || (worker->subscription->max_attempts == 1 && failure->again_ms < 0 &&
							  !worker->subscription->block))
		inbox_dead_letter(worker, message, failure);
	else if (OUTBOX_RULE("inbox-waiting"))
		inbox_waiting_add(worker, message, failure);
}

static void
handle_with_care(InboxWorker *worker, Batch *batch, int first, int end)
{
	while (first < end)
	{
		Part		part = {worker, batch, first, end};
		InboxFailure failure = {{0}};
		int			failed;

		batch->failed = -1;
		if (inbox_handler_try(worker, handle_part, &part, &failure))
			return;
		failed = batch->failed;
		if (end - first == 1)
		{
			put_aside(worker, &batch->messages[first], &failure);
			return;
		}
		if (failed < 0)
			failed = first + (end - first) / 2;
		else if (failed == first)
			failed = first + 1;
		handle_with_care(worker, batch, first, failed);
		first = failed;
	}
}

/* Begin the transaction, unless it has, and move the places on; false: they are not ours. */
static bool
begin(InboxWorker *worker, const int64 *next)
{
	MemoryContext context = CurrentMemoryContext;

	if (!IsTransactionState())
		StartTransactionCommand();
	MemoryContextSwitchTo(context);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!OUTBOX_RULE("inbox-place") || inbox_places_advance(worker, next))
		return true;
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(context);
	return false;
}

static Outcome
handle_in_transaction(InboxWorker *worker, Batch *batch, const int64 *next, bool carefully,
					  InboxFailure *failure)
{
	Part		all = {worker, batch, 0, batch->n};

	batch->handled = batch->duplicates = 0;
	if (!begin(worker, next))
		return NOT_OURS;
	inbox_handler_find(worker, &batch->handler);
	batch->consumer = CStringGetTextDatum(worker->subscription->name);
	batch->marks = worker->subscription->dedup == INBOX_DEDUP_NONE ? NULL :
		inbox_marks_open(worker->subscription->dedup_ttl_us);
	if (carefully)
		handle_with_care(worker, batch, 0, batch->n);
	else
		(void) handle_part(&all);
	OUTBOX_FAULT("inbox-before-commit");
	if (batch->marks != NULL)
		inbox_marks_close(batch->marks);
	PopActiveSnapshot();
	if (!inbox_commit_as_owner(worker, failure))
		return COMMIT_RAISED;
	OUTBOX_FAULT("inbox-after-commit");
	return HANDLED;
}

/* The first try; when the handler raised, nothing has happened. */
static Outcome
try_all(InboxWorker *worker, Batch *batch, const int64 *next, InboxFailure *failure)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Outcome outcome = RAISED;

	PG_TRY();
	{
		outcome = handle_in_transaction(worker, batch, next, false, failure);
	}
	PG_CATCH();
	{
		if (!worker->in_handler)
			PG_RE_THROW();
		worker->in_handler = false;
		MemoryContextSwitchTo(context);
		FlushErrorState();
		AbortOutOfAnyTransaction();
		inbox_waiting_load(worker);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return outcome;
}

/* Put a message aside whose commit raised, in a transaction without the handler. */
static Outcome
put_aside_alone(InboxWorker *worker, const InboxMessage *message, const int64 *next,
				const InboxFailure *failure)
{
	MemoryContext context = CurrentMemoryContext;

	if (!begin(worker, next))
		return NOT_OURS;
	put_aside(worker, message, failure);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return HANDLED;
}

/* The places of our partitions, after a commit. */
static void
note_places(InboxWorker *worker, const int64 *next)
{
	for (int i = 0; i < list_length(worker->partitions); i++)
		if (next[i] >= 0)
			((InboxPartition *) list_nth(worker->partitions, i))->next = next[i];
}

/* Each message in a transaction of its own, see the banner. */
static Outcome
handle_singly(InboxWorker *worker, Batch *batch, int64 *next)
{
	uint64		handled = 0;
	uint64		duplicates = 0;
	Outcome		outcome = HANDLED;

	for (int i = 0; i < batch->n && outcome == HANDLED; i++)
	{
		Batch		one = {.messages = &batch->messages[i], .n = 1};
		InboxFailure failure = {{0}};

		for (int j = 0; j < list_length(worker->partitions); j++)
			next[j] = list_nth(worker->partitions, j) == one.messages->partition ?
				one.messages->offset + 1 : -1;
		outcome = handle_in_transaction(worker, &one, next, true, &failure);
		if (outcome == COMMIT_RAISED)
			outcome = put_aside_alone(worker, one.messages, next, &failure);
		else
		{
			handled += one.handled;
			duplicates += one.duplicates;
		}
		if (outcome == HANDLED)
			note_places(worker, next);
	}
	batch->handled = handled;
	batch->duplicates = duplicates;
	return outcome;
}

/* Where in our list a message's partition is; -1: it is not ours. */
static int
find_partition(InboxWorker *worker, const OutboxIncoming *incoming)
{
	for (int i = 0; i < list_length(worker->partitions); i++)
	{
		const InboxPartition *partition = list_nth(worker->partitions, i);

		if (partition->partition == incoming->partition &&
			strcmp(partition->topic, incoming->topic) == 0)
			return i;
	}
	return -1;
}

/* Have what has come handled.  In the scratch context, without a transaction. */
void
inbox_handle_batch(InboxWorker *worker, const OutboxIncoming *incoming, int n)
{
	MemoryContext context = CurrentMemoryContext;
	Batch		batch = {{{0}}};
	int			npartitions = list_length(worker->partitions);
	int64	   *next = palloc(npartitions * sizeof(int64));
	int			at = -1;
	InboxFailure failure = {{0}};
	Outcome		outcome;

	memset(next, -1, npartitions * sizeof(int64));
	batch.messages = palloc0(n * sizeof(InboxMessage));
	/* text of other encodings, and hashes, can't be had outside of one */
	StartTransactionCommand();
	MemoryContextSwitchTo(context);
	for (int i = 0; i < n; i++)
	{
		InboxPartition *partition;

		/* messages of a partition come in runs, and share the topic's name */
		if (i == 0 || incoming[i].topic != incoming[i - 1].topic ||
			incoming[i].partition != incoming[i - 1].partition)
			at = find_partition(worker, &incoming[i]);
		partition = at < 0 ? NULL : list_nth(worker->partitions, at);
		if (partition == NULL || !partition->placed || incoming[i].offset < partition->next)
			continue;
		inbox_message_read(worker, &incoming[i], partition, &batch.messages[batch.n++]);
		next[at] = incoming[i].offset + 1;
	}
	if (batch.n == 0)
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(context);
		return;
	}
	outcome = try_all(worker, &batch, next, &failure);
	if (outcome == RAISED)
		outcome = handle_in_transaction(worker, &batch, next, true, &failure);
	if (outcome == COMMIT_RAISED)
		outcome = handle_singly(worker, &batch, next);
	if (outcome == HANDLED)
		note_places(worker, next);
	else
		inbox_places_lost(worker);
	pg_atomic_fetch_add_u64(&worker->slot->handled, batch.handled);
	pg_atomic_fetch_add_u64(&worker->slot->duplicates, batch.duplicates);
}
