/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  Shared memory of pg_outbox: sizes, start, look-ups, wake-ups.
 *
 * All of it is rebuilt after a crash: what counts for correctness is in the
 * catalog and in the log itself (see log/lane.c for how a database's entry is
 * built).  Locks of the lanes belong to the slots, not to the databases in
 * them, so they are initialized once.
 *
 * Latches are set through PGPROC pointers that may be stale by then.  PGPROCs
 * are never freed, and a latch set for nothing is harmless.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "elapsed.h"
#include "guc.h"
#include "inbox/slot.h"
#include "miscadmin.h"
#include "shmem.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"

OutboxShared *outbox_shared = NULL;

/* A relay is a background worker: there can't be more than those. */
static int
max_relays(void)
{
	return max_worker_processes;
}

static Size
shared_size(void)
{
	Size		size = CACHELINEALIGN(sizeof(OutboxShared));

	size = add_size(size, CACHELINEALIGN(mul_size(max_relays(), sizeof(OutboxRelaySlot))));
	size = add_size(size, CACHELINEALIGN(mul_size(max_relays(), sizeof(InboxSlot))));
	size = add_size(size, CACHELINEALIGN(mul_size(outbox_max_databases, sizeof(OutboxDb))));
	size = add_size(size, mul_size(MaxBackends, sizeof(OutboxProcEntry)));
	return size;
}

void
outbox_shmem_request(void)
{
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche("pg_outbox", 1);
	RequestNamedLWLockTranche("pg_outbox lane", 1);
}

/* Set up the counters and locks of a slot for a database. */
static void
init_db_slot(OutboxDb *db, int tranche)
{
	pg_atomic_init_u64(&db->next_id, 0);
	pg_atomic_init_u64(&db->limit_id, 0);
	pg_atomic_init_u64(&db->publish_count, 0);
	pg_atomic_init_u64(&db->backlog_bytes, 0);
	pg_atomic_init_u64(&db->unrouted, 0);
	for (int i = 0; i < OUTBOX_LANES; i++)
		LWLockInitialize(&db->lanes[i].lane.lock, tranche);
}

static void
init_relay_slot(OutboxRelaySlot *slot)
{
	SpinLockInit(&slot->mutex);
	pg_atomic_init_u32(&slot->reload, 0);
	pg_atomic_init_u32(&slot->stop, 0);
	pg_atomic_init_u64(&slot->delivered, 0);
	pg_atomic_init_u64(&slot->dead, 0);
	pg_atomic_init_u64(&slot->in_flight, 0);
	pg_atomic_init_u64(&slot->confirmed_count, 0);
	pg_atomic_init_u64(&slot->done_id, 0);
	pg_atomic_init_u64(&slot->latency_us, 0);
	pg_atomic_init_u64(&slot->memory, 0);
}

static void
init_inbox_slot(InboxSlot *slot)
{
	SpinLockInit(&slot->mutex);
	pg_atomic_init_u32(&slot->stop, 0);
	pg_atomic_init_u64(&slot->handled, 0);
	pg_atomic_init_u64(&slot->duplicates, 0);
	pg_atomic_init_u64(&slot->lag, 0);
	pg_atomic_init_u32(&slot->partitions, 0);
}

/*
 * The tranche of an LWLock that this module asked for by name: the locks of
 * the lanes live inside our own memory, so only its id is of interest.
 */
static int
lane_tranche(void)
{
	return GetNamedLWLockTranche("pg_outbox lane")->lock.tranche;
}

void
outbox_shmem_startup(void)
{
	bool		found;
	char	   *mem;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	mem = ShmemInitStruct("pg_outbox", shared_size(), &found);
	outbox_shared = (OutboxShared *) mem;
	if (!found)
	{
		memset(mem, 0, shared_size());
		LWLockInitialize(&outbox_shared->lock,
						 GetNamedLWLockTranche("pg_outbox")->lock.tranche);
		pg_atomic_init_u64(&outbox_shared->incarnations, 0);
		pg_atomic_init_u32(&outbox_shared->nholdoffs, 0);
		outbox_shared->max_databases = outbox_max_databases;
		outbox_shared->max_relays = max_relays();
		outbox_shared->max_procs = MaxBackends;
		outbox_shared->scan_databases = true;

		mem += CACHELINEALIGN(sizeof(OutboxShared));
		outbox_shared->relays = (OutboxRelaySlot *) mem;
		for (int i = 0; i < outbox_shared->max_relays; i++)
			init_relay_slot(&outbox_shared->relays[i]);

		mem += CACHELINEALIGN(mul_size(max_relays(), sizeof(OutboxRelaySlot)));
		outbox_shared->inboxes = (InboxSlot *) mem;
		for (int i = 0; i < outbox_shared->max_relays; i++)
			init_inbox_slot(&outbox_shared->inboxes[i]);

		mem += CACHELINEALIGN(mul_size(max_relays(), sizeof(InboxSlot)));
		outbox_shared->dbs = (OutboxDb *) mem;
		for (int i = 0; i < outbox_shared->max_databases; i++)
			init_db_slot(&outbox_shared->dbs[i], lane_tranche());

		mem += CACHELINEALIGN(mul_size(outbox_max_databases, sizeof(OutboxDb)));
		outbox_shared->procs = (OutboxProcEntry *) mem;
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Raise when the library was not preloaded. */
void
outbox_require_preload(void)
{
	if (outbox_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_outbox must be loaded via shared_preload_libraries"),
				 errhint("Add the line shared_preload_libraries = 'pg_outbox' to postgresql.conf and restart the server.")));
}

/*
 * The slot of a database's extension, or NULL.  The one that was found last is
 * tried first, without the lock, which all publishers would share at each
 * message: an incarnation is never used twice, so if it is the same then so is
 * the entry, and its contents were complete when it was found.  Whether it
 * stays is open as it is once the lock is released.
 */
OutboxDb *
outbox_db_find(Oid dboid, Oid extoid)
{
	static volatile OutboxDb *last = NULL;
	static uint64 last_incarnation = 0;
	OutboxDb   *result = NULL;

	if (last != NULL && last->incarnation == last_incarnation &&
		last->dboid == dboid && last->extoid == extoid)
		return (OutboxDb *) last;

	LWLockAcquire(&outbox_shared->lock, LW_SHARED);
	for (int i = 0; i < outbox_shared->max_databases; i++)
	{
		OutboxDb   *db = &outbox_shared->dbs[i];

		if (db->dboid == dboid && db->extoid == extoid)
		{
			result = db;
			last = db;
			last_incarnation = db->incarnation;
			break;
		}
	}
	LWLockRelease(&outbox_shared->lock);
	return result;
}

/* The same for the workers of subscriptions. */
static void
remove_inboxes(Oid dboid, Oid extoid)
{
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		InboxSlot  *slot = &outbox_shared->inboxes[i];

		if (slot->dboid != dboid || (OidIsValid(extoid) && slot->extoid != extoid))
			continue;
		pg_atomic_write_u32(&slot->stop, 1);
		if (slot->pid == 0)
			slot->dboid = InvalidOid;
		else if (slot->proc != NULL)
			SetLatch(&slot->proc->procLatch);
	}
}

/* Give back the slots of an extension's relays, or have them stop first. */
static void
remove_relays(Oid dboid, Oid extoid)
{
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		OutboxRelaySlot *slot = &outbox_shared->relays[i];

		if (slot->dboid != dboid || (OidIsValid(extoid) && slot->extoid != extoid))
			continue;
		pg_atomic_write_u32(&slot->stop, 1);
		if (slot->pid == 0)
			slot->dboid = InvalidOid;
		else if (slot->proc != NULL)
			SetLatch(&slot->proc->procLatch);
	}
}

/*
 * Empty a slot.  extoid may be InvalidOid: all of the database's.  Under all
 * lane locks, since a publisher that holds one relies on the slot.  A relay
 * that still runs keeps its own slot, which the launcher gives back later.
 */
void
outbox_db_remove(Oid dboid, Oid extoid)
{
	if (outbox_shared == NULL)
		return;
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->max_databases; i++)
	{
		OutboxDb   *db = &outbox_shared->dbs[i];

		if (db->dboid != dboid ||
			(OidIsValid(extoid) && db->extoid != extoid))
			continue;
		for (int lane = 0; lane < OUTBOX_LANES; lane++)
			LWLockAcquire(&db->lanes[lane].lane.lock, LW_EXCLUSIVE);
		db->dboid = InvalidOid;
		db->extoid = InvalidOid;
		db->incarnation = 0;
		db->keeper_pid = 0;
		db->keeper_proc = NULL;
		for (int lane = OUTBOX_LANES - 1; lane >= 0; lane--)
			LWLockRelease(&db->lanes[lane].lane.lock);
	}
	remove_relays(dboid, extoid);
	remove_inboxes(dboid, extoid);
	LWLockRelease(&outbox_shared->lock);
}

/* See shmem.h.  Where there is no room, every database is looked into. */
void
outbox_look_into(Oid dboid, int delay_ms)
{
	OutboxLook *look = NULL;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_LOOKS; i++)
	{
		if (outbox_shared->looks[i].dboid == dboid)
		{
			look = &outbox_shared->looks[i];
			break;
		}
		if (look == NULL && !OidIsValid(outbox_shared->looks[i].dboid))
			look = &outbox_shared->looks[i];
	}
	if (look == NULL)
		outbox_shared->scan_databases = true;
	else
	{
		look->dboid = dboid;
		look->not_before = outbox_clock_ms() + delay_ms;
	}
	LWLockRelease(&outbox_shared->lock);
	outbox_wake_launcher();
}

/*
 * Wake all relays of a database.  Called after every commit that published,
 * so without a lock: a slot that changes meanwhile costs a needless wake-up,
 * or its new relay looks for work on its own when it starts.
 */
void
outbox_wake_relays(Oid dboid)
{
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		volatile OutboxRelaySlot *slot = &outbox_shared->relays[i];

		if (slot->dboid == dboid)
		{
			PGPROC	   *proc = slot->proc;

			if (proc != NULL)
				SetLatch(&proc->procLatch);
		}
	}
}

void
outbox_wake_keeper(Oid dboid)
{
	for (int i = 0; i < outbox_shared->max_databases; i++)
	{
		volatile OutboxDb *db = &outbox_shared->dbs[i];

		if (db->dboid == dboid)
		{
			PGPROC	   *proc = db->keeper_proc;

			if (proc != NULL)
				SetLatch(&proc->procLatch);
		}
	}
}

void
outbox_wake_launcher(void)
{
	PGPROC	   *proc = *(PGPROC *volatile *) &outbox_shared->launcher_proc;

	if (proc != NULL)
		SetLatch(&proc->procLatch);
}
