/*-------------------------------------------------------------------------
 *
 * merge.h
 *	  One pass over the lanes: rows of chosen id ranges, merged by id.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_MERGE_H
#define OUTBOX_MERGE_H

#include "log/segment.h"
#include "shmem.h"
#include "utils/hsearch.h"

/* Ids from .. to, both included. */
typedef struct OutboxRange
{
	uint64		from;
	uint64		to;
} OutboxRange;

/* The ranges to read in a lane: sorted, disjoint. */
typedef struct OutboxRanges
{
	OutboxRange *ranges;
	int			n;
} OutboxRanges;

/* Sort ranges and join those that touch (ranges.c). */
extern void outbox_ranges_sort(OutboxRanges *ranges);

/* What is to be done with a row? */
typedef enum OutboxVerdict
{
	OUTBOX_SKIP,
	OUTBOX_TAKE
} OutboxVerdict;

typedef OutboxVerdict (*OutboxJudge) (void *arg, int lane, const OutboxRow *row);

typedef struct OutboxMerge OutboxMerge;

/*
 * Begin a pass inside the current transaction, with everything in the current
 * memory context.  Rows with an id below "from" are not looked at.  known
 * remembers the lowest id of each generation between passes.
 */
extern OutboxMerge *outbox_merge_begin(const OutboxRanges *ranges, uint64 from,
									   Snapshot snapshot, HTAB *known,
									   OutboxJudge judge, void *arg);
extern HTAB *outbox_merge_known(MemoryContext context);

/*
 * The next row to take, in id order; stays valid until the next call.  False
 * at the end, or when the pass has looked at enough pages: see
 * outbox_merge_resume().
 */
extern bool outbox_merge_next(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row);

/* The row after it in the same lane, when it is part of the same message. */
extern bool outbox_merge_next_part(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row);

/* All ids below this were handed out or skipped; UINT64_MAX: the end. */
extern uint64 outbox_merge_resume(OutboxMerge *merge);

extern void outbox_merge_end(OutboxMerge *merge);

#endif							/* OUTBOX_MERGE_H */
