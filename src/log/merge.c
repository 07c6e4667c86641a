/*-------------------------------------------------------------------------
 *
 * merge.c
 *	  One pass over the lanes: rows of chosen id ranges, merged by id.
 *
 * Every lane is sorted, so the log in id order is a merge of lanes, and the
 * start of a range is found by binary search: no index, and nothing about
 * pages is relied on from one pass to the next.  (A page could belong to a
 * segment that has been truncated, rewritten or given to another lane since.)
 * Where a pass ended in a generation is where the search of the next one looks
 * first; should that be wrong, it looks on.  The only thing remembered for true
 * is the lowest id of a generation, which never falls while the generation
 * lives.
 *
 * Segments are pooled: the keeper empties a segment whose messages are done
 * and later gives it to any lane.  So a segment is locked first, and then a
 * newer snapshot must still list it with the lane and generation that we
 * believed in; if it does, our lock keeps it so.  A segment that left the list
 * held only what is done.  One segment a lane is open at a time, however many
 * a backlog has: each costs an entry of the server's lock table.
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

/*
 * Pages of one lane that a pass looks at before it gives way.  Empty ones don't
 * count: a pass that saw nothing else would not get further the next time.
 */
#define PAGES_PER_PASS	(OUTBOX_RULE("long-passes") ? 4096 : 2)

/* What is remembered of a generation. */
typedef struct Known
{
	uint64		generation;		/* key */
	uint64		first_id;		/* the lowest; UINT64_MAX: not known */
	BlockNumber guess;			/* where to look first */
} Known;

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
	bool		ready;			/* page->rows[row] is to be handed out */
} LaneCursor;

struct OutboxMerge
{
	LaneCursor	lanes[OUTBOX_LANES];
	LaneCursor *left[OUTBOX_LANES]; /* those that may have more */
	int			nleft;
	LaneCursor *last;			/* where the last row came from */
	bool		consumed;		/* the row that it stands on is handed out */
	uint64		from;
	uint64		given;			/* all below is handed out or skipped */
	Snapshot	snapshot;
	HTAB	   *known;
	OutboxJudge judge;
	void	   *arg;
};

HTAB *
outbox_merge_known(MemoryContext context)
{
	HASHCTL		ctl;

	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Known);
	ctl.hcxt = context;
	return hash_create("pg_outbox generations", 64, &ctl,
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

/* Lock and open a segment; NULL when it is gone.  Not checked yet. */
static Relation
lock_segment(const OutboxSegment *segment)
{
	return try_relation_open(segment->relid, AccessShareLock);
}

/* Lock, open and check a segment; NULL when it is gone or another's by now. */
static Relation
open_segment(const OutboxSegment *segment)
{
	Relation	rel = lock_segment(segment);

	if (rel != NULL && OUTBOX_RULE("open-then-check") &&
		!still_listed(outbox_segment_list(), segment))
	{
		relation_close(rel, AccessShareLock);
		rel = NULL;
	}
	return rel;
}

/* What is known of a segment's generation. */
static Known *
known_of(OutboxMerge *merge, const OutboxSegment *segment)
{
	bool		found;
	Known	   *known = hash_search(merge->known, &segment->generation, HASH_ENTER, &found);

	if (!found)
	{
		known->first_id = PG_UINT64_MAX;
		known->guess = InvalidBlockNumber;
	}
	return known;
}

/* Leave a segment, and note where. */
static void
close_segment(OutboxMerge *merge, LaneCursor *c)
{
	if (c->rel == NULL)
		return;
	if (c->blkno > 0)
		known_of(merge, list_nth(c->segments, c->segment))->guess = c->blkno - 1;
	relation_close(c->rel, AccessShareLock);
	c->rel = NULL;
}

/*
 * The lowest id of a segment; UINT64_MAX when it holds none or is gone, which
 * is not remembered.
 */
static uint64
first_id(OutboxMerge *merge, const OutboxSegment *segment)
{
	Known	   *known = known_of(merge, segment);
	Relation	rel;
	uint64		id;
	bool		found;

	if (known->first_id != PG_UINT64_MAX)
		return known->first_id;
	rel = open_segment(segment);
	if (rel == NULL)
		return PG_UINT64_MAX;
	found = outbox_segment_first_id(rel, &id);
	relation_close(rel, AccessShareLock);
	if (!found)
		return PG_UINT64_MAX;
	known->first_id = id;
	return id;
}

/* Forget generations that are not listed any more. */
static void
forget_known(OutboxMerge *merge, List *list)
{
	HASH_SEQ_STATUS status;
	Known	   *known;
	uint64		oldest = PG_UINT64_MAX;
	ListCell   *lc;

	if (hash_get_num_entries(merge->known) <= 2 * list_length(list))
		return;
	foreach(lc, list)
	{
		const OutboxSegment *segment = lfirst(lc);

		if (segment->lane >= 0)
			oldest = Min(oldest, segment->generation);
	}
	hash_seq_init(&status, merge->known);
	while ((known = hash_seq_search(&status)) != NULL)
		if (known->generation < oldest)
			(void) hash_search(merge->known, &known->generation, HASH_REMOVE, NULL);
}

static int
by_generation(const ListCell *a, const ListCell *b)
{
	uint64		x = ((const OutboxSegment *) lfirst(a))->generation;
	uint64		y = ((const OutboxSegment *) lfirst(b))->generation;

	return (x > y) - (x < y);
}

/*
 * The last segment that starts at or below an id, or the lane's first.  Those
 * that hold nothing are stepped over: where they stand nothing is missed.
 */
static int
find_segment(OutboxMerge *merge, const LaneCursor *c, uint64 id)
{
	int			found = 0;
	int			end = list_length(c->segments);

	while (end - found > 1)
	{
		int			mid = found + (end - found) / 2;
		int			filled = mid;
		uint64		first = PG_UINT64_MAX;

		while (filled < end &&
			   (first = first_id(merge, list_nth(c->segments, filled))) == PG_UINT64_MAX)
			filled++;
		if (first <= id)
			found = filled;
		else
			end = mid;
	}
	return found;
}

/* Find the first row of at least id in the segment that the cursor is in. */
static void
seek_in_segment(OutboxMerge *merge, LaneCursor *c, uint64 id)
{
	BlockNumber guess;

	if (c->page == NULL)
		c->page = palloc(sizeof(OutboxPage));
	c->page->nrows = c->row = 0;
	if (c->rel == NULL)
		return;					/* gone: goes on with the next segment */
	c->nblocks = RelationGetNumberOfBlocks(c->rel);
	guess = known_of(merge, list_nth(c->segments, c->segment))->guess;
	if (!OUTBOX_RULE("good-guess"))
		guess = (id * 7919) % (c->nblocks + 1);
	c->blkno = outbox_segment_search(c->rel, c->nblocks, guess, id);
}

/* Where the cursor's current range starts, not before what has passed. */
static uint64
range_start(const LaneCursor *c)
{
	return Max(c->passed, c->ranges.ranges[c->range].from);
}

/* Close what is open. */
static void
close_all(OutboxMerge *merge)
{
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
		close_segment(merge, &merge->lanes[lane]);
}

/* Are the segments that all lanes have opened still what we took them for? */
static bool
verify_open(OutboxMerge *merge)
{
	List	   *list = outbox_segment_list();

	if (!OUTBOX_RULE("open-then-check"))
		return true;
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		LaneCursor *c = &merge->lanes[lane];

		if (c->rel != NULL && !still_listed(list, list_nth(c->segments, c->segment)))
			return false;
	}
	return true;
}

/* Open the segments where the lanes that have something to read begin. */
static void
open_lanes(OutboxMerge *merge)
{
	List	   *list = outbox_segment_list();
	ListCell   *lc;

	list_sort(list, by_generation);
	forget_known(merge, list);
	OUTBOX_FAULT("reader-before-open");
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		LaneCursor *c = &merge->lanes[lane];

		c->passed = merge->from;
		c->range = 0;
		while (c->range < c->ranges.n && c->ranges.ranges[c->range].to < merge->from)
			c->range++;
		c->segments = NIL;
		foreach(lc, list)
		{
			OutboxSegment *segment = lfirst(lc);

			if (segment->lane == lane)
				c->segments = lappend(c->segments, segment);
		}
		c->done = c->range >= c->ranges.n || c->segments == NIL;
		if (c->done)
			continue;
		c->segment = find_segment(merge, c, range_start(c));
		c->rel = lock_segment(list_nth(c->segments, c->segment));
	}
}

OutboxMerge *
outbox_merge_begin(const OutboxRanges *ranges, uint64 from, Snapshot snapshot,
				   HTAB *known, OutboxJudge judge, void *arg)
{
	OutboxMerge *merge = palloc0(sizeof(OutboxMerge));

	merge->from = from;
	merge->snapshot = snapshot;
	merge->known = known;
	merge->judge = judge;
	merge->arg = arg;
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		merge->lanes[lane].lane = lane;
		merge->lanes[lane].ranges = ranges[lane];
	}
	for (;;)
	{
		open_lanes(merge);
		if (verify_open(merge))
			break;
		close_all(merge);
		CHECK_FOR_INTERRUPTS();
	}
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
		if (!merge->lanes[lane].done)
		{
			LaneCursor *c = &merge->lanes[lane];

			seek_in_segment(merge, c, range_start(c));
			merge->left[merge->nleft++] = c;
		}
	return merge;
}

/* Go on in the lane's next segment; false when there is none. */
static bool
next_segment(OutboxMerge *merge, LaneCursor *c)
{
	close_segment(merge, c);
	while (++c->segment < list_length(c->segments))
	{
		c->rel = open_segment(list_nth(c->segments, c->segment));
		if (c->rel == NULL)
			continue;			/* freed meanwhile: all in it is done */
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
			if (!next_segment(merge, c))
			{
				c->done = true;
				return false;
			}
			continue;
		}
		if (c->pages >= PAGES_PER_PASS)
		{
			c->paused = true;
			return false;
		}
		c->row = 0;
		if (outbox_page_read(c->rel, c->blkno++, merge->snapshot, c->page))
		{
			c->pages++;
			return true;
		}
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
		int			segment;

		c->passed = Max(c->passed, c->ranges.ranges[c->range].from);
		segment = find_segment(merge, c, c->passed);
		if (segment > c->segment)
		{
			close_segment(merge, c);
			c->segment = segment;
			c->rel = open_segment(list_nth(c->segments, segment));
		}
		seek_in_segment(merge, c, c->passed);
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

/* Up to which id is a lane behind us?  Its end: UINT64_MAX. */
static uint64
lane_passed(const LaneCursor *c)
{
	if (c->ready)
		return c->page->rows[c->row].id;
	return c->done ? PG_UINT64_MAX : c->passed;
}

/*
 * A lane that has paused may still hold rows from "passed" on, so nothing
 * beyond that is handed out: the pass ends there, and the next one begins at
 * the lowest id that a lane has not passed.  What lanes have looked at beyond
 * it is looked at again.
 */
bool
outbox_merge_next(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row)
{
	LaneCursor *best = NULL;

	if (merge->last != NULL && merge->consumed)
		merge->last->row++;
	merge->last = NULL;
	for (int i = merge->nleft - 1; i >= 0; i--)
	{
		LaneCursor *c = merge->left[i];

		if (!c->ready)
			advance(merge, c);
		if (lane_passed(c) == PG_UINT64_MAX)
			merge->left[i] = merge->left[--merge->nleft];
		else if (best == NULL || lane_passed(c) < lane_passed(best))
			best = c;
	}
	if (best == NULL || !best->ready)
		return false;
	*row = best->page->rows[best->row];
	outbox_page_row(best->page, best->row, tuple);
	best->ready = false;
	best->passed = merge->given = row->id + 1;
	merge->last = best;
	merge->consumed = true;
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
	outbox_page_row(c->page, c->row, tuple);
	return true;
}

uint64
outbox_merge_resume(OutboxMerge *merge)
{
	uint64		lowest = PG_UINT64_MAX;

	for (int lane = 0; lane < OUTBOX_LANES; lane++)
		lowest = Min(lowest, lane_passed(&merge->lanes[lane]));

	/*
	 * A lane that has paused just before the id that another one gave last has
	 * passed it too: an id is in one lane only.
	 */
	return Max(lowest, merge->given);
}

void
outbox_merge_end(OutboxMerge *merge)
{
	close_all(merge);
}
