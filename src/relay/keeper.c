/*-------------------------------------------------------------------------
 *
 * keeper.c
 *	  The keeper: one worker a database in use.
 *
 * It keeps the log (rotation and freeing, see log/rotate.c), removes expired
 * marks of the inbox (inbox/expire.c), makes sure of the log's identity before anything is sent (log/identity.c), and has a relay run
 * for each server.  A server's slot in shared memory stays its own for as long
 * as the server exists, so that its figures and last error outlive a relay
 * that crashed.  Relays outlive a keeper that crashed or was terminated: the
 * next one finds them in their slots.
 *
 * It ends with 0 where it is meant to: no extension here (any more), workers
 * disabled, held off, or the database takes no connections; and with 1 where
 * it is not, so that the log of the server shows it.  The launcher starts the
 * next one either way.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "drop.h"
#include "elapsed.h"
#include "executor/spi.h"
#include "foreign/foreign.h"
#include "guc.h"
#include "inbox/expire.h"
#include "inbox/slot.h"
#include "log/identity.h"
#include "log/rotate.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "relay/worker.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "transport/registry.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#define RELAY_RETRY_MS	2000
#define LOOK_AGAIN_MS	5000
#define MORE_WAIT_MS	10

PGDLLEXPORT void outbox_keeper_main(Datum main_arg);

static OutboxDb *keeper_db = NULL;

/* Did all relays run at the last look? */
static bool all_run = true;

static void
keeper_exit(int code, Datum arg)
{
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	if (keeper_db->keeper_pid == MyProcPid)
	{
		keeper_db->keeper_pid = 0;
		keeper_db->keeper_proc = NULL;
	}
	LWLockRelease(&outbox_shared->lock);
	/* it may not be the launcher that started us, who would be notified */
	outbox_wake_launcher();
}

/* Be the database's keeper; false when it has one. */
static bool
claim(void)
{
	bool		mine = false;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	if (keeper_db->dboid == MyDatabaseId && keeper_db->keeper_pid == 0)
	{
		keeper_db->keeper_pid = MyProcPid;
		keeper_db->keeper_proc = MyProc;
		mine = true;
	}
	LWLockRelease(&outbox_shared->lock);
	if (mine)
		before_shmem_exit(keeper_exit, (Datum) 0);
	return mine;
}

/*
 * A keeper that fails before it knows whether it is needed: have another one
 * look, later.
 */
static void
look_again(int code, Datum arg)
{
	if (keeper_db == NULL && code != 0)
		outbox_look_into(DatumGetObjectId(arg), LOOK_AGAIN_MS);
}

/* Make a free slot a server's; with OutboxShared.lock held. */
static void
take_slot(OutboxRelaySlot *slot, Oid serverid)
{
	SpinLockAcquire(&slot->mutex);
	slot->extoid = keeper_db->extoid;
	slot->serverid = serverid;
	slot->generation++;
	slot->pid = 0;
	slot->proc = NULL;
	slot->state = OUTBOX_STATE_STARTING;
	slot->started = 0;
	slot->tried = 0;
	slot->server_name[0] = '\0';
	slot->last_error[0] = slot->last_hint[0] = '\0';
	slot->last_error_at = slot->oldest_unacked = 0;
	slot->lagging = 0;
	SpinLockRelease(&slot->mutex);
	pg_atomic_write_u32(&slot->reload, 0);
	pg_atomic_write_u32(&slot->stop, 0);
	pg_atomic_write_u64(&slot->delivered, 0);
	pg_atomic_write_u64(&slot->dead, 0);
	pg_atomic_write_u64(&slot->in_flight, 0);
	pg_atomic_write_u64(&slot->confirmed_count, 0);
	pg_atomic_write_u64(&slot->done_id, 0);
	pg_atomic_write_u64(&slot->latency_us, 0);
	pg_atomic_write_u64(&slot->memory, 0);
	slot->dboid = MyDatabaseId;
}

/* A server's slot: the one it has, else a free one; NULL when all are taken. */
static OutboxRelaySlot *
slot_of(Oid serverid)
{
	OutboxRelaySlot *slot = NULL;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		OutboxRelaySlot *s = &outbox_shared->relays[i];

		if (s->dboid == MyDatabaseId && s->serverid == serverid)
		{
			slot = s;
			break;
		}
		if (!OidIsValid(s->dboid) && slot == NULL)
			slot = s;
	}
	if (slot != NULL && !OidIsValid(slot->dboid))
		take_slot(slot, serverid);
	LWLockRelease(&outbox_shared->lock);
	return slot;
}

/* Have a slot's relay end. */
static void
stop_relay(OutboxRelaySlot *slot)
{
	pg_atomic_write_u32(&slot->stop, 1);
	LWLockAcquire(&outbox_shared->lock, LW_SHARED);
	if (slot->pid != 0 && slot->proc != NULL)
		SetLatch(&slot->proc->procLatch);
	LWLockRelease(&outbox_shared->lock);
}

static void
show_no_worker(OutboxRelaySlot *slot)
{
	SpinLockAcquire(&slot->mutex);
	slot->state = OUTBOX_STATE_NO_WORKER;
	strlcpy(slot->last_error, OUTBOX_NO_WORKER_ERROR, OUTBOX_ERROR_LEN);
	strlcpy(slot->last_hint, OUTBOX_NO_WORKER_HINT, sizeof(slot->last_hint));
	slot->last_error_at = GetCurrentTimestamp();
	SpinLockRelease(&slot->mutex);
}

/*
 * Have the relay of a server run.  One that was renamed gets a new relay, so
 * that pg_stat_activity shows it by its name.
 */
static void
supervise_server(Oid serverid, const char *name)
{
	OutboxRelaySlot *slot = slot_of(serverid);
	char		worker_name[BGW_MAXLEN];

	if (slot == NULL)
	{
		all_run = false;
		return;
	}
	if (slot->pid != 0)
	{
		if (strcmp(slot->server_name, name) != 0)
			stop_relay(slot);
		return;
	}
	all_run = false;
	if (!outbox_elapsed(slot->tried, RELAY_RETRY_MS) &&
		pg_atomic_read_u32(&slot->stop) == 0)
		return;

	SpinLockAcquire(&slot->mutex);
	strlcpy(slot->server_name, name, NAMEDATALEN);
	slot->started = GetCurrentTimestamp();
	slot->tried = outbox_clock_ms();
	SpinLockRelease(&slot->mutex);
	pg_atomic_write_u32(&slot->stop, 0);
	snprintf(worker_name, BGW_MAXLEN, "pg_outbox relay %s", name);
	if (!outbox_worker_start("outbox_relay_main", worker_name, MyDatabaseId,
							 Int32GetDatum((int) (slot - outbox_shared->relays))))
		show_no_worker(slot);
}

/*
 * End the relays of servers that are gone (all of them when servers is NIL).
 * True when a slot was given back.
 */
static bool
stop_others(List *servers)
{
	bool		freed = false;

	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		OutboxRelaySlot *slot = &outbox_shared->relays[i];

		if (slot->dboid != MyDatabaseId || list_member_oid(servers, slot->serverid))
			continue;
		stop_relay(slot);
		LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
		if (slot->dboid == MyDatabaseId && slot->pid == 0)
		{
			slot->dboid = InvalidOid;
			freed = true;
		}
		LWLockRelease(&outbox_shared->lock);
	}
	return freed;
}

/*
 * Forget positions of servers that are gone.  Their relays are gone too, so
 * nobody appends any more.
 */
static void
forget_positions(void)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute("DELETE FROM outbox.position_log p WHERE NOT EXISTS"
					" (SELECT FROM pg_catalog.pg_foreign_server s WHERE s.oid = p.server)",
					false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete from outbox.position_log");
	SPI_finish();
	PopActiveSnapshot();
}

/* Does this database take connections? */
static bool
database_is_open(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		open = HeapTupleIsValid(tuple) &&
		((Form_pg_database) GETSTRUCT(tuple))->datallowconn;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return open;
}

/*
 * Have a relay run for each server, and none for others.  False when this
 * database is to have no workers.
 */
static bool
supervise(void)
{
	MemoryContext old = CurrentMemoryContext;
	List	   *servers = NIL;
	ListCell   *lc;
	bool		open;

	all_run = true;
	StartTransactionCommand();
	open = database_is_open();
	if (open)
		servers = registry_list_servers(CurrentMemoryContext);
	if (stop_others(servers) && open)
		forget_positions();
	foreach(lc, servers)
	{
		ForeignServer *server = GetForeignServerExtended(lfirst_oid(lc), FSV_MISSING_OK);

		if (server != NULL)
			supervise_server(server->serverid, server->servername);
	}
	if (open)
		all_run = inbox_supervise(keeper_db->extoid) && all_run;
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return open;
}

static bool
expire_marks(OutboxDb *db)
{
	return inbox_keeper_expire();
}

/* What it does again and again; true: there is more to do at once. */
typedef struct Chore
{
	bool		(*run) (OutboxDb *db);
	const char *what;			/* that could not be done */
	char		last_failure[256];
} Chore;

static Chore chores[] = {
	{outbox_keeper_maintain, "rotate or free segments"},
	{expire_marks, "remove expired marks of the inbox"},
};

/* Say that a chore failed, once as long as it is for the same reason. */
static void
report_failure(Chore *chore)
{
	ErrorData  *edata = CopyErrorData();

	FlushErrorState();
	AbortCurrentTransaction();
	LWLockReleaseAll();
	if (strcmp(chore->last_failure, edata->message) != 0)
		ereport(LOG,
				(errcode(edata->sqlerrcode),
				 errmsg("pg_outbox could not %s: %s", chore->what, edata->message),
				 edata->detail != NULL ? errdetail_internal("%s", edata->detail) : 0,
				 errhint("This is tried again; publishing goes on meanwhile.")));
	strlcpy(chore->last_failure, edata->message, sizeof(chore->last_failure));
	FreeErrorData(edata);
}

static bool
do_chore(Chore *chore)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool more = false;

	PG_TRY();
	{
		more = chore->run(keeper_db);
		chore->last_failure[0] = '\0';
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		report_failure(chore);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	return more;
}

/* Become this database's keeper; exits where there is nothing to keep. */
static Oid
start(void)
{
	Oid			extoid = outbox_worker_extension();
	OutboxDb   *db;

	StartTransactionCommand();
	outbox_forget_dropped();
	CommitTransactionCommand();
	if (!OidIsValid(extoid))
		proc_exit(0);
	StartTransactionCommand();
	db = outbox_db_get(extoid);
	CommitTransactionCommand();
	keeper_db = db;
	if (!claim())
		proc_exit(0);

	StartTransactionCommand();
	outbox_identity_check();
	outbox_identity_name_positions();
	forget_positions();
	CommitTransactionCommand();
	return extoid;
}

void
outbox_keeper_main(Datum main_arg)
{
	Oid			extoid;
	Oid			dboid = outbox_worker_begin();

	before_shmem_exit(look_again, ObjectIdGetDatum(dboid));
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	outbox_worker_settings();
	extoid = start();

	while (!ShutdownRequestPending)
	{
		bool		more = false;

		outbox_worker_reload();
		if (!outbox_enabled || outbox_held_off(MyDatabaseId))
			proc_exit(0);
		if (outbox_worker_extension() != extoid)
		{
			/* dropped, perhaps made again: for the next keeper to see */
			outbox_look_into(MyDatabaseId, 0);
			proc_exit(0);
		}
		if (!supervise())
			proc_exit(0);
		for (int i = 0; i < lengthof(chores); i++)
			more = do_chore(&chores[i]) || more;
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);
		outbox_worker_wait(more ? MORE_WAIT_MS :
						   all_run ? outbox_poll_interval :
						   Min(outbox_poll_interval, RELAY_RETRY_MS / 2),
						   "OutboxKeeperMain");
	}
	proc_exit(1);
}
