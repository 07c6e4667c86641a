/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  The relay: one worker a server, from the log to the broker.
 *
 * The loop: begin a round when the last batch is read; fetch a piece of it
 * when the window has room; send; take answers; keep what was refused; store
 * positions; sleep until a commit, the client library or a timeout wakes it.
 * Reading and storing are short transactions.  While it waits for a broker it
 * holds no transaction, snapshot or lock but the one that makes it the only
 * relay of its server.
 *
 * Nothing is sent before its WAL is flushed here (by the reader) and, with
 * synchronous standbys, there: what the database could still forget must not
 * be known outside.
 *
 * Its parts: read.c reads the log, client.c sends and takes answers, chunk.c does
 * so in transactions, which takeover.c prepares, refused.c keeps dead letters,
 * lagging.c delivers topics in trouble on their own, stored.c keeps positions,
 * figures.c shows all of it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/xact.h"
#include "compat.h"
#include "elapsed.h"
#include "fault.h"
#include "guc.h"
#include "log/identity.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "relay/relay.h"
#include "relay/worker.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/pmsignal.h"
#include "storage/proc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#define POSITION_EVERY_MS	100
#define STANDBY_POLL_MS		5
#define SETTLE_POLL_MS		1
#define BUSY_WAIT_MS		100
#define PAUSED_WAIT_MS		1000
#define ERROR_PAUSE_MS		1000
#define STOP_STANDBY_MS		2000
#define EXIT_CLOSE_MS		2000
#define BACKLOG_MESSAGES	100000	/* delivered, before memory is given back */
#define SERVER_LOCK_CLASS	0x4F42	/* among advisory locks: none of SQL's */

PGDLLEXPORT void outbox_relay_main(Datum main_arg);

static OutboxRelaySlot *my_slot = NULL;
static Relay *my_relay = NULL;

/*
 * However the process ends: the client library's threads must be gone before
 * it does, or they would run into what is torn down around them.
 */
static void
relay_exit(int code, Datum arg)
{
	if (my_relay != NULL && my_relay->client != NULL)
		(void) relay_client_destroy(my_relay, EXIT_CLOSE_MS);
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	my_slot->proc = NULL;
	my_slot->pid = 0;
	LWLockRelease(&outbox_shared->lock);
	outbox_wake_keeper(MyDatabaseId);
	OUTBOX_FAULT("relay-leaving");
}

static void
server_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	pg_atomic_write_u32(&my_slot->reload, 1);
}

/* Is this relay to end? */
static bool
must_stop(Relay *relay)
{
	return ShutdownRequestPending || !outbox_enabled || relay->start_again ||
		pg_atomic_read_u32(&relay->slot->stop) != 0 ||
		outbox_held_off(MyDatabaseId);
}

/*
 * Read the server's definition; false when it is gone.  The client is opened
 * anew only when something changed that matters to it.
 */
static bool
load_server(Relay *relay)
{
	MemoryContext context;
	OutboxServer *server;
	const char *hint = "See ALTER SERVER.";

	/* should this raise, it is done again */
	if (relay->loading != NULL)
		MemoryContextDelete(relay->loading);
	relay->loading = context = AllocSetContextCreate(relay->context, "pg_outbox server",
													 ALLOCSET_SMALL_SIZES);
	pg_atomic_write_u32(&relay->slot->reload, 0);
	StartTransactionCommand();
	server = registry_load_server(relay->serverid, context);
	if (server != NULL)
	{
		MemoryContextSwitchTo(context);
		if (server->problem == NULL &&
			(server->problem = outbox_identity_problem(server)) != NULL)
			hint = outbox_identity_hint(server);
		router_set_patterns(relay->router, server, context);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(relay->context);
	if (server == NULL)
		return false;
	if (relay->server != NULL &&
		(relay->server->client_hash != server->client_hash || server->problem != NULL))
		relay_client_close(relay, true);
	if (relay->fenced && (relay->server->client_hash != server->client_hash ||
						  relay->server->altered_by != server->altered_by))
		relay->start_again = true;
	relay->back_off_ms = 0;
	if (relay->server_context != NULL)
		MemoryContextDelete(relay->server_context);
	relay->server_context = context;
	relay->loading = NULL;
	relay->server = server;
	if (server->problem != NULL)
		relay_set_error(relay, server->problem, hint);
	relay->probe_now = true;
	return true;
}

/* Have the client library; an error is shown and tried again by the loop. */
static void
load_transport(Relay *relay)
{
	if (relay->transport != NULL)
		return;
	StartTransactionCommand();
	relay->transport = registry_load_transport(relay->server->library);
	CommitTransactionCommand();
	MemoryContextSwitchTo(relay->context);
	relay->windows->record_overhead = relay->transport->record_overhead;
	relay->windows->header_overhead = relay->transport->header_overhead;
	relay->windows->copied_payload = relay->transport->copied_payload;
	ereport(LOG,
			(errmsg("pg_outbox server \"%s\" uses %s client library %s",
					relay->server->name_local, relay->transport->name,
					relay->transport->version())));
}

void
relay_drop_wait_set(Relay *relay)
{
	if (relay->wait_set != NULL)
		FreeWaitEventSet(relay->wait_set);
	relay->wait_set = NULL;
}

/* Sleep until something happens. */
static void
relay_sleep(Relay *relay, long ms)
{
	WaitEvent	event;

	if (relay->wait_set == NULL)
	{
		relay->wait_set = outbox_create_wait_set(relay->context, 3);
		AddWaitEventToSet(relay->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		AddWaitEventToSet(relay->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		if (relay->client != NULL)
			AddWaitEventToSet(relay->wait_set, WL_SOCKET_READABLE,
							  relay->transport->event_fd(relay->client), NULL, NULL);
	}
	(void) WaitEventSetWait(relay->wait_set, ms, &event, 1,
							outbox_wait_event("OutboxRelayMain"));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Take answers and keep what follows from them. */
static void
take_answers(Relay *relay)
{
	relay_collect(relay);
	relay_keep_refused(relay);
	outbox_window_pop(relay->main.window);
}

/* Positions are stored every so often; true when one is still to be. */
static bool
store_in_time(Relay *relay)
{
	if (!OUTBOX_RULE("position-in-time") ||
		(OUTBOX_RULE("position-seldom") &&
		 outbox_ms_since(relay->stored_at) < POSITION_EVERY_MS))
		return true;
	INSTR_TIME_SET_CURRENT(relay->stored_at);
	return !relay_positions_store(relay, false);
}

/* Paused: only what is in flight matters. */
static long
paused_turn(Relay *relay)
{
	long		wait = PAUSED_WAIT_MS;

	take_answers(relay);
	if (relay->client != NULL && relay->chunk.state >= OUTBOX_CHUNK_OPEN &&
		relay_chunk_turn(relay, false))
		wait = 0;
	(void) store_in_time(relay);
	relay_show_figures(relay);
	relay_set_state(relay, OUTBOX_STATE_PAUSED);
	return relay->windows->in_flight > 0 ? Min(wait, BUSY_WAIT_MS) : wait;
}

/*
 * Idle after a backlog: what the client library's threads have freed stays in pools of
 * the C library, one a thread, unless it is asked for.
 */
static void
give_memory_back(Relay *relay)
{
	uint64		delivered = pg_atomic_read_u64(&relay->slot->delivered);

	if (delivered - relay->delivered_at_trim < BACKLOG_MESSAGES)
		return;
	relay->delivered_at_trim = delivered;
#ifdef __GLIBC__
	(void) malloc_trim(0);
#endif
}

/* One turn of the loop; how long it may sleep afterwards, in ms. */
static long
relay_turn(Relay *relay)
{
	bool		more;
	bool		to_store;
	bool		waits_for_standby = false;
	uint64		in_flight;

	if (relay->server->problem != NULL)
	{
		relay_set_state(relay, OUTBOX_STATE_ERROR);
		return PAUSED_WAIT_MS;
	}
	if (relay->server->core.paused)
		return paused_turn(relay);
	if (relay->fenced)
	{
		relay_set_state(relay, OUTBOX_STATE_FENCED);
		return PAUSED_WAIT_MS;
	}
	load_transport(relay);
	more = relay_chunk_may_read(relay) && relay_read_log(relay);
	if (relay_client_ensure(relay))
	{
		relay_keep_refused(relay);
		waits_for_standby = relay_send(relay);
		in_flight = relay->windows->in_flight;
		OUTBOX_FAULT("relay-after-send");
		take_answers(relay);
		/* room was made: go on at once */
		if (relay->windows->in_flight < in_flight)
			more = true;
		lagging_probe(relay);
		more = relay_chunk_turn(relay, more);
		if (relay->client != NULL)
			relay_client_check(relay);
		if (relay->client == NULL && relay->back_off_ms == 0)
			more = true;
	}
	to_store = store_in_time(relay);
	relay_show_figures(relay);
	if (more)
		return 0;
	if (relay_chunk_settles(relay) && !outbox_window_is_empty(relay->main.window))
		return SETTLE_POLL_MS;
	if (waits_for_standby)
		return STANDBY_POLL_MS;
	if (relay->client != NULL && relay->flow.held_back)
		return RELAY_FLOW_MS;
	if (relay->client == NULL || relay->careful || relay->windows->in_flight > 0 ||
		lagging_is_active(relay) || !outbox_window_is_empty(relay->main.window) ||
		outbox_reader_batch(relay->main.reader) != NULL)
		return BUSY_WAIT_MS;
	/* idle, but for a position that is not stored yet */
	if (to_store)
		return POSITION_EVERY_MS;
	give_memory_back(relay);
	return outbox_poll_interval;
}

/*
 * Be the only relay of this server; false when asked to stop meanwhile.  The
 * lock is one of those behind advisory locks, since only they survive the
 * abort of a transaction, and are released however the process ends.
 */
static bool
lock_server(Relay *relay)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, relay->serverid, SERVER_LOCK_CLASS);
	while (OUTBOX_RULE("server-lock") &&
		   LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		outbox_worker_wait(BUSY_WAIT_MS, "OutboxRelayLock");
		if (must_stop(relay))
			return false;
	}
	return true;
}

/* Set up what lives as long as the relay. */
static Relay *
create_relay(OutboxDb *db)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "pg_outbox relay",
												  ALLOCSET_DEFAULT_SIZES);
	Relay	   *relay = MemoryContextAllocZero(context, sizeof(Relay));

	relay->context = context;
	relay->slot = my_slot;
	relay->extoid = my_slot->extoid;
	relay->db = db;
	relay->serverid = my_slot->serverid;
	relay->router = router_create(context);
	relay->scratch = AllocSetContextCreate(context, "pg_outbox positions",
										   ALLOCSET_DEFAULT_SIZES);
	relay->windows = outbox_windows_create(context);
	relay->main.relay = relay;
	relay->main.context = context;
	relay->main.window = outbox_window_create(relay->windows, context);
	relay->fetched = MemoryContextAlloc(context, FETCH_MESSAGES * sizeof(OutboxMessage *));
	relay->head = PG_UINT64_MAX;
	INSTR_TIME_SET_CURRENT(relay->stored_at);
	MemoryContextSwitchTo(context);
	return relay;
}

/*
 * After an error in a turn, which was a transaction of ours that failed (a full
 * disk, a lock): show it.  The loop goes on from memory; what was fetched by a
 * fetch that failed will be read again.  Where one was over, the reader is past
 * messages that are in no window: only a new relay reads them.
 */
static void
recover(Relay *relay)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(relay->context);
	edata = CopyErrorData();
	FlushErrorState();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(relay->context);
	if (relay->adding)
		ereport(FATAL,
				(errcode(edata->sqlerrcode),
				 errmsg("server \"%s\" starts again after an error: %s",
						relay->server->name_local, edata->message)));
	for (int i = 0; i < relay->nfetched; i++)
		outbox_message_free(relay->fetched[i]);
	relay->nfetched = 0;
	relay_set_error(relay, edata->message, edata->hint ? edata->hint : "");
	relay_set_state(relay, OUTBOX_STATE_ERROR);
	FreeErrorData(edata);
	RESUME_INTERRUPTS();
}

/*
 * Don't try again at once what has just failed, whoever sets our latch
 * meanwhile; but stop, or take new options, when asked to.
 */
static void
pause_after_error(Relay *relay)
{
	instr_time	start;

	INSTR_TIME_SET_CURRENT(start);
	while (!must_stop(relay) && pg_atomic_read_u32(&relay->slot->reload) == 0 &&
		   outbox_ms_since(start) < ERROR_PAUSE_MS)
		outbox_worker_wait(ERROR_PAUSE_MS - outbox_ms_since(start), "OutboxRelayError");
}

/* Run the loop until asked to stop. */
static void
relay_loop(Relay *relay)
{
	volatile bool gone = false;

	while (!gone && !must_stop(relay))
	{
		volatile bool failed = false;
		volatile long sleep_ms = 0;

		PG_TRY();
		{
			outbox_worker_reload();
			AcceptInvalidationMessages();
			if (relay->main.reader == NULL && !relay_positions_load(relay))
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("the server has no position in the log"),
						 errhint("Call outbox.adopt(), or drop the server and create it again.")));
			if (pg_atomic_read_u32(&relay->slot->reload) != 0 || relay->loading != NULL)
				gone = !load_server(relay);
			/* the reload may have disabled us: no sleep then */
			sleep_ms = gone || must_stop(relay) ? 0 : relay_turn(relay);
		}
		PG_CATCH();
		{
			recover(relay);
			failed = true;
		}
		PG_END_TRY();
		if (sleep_ms > 0 || failed)
		{
			pgstat_report_stat(false);
			pgstat_report_activity(STATE_IDLE, NULL);
		}
		if (failed)
			pause_after_error(relay);
		else if (sleep_ms > 0)
			relay_sleep(relay, sleep_ms);
		else
		{
			/* who sleeps is told; who doesn't may have no pause for long */
			if (!PostmasterIsAlive())
				proc_exit(1);
			CHECK_FOR_INTERRUPTS();
		}
	}
}

/* A clean stop: wait for what is in flight, then say how far we are. */
static void
finish(Relay *relay)
{
	instr_time	start;

	/* what we know is old when another one has delivered */
	if (relay->main.reader == NULL || relay->fenced)
		return;
	relay_client_close(relay, true);
	relay_keep_refused(relay);
	INSTR_TIME_SET_CURRENT(start);
	while (OUTBOX_RULE("position-at-stop") &&
		   !relay_positions_store(relay, true) && outbox_ms_since(start) < STOP_STANDBY_MS)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 STANDBY_POLL_MS, outbox_wait_event("OutboxRelayStandby"));
		ResetLatch(MyLatch);
	}
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
outbox_relay_main(Datum main_arg)
{
	OutboxDb   *db;

	my_slot = &outbox_shared->relays[DatumGetInt32(main_arg)];
	BackgroundWorkerInitializeConnectionByOid(outbox_worker_begin(), InvalidOid, 0);
	outbox_worker_settings();
	if (!claim_slot())
		proc_exit(0);
	before_shmem_exit(relay_exit, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, server_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, server_changed, (Datum) 0);

	StartTransactionCommand();
	db = outbox_db_get(my_slot->extoid);
	CommitTransactionCommand();
	my_relay = create_relay(db);
	relay_set_state(my_relay, OUTBOX_STATE_STARTING);
	if (!lock_server(my_relay) || !load_server(my_relay))
		proc_exit(0);

	relay_loop(my_relay);
	finish(my_relay);
	relay_set_state(my_relay, outbox_enabled ? OUTBOX_STATE_STARTING : OUTBOX_STATE_DISABLED);
	/* 1 where nothing of ours asked for it, for the server's log to show */
	proc_exit(ShutdownRequestPending ? 1 : 0);
}
