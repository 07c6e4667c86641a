/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  The relay: one worker a server, from the log to the broker.
 *
 * The loop: begin a round when the last batch is read; fetch a piece of it
 * when the window has room; send; take answers; keep what was refused; store
 * the position; sleep until a commit, the client library or a timeout wakes
 * it.  Reading and storing are short transactions.  While it waits for a
 * broker it holds no transaction, snapshot or lock but the one that makes it
 * the only relay of its server.
 *
 * Nothing is sent before its WAL is flushed here (by the reader) and, with
 * synchronous standbys, there: what the database could still forget must not
 * be known outside.
 *
 * The position that is stored lies before the oldest message without an
 * answer.  So a crash at any moment sends the window again, at most, and loses
 * nothing.  A clean stop waits for answers first.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_foreign_server.h"
#include "compat.h"
#include "fault.h"
#include "guc.h"
#include "log/position.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "relay/relay.h"
#include "relay/worker.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define FETCH_MESSAGES		4096
#define FETCH_BYTES			(1024 * 1024)
#define POSITION_EVERY_MS	100
#define STANDBY_POLL_MS		5
#define BUSY_WAIT_MS		100
#define PAUSED_WAIT_MS		1000
#define ERROR_PAUSE_MS		1000
#define SERVER_LOCK			1	/* objsubid of the lock on the server */

PGDLLEXPORT void outbox_relay_main(Datum main_arg);

static OutboxRelaySlot *my_slot = NULL;

long
relay_ms_since(instr_time since)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, since);
	return (long) INSTR_TIME_GET_MILLISEC(now);
}

void
relay_set_state(Relay *relay, OutboxRelayState state)
{
	SpinLockAcquire(&relay->slot->mutex);
	relay->slot->state = state;
	SpinLockRelease(&relay->slot->mutex);
}

void
relay_set_error(Relay *relay, const char *text, const char *hint)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&relay->slot->mutex);
	strlcpy(relay->slot->last_error, text, OUTBOX_ERROR_LEN);
	strlcpy(relay->slot->last_hint, hint, sizeof(relay->slot->last_hint));
	relay->slot->last_error_at = now;
	SpinLockRelease(&relay->slot->mutex);
	ereport(LOG,
			(errmsg("pg_outbox server \"%s\": %s", relay->slot->server_name, text),
			 hint[0] != '\0' ? errhint("%s", hint) : 0));
}

static void
relay_exit(int code, Datum arg)
{
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	my_slot->proc = NULL;
	my_slot->pid = 0;
	LWLockRelease(&outbox_shared->lock);
	outbox_wake_keeper(MyDatabaseId);
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
	return ShutdownRequestPending || !outbox_enabled ||
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
	MemoryContext context = AllocSetContextCreate(relay->context, "pg_outbox server",
												  ALLOCSET_SMALL_SIZES);
	OutboxServer *server;

	pg_atomic_write_u32(&relay->slot->reload, 0);
	StartTransactionCommand();
	server = registry_load_server(relay->serverid, context);
	if (server != NULL && server->problem == NULL && relay->transport == NULL)
		relay->transport = registry_load_transport(server->library);
	CommitTransactionCommand();
	MemoryContextSwitchTo(relay->context);
	if (server == NULL)
		return false;
	if (relay->server != NULL && relay->server->client_hash != server->client_hash)
	{
		relay_client_close(relay, true);
		relay->back_off_ms = 0;
	}
	if (relay->server_context != NULL)
		MemoryContextDelete(relay->server_context);
	relay->server_context = context;
	relay->server = server;
	router_set_patterns(relay->router, server->core.patterns);
	if (server->problem != NULL)
		relay_set_error(relay, server->problem, "See ALTER SERVER.");
	return true;
}

/* Does this server get a message? */
static bool
wanted(void *arg, const char *topic, int topic_len, const char *target, uint64 id)
{
	Relay	   *relay = arg;

	if (target != NULL)
		return strcmp(target, relay->server->name) == 0;
	return router_wants(relay->router, topic, topic_len);
}

/* Wait until standbys have what a batch saw; false when asked to stop. */
static bool
wait_for_standbys(Relay *relay, XLogRecPtr lsn)
{
	while (!outbox_lsn_replicated(lsn))
	{
		relay_set_state(relay, OUTBOX_STATE_WAITING_FOR_STANDBY);
		outbox_worker_wait(STANDBY_POLL_MS, "OutboxRelayStandby");
		outbox_worker_reload();
		relay_collect(relay);
		if (must_stop(relay))
			return false;
	}
	return true;
}

/* Read what is new into the window, as far as there is room. */
static void
read_log(Relay *relay)
{
	OutboxWindow *window = relay->window;
	Size		budget = (Size) outbox_relay_memory * 1024;
	bool		done = false;
	int			n;

	relay->caught_up = false;
	if (outbox_reader_batch(relay->reader) == NULL &&
		!outbox_reader_begin(relay->reader, NULL))
	{
		relay->caught_up = true;
		relay->caught_up_count = outbox_reader_publish_count(relay->reader);
		return;
	}
	if (outbox_window_bytes(window) + FETCH_BYTES > budget ||
		outbox_window_room(window) < FETCH_MESSAGES)
		return;
	n = outbox_reader_fetch(relay->reader, window->context, relay->fetched,
							FETCH_MESSAGES, FETCH_BYTES, wanted, relay, &done);
	for (int i = 0; i < n; i++)
		outbox_window_add(window, relay->fetched[i]);
}

/* Everything read so far must be on the standbys before it is sent. */
static bool
may_send(Relay *relay)
{
	OutboxWindow *window = relay->window;

	if (window->unsent >= window->next)
		return true;
	return wait_for_standbys(relay,
							 outbox_window_entry(window, window->next - 1)->message->batch->lsn);
}

/* Store the position, when it moved and it is time. */
static void
store_position(Relay *relay, bool now)
{
	OutboxPosition pos;
	OutboxWindow *window = relay->window;
	MemoryContext scratch;
	MemoryContext old;

	if (!now && relay_ms_since(relay->stored_at) < POSITION_EVERY_MS)
		return;
	scratch = AllocSetContextCreate(relay->context, "pg_outbox position",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(scratch);
	if (window->first < window->next)
		outbox_position_before(outbox_window_entry(window, window->first)->message, &pos);
	else
		outbox_reader_position(relay->reader, &pos);
	if (pos.cursor != relay->stored_cursor || pos.low != relay->stored_low ||
		pos.s2->xmax != relay->stored_xmax)
	{
		OUTBOX_FAULT("relay-before-position");
		StartTransactionCommand();
		MemoryContextSwitchTo(scratch);
		PushActiveSnapshot(GetTransactionSnapshot());
		outbox_position_store(relay->serverid, relay->server->name_local, &pos,
							  relay->position_n + 1);
		PopActiveSnapshot();
		CommitTransactionCommand();
		relay->position_n++;
		relay->stored_cursor = pos.cursor;
		relay->stored_low = pos.low;
		relay->stored_xmax = pos.s2->xmax;
		pg_atomic_write_u64(&relay->slot->done_id, pos.low);
	}
	INSTR_TIME_SET_CURRENT(relay->stored_at);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
}

/* Show how things stand. */
static void
publish_figures(Relay *relay)
{
	OutboxRelaySlot *slot = relay->slot;
	OutboxWindow *window = relay->window;
	TimestampTz oldest = 0;

	if (window->first < window->next)
	{
		const OutboxMessage *first = outbox_window_entry(window, window->first)->message;

		oldest = first->published;
		pg_atomic_write_u64(&slot->confirmed_count, first->batch->s1_count);
	}
	else if (outbox_reader_batch(relay->reader) != NULL)
		pg_atomic_write_u64(&slot->confirmed_count,
							outbox_reader_batch(relay->reader)->s1_count);
	else
		pg_atomic_write_u64(&slot->confirmed_count,
							outbox_reader_publish_count(relay->reader));
	pg_atomic_write_u64(&slot->in_flight, window->next - window->first);
	pg_atomic_write_u64(&slot->memory, outbox_window_bytes(window));
	SpinLockAcquire(&slot->mutex);
	slot->oldest_unacked = oldest;
	slot->lagging = list_length(relay->troubles);
	SpinLockRelease(&slot->mutex);
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

/* One turn of the loop; how long it may sleep afterwards, in ms. */
static long
relay_turn(Relay *relay)
{
	OutboxWindow *window = relay->window;

	if (relay->server->problem != NULL || relay->transport == NULL)
	{
		relay_set_state(relay, OUTBOX_STATE_ERROR);
		return PAUSED_WAIT_MS;
	}
	if (relay->server->core.paused)
	{
		relay_collect(relay);
		relay_handle_refused(relay);
		outbox_window_pop(window);
		store_position(relay, false);
		publish_figures(relay);
		relay_set_state(relay, OUTBOX_STATE_PAUSED);
		return window->in_flight > 0 ? BUSY_WAIT_MS : PAUSED_WAIT_MS;
	}
	read_log(relay);
	if (!may_send(relay))
		return 0;
	if (relay_client_ensure(relay))
	{
		relay_send(relay);
		OUTBOX_FAULT("relay-after-send");
		relay_collect(relay);
		relay_handle_refused(relay);
		relay_probe_topics(relay);
		outbox_window_pop(window);
		if (relay_client_check(relay) && window->unsent < window->next &&
			window->in_flight == 0 && relay->troubles == NIL)
			return 1;
	}
	store_position(relay, false);
	publish_figures(relay);
	if (outbox_reader_batch(relay->reader) != NULL &&
		outbox_window_bytes(window) + FETCH_BYTES <= (Size) outbox_relay_memory * 1024 &&
		outbox_window_room(window) >= FETCH_MESSAGES)
		return 0;				/* more to read */
	if (relay->client == NULL || window->first < window->next ||
		relay->stored_low < pg_atomic_read_u64(&relay->slot->done_id))
		return BUSY_WAIT_MS;
	/* idle, but for a position that is not stored yet */
	return relay_ms_since(relay->stored_at) < POSITION_EVERY_MS ? POSITION_EVERY_MS : outbox_poll_interval;
}

/* Be the only relay of this server; false when asked to stop meanwhile. */
static bool
lock_server(Relay *relay)
{
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ForeignServerRelationId, relay->serverid, SERVER_LOCK);
	while (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		outbox_worker_wait(BUSY_WAIT_MS, "OutboxRelayLock");
		if (must_stop(relay))
			return false;
	}
	return true;
}

/* Set up what lives as long as the relay. */
static Relay *
create_relay(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "pg_outbox relay",
												  ALLOCSET_DEFAULT_SIZES);
	Relay	   *relay = MemoryContextAllocZero(context, sizeof(Relay));

	relay->context = context;
	relay->slot = my_slot;
	relay->extoid = my_slot->extoid;
	relay->serverid = my_slot->serverid;
	relay->router = router_create(context);
	relay->window = outbox_window_create(context);
	relay->fetched = MemoryContextAlloc(context, FETCH_MESSAGES * sizeof(OutboxMessage *));
	INSTR_TIME_SET_CURRENT(relay->stored_at);
	MemoryContextSwitchTo(context);
	return relay;
}

/* Go on from the stored position; false when there is none. */
static bool
start_reading(Relay *relay)
{
	OutboxPosition pos;

	if (!outbox_position_load(relay->serverid, &pos, &relay->position_n))
		return false;
	relay->reader = outbox_reader_create(relay->context, relay->extoid, &pos);
	relay->stored_cursor = pos.cursor;
	relay->stored_low = pos.low;
	relay->stored_xmax = pos.s2->xmax;
	return true;
}

/*
 * Run the loop until asked to stop.  What raises in a turn is a transaction of
 * ours that failed (a full disk, a lock): show it, wait, go on from memory.
 */
static void
relay_loop(Relay *relay)
{
	volatile bool gone = false;

	while (!gone && !must_stop(relay))
	{
		volatile long sleep_ms = ERROR_PAUSE_MS;

		PG_TRY();
		{
			outbox_worker_reload();
			AcceptInvalidationMessages();
			if (pg_atomic_read_u32(&relay->slot->reload) != 0)
				gone = !load_server(relay);
			sleep_ms = gone ? 0 : relay_turn(relay);
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(relay->context);
			edata = CopyErrorData();
			FlushErrorState();
			AbortCurrentTransaction();
			LWLockReleaseAll();
			MemoryContextSwitchTo(relay->context);
			relay_set_error(relay, edata->message, edata->hint ? edata->hint : "");
			relay_set_state(relay, OUTBOX_STATE_ERROR);
			FreeErrorData(edata);
		}
		PG_END_TRY();
		if (sleep_ms > 0)
		{
			pgstat_report_activity(STATE_IDLE, NULL);
			relay_sleep(relay, sleep_ms);
		}
		else
			CHECK_FOR_INTERRUPTS();
	}
}

void
outbox_relay_main(Datum main_arg)
{
	Relay	   *relay;

	my_slot = &outbox_shared->relays[DatumGetInt32(main_arg)];
	outbox_worker_begin();
	BackgroundWorkerInitializeConnectionByOid(my_slot->dboid, InvalidOid, 0);
	outbox_worker_settings();

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	if (my_slot->pid != 0 || my_slot->dboid != MyDatabaseId)
	{
		LWLockRelease(&outbox_shared->lock);
		proc_exit(0);
	}
	my_slot->pid = MyProcPid;
	my_slot->proc = MyProc;
	LWLockRelease(&outbox_shared->lock);
	before_shmem_exit(relay_exit, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, server_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, server_changed, (Datum) 0);

	relay = create_relay();
	relay_set_state(relay, OUTBOX_STATE_STARTING);
	if (!lock_server(relay) || !load_server(relay))
		proc_exit(0);
	if (!start_reading(relay))
	{
		relay_set_error(relay, "the server has no position in the log",
						"Drop the server and create it again.");
		relay_set_state(relay, OUTBOX_STATE_ERROR);
		while (!must_stop(relay))
			outbox_worker_wait(PAUSED_WAIT_MS, "OutboxRelayMain");
		proc_exit(0);
	}

	relay_loop(relay);

	/* a clean stop: wait for what is in flight, then say how far we are */
	relay_client_close(relay, true);
	relay_handle_refused(relay);
	outbox_window_pop(relay->window);
	store_position(relay, true);
	relay_set_state(relay, outbox_enabled ? OUTBOX_STATE_STARTING : OUTBOX_STATE_DISABLED);
	proc_exit(0);
}
