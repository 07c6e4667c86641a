/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  What all background workers of pg_outbox do alike.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "compat.h"
#include "fault.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "relay/worker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"

/* First steps, see worker.h. */
Oid
outbox_worker_begin(void)
{
	Oid			dboid;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();

	memcpy(&dboid, MyBgworkerEntry->bgw_extra, sizeof(dboid));
	if (OidIsValid(dboid) && !outbox_hold_off_enter(dboid))
		proc_exit(0);
	OUTBOX_FAULT("worker-before-connect");
	return dboid;
}

/* Settings that a database or role may carry and that a worker must not. */
void
outbox_worker_settings(void)
{
	static const struct
	{
		const char *name;
		const char *value;
	}			settings[] = {
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
		{"search_path", "pg_catalog"},
		{"synchronous_commit", "off"},
		{"row_security", "off"},
		{"session_replication_role", "origin"},
		{"client_min_messages", "warning"}
	};

	for (int i = 0; i < lengthof(settings); i++)
		SetConfigOption(settings[i].name, settings[i].value, PGC_SUSET, PGC_S_OVERRIDE);
}

/* Read the configuration again if asked to. */
void
outbox_worker_reload(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

/* The extension's oid in this database, or InvalidOid. */
Oid
outbox_worker_extension(void)
{
	Oid			extoid;

	StartTransactionCommand();
	extoid = get_extension_oid("pg_outbox", true);
	CommitTransactionCommand();
	return extoid;
}

/*
 * Register a worker that is not restarted by the postmaster: who started it
 * looks after it.  False when there is no slot for it.
 */
bool
outbox_worker_start(const char *function, const char *name, Oid dboid, Datum arg)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "pg_outbox");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "%s", function);
	snprintf(worker.bgw_name, BGW_MAXLEN, "%s", name);
	snprintf(worker.bgw_type, BGW_MAXLEN, "%s", name);
	worker.bgw_main_arg = arg;
	memcpy(worker.bgw_extra, &dboid, sizeof(dboid));
	worker.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&worker, &handle);
}

/* Wait for the latch, at most that long, and reset it. */
void
outbox_worker_wait(long ms, const char *wait_event)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, outbox_wait_event(wait_event));
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}
