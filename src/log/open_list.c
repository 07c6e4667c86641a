/*-------------------------------------------------------------------------
 *
 * open_list.c
 *	  Transactions that a snapshot does not decide, and where their rows are.
 *
 * What a reader will have to come back for, see reader.c.  Bounded by the
 * connections and prepared transactions that there can be.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "log/open_list.h"
#include "log/snapshot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define FIRST_SIZE	64

void
open_list_copy(OutboxOpenList *to, const OutboxOpenList *from)
{
	memset(to, 0, sizeof(*to));
	if (from->n == 0)
		return;
	to->xacts = palloc(from->n * sizeof(OpenXact));
	memcpy(to->xacts, from->xacts, from->n * sizeof(OpenXact));
	to->n = to->allocated = from->n;
}

uint64
open_list_lowest(const OutboxOpenList *list)
{
	uint64		lowest = PG_UINT64_MAX;

	for (int i = 0; i < list->n; i++)
		if (!list->xacts[i].ended)
			lowest = Min(lowest, list->xacts[i].lowest);
	return lowest;
}

/*
 * Asked of a snapshot, so that ids are compared in all of their 64 bits: after
 * a long outage one may be older than what pg_xact still knows.
 */
bool
open_list_any_ended(const OutboxOpenList *list)
{
	OutboxSnapshot *now;

	if (list->n == 0)
		return false;
	now = outbox_snapshot_from(GetTransactionSnapshot());
	for (int i = 0; i < list->n; i++)
		if (outbox_snapshot_contains(now, list->xacts[i].xid))
			return true;
	return false;
}

void
open_list_mark_ended(OutboxOpenList *list, const OutboxSnapshot *s)
{
	for (int i = 0; i < list->n; i++)
		list->xacts[i].ended = outbox_snapshot_contains(s, list->xacts[i].xid);
}

void
open_list_drop_ended(OutboxOpenList *list)
{
	int			n = 0;

	for (int i = 0; i < list->n; i++)
		if (!list->xacts[i].ended)
			list->xacts[n++] = list->xacts[i];
	list->n = n;
}

/* A transaction's entry, made when it is new. */
static OpenXact *
entry_of(OutboxOpenList *list, MemoryContext context, uint64 xid, uint64 id)
{
	OpenXact   *open;

	for (int i = list->n - 1; i >= 0; i--)
		if (list->xacts[i].xid == xid)
			return &list->xacts[i];
	if (list->n == list->allocated)
	{
		int			size = Max(FIRST_SIZE, list->allocated * 2);

		list->xacts = list->xacts ?
			repalloc(list->xacts, size * sizeof(OpenXact)) :
			MemoryContextAlloc(context, size * sizeof(OpenXact));
		list->allocated = size;
	}
	open = &list->xacts[list->n++];
	open->xid = xid;
	open->lowest = open->highest = id;
	open->lanes = 0;
	open->ended = false;
	return open;
}

void
open_list_track(OutboxOpenList *list, MemoryContext context, int lane,
				const OutboxRow *row)
{
	OpenXact   *open = entry_of(list, context, row->xid, row->id);

	open->lowest = Min(open->lowest, row->id);
	open->highest = Max(open->highest, row->id);
	open->lanes |= 1U << lane;
}
