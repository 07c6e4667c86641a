/*-------------------------------------------------------------------------
 *
 * stored.c
 *	  Positions: src/relay/stored.c and src/log/position.c.
 *
 * Only the newest row of each stream is kept, since only that one is ever read.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "model.h"

/* Where a stream stands: before its oldest message without an answer. */
static void
stream_position(const State *st, const Relay *r, int stream, Position *pos)
{
	const Stream *w = &r->stream[stream];

	if (w->n == 0 || !ON(POSITION_BEHIND_ACK))
		reader_position(r, stream, pos);
	else
		position_before(st, r, &w->entry[0], pos);
}

/* Where all stand once the transaction under way is committed. */
void
positions_behind_chunk(State *st, int s, Position *pos)
{
	const Relay *r = &st->relay[s];
	Set			beyond = r->acked;

	memset(pos, 0, 2 * sizeof(Position));
	for (int stream = 0; stream < 1 + r->lagging; stream++)
	{
		const Stream *w = &r->stream[stream];
		int			first = 0;

		while (first < w->n && w->entry[first].state != ENTRY_QUEUED)
			first++;
		if (first == w->n)
			reader_position(r, stream, &pos[stream]);
		else
			position_before(st, r, &w->entry[first], &pos[stream]);
		for (int i = first; i < w->n; i++)
			if (w->entry[i].state != ENTRY_QUEUED)
				beyond |= BIT(w->entry[i].msg);
	}
	pos[0].acked = beyond;
}

/* By the end of a batch only s1 may change. */
static bool
is_moved(const Position *a, const Position *b)
{
	return a->cursor != b->cursor || a->low != b->low || a->s2 != b->s2 ||
		(a->s1 != b->s1 && ON(MOVED_BY_S1));
}

/* Does this stream have a row that counts? */
static bool
has_row(const Relay *r, int stream)
{
	return stream == 0 ? r->main_stored : r->lag_stored && !r->rejoined;
}

static bool
stream_moved(const State *st, int s, int stream)
{
	const Relay *r = &st->relay[s];
	Position	pos;

	if (stream == 1 && !r->lagging)
		return false;
	if (!has_row(r, stream))
		return true;
	stream_position(st, r, stream, &pos);
	return is_moved(&pos, &st->disk.pos[s][stream]);
}

bool
positions_moved(const State *st, int s)
{
	return st->relay[s].rejoined || stream_moved(st, s, 0) || stream_moved(st, s, 1);
}

/* What is acknowledged beyond the cursors. */
static Set
acked_beyond(const Relay *r)
{
	Set			acked = r->acked;

	for (int stream = 0; stream < 2; stream++)
		for (int i = 0; i < r->stream[stream].n; i++)
			if (r->stream[stream].entry[i].state == ENTRY_DONE)
				acked |= BIT(r->stream[stream].entry[i].msg);
	return acked;
}

static void
store_stream(State *st, int s, int stream, bool last)
{
	Relay	   *r = &st->relay[s];
	Position	pos;

	stream_position(st, r, stream, &pos);
	if (last && stream == 0 && ON(POSITION_WITH_ACKED))
		pos.acked = acked_beyond(r);
	if (is_exactly_once(s))
	{
		pos.n = ++r->position_n;
		pos.epoch = st->shared.epoch;
	}
	st->disk.pos[s][stream] = pos;
	if (stream == 1)
		r->lag_stored = 1;
	else
	{
		r->main_stored = 1;
		r->position_epoch = pos.epoch;
	}
}

/*
 * All streams' positions that moved, in one transaction.  Where the lagging topic
 * gets its first row, or loses its last, the main stream's goes with it.
 */
void
positions_store(State *st, int s, bool last)
{
	Relay	   *r = &st->relay[s];
	Disk		before = st->disk;
	bool		together = last || r->rejoined || (r->lagging && !r->lag_stored) ||
		r->chunk == CHUNK_CLAIM;
	bool		lag_moved = stream_moved(st, s, 1);

	if (r->rejoined)
		memset(&st->disk.pos[s][1], 0, sizeof(Position));
	if (together || stream_moved(st, s, 0))
		store_stream(st, s, 0, last);
	r->rejoined = 0;
	if (lag_moved && !ON(LEAVE_TOGETHER))
		r->half_stored = 1;
	else if (lag_moved)
		store_stream(st, s, 1, false);
	if (ON(LEAVE_TOGETHER))
		judge_store(st, s, &before);
}

/* Where a rule is off: the lagging topic's row comes in a transaction of its own. */
void
positions_store_rest(State *st, int s)
{
	st->relay[s].half_stored = 0;
	store_stream(st, s, 1, false);
}

/* Go on from the stored positions. */
void
stored_start(State *st, int s)
{
	Relay	   *r = &st->relay[s];
	const Position *pos = st->disk.pos[s];

	for (int stream = 0; stream < 2; stream++)
	{
		if (pos[stream].s2 & ~((unsigned) BIT(st->shared.next_xid) - 1))
			violate(P_POSITION, "the position of server %d names transactions that have not happened", s);
		if (pos[stream].low > 0)
			reader_create(st, r, stream, &pos[stream]);
	}
	r->up = r->main_stored = 1;
	r->lagging = r->lag_stored = pos[1].low > 0;
	r->acked = pos[0].acked;
	if (is_exactly_once(s))
	{
		r->chunk = CHUNK_INIT;
		r->position_n = pos[0].n > pos[1].n ? pos[0].n : pos[1].n;
		r->position_epoch = pos[0].epoch;
	}
}
