/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The launcher: starts a keeper in every database that uses pg_outbox.
 *
 * It is the only static worker, so that the postmaster restarts it whatever
 * happens; everything else is started by it or by a keeper.  After a start of
 * the server it can't know which databases have the extension, so it has a
 * keeper look into each; one that finds none ends at once.  Later a database
 * makes itself known by its entry in shared memory, built by the first that
 * publishes or creates the extension.
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
#include "guc.h"
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
#define KEEPER_RETRY_MS		2000

PGDLLEXPORT void outbox_launcher_main(Datum main_arg);

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
	LWLockRelease(&outbox_shared->lock);
}

/* Oids of the databases that can be connected to. */
static List *
list_databases(MemoryContext context)
{
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
		if (form->datallowconn && form->datconnlimit != -2)
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			result = lappend_oid(result, form->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	return result;
}

/* Start a keeper; false when there is no slot. */
static bool
start_keeper(Oid dboid)
{
	return outbox_worker_start("outbox_keeper_main", "pg_outbox keeper",
							   dboid, ObjectIdGetDatum(dboid));
}

/* Look into every database; false when that has to be tried again. */
static bool
scan_databases(void)
{
	List	   *databases = list_databases(TopMemoryContext);
	ListCell   *lc;
	bool		complete = true;

	foreach(lc, databases)
		if (!outbox_held_off(lfirst_oid(lc)) && !start_keeper(lfirst_oid(lc)))
			complete = false;
	list_free(databases);
	return complete;
}

/* A keeper for each known database that has none. */
static void
start_missing_keepers(void)
{
	for (int i = 0; i < outbox_shared->max_databases; i++)
	{
		OutboxDb   *db = &outbox_shared->dbs[i];
		TimestampTz now = GetCurrentTimestamp();
		Oid			dboid = InvalidOid;

		LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
		if (OidIsValid(db->dboid) && db->keeper_pid == 0 &&
			TimestampDifferenceExceeds(db->keeper_started, now, KEEPER_RETRY_MS))
		{
			dboid = db->dboid;
			db->keeper_started = now;
		}
		LWLockRelease(&outbox_shared->lock);
		if (OidIsValid(dboid) && !outbox_held_off(dboid) && !start_keeper(dboid))
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("pg_outbox found no free slot for a worker"),
					 errhint("Raise \"max_worker_processes\".")));
	}
}

void
outbox_launcher_main(Datum main_arg)
{
	outbox_worker_begin();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	before_shmem_exit(launcher_exit, (Datum) 0);
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	outbox_shared->launcher_proc = MyProc;
	outbox_shared->launcher_pid = MyProcPid;
	LWLockRelease(&outbox_shared->lock);

	while (!ShutdownRequestPending)
	{
		outbox_worker_reload();
		if (outbox_enabled)
		{
			if (outbox_shared->scan_databases)
				outbox_shared->scan_databases = !scan_databases();
			else
				start_missing_keepers();
		}
		pgstat_report_activity(STATE_IDLE, NULL);
		outbox_worker_wait(outbox_poll_interval, "OutboxLauncherMain");
	}

	/* not 0, which would tell the postmaster not to start it again */
	proc_exit(1);
}
