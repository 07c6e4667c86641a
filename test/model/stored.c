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

/* Is it done once the transaction under way is committed? */
static bool
is_settled(const Entry *entry)
{
	return entry->state == ENTRY_SENT || entry->state == ENTRY_APPENDED ||
		entry->state == ENTRY_HELD || entry->state == ENTRY_DONE;
}

static int
first_unsettled(const Stream *w)
{
	int			first = 0;

	while (first < w->n && is_settled(&w->entry[first]))
		first++;
	return first;
}

/* Does this stream have a row that counts? */
static bool
has_row(const Relay *r, int stream)
{
	return stream == 0 ? r->main_stored : r->lag_stored && !r->rejoined;
}

/*
 * Where a stream stands: before its oldest message without an answer, or, behind what
 * is held, before its oldest that is not in the transaction.  Of a batch that the
 * standby does not have nothing is sent; then it is the position before the batch.
 */
static uint16_t
stream_position(const State *st, int s, int stream, bool behind_held, Position *pos)
{
	const Relay *r = &st->relay[s];
	const Stream *w = &r->stream[stream];
	int			first = behind_held ? first_unsettled(w) : 0;
	const Batch *batch;
	uint16_t	lsn;
	Set			stored = has_row(r, stream) ? st->disk.pos[s][stream].s2 : 0;

	if (first == w->n || !ON(POSITION_BEHIND_ACK))
	{
		batch = w->reader.batch > 0 ? &r->batch[w->reader.batch - 1] : NULL;
		lsn = reader_position(r, stream, pos);
	}
	else
	{
		batch = &r->batch[w->entry[first].batch];
		lsn = position_before(st, r, &w->entry[first], pos);
	}
	if (batch != NULL && !is_replicated(st, lsn) && !snapshot_before(batch->s1, stored) &&
		position_before_batch(batch, pos))
		lsn = batch->s1_lsn;
	return lsn;
}

/* Where all stand once the transaction under way is committed, and what that rests on. */
bool
positions_behind_chunk(State *st, int s, Position *pos, uint16_t *lsn)
{
	const Relay *r = &st->relay[s];
	Set			beyond = r->acked;
	bool		safe = is_replicated(st, r->base_lsn);

	memset(pos, 0, 2 * sizeof(Position));
	*lsn = r->base_lsn;
	for (int stream = 0; stream < 1 + r->lagging; stream++)
	{
		const Stream *w = &r->stream[stream];
		uint16_t	its = stream_position(st, s, stream, true, &pos[stream]);

		safe = safe && is_replicated(st, its);
		if (its > *lsn)
			*lsn = its;
		for (int i = first_unsettled(w); i < w->n; i++)
			if (is_settled(&w->entry[i]))
				beyond |= BIT(w->entry[i].msg);
	}
	pos[0].acked = beyond;
	return safe || !ON(REPLICATED_BEFORE_BOOKMARK);
}

/* By the end of a batch only s1 may change. */
static bool
is_moved(const Position *a, const Position *b)
{
	return a->cursor != b->cursor || a->low != b->low || a->s2 != b->s2 ||
		(a->s1 != b->s1 && ON(MOVED_BY_S1));
}

/* What would be written of a stream; false: nothing. */
static bool
add_moved(const State *st, int s, int stream, bool anyway, bool *safe, Position *pos)
{
	const Relay *r = &st->relay[s];
	uint16_t	lsn;

	if (stream == 1 && !r->lagging)
		return false;
	lsn = stream_position(st, s, stream, false, pos);
	if (has_row(r, stream) && !anyway && !is_moved(pos, &st->disk.pos[s][stream]))
		return false;
	*safe = *safe && is_replicated(st, lsn);
	return is_replicated(st, lsn);
}

/*
 * What is to be stored now.  Where the lagging topic gets its first row, or loses its
 * last, the main stream's goes with it, or none.  So it is where the rows outrank a
 * bookmark: one that stays behind is older than it.  The main stream's then goes with
 * the other, for what is acknowledged.
 */
static bool
plan_store(const State *st, int s, bool last, bool *safe, bool *add, Position *pos)
{
	const Relay *r = &st->relay[s];
	bool		together = last || r->rejoined || (r->lagging && !r->lag_stored) ||
		r->chunk == CHUNK_CLAIM;
	bool		all = together || (is_exactly_once(s) && ON(ALL_ROWS));

	*safe = true;
	add[1] = add_moved(st, s, 1, false, safe, &pos[1]);
	add[0] = add_moved(st, s, 0, together || (is_exactly_once(s) && add[1]), safe, &pos[0]);
	return (add[0] || add[1]) && (*safe || !all);
}

/* Can all be stored for the last time? */
bool
positions_storable(const State *st, int s)
{
	bool		add[2];
	bool		safe;
	Position	pos[2];

	return plan_store(st, s, true, &safe, add, pos) && safe;
}

bool
positions_moved(const State *st, int s)
{
	bool		add[2];
	bool		safe;
	Position	pos[2];

	return plan_store(st, s, false, &safe, add, pos);
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
write_position(State *st, int s, int stream, Position *pos)
{
	Relay	   *r = &st->relay[s];

	if (is_exactly_once(s))
	{
		pos->n = ++r->position_n;
		pos->epoch = st->shared.epoch;
	}
	st->disk.pos[s][stream] = *pos;
	if (stream == 1)
		r->lag_stored = 1;
	else
	{
		r->main_stored = 1;
		r->position_epoch = pos->epoch;
	}
}

/* Positions that moved, in one transaction; false: some are not at the standby yet. */
bool
positions_store(State *st, int s, bool last)
{
	Relay	   *r = &st->relay[s];
	Disk		before = st->disk;
	Position	pos[2];
	bool		add[2];
	bool		safe;

	if (!plan_store(st, s, last, &safe, add, pos))
		return safe;
	if (r->rejoined)
		memset(&st->disk.pos[s][1], 0, sizeof(Position));
	r->rejoined = 0;
	if (add[0])
	{
		if ((last && ON(POSITION_WITH_ACKED)) ||
			(is_exactly_once(s) && ON(WITH_BOOKMARKS_ACKED)))
			pos[0].acked = acked_beyond(r);
		write_position(st, s, 0, &pos[0]);
	}
	if (add[1] && !ON(LEAVE_TOGETHER))
		r->half_stored = 1;
	else if (add[1])
		write_position(st, s, 1, &pos[1]);
	if (ON(LEAVE_TOGETHER))
		judge_store(st, s, &before);
	return safe;
}

/* Where a rule is off: the lagging topic's row comes in a transaction of its own. */
void
positions_store_rest(State *st, int s)
{
	Position	pos;

	st->relay[s].half_stored = 0;
	(void) stream_position(st, s, 1, false, &pos);
	write_position(st, s, 1, &pos);
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
			reader_create(r, stream, &pos[stream]);
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
