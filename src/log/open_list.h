/*-------------------------------------------------------------------------
 *
 * open_list.h
 *	  Transactions that a snapshot does not decide, and where their rows are.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_OPEN_LIST_H
#define OUTBOX_OPEN_LIST_H

#include "log/reader.h"
#include "log/segment.h"

/* A transaction that S1 does not decide, and where its rows are. */
typedef struct OpenXact
{
	uint64		xid;
	uint64		lowest;
	uint64		highest;
	uint32		lanes;			/* a bit each */
	bool		ended;			/* in the s2 of the round under way */
} OpenXact;

typedef struct OutboxOpenList
{
	OpenXact   *xacts;
	int			n;
	int			allocated;
} OutboxOpenList;

/* A copy, in the current context. */
extern void open_list_copy(OutboxOpenList *to, const OutboxOpenList *from);

/* The lowest id that the list still waits for; UINT64_MAX: none. */
extern uint64 open_list_lowest(const OutboxOpenList *list);

/* Has a transaction of the list ended?  Needs a transaction. */
extern bool open_list_any_ended(const OutboxOpenList *list);

/* Mark what is in a snapshot: it is read now, the rest stays. */
extern void open_list_mark_ended(OutboxOpenList *list, const OutboxSnapshot *s);

/* Drop what was marked. */
extern void open_list_drop_ended(OutboxOpenList *list);

/* Note a row of a transaction that is not decided. */
extern void open_list_track(OutboxOpenList *list, MemoryContext context, int lane,
							const OutboxRow *row);

#endif							/* OUTBOX_OPEN_LIST_H */
