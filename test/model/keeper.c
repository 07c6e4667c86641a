/*-------------------------------------------------------------------------
 *
 * keeper.c
 *	  The keeper: src/log/rotate.c and src/log/free.c.
 *
 * A turn of freeing is two steps: what may go by the positions as they are; then
 * emptying it, with its commit.  Between them the freeing lock is held.
 *
 *-------------------------------------------------------------------------
 */
#include "model.h"

static int
current_generation(const State *st, int lane)
{
	return st->disk.seg[st->shared.current[lane]].generation;
}

/* The segment prepared for a lane, or NONE. */
static int
prepared_segment(const State *st, int lane)
{
	for (int seg = 0; seg < scope.segs; seg++)
		if (st->disk.seg[seg].lane == lane &&
			st->disk.seg[seg].generation > current_generation(st, lane))
			return seg;
	return NONE;
}

static int
pooled_segment(const State *st)
{
	for (int seg = 0; seg < scope.segs; seg++)
		if (st->disk.seg[seg].lane == NONE)
			return seg;
	return NONE;
}

/* Past its size: here, as soon as it holds something. */
static bool
is_full(const State *st, int lane)
{
	uint8_t		rows[MAX_MSGS];

	return rows_of_segment(st, st->shared.current[lane], rows) > 0;
}

static void
list_segment(State *st, int lane)
{
	Segment    *segment = &st->disk.seg[pooled_segment(st)];
	int			highest = 0;

	for (int seg = 0; seg < scope.segs; seg++)
		if (st->disk.seg[seg].generation > highest)
			highest = st->disk.seg[seg].generation;
	segment->lane = (uint8_t) lane;
	segment->generation = (uint8_t) (highest + 1);
}

/* Is a row done by all positions, or was it rolled back? */
static bool
row_is_done(const State *st, int row, uint8_t low)
{
	const Message *m = &st->spec.msg[row];

	if (m->id < low || HAS(st->disk.rolled_back, row) ||
		st->disk.xact[m->xid] == XACT_ABORTED)
		return true;
	for (int s = 0; s < scope.srvs; s++)
		for (int stream = 0; stream < 2; stream++)
		{
			const Position *pos = &st->disk.pos[s][stream];

			if (!HAS(st->disk.servers, s) || pos->low == 0 || m->id < pos->low ||
				(stream == 1 && !ON(FREE_LAGGING)) || (s > 0 && !ON(FREE_ALL_SERVERS)))
				continue;
			if (!HAS(pos->s1, m->xid) &&
				!(HAS(pos->s2, m->xid) && (m->id <= pos->cursor || !ON(SCAN_CURSOR))))
				return false;
		}
	return true;
}

/* Below that nobody wants anything. */
static uint8_t
lowest_low(const State *st)
{
	uint8_t		low = NONE;

	for (int s = 0; s < scope.srvs; s++)
		for (int stream = 0; stream < 2; stream++)
		{
			const Position *pos = &st->disk.pos[s][stream];
			uint8_t		below = ON(FREE_BELOW_LOW) ? pos->low : (uint8_t) (pos->cursor + 1);

			if (HAS(st->disk.servers, s) && pos->low > 0 && below < low &&
				(stream == 0 || ON(FREE_LAGGING)) && (s == 0 || ON(FREE_ALL_SERVERS)))
				low = below;
		}
	return low;
}

static bool
is_free(const State *st, int seg)
{
	uint8_t		rows[MAX_MSGS];
	int			n = rows_of_segment(st, seg, rows);
	uint8_t		low = lowest_low(st);

	if (n == 0 || st->spec.msg[rows[n - 1]].id < low)
		return true;
	for (int i = 0; i < n; i++)
		if (!row_is_done(st, rows[i], low))
			return false;
	return true;
}

/* Segments that take no more rows. */
uint8_t
closed_segments(const State *st)
{
	uint8_t		closed = 0;

	for (int seg = 0; seg < scope.segs; seg++)
	{
		const Segment *segment = &st->disk.seg[seg];

		if (segment->lane == NONE)
			continue;
		if (segment->generation < current_generation(st, segment->lane) ||
			(!ON(FREE_CLOSED) && seg == st->shared.current[segment->lane]))
			closed |= (uint8_t) BIT(seg);
	}
	return closed;
}

static uint8_t
free_segments(const State *st)
{
	uint8_t		result = closed_segments(st);

	for (int seg = 0; seg < scope.segs; seg++)
		if (HAS(result, seg) && !is_free(st, seg))
			result &= (uint8_t) ~BIT(seg);
	return result;
}

/* Locked by others?  Then it is left for another turn. */
static uint8_t
locked_segments(const State *st)
{
	uint8_t		locked = 0;

	for (int xid = 0; xid < MAX_XIDS; xid++)
		locked |= st->shared.locks[xid];
	return locked;
}

/* Where a rule is off: the files are gone, their positions not safe yet. */
static void
empty_on_disk(State *st)
{
	for (int seg = 0; seg < scope.segs; seg++)
		if (st->disk.seg[seg].lane == NONE)
			st->flushed.seg[seg] = st->disk.seg[seg];
	for (int i = 0; i < st->spec.nmsgs; i++)
		if (HAS(st->spec.emptied, i))
			st->flushed.place[i] = NONE;
}

/* Empty what was found free, in one transaction that is flushed. */
static void
free_found(State *st)
{
	uint8_t		found = st->shared.to_free & (uint8_t) ~locked_segments(st);
	Set			rows = 0;

	st->shared.looked = st->shared.to_free = 0;
	for (int i = 0; i < st->spec.nmsgs; i++)
		if (st->disk.place[i] != NONE && HAS(found, st->disk.place[i]))
		{
			rows |= BIT(i);
			st->disk.place[i] = NONE;
		}
	st->spec.emptied |= rows;
	for (int seg = 0; seg < scope.segs; seg++)
		if (HAS(found, seg))
			st->disk.seg[seg] = (Segment) {NONE, 0};
	if (ON(FREE_FLUSHES))
		database_flush(st);
	else
		empty_on_disk(st);
	for (int i = 0; i < st->spec.nmsgs; i++)
		if (HAS(rows, i))
			judge_free(st, i);
}

void
keeper_actions(const State *st, Actions *out)
{
	if (st->shared.looked)
	{
		add_action(out, A_FREE, 0, 0, 0);
		return;
	}
	for (int lane = 0; lane < scope.lanes; lane++)
	{
		int			prepared = prepared_segment(st, lane);

		if (prepared != NONE)
		{
			if (st->shared.holder[lane] == 0)
				add_action(out, A_SWITCH, lane, prepared, 0);
		}
		else if (st->budget[ROTATIONS] > 0 && is_full(st, lane) && pooled_segment(st) != NONE)
			add_action(out, A_LIST_SEGMENT, lane, 0, 0);
	}
	if (scope.frees && (free_segments(st) & (uint8_t) ~locked_segments(st)) != 0)
		add_action(out, A_LOOK, 0, 0, 0);
}

void
keeper_step(State *st, const Action *action)
{
	switch (action->kind)
	{
		case A_LIST_SEGMENT:
			st->budget[ROTATIONS]--;
			list_segment(st, action->a);
			break;
		case A_SWITCH:
			st->shared.current[action->a] = action->b;
			break;
		case A_LOOK:
			st->shared.looked = 1;
			st->shared.to_free = free_segments(st);
			break;
		default:
			free_found(st);
			break;
	}
}
