/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  Rounds by snapshot difference, and pieces of their batches.
 *
 * Stands for src/log/reader.c, merge.c, open_list.c and ranges.c, with their names.
 * Pages are left out: a row is a page, and where a segment is searched is found from
 * its end.  A piece is read in one step, or in two where other processes matter to it:
 * the list of segments first, then the segments that it names.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef struct Range
{
	uint8_t		from;
	uint8_t		to;				/* the last one in it */
} Range;

typedef struct Ranges
{
	int			n;
	Range		range[MAX_XIDS + 1];
} Ranges;

/* What a lane has to offer in a pass, in its order. */
typedef struct LaneRows
{
	int			n;
	int			at;
	uint8_t		row[MAX_MSGS * (MAX_XIDS + 1)];
} LaneRows;

/* --- batches ----------------------------------------------------------------- */

static int
new_batch(Relay *r, Set s1, Set s2, uint8_t undecided)
{
	int			b = 0;

	collect_batches(r);
	while (b < MAX_BATCHES && r->batch[b].used)
		b++;
	if (b == MAX_BATCHES)
	{
		fprintf(stderr, "model: too few batches for this scope\n");
		exit(2);
	}
	r->batch[b] = (Batch) {.s1 = s1, .s2 = s2, .undecided = undecided, .used = 1};
	return b;
}

/* Forget batches that nothing refers to, and number the others in order of use. */
void
collect_batches(Relay *r)
{
	uint8_t		number[MAX_BATCHES] = {0};
	Batch		kept[MAX_BATCHES] = {0};
	uint8_t		n = 0;

#define USE(ref) \
	do { \
		if (number[ref] == 0) \
		{ \
			kept[n] = r->batch[ref]; \
			number[ref] = ++n; \
		} \
		(ref) = (uint8_t) (number[ref] - 1); \
	} while (0)

	for (int s = 0; s < 2; s++)
	{
		Stream	   *stream = &r->stream[s];

		for (int i = 0; i < stream->n; i++)
			USE(stream->entry[i].batch);
		if (stream->reader.batch > 0)
		{
			uint8_t		b = (uint8_t) (stream->reader.batch - 1);

			USE(b);
			stream->reader.batch = (uint8_t) (b + 1);
		}
	}
#undef USE
	memcpy(r->batch, kept, sizeof(kept));
}

/* --- the open list --------------------------------------------------------------- */

static uint8_t
open_list_lowest(const Reader *reader)
{
	uint8_t		lowest = NONE;

	for (int xid = 0; xid < MAX_XIDS; xid++)
		if (reader->open[xid].lowest > 0 && !reader->open[xid].ended &&
			reader->open[xid].lowest < lowest)
			lowest = reader->open[xid].lowest;
	return lowest;
}

static bool
open_list_any_ended(const Reader *reader, Set now)
{
	for (int xid = 0; xid < MAX_XIDS; xid++)
		if (reader->open[xid].lowest > 0 && HAS(now, xid))
			return true;
	return false;
}

static void
open_list_track(Reader *reader, int lane, const Message *m)
{
	Open	   *open = &reader->open[m->xid];

	if (open->lowest == 0)
		open->lowest = open->highest = m->id;
	if (m->id < open->lowest)
		open->lowest = m->id;
	if (m->id > open->highest && ON(OPEN_RANGE))
		open->highest = m->id;
	if (open->lanes == 0 || ON(OPEN_LANES))
		open->lanes |= (uint8_t) BIT(lane);
}

/* --- rounds ---------------------------------------------------------------------- */

static void
add_range(Ranges *r, int from, int to)
{
	if (from <= to)
		r->range[r->n++] = (Range) {(uint8_t) from, (uint8_t) to};
}

/* Sorted, those that touch joined. */
static void
sort_ranges(Ranges *r)
{
	int			n = 0;

	for (int i = 1; i < r->n; i++)
		for (int j = i; j > 0 && r->range[j].from < r->range[j - 1].from; j--)
		{
			Range		swap = r->range[j];

			r->range[j] = r->range[j - 1];
			r->range[j - 1] = swap;
		}
	for (int i = 1; i < r->n; i++)
	{
		if (r->range[i].from <= r->range[n].to + 1)
		{
			if (r->range[i].to > r->range[n].to)
				r->range[n].to = r->range[i].to;
		}
		else
			r->range[++n] = r->range[i];
	}
	if (r->n > 0)
		r->n = n + 1;
}

/* The ranges of the batch under way, of a lane. */
static void
lane_ranges(const Reader *reader, int lane, Ranges *r)
{
	r->n = 0;
	for (int xid = 0; xid < MAX_XIDS && ON(OPEN_LIST); xid++)
	{
		const Open *open = &reader->open[xid];

		if (open->lowest > 0 && open->ended && HAS(open->lanes, lane))
			add_range(r, open->lowest, open->highest);
	}
	add_range(r, reader->range_from, reader->range_end - 1);
	sort_ranges(r);
}

static uint8_t
lowest_range(const Reader *reader, uint8_t none)
{
	uint8_t		lowest = none;

	for (int lane = 0; lane < scope.lanes; lane++)
	{
		Ranges		r;

		lane_ranges(reader, lane, &r);
		if (r.n > 0 && r.range[0].from < lowest)
			lowest = r.range[0].from;
	}
	return lowest;
}

static void
begin_batch(Relay *r, Reader *reader, Set s2, uint16_t lsn, uint8_t c, uint8_t e)
{
	uint8_t		s1_low = open_list_lowest(reader);
	uint8_t		undecided;
	Batch	   *batch;

	for (int xid = 0; xid < MAX_XIDS; xid++)
		if (reader->open[xid].lowest > 0)
			reader->open[xid].ended = HAS(s2, xid);
	undecided = open_list_lowest(reader);
	if (c < undecided)
		undecided = c;
	reader->batch = (uint8_t) (new_batch(r, reader->last, s2, undecided) + 1);
	batch = &r->batch[reader->batch - 1];
	batch->lsn = lsn;
	batch->s1_lsn = reader->last_lsn;
	if (scope.standby)
		batch->s1_low = s1_low < reader->from ? s1_low : reader->from;
	reader->track_from = reader->from;
	reader->track_to = c;
	reader->next_from = c;
	reader->next_end = e;
	reader->range_from = reader->from;
	reader->range_end = e;
	reader->next = lowest_range(reader, c);
}

/* What the counter has beyond the limit was thrown away, and may come again. */
uint8_t
end_of_ids(const State *st)
{
	if (st->shared.next_id > st->shared.limit_id && ON(IDS_BELOW_LIMIT))
		return st->shared.limit_id;
	return st->shared.next_id;
}

bool
nothing_new(const State *st, const Relay *r)
{
	const Reader *reader = &r->stream[0].reader;

	if (!reader->has_count || reader->count != st->shared.count)
		return false;
	return !ON(ENDED_WAKES) || !open_list_any_ended(reader, snapshot(st));
}

/* The end of outbox_reader_begin(): the counter and the lanes are behind us. */
void
reader_snapshot(State *st, Relay *r)
{
	Reader	   *reader = &r->stream[0].reader;
	uint8_t		e = ON(E_BEHIND_SNAPSHOT) ? end_of_ids(st) : r->c;

	if (!ON(C_BEFORE_TOUCH))
		r->c = e = end_of_ids(st);
	if (!ON(COUNT_BEFORE_SNAPSHOT))
		r->count = st->shared.count;
	begin_batch(r, reader, snapshot(st), st->disk.lsn, r->c, e);
	if (ON(FLUSH_BEFORE_SEND))
		database_flush(st);
	reader->has_count = 1;
	reader->count = r->count;
	r->round = r->c = r->count = 0;
}

/* A lagging topic's reader goes as far as the main one has come. */
bool
reader_follow(State *st, Relay *r)
{
	Reader	   *reader = &r->stream[1].reader;
	const Reader *leader = &r->stream[0].reader;

	if (!snapshot_before(reader->last, leader->last))
		return false;
	begin_batch(r, reader, leader->last, leader->last_lsn, leader->from,
				leader->end > 0 ? leader->end : end_of_ids(st));
	return true;
}

/* From a position. */
void
reader_create(Relay *r, int stream, const Position *start)
{
	Reader	   *reader = &r->stream[stream].reader;

	memset(reader, 0, sizeof(*reader));
	reader->last = start->s2;
	reader->from = reader->next_from = start->low;
	if (start->s1 == start->s2)
		return;
	reader->batch = (uint8_t) (new_batch(r, start->s1, start->s2, start->low) + 1);
	reader->next = reader->range_from = (uint8_t) (start->cursor + 1);
	reader->range_end = NONE;
}

/* The lagging topic's reader becomes a copy of the main one. */
void
reader_clone(Relay *r)
{
	Reader	   *clone = &r->stream[1].reader;

	*clone = r->stream[0].reader;
	clone->has_count = clone->count = 0;
	if (!ON(LEAVE_OPEN_LIST))
		memset(clone->open, 0, sizeof(clone->open));
}

static uint8_t
low_of(uint8_t undecided, uint8_t next)
{
	return undecided < next && ON(POSITION_LOW) ? undecided : next;
}

/* With all that was fetched so far done. */
uint16_t
reader_position(const Relay *r, int stream, Position *pos)
{
	const Reader *reader = &r->stream[stream].reader;

	memset(pos, 0, sizeof(*pos));
	if (reader->batch > 0)
	{
		const Batch *batch = &r->batch[reader->batch - 1];

		pos->s1 = batch->s1;
		pos->s2 = batch->s2;
		pos->cursor = (uint8_t) (reader->next - 1);
		pos->low = low_of(batch->undecided, reader->next);
		return batch->lsn;
	}
	else
	{
		pos->s1 = pos->s2 = reader->last;
		pos->cursor = (uint8_t) (reader->from - 1);
		pos->low = low_of(open_list_lowest(reader), reader->from);
		return reader->last_lsn;
	}
}

/* With all before this entry done, it not. */
uint16_t
position_before(const State *st, const Relay *r, const Entry *entry, Position *pos)
{
	const Batch *batch = &r->batch[entry->batch];
	uint8_t		id = st->spec.msg[entry->msg].id;

	memset(pos, 0, sizeof(*pos));
	pos->s1 = batch->s1;
	pos->s2 = batch->s2;
	pos->cursor = (uint8_t) (id - 1);
	pos->low = low_of(batch->undecided, id);
	return batch->lsn;
}

/* With nothing of a batch done. */
bool
position_before_batch(const Batch *batch, Position *pos)
{
	if (batch->s1_low == 0)
		return false;
	memset(pos, 0, sizeof(*pos));
	pos->s1 = pos->s2 = batch->s1;
	pos->cursor = (uint8_t) (batch->s1_low - 1);
	pos->low = batch->s1_low;
	return true;
}

/* --- a pass over the lanes ------------------------------------------------------------ */

/* Is a segment of the list still what it was? */
static bool
still_listed(const State *st, const Segment *list, int seg)
{
	return !ON(OPEN_THEN_CHECK) ||
		(list[seg].lane == st->disk.seg[seg].lane &&
		 list[seg].generation == st->disk.seg[seg].generation);
}

/* A lane's segments in the list, by generation. */
static int
lane_segments(const Segment *list, int lane, uint8_t *segs)
{
	int			n = 0;

	for (int seg = 0; seg < scope.segs; seg++)
	{
		int			i = n;

		if (list[seg].lane != lane)
			continue;
		for (; i > 0 && list[segs[i - 1]].generation > list[seg].generation; i--)
			segs[i] = segs[i - 1];
		segs[i] = (uint8_t) seg;
		n++;
	}
	return n;
}

/* The lowest id of a segment; NONE: it holds nothing, or is gone. */
static uint8_t
first_id(State *st, Reader *reader, const Segment *list, int seg)
{
	uint8_t		rows[MAX_MSGS];

	/* remembered by generation it is what is there: the lowest id never changes */
	if (!ON(KNOWN_BY_GENERATION) && reader->first_id[seg] > 0)
		return reader->first_id[seg];
	if (!still_listed(st, list, seg) || rows_of_segment(st, seg, rows) == 0)
		return NONE;
	if (!ON(KNOWN_BY_GENERATION))
		reader->first_id[seg] = st->spec.msg[rows[0]].id;
	return st->spec.msg[rows[0]].id;
}

/* The last segment that starts at or below an id, or the lane's first. */
static int
find_segment(State *st, Reader *reader, const Segment *list,
			 const uint8_t *segs, int n, uint8_t id)
{
	int			found = 0;

	for (int i = 0; i < n; i++)
		if (first_id(st, reader, list, segs[i]) <= id)
			found = i;
	return found;
}

/* Where in a segment the first row of at least id is. */
static int
search_segment(const State *st, const Reader *reader, int seg, const uint8_t *rows, int n,
			   uint8_t id)
{
	if (!ON(HINT_CHECKED) && reader->hint[seg] > 0)
		return reader->hint[seg];
	while (n > 0 && st->spec.msg[rows[n - 1]].id >= id)
		n--;
	return n;
}

/* One range of a lane. */
static void
read_range(State *st, Reader *reader, const Segment *list, const uint8_t *segs, int nsegs,
		   Range range, LaneRows *out)
{
	int			start = find_segment(st, reader, list, segs, nsegs, range.from);

	for (int i = start; i < nsegs; i++)
	{
		uint8_t		rows[MAX_MSGS];
		int			n = rows_of_segment(st, segs[i], rows);
		int			row = i == start ?
			search_segment(st, reader, segs[i], rows, n, range.from) : 0;

		if (!still_listed(st, list, segs[i]))
			continue;			/* freed meanwhile: all in it is done */
		for (; row < n; row++)
		{
			if (st->spec.msg[rows[row]].id > range.to)
				return;
			out->row[out->n++] = rows[row];
		}
		if (!ON(HINT_CHECKED))
			reader->hint[segs[i]] = (uint8_t) n;
	}
}

/* All that a lane has for this pass; false: a segment is not what it was. */
static bool
read_lane(State *st, Reader *reader, const Segment *list, int lane, LaneRows *out)
{
	uint8_t		segs[MAX_SEGS];
	int			nsegs = lane_segments(list, lane, segs);
	bool		first = true;
	Ranges		r;

	out->n = out->at = 0;
	lane_ranges(reader, lane, &r);
	for (int i = 0; i < r.n && nsegs > 0; i++)
	{
		if (r.range[i].to < reader->next)
			continue;
		if (r.range[i].from < reader->next)
			r.range[i].from = reader->next;
		if (first && !still_listed(st, list,
								   segs[find_segment(st, reader, list, segs, nsegs, r.range[i].from)]))
			return false;
		first = false;
		read_range(st, reader, list, segs, nsegs, r.range[i], out);
	}
	return true;
}

/* The lane whose next row has the lowest id; -1 at the end. */
static int
lowest_lane(const State *st, const LaneRows *lanes)
{
	int			best = -1;

	for (int lane = 0; lane < scope.lanes; lane++)
	{
		const LaneRows *l = &lanes[lane];

		if (l->at >= l->n)
			continue;
		if (best < 0 || st->spec.msg[l->row[l->at]].id <
			st->spec.msg[lanes[best].row[lanes[best].at]].id)
			best = lane;
		if (!ON(MERGE))
			break;
	}
	return best;
}

/* Is a row of the batch?  Those that it leaves open are tracked. */
static bool
judge_row(const State *st, Relay *r, Reader *reader, int lane, int row)
{
	const Message *m = &st->spec.msg[row];
	Batch	   *batch = &r->batch[reader->batch - 1];

	if (HAS(batch->s2, m->xid))
		return !HAS(batch->s1, m->xid) &&
			((st->disk.xact[m->xid] == XACT_COMMITTED && !HAS(st->disk.rolled_back, row)) ||
			 !ON(VISIBLE));
	if (m->id >= reader->track_from && m->id < reader->track_to)
	{
		open_list_track(reader, lane, m);
		if (m->id < batch->undecided)
			batch->undecided = m->id;
	}
	return false;
}

static void
finish_batch(Relay *r, Reader *reader)
{
	for (int xid = 0; xid < MAX_XIDS; xid++)
		if (reader->open[xid].ended)
			reader->open[xid] = (Open) {0};
	reader->last = r->batch[reader->batch - 1].s2;
	reader->last_lsn = r->batch[reader->batch - 1].lsn;
	reader->from = reader->next_from;
	reader->end = reader->next_end;
	reader->batch = reader->next = reader->next_from = reader->next_end = 0;
	reader->track_from = reader->track_to = reader->range_from = reader->range_end = 0;
}

/* Which stream's is a message? */
static bool
wanted(const State *st, const Relay *r, int stream, int row)
{
	if (!r->lagging)
		return true;
	return (st->spec.msg[row].topic == LAGGER) == (stream == 1);
}

/* A piece of the batch, by the list that was read before. */
void
reader_fetch(State *st, Relay *r, int stream)
{
	Reader	   *reader = &r->stream[stream].reader;
	LaneRows	lanes[MAX_LANES];
	int			fetched = 0;
	int			lane;

	if (scope.standby && r->batch[reader->batch - 1].lsn == 0)
	{
		r->batch[reader->batch - 1].lsn = st->disk.lsn;
		database_flush(st);
	}
	r->fetching = 0;
	for (lane = 0; lane < scope.lanes; lane++)
		if (!read_lane(st, reader, r->list, lane, &lanes[lane]))
			return;				/* with a new list, again */
	memset(r->list, 0, sizeof(r->list));
	while ((lane = lowest_lane(st, lanes)) >= 0)
	{
		int			row = lanes[lane].row[lanes[lane].at++];

		if (st->spec.msg[row].id < reader->next)
			continue;
		if (!judge_row(st, r, reader, lane, row) || !wanted(st, r, stream, row))
			continue;
		window_add(r, stream, row, reader->batch - 1);
		if (++fetched == scope.piece)
		{
			reader->next = (uint8_t) (st->spec.msg[row].id + 1);
			return;
		}
	}
	finish_batch(r, reader);
}
