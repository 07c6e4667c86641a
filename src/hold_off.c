/*-------------------------------------------------------------------------
 *
 * hold_off.c
 *	  Keeping our workers out of a database that a statement needs alone.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, ALTER DATABASE ... RENAME or
 * SET TABLESPACE fail while others are connected, and DROP EXTENSION should
 * not meet workers that use what it drops.  The statement raises a hold-off,
 * waits until our workers are out, runs, and the hold-off goes with its
 * transaction.
 *
 * Why no worker slips in.  A worker that is started takes a while to connect,
 * and nothing of PostgreSQL's shows where it is heading.  So before it
 * connects it writes the database's oid into its entry here, and it does so
 * under the lock under which hold-offs are raised:
 *	- if it was first, the raiser finds the entry and waits for it to vanish;
 *	  the worker sees the hold-off once it is connected, and leaves;
 *	- if the hold-off was first, the worker sees it and never connects.
 * An entry vanishes by a callback of on_shmem_exit() that is registered before
 * the connection is made.  Such callbacks run in reverse order, so by then the
 * process has left the list of processes that PostgreSQL counts.
 *
 * Why a hold-off never outlives its owner.  It is lowered when resources of
 * the transaction are released, at commit, abort and prepare; a backend that
 * exits in the middle of a transaction lowers it on its way out.  A backend
 * that is killed takes shared memory with it.  There is one entry for each
 * process that can run statements, found by its number, so none can be used
 * up by others, and no pid is ever compared.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "elapsed.h"
#include "fault.h"
#include "hold_off.h"
#include "miscadmin.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/resowner.h"

/*
 * A relay that stops may wait up to 10 s for what is in flight, so as not to
 * send it twice.
 */
#define LEAVE_TIMEOUT_MS	15000
#define LOOK_EVERY_MS		10

static bool raised = false;

static OutboxProcEntry *
my_entry(void)
{
	return &outbox_shared->procs[MyProc - ProcGlobal->allProcs];
}

/* With OutboxShared.lock held. */
static bool
is_held_off(Oid dboid)
{
	if (pg_atomic_read_u32(&outbox_shared->nholdoffs) == 0)
		return false;
	for (int i = 0; i < outbox_shared->max_procs; i++)
		for (int j = 0; j < OUTBOX_HOLD_OFFS; j++)
			if (outbox_shared->procs[i].holds_off[j] == dboid)
				return true;
	return false;
}

bool
outbox_held_off(Oid dboid)
{
	bool		held;

	if (pg_atomic_read_u32(&outbox_shared->nholdoffs) == 0)
		return false;
	LWLockAcquire(&outbox_shared->lock, LW_SHARED);
	held = is_held_off(dboid);
	LWLockRelease(&outbox_shared->lock);
	return held;
}

/* Lower what this process raised, and have keepers start at once. */
static void
lower_hold_offs(void)
{
	OutboxProcEntry *mine = my_entry();
	Oid			lowered[OUTBOX_HOLD_OFFS];
	int			n = 0;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_HOLD_OFFS; i++)
	{
		if (!OidIsValid(mine->holds_off[i]))
			continue;
		for (int j = 0; j < outbox_shared->max_databases; j++)
			if (outbox_shared->dbs[j].dboid == mine->holds_off[i])
				outbox_shared->dbs[j].keeper_started = 0;
		lowered[n++] = mine->holds_off[i];
		mine->holds_off[i] = InvalidOid;
		pg_atomic_fetch_sub_u32(&outbox_shared->nholdoffs, 1);
	}
	LWLockRelease(&outbox_shared->lock);
	raised = false;
	while (n > 0)
		outbox_look_into(lowered[--n], 0);
}

static void
lower_at_exit(int code, Datum arg)
{
	if (raised)
		lower_hold_offs();
}

/* After locks are released: workers are let in when the way is free. */
static void
lower_at_end(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (raised && isTopLevel && phase == RESOURCE_RELEASE_AFTER_LOCKS)
		lower_hold_offs();
}

/*
 * Raise.  A transaction that needs more databases than fit (it can only
 * rename them) has to do without workers held off.
 */
static void
raise_hold_off(Oid dboid)
{
	static bool registered = false;
	OutboxProcEntry *mine = my_entry();

	if (!registered)
		before_shmem_exit(lower_at_exit, (Datum) 0);
	registered = true;
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_HOLD_OFFS && mine->holds_off[i] != dboid; i++)
	{
		if (OidIsValid(mine->holds_off[i]))
			continue;
		mine->holds_off[i] = dboid;
		pg_atomic_fetch_add_u32(&outbox_shared->nholdoffs, 1);
		raised = true;
		break;
	}
	LWLockRelease(&outbox_shared->lock);
}

/* Wake all workers that are in a database; false when there is none. */
static bool
wake_workers(Oid dboid)
{
	bool		any = false;

	LWLockAcquire(&outbox_shared->lock, LW_SHARED);
	for (int i = 0; i < outbox_shared->max_procs; i++)
	{
		if (outbox_shared->procs[i].works_in != dboid)
			continue;
		any = true;
		SetLatch(&ProcGlobal->allProcs[i].procLatch);
	}
	LWLockRelease(&outbox_shared->lock);
	return any;
}

void
outbox_hold_off(Oid dboid)
{
	int64		start = outbox_clock_ms();

	raise_hold_off(dboid);
	while (wake_workers(dboid) && !outbox_elapsed(start, LEAVE_TIMEOUT_MS))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOOK_EVERY_MS, outbox_wait_event("OutboxHoldOff"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
leave(int code, Datum arg)
{
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	my_entry()->works_in = InvalidOid;
	LWLockRelease(&outbox_shared->lock);
}

bool
outbox_hold_off_enter(Oid dboid)
{
	bool		may;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	may = !is_held_off(dboid);
	if (may && OUTBOX_RULE("worker-announces"))
		my_entry()->works_in = dboid;
	LWLockRelease(&outbox_shared->lock);
	if (may)
		on_shmem_exit(leave, (Datum) 0);
	return may;
}

void
outbox_hold_off_init(void)
{
	RegisterResourceReleaseCallback(lower_at_end, NULL);
}
