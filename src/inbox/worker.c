/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The worker of a subscription: the loop.
 *
 * It asks its client what there is (messages, partitions that come or go), has
 * messages handled (handle.c), those that wait retried (waiting.c), and tells the
 * broker how far it is.  All of that is done in its main thread, one thing after the
 * other: so when a partition is to be given up nothing of it is under way.
 *
 * The subscription's row and its server are read again whenever the latch is set,
 * which the keeper does each second and when they change.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "elapsed.h"
#include "fault.h"
#include "guc.h"
#include "hold_off.h"
#include "inbox/worker.h"
#include "log/identity.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "relay/worker.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/pmsignal.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#define IDLE_WAIT_MS		1000
#define PLACE_WAIT_MS		50
#define LOST_WAIT_MS		500
#define RETRY_EVERY_MS		100
#define RETRIES_AT_ONCE		100
#define MAX_RETRY_MS		4000
#define SETTLED_MS			2000
#define ORPHAN_CLOSE_MS		500
#define TELL_TIMEOUT_MS		2000

PGDLLEXPORT void inbox_worker_main(Datum main_arg);

static InboxWorker *my_worker = NULL;
static InboxSlot *my_slot = NULL;

static bool
must_stop(void)
{
	return ShutdownRequestPending || !outbox_enabled ||
		pg_atomic_read_u32(&my_slot->stop) != 0 || outbox_held_off(MyDatabaseId);
}

/* However the process ends, the library's threads must be gone before it does. */
static void
worker_exit(int code, Datum arg)
{
	if (my_worker != NULL && my_worker->client != NULL)
	{
		/* a postmaster that is to be started again waits for us to be gone */
		bool		in_peace = PostmasterIsAlive();

		if (in_peace)
			inbox_places_tell(my_worker, TELL_TIMEOUT_MS);
		(void) my_worker->source->close(my_worker->client, in_peace ? INBOX_CLOSE_MS : ORPHAN_CLOSE_MS);
	}
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	my_slot->proc = NULL;
	my_slot->pid = 0;
	LWLockRelease(&outbox_shared->lock);
	outbox_wake_keeper(MyDatabaseId);
}

static bool
backs_off(const InboxWorker *worker)
{
	return worker->back_off_ms > 0 && outbox_ms_since(worker->failed_at) < worker->back_off_ms;
}

/* Read the subscription and its server; false: the subscription is gone. */
static bool
load(InboxWorker *worker)
{
	MemoryContext context = AllocSetContextCreate(worker->context, "pg_outbox subscription",
												  ALLOCSET_SMALL_SIZES);
	InboxSubscription *subscription;
	OutboxServer *server = NULL;
	const char *problem = NULL;
	const char *hint = "";
	bool		first = worker->subscription == NULL;

	StartTransactionCommand();
	subscription = inbox_subscription_load(NameStr(my_slot->name), context);
	if (subscription != NULL)
	{
		Oid			serverid = registry_find_server(subscription->server);

		if (OidIsValid(serverid))
			server = registry_load_server(serverid, context);
		if (server == NULL)
		{
			problem = psprintf("server \"%s\" does not exist", subscription->server);
			hint = "Create it, or name another one with inbox.alter_subscription().";
		}
		else if (server->problem != NULL)
		{
			problem = server->problem;
			hint = "See ALTER SERVER.";
		}
		else if ((problem = outbox_identity_problem(server)) != NULL)
			hint = outbox_identity_hint(server);
		if (problem != NULL)
		{
			inbox_set_error(worker->slot, problem, hint);
			inbox_set_state(worker->slot, INBOX_STATE_ERROR);
			server = NULL;
		}
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(worker->context);
	if (subscription == NULL)
	{
		MemoryContextDelete(context);
		return false;
	}
	if (!first && (server == NULL || subscription->paused ||
				   worker->subscription->client_hash != subscription->client_hash ||
				   (worker->server != NULL && worker->server_hash != server->client_hash)))
	{
		if (worker->client != NULL)
			inbox_places_tell(worker, TELL_TIMEOUT_MS);
		inbox_client_close(worker);
	}
	if (!first && (worker->subscription->generation != subscription->generation ||
				   worker->subscription->started != subscription->started ||
				   worker->subscription->skip_gaps != subscription->skip_gaps))
	{
		inbox_start_forget(worker);
		inbox_partitions_unplace(worker);
	}
	if (worker->definition != NULL)
		MemoryContextDelete(worker->definition);
	worker->definition = context;
	worker->subscription = subscription;
	worker->server = server;
	if (server != NULL)
		worker->server_hash = server->client_hash;
	worker->reload = false;
	inbox_client_set_durability(worker);
	if (first)
		inbox_waiting_load(worker);
	return true;
}

/* Take the next event; false: there was none. */
static bool
take_event(InboxWorker *worker)
{
	const OutboxIncoming *messages;
	const OutboxPlace *places;
	int			n;

	switch (worker->source->receive(worker->client, worker->subscription->batch_size, &messages,
									&places, &n))
	{
		case OUTBOX_SOURCE_MESSAGES:
			OUTBOX_FAULT("inbox-received");
			inbox_handle_batch(worker, messages, n);
			worker->failing = false;
			inbox_places_tell(worker, 0);
			return true;
		case OUTBOX_SOURCE_ASSIGN:
			worker->joined = true;
			worker->topics_checked = false;
			inbox_client_set_durability(worker);
			inbox_partitions_assigned(worker, places, n);
			return true;
		case OUTBOX_SOURCE_REVOKE:
			inbox_places_tell(worker, TELL_TIMEOUT_MS);
			/* FALLTHROUGH */
		case OUTBOX_SOURCE_LOST:
			worker->joined = false;
			inbox_partitions_gone(worker);
			worker->source->give_up(worker->client);
			return true;
		case OUTBOX_SOURCE_GAP:
			inbox_place_gap(worker, places);
			return true;
		case OUTBOX_SOURCE_SAME:
			inbox_place_same(worker, places);
			return true;
		case OUTBOX_SOURCE_PASSED:
			inbox_place_passed(worker, places);
			return true;
		case OUTBOX_SOURCE_NOTHING:
			break;
	}
	return false;
}

static bool
retry_waiting(InboxWorker *worker)
{
	bool		more = true;

	if (!worker->joined || outbox_ms_since(worker->retried) < RETRY_EVERY_MS)
		return false;
	for (int i = 0; i < RETRIES_AT_ONCE && more && !must_stop(); i++)
	{
		more = inbox_waiting_retry(worker);
		MemoryContextReset(worker->scratch);
	}
	if (!more)
		INSTR_TIME_SET_CURRENT(worker->retried);
	return more;
}

/* One turn; how long it may sleep afterwards, in ms. */
static long
turn(InboxWorker *worker)
{
	bool		more;
	bool		placed;

	if (worker->server == NULL)
		return IDLE_WAIT_MS;
	if (worker->subscription->paused)
	{
		inbox_set_state(worker->slot, INBOX_STATE_PAUSED);
		return IDLE_WAIT_MS;
	}
	if (backs_off(worker))
		return worker->back_off_ms - outbox_ms_since(worker->failed_at);
	/* what failed comes again at once; if not, it is over */
	if (worker->failing && outbox_ms_since(worker->failed_at) > worker->back_off_ms + SETTLED_MS)
		worker->failing = false;
	if (worker->stale)
		inbox_waiting_load(worker);
	MemoryContextSwitchTo(worker->scratch);
	if (!inbox_client_ensure(worker))
		return IDLE_WAIT_MS;
	MemoryContextSwitchTo(worker->scratch);
	more = take_event(worker);
	worker->lost = worker->lost && outbox_ms_since(worker->lost_at) < LOST_WAIT_MS;
	placed = worker->client == NULL || (!worker->lost && inbox_partitions_place(worker));
	more = retry_waiting(worker) || more;
	inbox_client_check(worker);
	if (worker->client != NULL && !worker->failing)
		worker->back_off_ms = 0;
	if (worker->client != NULL && worker->joined && placed)
		inbox_check_topics(worker);
	if (worker->client != NULL)
		inbox_client_show_figures(worker);
	MemoryContextSwitchTo(worker->context);
	MemoryContextReset(worker->scratch);
	return more ? 0 : !placed ? PLACE_WAIT_MS :
		hash_get_num_entries(worker->waiting_keys) > 0 ? RETRY_EVERY_MS : IDLE_WAIT_MS;
}

/* Between transactions there is nothing to cancel. */
static void
check_for_interrupts_idle(void)
{
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
}

/* Sleep until something happens; true when the latch was set. */
static bool
doze(InboxWorker *worker, long ms)
{
	WaitEvent	event;
	int			n;

	if (backs_off(worker))
	{
		/* what the client has is for later */
		n = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					  outbox_wait_event("OutboxInboxMain"));
		check_for_interrupts_idle();
		return (n & WL_LATCH_SET) != 0;
	}
	if (worker->wait_set == NULL)
	{
		worker->wait_set = outbox_create_wait_set(worker->context, 3);
		AddWaitEventToSet(worker->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(worker->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		if (worker->client != NULL)
			AddWaitEventToSet(worker->wait_set, WL_SOCKET_READABLE,
							  worker->source->event_fd(worker->client), NULL, NULL);
	}
	n = WaitEventSetWait(worker->wait_set, ms, &event, 1, outbox_wait_event("OutboxInboxMain"));
	check_for_interrupts_idle();
	return n > 0 && (event.events & WL_LATCH_SET) != 0;
}

/*
 * After an error that was not a handler's (a full disk, a lock, a handler that is
 * gone): show it, and begin anew from what is stored.
 */
static void
recover(InboxWorker *worker)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(worker->context);
	edata = CopyErrorData();
	FlushErrorState();
	/* with the subtransaction that a batch may have been in */
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(worker->context);
	worker->in_handler = false;
	inbox_set_error(worker->slot, edata->message, edata->hint ? edata->hint : "");
	inbox_set_state(worker->slot, INBOX_STATE_ERROR);
	FreeErrorData(edata);
	inbox_partitions_unplace(worker);
	worker->stale = worker->failing = true;
	inbox_back_off(worker);
	/* a person may mend it any moment */
	worker->back_off_ms = Min(worker->back_off_ms, MAX_RETRY_MS);
	RESUME_INTERRUPTS();
}

static void
loop(InboxWorker *worker)
{
	volatile bool reload = true;
	volatile bool gone = false;

	while (!gone && !must_stop())
	{
		volatile long sleep_ms = 0;

		PG_TRY();
		{
			outbox_worker_reload();
			if (reload || worker->reload)
				gone = !load(worker);
			reload = false;
			sleep_ms = gone || must_stop() ? 0 : turn(worker);
		}
		PG_CATCH();
		{
			recover(worker);
			sleep_ms = worker->back_off_ms;
		}
		PG_END_TRY();
		if (sleep_ms > 0)
		{
			pgstat_report_stat(false);
			pgstat_report_activity(STATE_IDLE, NULL);
			reload = doze(worker, sleep_ms);
		}
		else
		{
			if (!PostmasterIsAlive())
				proc_exit(1);
			check_for_interrupts_idle();
			reload = MyLatch->is_set;
		}
		if (reload)
			ResetLatch(MyLatch);
	}
}

/*
 * SIGTERM ends a transaction that is under way, which may be a handler's that takes
 * hours, or waits for a lock; what it has done is undone, and comes again.  Between
 * transactions the loop ends by itself.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	if (IsTransactionState())
		InterruptPending = ProcDiePending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/* Take the slot that the keeper gave us; false when it is somebody else's. */
static bool
claim_slot(void)
{
	bool		mine = false;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	if (my_slot->pid == 0 && my_slot->dboid == MyDatabaseId)
	{
		my_slot->pid = MyProcPid;
		my_slot->proc = MyProc;
		mine = true;
	}
	LWLockRelease(&outbox_shared->lock);
	return mine;
}

void
inbox_worker_main(Datum main_arg)
{
	MemoryContext context;

	my_slot = &outbox_shared->inboxes[DatumGetInt32(main_arg)];
	BackgroundWorkerInitializeConnectionByOid(outbox_worker_begin(), InvalidOid, 0);
	pqsignal(SIGTERM, handle_sigterm);
	outbox_worker_settings();
	if (!claim_slot())
		proc_exit(0);
	before_shmem_exit(worker_exit, (Datum) 0);

	context = AllocSetContextCreate(TopMemoryContext, "pg_outbox inbox", ALLOCSET_DEFAULT_SIZES);
	my_worker = MemoryContextAllocZero(context, sizeof(InboxWorker));
	my_worker->context = context;
	my_worker->scratch = AllocSetContextCreate(context, "pg_outbox inbox batch",
											   ALLOCSET_DEFAULT_SIZES);
	my_worker->slot = my_slot;
	MemoryContextSwitchTo(context);
	inbox_set_state(my_slot, INBOX_STATE_STARTING);
	loop(my_worker);
	inbox_set_state(my_slot, outbox_enabled ? INBOX_STATE_STARTING : INBOX_STATE_DISABLED);
	proc_exit(ShutdownRequestPending ? 1 : 0);
}
