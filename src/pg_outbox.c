/*-------------------------------------------------------------------------
 *
 * pg_outbox.c
 *	  Start of the module: settings, shared memory, hooks, launcher.
 *
 * Only wiring stands here.  Loaded by shared_preload_libraries the module
 * asks for shared memory and registers its launcher; loaded by a backend on
 * its own (CREATE EXTENSION without preload) it only defines its settings, and
 * whatever needs shared memory raises.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "drop.h"
#include "fmgr.h"
#include "guc.h"
#include "hold_off.h"
#include "miscadmin.h"
#include "publish.h"
#include "relay/launcher.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "utility_hook.h"
#include "wake.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	outbox_shmem_request();
}

static void
shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	outbox_shmem_startup();
}

void
_PG_init(void)
{
	bool		preloaded = process_shared_preload_libraries_in_progress;

	outbox_define_settings(preloaded);
	if (!preloaded)
		return;

	/* validators ask for this, see transport/options.c */
	*find_rendezvous_variable("pg_outbox") = (void *) &outbox_shared;

	/* pg_upgrade restores catalogs: nothing of ours may run or refuse */
	if (IsBinaryUpgrade)
		return;

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;

	outbox_publish_init();
	outbox_hold_off_init();
	outbox_wake_init();
	outbox_drop_init();
	outbox_utility_hook_init();
	outbox_launcher_register();
}
