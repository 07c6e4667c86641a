/*-------------------------------------------------------------------------
 *
 * slot.h
 *	  What the workers of subscriptions show of themselves.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_INBOX_SLOT_H
#define OUTBOX_INBOX_SLOT_H

#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#define INBOX_ERROR_LEN		512

/* The closed list of states that inbox.subscription_status shows. */
typedef enum InboxState
{
	INBOX_STATE_STARTING = 0,
	INBOX_STATE_RUNNING,
	INBOX_STATE_PAUSED,
	INBOX_STATE_DISABLED,
	INBOX_STATE_RETRYING,
	INBOX_STATE_ERROR,
	INBOX_STATE_NO_WORKER
} InboxState;

/*
 * A worker's slot, claimed by the keeper and kept as long as the subscription wants
 * that worker.  All but the atomics is protected by the mutex, identity also by
 * OutboxShared.lock.
 */
typedef struct InboxSlot
{
	slock_t		mutex;
	Oid			dboid;			/* InvalidOid: free slot */
	Oid			extoid;
	NameData	name;			/* of the subscription */
	int			number;			/* of the worker; 0: the first */
	pid_t		pid;			/* 0: not running */
	PGPROC	   *proc;			/* to set its latch */
	InboxState	state;
	pg_atomic_uint32 stop;		/* raised by the keeper: end cleanly */

	/* figures, written by the worker */
	pg_atomic_uint64 handled;	/* messages, since it started */
	pg_atomic_uint64 duplicates;	/* ... that had been seen */
	pg_atomic_uint64 lag;		/* messages at the broker beyond our places */
	pg_atomic_uint32 partitions;	/* that are ours */
	uint64		rate;			/* messages a second, of late */
	TimestampTz started;
	int64		tried;			/* the same, by elapsed.h's clock */
	char		last_error[INBOX_ERROR_LEN];
	char		last_hint[256];
	TimestampTz last_error_at;
} InboxSlot;

/*
 * Have the workers of each subscription run, and no others; the keeper's, in a
 * transaction.  True: all run.
 */
extern bool inbox_supervise(Oid extoid);

/* Does a worker of this subscription consume right now? */
extern bool inbox_is_consuming(const char *name);

extern void inbox_set_state(InboxSlot *slot, InboxState state);
extern void inbox_set_error(InboxSlot *slot, const char *text, const char *hint);
extern void inbox_clear_error(InboxSlot *slot);

#endif							/* OUTBOX_INBOX_SLOT_H */
