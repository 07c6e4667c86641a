/*-------------------------------------------------------------------------
 *
 * segment.h
 *	  Segments: their list, and reading their pages.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SEGMENT_H
#define OUTBOX_SEGMENT_H

#include "access/htup_details.h"
#include "nodes/pg_list.h"
#include "storage/block.h"
#include "storage/bufpage.h"
#include "utils/rel.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

/*
 * A row of outbox.segments; lane -1: pooled, that is, empty and unused.  A
 * generation is given once in a database, whatever the lane.
 */
typedef struct OutboxSegment
{
	Oid			relid;
	int			lane;
	uint64		generation;
} OutboxSegment;

/* A row on a page, as much of it as stands at fixed places. */
typedef struct OutboxRow
{
	uint64		id;
	uint64		xid;
	int			part;			/* 0 where the message is one row */
	OffsetNumber offset;
	bool		visible;
} OutboxRow;

/* A page copied out of the buffer pool, its rows sorted by (id, part). */
typedef struct OutboxPage
{
	PGAlignedBlock copy;
	OutboxRow	rows[MaxHeapTuplesPerPage];
	int			nrows;
} OutboxPage;

/* All segments, by a snapshot taken now (list of OutboxSegment). */
extern List *outbox_segment_list(void);

/* The row format. */
extern TupleDesc outbox_segment_desc(void);

/* Is this table a segment of the log? */
extern bool outbox_is_segment(Oid relid);

/*
 * Copy a page and say which rows a snapshot sees (NULL: don't ask).  False
 * when it holds no rows.
 */
extern bool outbox_page_read(Relation rel, BlockNumber blkno,
							 Snapshot snapshot, OutboxPage *page);
extern void outbox_row_read(HeapTuple tuple, OutboxRow *row);
extern void outbox_page_row(OutboxPage *page, int row, HeapTuple tuple);

#ifdef OUTBOX_FAULT_POINTS
extern uint64 outbox_pages_read;	/* by this process, for tests */
#endif

/*
 * The first page that holds an id of at least this, or nblocks.  A guess makes
 * it faster where it is near; InvalidBlockNumber: none.
 */
extern BlockNumber outbox_segment_search(Relation rel, BlockNumber nblocks,
										 BlockNumber guess, uint64 id);

/* Lowest and highest id that a segment physically holds; false: none. */
extern bool outbox_segment_first_id(Relation rel, uint64 *id);
extern bool outbox_segment_last_id(Oid relid, uint64 *id, TimestampTz *published);

#endif							/* OUTBOX_SEGMENT_H */
