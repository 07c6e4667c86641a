/*-------------------------------------------------------------------------
 *
 * merge.c
 *	  One pass over the lanes: rows of chosen id ranges, merged by id.
 *
 * Every lane is sorted, so the log in id order is a merge of lanes, and the
 * start of a range is found by binary search: no index, and nothing about
 * pages is remembered between passes.  (A remembered page could belong to a
 * segment that has been truncated, rewritten or given to another lane since;
 * a search costs about a dozen page look-ups, and one for a reader that keeps
 * up.)  The only thing remembered is the lowest id of a generation, which
 * never falls while the generation lives.
 *
 * Segments are pooled: the keeper empties a segment whose messages are done
 * and later gives it to any lane.  So a segment is locked first, and then a
 * newer snapshot must still list it with the lane and generation that we
 * believed in; if it does, our lock keeps it so.  A segment that left the list
 * held only what is done.
 *
 * A segment that a row of our snapshot is in was listed before the row was
 * written, so a list read after that snapshot was taken has it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "fault.h"
#include "log/merge.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"

/* Pages of one lane that a pass looks at before it gives way. */
#define PAGES_PER_PASS	4096

/* The lowest id of a generation, where it is known. */
typedef struct FirstId
{
	uint64		generation;		/* key */
	uint64		id;
} FirstId;

/* A segment that this pass has opened. */
typedef struct OpenSegment
{
	OutboxSegment segment;
	Relation	rel;
	uint64		first_id;		/* valid when not empty */
	bool		empty;
} OpenSegment;

typedef struct LaneCursor
{
	int			lane;
	OutboxRanges ranges;
	int			range;			/* the one being read */
	List	   *segments;		/* of the lane, by generation */
	int			segment;		/* index of the one being read */
	Relation	rel;
	BlockNumber nblocks;
	BlockNumber blkno;			/* next page to read */
	OutboxPage *page;
	int			row;			/* next row of the page */
	int			pages;			/* looked at in this pass */
	uint64		passed;			/* ids below are behind us */
	bool		paused;
	bool		done;
	bool		ready;			/* page->rows[row] is to be taken */
} LaneCursor;

struct OutboxMerge
{
	LaneCursor	lanes[OUTBOX_LANES];
	LaneCursor *last;			/* where the last row came from */
	bool		consumed;		/* the row that it stands on is handed out */
	bool		begun;			/* what is opened from now on is checked at
								 * once */
	uint64		from;
	Snapshot	snapshot;
	HTAB	   *first_ids;
	OutboxJudge judge;
	void	   *arg;
	List	   *open;			/* of OpenSegment */
};

HTAB *
outbox_merge_first_ids(MemoryContext context)
{
	HASHCTL		ctl;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(FirstId);
	ctl.hcxt = context;
	return hash_create("pg_outbox first ids", 64, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Is this segment in the list, as we know it? */
static bool
still_listed(List *list, const OutboxSegment *segment)
{
	ListCell   *lc;

	foreach(lc, list)
	{
		const OutboxSegment *other = lfirst(lc);

		if (other->relid == segment->relid)
			return other->lane == segment->lane &&
				other->generation == segment->generation;
	}
	return false;
}

/* Remember the lowest id of a generation that we were right about. */
static void
remember_first_id(OutboxMerge *merge, const OpenSegment *open)
{
	FirstId    *known;

	if (open->empty)
		return;
	known = hash_search(merge->first_ids, &open->segment.generation,
						HASH_ENTER, NULL);
	known->id = open->first_id;
}

/*
 * Lock and open a segment; NULL when it is gone.  Those opened to begin a pass
 * are checked together, see verify_open().
 */
static OpenSegment *
open_segment(OutboxMerge *merge, const OutboxSegment *segment)
{
	OpenSegment *open;
	ListCell   *lc;
	Relation	rel;

	foreach(lc, merge->open)
	{
		open = lfirst(lc);
		if (open->segment.generation == segment->generation &&
			open->segment.relid == segment->relid)
			return open;
	}
	rel = try_relation_open(segment->relid, AccessShareLock);
	if (rel == NULL)
		return NULL;
	if (merge->begun && !still_listed(outbox_segment_list(), segment))
	{
		relation_close(rel, AccessShareLock);
		return NULL;
	}
	open = palloc(sizeof(OpenSegment));
	open->segment = *segment;
	open->rel = rel;
	open->empty = !outbox_segment_first_id(rel, &open->first_id);
	merge->open = lappend(merge->open, open);
	if (merge->begun)
		remember_first_id(merge, open);
	return open;
}

/* The lowest id of a segment, UINT64_MAX when it holds none or is gone. */
static uint64
first_id(OutboxMerge *merge, const OutboxSegment *segment)
{
	FirstId    *known = hash_search(merge->first_ids, &segment->generation,
									HASH_FIND, NULL);
	OpenSegment *open;

	if (known != NULL)
		return known->id;
	open = open_segment(merge, segment);
	return open == NULL || open->empty ? PG_UINT64_MAX : open->first_id;
}

static int
by_generation(const ListCell *a, const ListCell *b)
{
	uint64		x = ((const OutboxSegment *) lfirst(a))->generation;
	uint64		y = ((const OutboxSegment *) lfirst(b))->generation;

	return (x > y) - (x < y);
}

/*
 * Put a cursor on the first row of at least id: in the last segment that
 * starts at or below it, or the lane's first.
 */
static void
seek_lane(OutboxMerge *merge, LaneCursor *c, uint64 id)
{
	OpenSegment *open;
	int			i = list_length(c->segments) - 1;

	while (i > 0 && first_id(merge, list_nth(c->segments, i)) > id)
		i--;
	c->segment = i;
	c->rel = NULL;
	c->page->nrows = c->row = 0;
	if (i < 0)
		return;
	open = open_segment(merge, list_nth(c->segments, i));
	if (open == NULL)
		return;					/* gone: goes on with the next segment */
	c->rel = open->rel;
	c->nblocks = RelationGetNumberOfBlocks(c->rel);
	c->blkno = outbox_segment_search(c->rel, c->nblocks, id);
}

/* Where the cursor's current range starts, not before what has passed. */
static uint64
range_start(const LaneCursor *c)
{
	return Max(c->passed, c->ranges.ranges[c->range].from);
}

/* Give up the list and all that was opened on its word. */
static void
close_all(OutboxMerge *merge)
{
	ListCell   *lc;

	foreach(lc, merge->open)
		relation_close(((OpenSegment *) lfirst(lc))->rel, AccessShareLock);
	merge->open = NIL;
}

/* Is all that was opened still what we took it for?  Then remember it. */
static bool
verify_open(OutboxMerge *merge)
{
	List	   *list = outbox_segment_list();
	ListCell   *lc;

	foreach(lc, merge->open)
		if (!still_listed(list, &((OpenSegment *) lfirst(lc))->segment) &&
			OUTBOX_RULE("open-then-check"))
			return false;
	foreach(lc, merge->open)
		remember_first_id(merge, lfirst(lc));
	return true;
}

/* Put the cursors of all lanes that have something to read on its start. */
static void
seek_all(OutboxMerge *merge)
{
	List	   *list = outbox_segment_list();
	ListCell   *lc;

	list_sort(list, by_generation);
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		LaneCursor *c = &merge->lanes[lane];

		c->passed = merge->from;
		c->range = 0;
		while (c->range < c->ranges.n && c->ranges.ranges[c->range].to < merge->from)
			c->range++;
		c->done = c->range >= c->ranges.n;
		if (c->done)
			continue;
		c->segments = NIL;
		foreach(lc, list)
		{
			OutboxSegment *segment = lfirst(lc);

			if (segment->lane == lane)
				c->segments = lappend(c->segments, segment);
		}
		seek_lane(merge, c, range_start(c));
	}
}

OutboxMerge *
outbox_merge_begin(const OutboxRanges *ranges, uint64 from, Snapshot snapshot,
				   HTAB *first_ids, OutboxJudge judge, void *arg)
{
	OutboxMerge *merge = palloc0(sizeof(OutboxMerge));

	merge->from = from;
	merge->snapshot = snapshot;
	merge->first_ids = first_ids;
	merge->judge = judge;
	merge->arg = arg;
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		merge->lanes[lane].lane = lane;
		merge->lanes[lane].ranges = ranges[lane];
		if (ranges[lane].n > 0)
		{
			merge->lanes[lane].page = palloc(sizeof(OutboxPage));
			merge->lanes[lane].page->nrows = 0;
		}
	}
	for (;;)
	{
		seek_all(merge);
		OUTBOX_FAULT("reader-after-open");
		if (verify_open(merge))
		{
			merge->begun = true;
			return merge;
		}
		close_all(merge);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Go on in the lane's next segment; false when there is none. */
static bool
next_segment(OutboxMerge *merge, LaneCursor *c)
{
	while (++c->segment < list_length(c->segments))
	{
		OutboxSegment *segment = list_nth(c->segments, c->segment);
		OpenSegment *open = open_segment(merge, segment);

		if (open == NULL)
			continue;			/* freed meanwhile: all in it is done */
		c->rel = open->rel;
		c->nblocks = RelationGetNumberOfBlocks(c->rel);
		c->blkno = 0;
		return true;
	}
	return false;
}

/* Have the next page with rows; false at the end, or when it is time to stop. */
static bool
next_page(OutboxMerge *merge, LaneCursor *c)
{
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (c->rel == NULL || c->blkno >= c->nblocks)
		{
			c->rel = NULL;
			if (!next_segment(merge, c))
			{
				c->done = true;
				return false;
			}
			continue;
		}
		if (c->pages++ >= PAGES_PER_PASS)
		{
			c->paused = true;
			return false;
		}
		c->row = 0;
		if (outbox_page_read(c->rel, c->blkno++, merge->snapshot, c->page))
			return true;
	}
}

/*
 * Behind the end of the current range: go on with the next one, by a search
 * when it does not start on this page.  False when there is none.
 */
static bool
next_range(OutboxMerge *merge, LaneCursor *c, uint64 id)
{
	while (c->range < c->ranges.n && c->ranges.ranges[c->range].to < id)
		c->range++;
	if (c->range >= c->ranges.n)
	{
		c->done = true;
		return false;
	}
	if (c->ranges.ranges[c->range].from > c->page->rows[c->page->nrows - 1].id)
	{
		c->passed = Max(c->passed, c->ranges.ranges[c->range].from);
		seek_lane(merge, c, c->passed);
	}
	return true;
}

/* Move a cursor to the next row to take. */
static void
advance(OutboxMerge *merge, LaneCursor *c)
{
	c->ready = false;
	while (!c->done && !c->paused)
	{
		OutboxRow  *row;

		if (c->row >= c->page->nrows)
		{
			if (c->page->nrows > 0)
				c->passed = Max(c->passed, c->page->rows[c->page->nrows - 1].id + 1);
			c->page->nrows = 0;
			(void) next_page(merge, c);
			continue;
		}
		row = &c->page->rows[c->row];
		if (row->id > c->ranges.ranges[c->range].to)
		{
			(void) next_range(merge, c, row->id);
			continue;
		}
		if (row->id >= merge->from && row->id >= c->ranges.ranges[c->range].from &&
			row->part == 0 &&
			merge->judge(merge->arg, c->lane, row) == OUTBOX_TAKE)
		{
			c->ready = true;
			return;
		}
		c->row++;
	}
}

/* Up to which id is a lane behind us? */
static uint64
lane_passed(const LaneCursor *c)
{
	if (c->ready)
		return c->page->rows[c->row].id;
	return c->done ? PG_UINT64_MAX : c->passed;
}

bool
outbox_merge_next(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row)
{
	LaneCursor *best = NULL;

	if (merge->last != NULL)
	{
		if (merge->consumed)
			merge->last->row++;
		merge->last->ready = false;
	}
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		LaneCursor *c = &merge->lanes[lane];

		/*
		 * The lane of the last row, and at first all, look for their next;
		 * looking for parts may have met the lane's end already.
		 */
		if (!c->done && !c->ready)
			advance(merge, c);
		if (lane_passed(c) != PG_UINT64_MAX &&
			(best == NULL || lane_passed(c) < lane_passed(best)))
			best = c;
	}
	merge->last = NULL;
	if (best == NULL || !best->ready)
		return false;
	merge->last = best;
	merge->consumed = true;
	best->passed = best->page->rows[best->row].id + 1;
	*row = best->page->rows[best->row];
	outbox_page_row(best->rel, best->page, best->row, tuple);
	return true;
}

bool
outbox_merge_next_part(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row)
{
	LaneCursor *c = merge->last;
	uint64		id = row->id;
	int			part = row->part;

	for (;;)
	{
		if (++c->row >= c->page->nrows)
		{
			c->pages = 0;		/* a message is read to its end */
			if (!next_page(merge, c))
			{
				merge->consumed = false;
				return false;
			}
		}
		if (c->page->rows[c->row].id != id)
		{
			merge->consumed = false;
			return false;
		}
		if (c->page->rows[c->row].visible && c->page->rows[c->row].part == part + 1)
			break;
	}
	*row = c->page->rows[c->row];
	outbox_page_row(c->rel, c->page, c->row, tuple);
	return true;
}

uint64
outbox_merge_resume(OutboxMerge *merge)
{
	uint64		lowest = PG_UINT64_MAX;

	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		LaneCursor *c = &merge->lanes[lane];

		/* the row that was given last is still the lane's current one */
		lowest = Min(lowest, c == merge->last ? c->passed : lane_passed(c));
	}
	return lowest;
}

void
outbox_merge_end(OutboxMerge *merge)
{
	close_all(merge);
}
