/*-------------------------------------------------------------------------
 *
 * keeper.c
 *	  The keeper: one worker a database in use.
 *
 * It keeps the log (rotation and freeing, see log/rotate.c) and has a relay
 * run for each server.  A server's slot in shared memory stays its own for as
 * long as the server exists, so that its figures and last error outlive a
 * relay that crashed.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "foreign/foreign.h"
#include "guc.h"
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

#define RELAY_RETRY_MS	2000

PGDLLEXPORT void outbox_keeper_main(Datum main_arg);

static OutboxDb *keeper_db = NULL;

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
}

/* Be the database's keeper; false when it has one. */
static bool
claim(void)
{
	bool		mine = false;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	if (keeper_db->keeper_pid == 0)
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

/* A server's slot: the one it has, else a free one; NULL when all are taken. */
static OutboxRelaySlot *
slot_of(Oid serverid, const char *name)
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
	{
		SpinLockAcquire(&slot->mutex);
		slot->extoid = keeper_db->extoid;
		slot->serverid = serverid;
		slot->generation++;
		slot->pid = 0;
		slot->proc = NULL;
		slot->state = OUTBOX_STATE_STARTING;
		slot->started = 0;
		slot->last_error[0] = slot->last_hint[0] = '\0';
		slot->last_error_at = slot->oldest_unacked = 0;
		SpinLockRelease(&slot->mutex);
		pg_atomic_write_u32(&slot->stop, 0);
		pg_atomic_write_u64(&slot->delivered, 0);
		pg_atomic_write_u64(&slot->dead, 0);
		pg_atomic_write_u64(&slot->confirmed_count, 0);
		slot->dboid = MyDatabaseId;
	}
	if (slot != NULL)
		strlcpy(slot->server_name, name, NAMEDATALEN);
	LWLockRelease(&outbox_shared->lock);
	return slot;
}

/* Have the relay of a server run. */
static void
supervise_server(Oid serverid, const char *name)
{
	OutboxRelaySlot *slot = slot_of(serverid, name);
	TimestampTz now = GetCurrentTimestamp();
	char		worker_name[BGW_MAXLEN];

	if (slot == NULL || slot->pid != 0 ||
		!TimestampDifferenceExceeds(slot->started, now, RELAY_RETRY_MS))
		return;
	slot->started = now;
	snprintf(worker_name, BGW_MAXLEN, "pg_outbox relay %s", name);
	if (!outbox_worker_start("outbox_relay_main", worker_name,
							 MyDatabaseId, Int32GetDatum((int) (slot - outbox_shared->relays))))
	{
		SpinLockAcquire(&slot->mutex);
		slot->state = OUTBOX_STATE_NO_WORKER;
		strlcpy(slot->last_error, "no free slot for a background worker", OUTBOX_ERROR_LEN);
		strlcpy(slot->last_hint, "Raise max_worker_processes.", sizeof(slot->last_hint));
		slot->last_error_at = now;
		SpinLockRelease(&slot->mutex);
	}
}

/* End the relays of servers that are gone (all of them when servers is NIL). */
static void
stop_others(List *servers)
{
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		OutboxRelaySlot *slot = &outbox_shared->relays[i];

		if (slot->dboid != MyDatabaseId || list_member_oid(servers, slot->serverid))
			continue;
		pg_atomic_write_u32(&slot->stop, 1);
		LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
		if (slot->pid == 0)
			slot->dboid = InvalidOid;
		else if (slot->proc != NULL)
			SetLatch(&slot->proc->procLatch);
		LWLockRelease(&outbox_shared->lock);
	}
}

/* Have a relay run for each server, and none for others. */
static void
supervise(void)
{
	MemoryContext old = CurrentMemoryContext;
	List	   *servers;
	ListCell   *lc;

	StartTransactionCommand();
	servers = registry_list_servers(CurrentMemoryContext);
	stop_others(servers);
	foreach(lc, servers)
		supervise_server(lfirst_oid(lc), GetForeignServer(lfirst_oid(lc))->servername);
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
}

void
outbox_keeper_main(Datum main_arg)
{
	Oid			extoid;

	outbox_worker_begin();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(main_arg), InvalidOid, 0);
	outbox_worker_settings();

	extoid = outbox_worker_extension();
	if (!OidIsValid(extoid))
		proc_exit(0);
	StartTransactionCommand();
	keeper_db = outbox_db_get(extoid);
	CommitTransactionCommand();
	if (!claim())
		proc_exit(0);

	while (!ShutdownRequestPending && outbox_enabled && !outbox_held_off(MyDatabaseId))
	{
		bool		more;

		outbox_worker_reload();
		if (outbox_worker_extension() != extoid)
		{
			stop_others(NIL);
			outbox_db_remove(MyDatabaseId, extoid);
			break;
		}
		supervise();
		more = outbox_keeper_maintain(keeper_db);
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);
		outbox_worker_wait(more ? 10 : outbox_poll_interval, "OutboxKeeperMain");
	}
	stop_others(NIL);
	proc_exit(0);
}
