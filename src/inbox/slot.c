/*-------------------------------------------------------------------------
 *
 * slot.c
 *	  Workers of subscriptions: the keeper's side, and what they show.
 *
 * The keeper has so many workers run as each subscription wants.  It reads the table
 * of subscriptions each turn, and is woken by the functions that change it.  As with
 * relays, a worker's slot is its own as long as it is wanted, so that its figures and
 * last error outlive a worker that crashed.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "elapsed.h"
#include "funcapi.h"
#include "guc.h"
#include "inbox/slot.h"
#include "inbox/subscription.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "relay/worker.h"
#include "shmem.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define WORKER_RETRY_MS		2000
#define STATUS_NCOLUMNS		13

PG_FUNCTION_INFO_V1(inbox_worker_slots);
PG_FUNCTION_INFO_V1(inbox_wake);
PG_FUNCTION_INFO_V1(inbox_require_preload);

void
inbox_set_state(InboxSlot *slot, InboxState state)
{
	if (slot->state == state)
		return;
	SpinLockAcquire(&slot->mutex);
	slot->state = state;
	SpinLockRelease(&slot->mutex);
}

/* Show an error, and log it when it is another one than before. */
void
inbox_set_error(InboxSlot *slot, const char *text, const char *hint)
{
	bool		is_new = strcmp(slot->last_error, text) != 0;

	SpinLockAcquire(&slot->mutex);
	strlcpy(slot->last_error, text, sizeof(slot->last_error));
	strlcpy(slot->last_hint, hint, sizeof(slot->last_hint));
	slot->last_error_at = GetCurrentTimestamp();
	SpinLockRelease(&slot->mutex);
	if (is_new)
		ereport(LOG,
				(errmsg("pg_outbox subscription \"%s\": %s", NameStr(slot->name), text),
				 hint[0] != '\0' ? errhint("%s", hint) : 0));
}

void
inbox_clear_error(InboxSlot *slot)
{
	if (slot->last_error[0] == '\0')
		return;
	SpinLockAcquire(&slot->mutex);
	slot->last_error[0] = slot->last_hint[0] = '\0';
	slot->last_error_at = 0;
	SpinLockRelease(&slot->mutex);
}

bool
inbox_is_consuming(const char *name)
{
	bool		found = false;

	if (outbox_shared == NULL)
		return false;
	LWLockAcquire(&outbox_shared->lock, LW_SHARED);
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		InboxSlot  *slot = &outbox_shared->inboxes[i];

		if (slot->dboid == MyDatabaseId && slot->pid != 0 &&
			slot->state == INBOX_STATE_RUNNING && strcmp(NameStr(slot->name), name) == 0)
			found = true;
	}
	LWLockRelease(&outbox_shared->lock);
	return found;
}

/* Make a free slot a worker's; with OutboxShared.lock held. */
static void
take_slot(InboxSlot *slot, Oid extoid, const char *name, int number)
{
	SpinLockAcquire(&slot->mutex);
	slot->extoid = extoid;
	namestrcpy(&slot->name, name);
	slot->number = number;
	slot->pid = 0;
	slot->proc = NULL;
	slot->state = INBOX_STATE_STARTING;
	slot->rate = 0;
	slot->started = slot->last_error_at = 0;
	slot->tried = 0;
	slot->last_error[0] = slot->last_hint[0] = '\0';
	SpinLockRelease(&slot->mutex);
	pg_atomic_write_u32(&slot->stop, 0);
	pg_atomic_write_u64(&slot->handled, 0);
	pg_atomic_write_u64(&slot->duplicates, 0);
	pg_atomic_write_u64(&slot->lag, 0);
	pg_atomic_write_u32(&slot->partitions, 0);
	slot->dboid = MyDatabaseId;
}

/* A worker's slot: the one it has, else a free one; NULL: all are taken. */
static InboxSlot *
slot_of(Oid extoid, const char *name, int number)
{
	InboxSlot  *slot = NULL;

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		InboxSlot  *s = &outbox_shared->inboxes[i];

		if (s->dboid == MyDatabaseId && s->extoid == extoid && s->number == number &&
			strcmp(NameStr(s->name), name) == 0)
		{
			slot = s;
			break;
		}
		if (!OidIsValid(s->dboid) && slot == NULL)
			slot = s;
	}
	if (slot != NULL && !OidIsValid(slot->dboid))
		take_slot(slot, extoid, name, number);
	LWLockRelease(&outbox_shared->lock);
	return slot;
}

static bool
supervise_one(Oid extoid, const char *name, int number)
{
	InboxSlot  *slot = slot_of(extoid, name, number);
	char		worker_name[BGW_MAXLEN];

	if (slot == NULL)
		return false;
	if (slot->pid != 0)
	{
		/* it looks at its row itself */
		LWLockAcquire(&outbox_shared->lock, LW_SHARED);
		if (slot->proc != NULL)
			SetLatch(&slot->proc->procLatch);
		LWLockRelease(&outbox_shared->lock);
		return true;
	}
	if (!outbox_elapsed(slot->tried, WORKER_RETRY_MS))
		return false;
	slot->started = GetCurrentTimestamp();
	slot->tried = outbox_clock_ms();
	pg_atomic_write_u32(&slot->stop, 0);
	if (number == 0)
		snprintf(worker_name, BGW_MAXLEN, "pg_outbox inbox %s", name);
	else
		snprintf(worker_name, BGW_MAXLEN, "pg_outbox inbox %s (%d)", name, number + 1);
	if (!outbox_worker_start("inbox_worker_main", worker_name, MyDatabaseId,
							 Int32GetDatum((int) (slot - outbox_shared->inboxes))))
	{
		inbox_set_state(slot, INBOX_STATE_NO_WORKER);
		inbox_set_error(slot, OUTBOX_NO_WORKER_ERROR, OUTBOX_NO_WORKER_HINT);
	}
	return false;
}

static bool
is_wanted(List *subscriptions, const InboxSlot *slot)
{
	ListCell   *lc;

	foreach(lc, subscriptions)
	{
		InboxListed *listed = lfirst(lc);

		if (strcmp(NameStr(listed->name), NameStr(slot->name)) == 0)
			return slot->number < listed->workers;
	}
	return false;
}

/* End the workers that are not wanted any more. */
static void
stop_others(List *subscriptions)
{
	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->max_relays; i++)
	{
		InboxSlot  *slot = &outbox_shared->inboxes[i];

		if (slot->dboid != MyDatabaseId || is_wanted(subscriptions, slot))
			continue;
		pg_atomic_write_u32(&slot->stop, 1);
		if (slot->pid == 0)
			slot->dboid = InvalidOid;
		else if (slot->proc != NULL)
			SetLatch(&slot->proc->procLatch);
	}
	LWLockRelease(&outbox_shared->lock);
}

bool
inbox_supervise(Oid extoid)
{
	List	   *subscriptions = inbox_subscription_list();
	bool		all_run = true;
	ListCell   *lc;

	stop_others(subscriptions);
	foreach(lc, subscriptions)
	{
		InboxListed *listed = lfirst(lc);

		for (int i = 0; i < listed->workers; i++)
			all_run = supervise_one(extoid, NameStr(listed->name), i) && all_run;
	}
	return all_run;
}

static const char *
state_name(InboxState state)
{
	static const char *const names[] = {
		"starting", "running", "paused", "disabled", "retrying", "error", "no_worker"
	};

	StaticAssertStmt(lengthof(names) == INBOX_STATE_NO_WORKER + 1, "a name for each state");
	return names[state];
}

static void
put_slot(ReturnSetInfo *rsinfo, InboxSlot *shared)
{
	Datum		values[STATUS_NCOLUMNS];
	bool		nulls[STATUS_NCOLUMNS] = {0};
	InboxSlot	slot;
	InboxState	state;

	SpinLockAcquire(&shared->mutex);
	memcpy(&slot, shared, sizeof(slot));
	SpinLockRelease(&shared->mutex);
	state = !outbox_enabled ? INBOX_STATE_DISABLED :
		slot.pid == 0 && slot.state != INBOX_STATE_NO_WORKER ? INBOX_STATE_STARTING : slot.state;

	values[0] = NameGetDatum(&slot.name);
	values[1] = Int32GetDatum(slot.number + 1);
	nulls[2] = slot.pid == 0;
	values[2] = Int32GetDatum(slot.pid);
	values[3] = CStringGetTextDatum(state_name(state));
	values[4] = Int32GetDatum((int32) pg_atomic_read_u32(&shared->partitions));
	values[5] = Int64GetDatum((int64) pg_atomic_read_u64(&shared->lag));
	values[6] = Int64GetDatum((int64) pg_atomic_read_u64(&shared->handled));
	values[7] = Int64GetDatum((int64) pg_atomic_read_u64(&shared->duplicates));
	values[8] = Int64GetDatum((int64) slot.rate);
	nulls[9] = slot.last_error[0] == '\0';
	values[9] = CStringGetTextDatum(slot.last_error);
	nulls[10] = slot.last_hint[0] == '\0';
	values[10] = CStringGetTextDatum(slot.last_hint);
	nulls[11] = slot.last_error_at == 0;
	values[11] = TimestampTzGetDatum(slot.last_error_at);
	nulls[12] = slot.pid == 0;
	values[12] = TimestampTzGetDatum(slot.started);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* The part of inbox.subscription_status that is in shared memory. */
Datum
inbox_worker_slots(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; outbox_shared != NULL && i < outbox_shared->max_relays; i++)
		if (outbox_shared->inboxes[i].dboid == MyDatabaseId)
			put_slot((ReturnSetInfo *) fcinfo->resultinfo, &outbox_shared->inboxes[i]);
	return (Datum) 0;
}

static bool wake_at_commit = false;

static void
xact_ended(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && wake_at_commit)
	{
		/* a database that has published nothing may have no keeper yet */
		outbox_look_into(MyDatabaseId, 0);
		outbox_wake_keeper(MyDatabaseId);
	}
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		wake_at_commit = false;
}

/* A trigger of the table of subscriptions: the keeper is to look once this commits. */
Datum
inbox_wake(PG_FUNCTION_ARGS)
{
	static bool registered = false;

	/* a dump may be restored where the library is not loaded yet */
	if (outbox_shared == NULL)
		return PointerGetDatum(NULL);
	if (!registered)
		RegisterXactCallback(xact_ended, NULL);
	registered = true;
	wake_at_commit = true;
	return PointerGetDatum(NULL);
}

Datum
inbox_require_preload(PG_FUNCTION_ARGS)
{
	outbox_require_preload();
	PG_RETURN_VOID();
}
