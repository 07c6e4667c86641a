/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The launcher: starts a keeper in every database that uses pg_outbox.
 *
 * It is the only static worker, so that the postmaster restarts it whatever
 * happens; everything else is started by it or by a keeper.
 *
 * A database is known by its entry in shared memory, which the first builds
 * who publishes or creates a server.  The launcher sees to it that a known
 * database has a keeper.  Of others it can't know whether they have the
 * extension, so it has a keeper look into them, which ends at once where it
 * finds none: into all of them after a start of the server, and later into
 * those that were named to it (outbox_look_into(): databases that were just
 * created or altered, or whose hold-off was lowered).  A keeper that fails
 * before it knows names its database again.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "elapsed.h"
#include "guc.h"
#include "hold_off.h"
#include "inbox/slot.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "relay/launcher.h"
#include "relay/worker.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define RESTART_SECONDS		1
#define RETRY_MS			2000

/*
 * Keepers that one turn starts: their starting and ending wakes the launcher
 * for the next turn, and other extensions need worker slots too.
 */
#define STARTS_PER_TURN		4

PGDLLEXPORT void outbox_launcher_main(Datum main_arg);

/* Databases to look into; in TopMemoryContext. */
static List *to_look = NIL;

void
outbox_launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_SECONDS;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "pg_outbox");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "outbox_launcher_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, "pg_outbox launcher");
	snprintf(worker.bgw_type, BGW_MAXLEN, "pg_outbox launcher");
	RegisterBackgroundWorker(&worker);
}

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	outbox_shared->launcher_proc = NULL;
	outbox_shared->launcher_pid = 0;
	/* what this one had still to look into is lost with it */
	outbox_shared->scan_databases = true;
	LWLockRelease(&outbox_shared->lock);
}

/* Oids of the databases that exist, or that can be connected to. */
static List *
list_databases(bool connectable)
{
	MemoryContext context = CurrentMemoryContext;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	List	   *result = NIL;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		/* -2: invalid, half dropped */
		if (!connectable || (form->datallowconn && form->datconnlimit != -2))
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			result = lappend_oid(result, form->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return result;
}

/* Start a keeper; false when there is no slot, which is logged once. */
static bool
start_keeper(Oid dboid)
{
	bool		started = outbox_worker_start("outbox_keeper_main", "pg_outbox keeper",
											  dboid, (Datum) 0);

	if (!started && !outbox_shared->no_worker)
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("pg_outbox found no free slot for a background worker"),
				 errhint("Raise \"max_worker_processes\".")));
	outbox_shared->no_worker = !started;
	return started;
}

static bool
has_keeper(Oid dboid)
{
	bool		found = false;

	LWLockAcquire(&outbox_shared->lock, LW_SHARED);
	for (int i = 0; i < outbox_shared->max_databases && !found; i++)
		found = outbox_shared->dbs[i].dboid == dboid && outbox_shared->dbs[i].keeper_pid != 0;
	LWLockRelease(&outbox_shared->lock);
	return found;
}

/* Take over what others want looked into; true when some is not due yet. */
static bool
take_looks(void)
{
	int64		now = outbox_clock_ms();
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	bool		scan = outbox_shared->scan_databases;
	bool		later = false;

	/* before the list is read: who sets it meanwhile is heard next time */
	outbox_shared->scan_databases = false;
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_LOOKS; i++)
	{
		OutboxLook *look = &outbox_shared->looks[i];

		if (!OidIsValid(look->dboid))
			continue;
		if (look->not_before <= now)
		{
			to_look = list_append_unique_oid(to_look, look->dboid);
			look->dboid = InvalidOid;
		}
		else
			later = true;
	}
	LWLockRelease(&outbox_shared->lock);
	if (scan)
	{
		List	   *all = list_databases(true);

		to_look = list_concat_unique_oid(to_look, all);
		list_free(all);
	}
	MemoryContextSwitchTo(old);
	return later;
}

/* Have keepers look into databases; true when there are more. */
static bool
look_into_databases(void)
{
	List	   *connectable;
	ListCell   *lc;
	int			started = 0;
	bool		more = false;

	if (to_look == NIL)
		return false;
	connectable = list_databases(true);
	foreach(lc, to_look)
	{
		Oid			dboid = lfirst_oid(lc);

		if (!has_keeper(dboid) && list_member_oid(connectable, dboid))
		{
			/* lowering the hold-off names it again */
			if (!outbox_held_off(dboid) &&
				(started++ >= STARTS_PER_TURN || !start_keeper(dboid)))
			{
				more = true;
				continue;
			}
		}
		to_look = foreach_delete_current(to_look, lc);
	}
	return more;
}

/* Known databases without a keeper whose last start is long enough ago. */
static List *
list_missing_keepers(bool *later)
{
	List	   *result = NIL;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->max_databases; i++)
	{
		OutboxDb   *db = &outbox_shared->dbs[i];

		if (!OidIsValid(db->dboid) || db->keeper_pid != 0 || db->uncommitted)
			continue;
		*later = true;
		if (!outbox_elapsed(db->keeper_started, RETRY_MS))
			continue;
		db->keeper_started = outbox_clock_ms();
		result = lappend_oid(result, db->dboid);
	}
	LWLockRelease(&outbox_shared->lock);
	return result;
}

/*
 * A keeper for each known database that has none; true when some are missing.
 * The list of databases is read after the entries, so one that is not in it is
 * gone, and not new.
 */
static bool
start_missing_keepers(void)
{
	bool		missing = false;
	List	   *databases = list_missing_keepers(&missing);
	List	   *existing;
	List	   *connectable;
	ListCell   *lc;

	if (databases == NIL)
		return missing;
	existing = list_databases(false);
	connectable = list_databases(true);
	foreach(lc, databases)
	{
		Oid			dboid = lfirst_oid(lc);

		if (!list_member_oid(existing, dboid))
			outbox_db_remove(dboid, InvalidOid);
		else if (list_member_oid(connectable, dboid) && !outbox_held_off(dboid))
			(void) start_keeper(dboid);
	}
	return missing;
}

/* Is there an entry of this database and extension?  With OutboxShared.lock held. */
static bool
is_known(Oid dboid, Oid extoid)
{
	for (int i = 0; i < outbox_shared->max_databases; i++)
		if (outbox_shared->dbs[i].dboid == dboid && outbox_shared->dbs[i].extoid == extoid)
			return true;
	return false;
}

/* Give back slots of workers that ended after their database's entry went. */
static void
sweep_slots(void)
{
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		OutboxRelaySlot *slot = &outbox_shared->relays[i];

		if (OidIsValid(slot->dboid) && slot->pid == 0 &&
			!is_known(slot->dboid, slot->extoid))
			slot->dboid = InvalidOid;
	}
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		InboxSlot  *slot = &outbox_shared->inboxes[i];

		if (OidIsValid(slot->dboid) && slot->pid == 0 &&
			!is_known(slot->dboid, slot->extoid))
			slot->dboid = InvalidOid;
	}
	LWLockRelease(&outbox_shared->lock);
}

/* One turn; true when something is left that no latch will tell of. */
static bool
launcher_turn(void)
{
	bool		later;

	sweep_slots();
	later = take_looks();
	later |= look_into_databases();
	later |= start_missing_keepers();
	return later;
}

void
outbox_launcher_main(Datum main_arg)
{
	MemoryContext turn;

	(void) outbox_worker_begin();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	before_shmem_exit(launcher_exit, (Datum) 0);
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	outbox_shared->launcher_proc = MyProc;
	outbox_shared->launcher_pid = MyProcPid;
	LWLockRelease(&outbox_shared->lock);

	turn = AllocSetContextCreate(TopMemoryContext, "pg_outbox launcher",
								 ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(turn);
	while (!ShutdownRequestPending)
	{
		bool		later = false;

		outbox_worker_reload();
		if (outbox_enabled)
			later = launcher_turn();
		MemoryContextReset(turn);
		pgstat_report_activity(STATE_IDLE, NULL);
		outbox_worker_wait(later ? Min(outbox_poll_interval, RETRY_MS / 2) : outbox_poll_interval,
						   "OutboxLauncherMain");
	}

	/* not 0, which would tell the postmaster not to start it again */
	proc_exit(1);
}
