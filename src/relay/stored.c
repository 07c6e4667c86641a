/*-------------------------------------------------------------------------
 *
 * stored.c
 *	  A relay's positions in the database: where it starts, how far it is.
 *
 * A position lies before the oldest message without an answer, so a crash at
 * any moment sends a window again, at most, and loses nothing.  The positions
 * of all streams are written in one transaction, with the removal of those of
 * topics that lag no more: see lagging.c.  They are committed asynchronously;
 * before anything is freed on their word, the keeper flushes them.
 *
 * A position says that all in S1 is done, so it must not be known before what
 * S1 sees is safe: with synchronous standbys it waits for them as messages do.
 *
 * At a clean stop, what was acknowledged beyond the cursor (because something
 * before it could not be delivered) is written down too, as ids, and is not
 * sent again.  With exactly-once delivery always: a bookmark has them, and a row
 * that lacked them would outrank it.  Ids are listed one by one, in runs: an id
 * in between may belong to a transaction that is still open.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "compat.h"
#include "fault.h"
#include "log/bookmark.h"
#include "log/position.h"
#include "relay/relay.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

static int
compare_ids(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return (x > y) - (x < y);
}

/* Was this message acknowledged before the last stop? */
bool
relay_is_acked(Relay *relay, uint64 id)
{
	OutboxAcked *acked = &relay->acked;
	int			low = 0;
	int			high = acked->n;

	if (acked->left == 0)
		return false;
	/* the last range that starts at or below it */
	while (low < high)
	{
		int			mid = (low + high) / 2;

		if (acked->ranges[mid * 2] <= id)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == 0 || id > acked->ranges[low * 2 - 1])
		return false;
	acked->left--;
	return true;
}

static void
take_acked(Relay *relay, const OutboxStoredPosition *position)
{
	OutboxAcked *acked = &relay->acked;

	acked->n = position->nacked / 2;
	acked->ranges = MemoryContextAllocHuge(relay->context, acked->n * 2 * sizeof(uint64));
	memcpy(acked->ranges, position->acked, acked->n * 2 * sizeof(uint64));
	for (int i = 0; i < acked->n; i++)
		acked->left += acked->ranges[i * 2 + 1] - acked->ranges[i * 2] + 1;
}

/* Does it lie inside a batch?  Of two snapshots in a row the numbers tell. */
static bool
is_between(const OutboxPosition *pos)
{
	return pos->s1->xmax != pos->s2->xmax || pos->s1->nxip != pos->s2->nxip;
}

static void
note_stored(OutboxStream *stream, const OutboxPosition *pos)
{
	stream->stored = true;
	stream->stored_cursor = pos->cursor;
	stream->stored_low = pos->low;
	stream->stored_xmax = pos->s2->xmax;
	stream->stored_nxip = pos->s2->nxip;
	stream->stored_between = is_between(pos);
}

/* Readers that go on from these positions; false when the main one is missing. */
static bool
restore(Relay *relay, List *positions, bool stored)
{
	ListCell   *lc;
	bool		found = false;

	foreach(lc, positions)
	{
		OutboxStoredPosition *position = lfirst(lc);
		OutboxStream *stream = &relay->main;

		if (position->topic != NULL)
			stream = lagging_restore(relay, position->topic, &position->pos);
		else
		{
			relay->main.reader = outbox_reader_create(relay->context, relay->extoid,
													  &position->pos);
			if (position->nacked > 0)
				take_acked(relay, position);
			if (stored)
				relay->position_epoch = position->epoch;
			found = true;
		}
		if (stored)
			note_stored(stream, &position->pos);
	}
	return found;
}

/* Go on from the stored positions; false when there are none. */
bool
relay_positions_load(Relay *relay)
{
	MemoryContext old = MemoryContextSwitchTo(relay->scratch);
	bool		found = restore(relay, outbox_positions_load(relay->serverid, &relay->position_n),
								true);

	if (!OUTBOX_RULE("position-numbers"))
		relay->position_n = 0;
	MemoryContextSwitchTo(old);
	MemoryContextReset(relay->scratch);
	return found;
}

/*
 * Go on from a bookmark instead, which is newer.  Nothing was read yet.  The
 * database's rows are all written anew, those of topics that lag no more go.
 */
void
relay_positions_replace(Relay *relay, const OutboxBookmark *bookmark)
{
	ListCell   *lc;

	Assert(outbox_window_is_empty(relay->main.window));
	foreach(lc, relay->lagging)
	{
		OutboxStream *stream = lfirst(lc);
		MemoryContext old = MemoryContextSwitchTo(relay->context);

		relay->rejoined = lappend(relay->rejoined, pstrdup(stream->topic->name));
		MemoryContextSwitchTo(old);
	}
	lagging_drop_all(relay);
	outbox_reader_free(relay->main.reader);
	relay->main.stored = false;
	relay->acked.n = 0;
	relay->acked.left = 0;
	(void) restore(relay, bookmark->positions, false);
	relay->position_n = bookmark->n;
}

/*
 * Is it done once the transaction under way is committed?  Without a client,
 * nothing is sent or held, but where the outcome of one is open.
 */
static bool
is_settled(const OutboxEntry *entry)
{
	return entry == NULL || entry->state == OUTBOX_ENTRY_SENT ||
		entry->state == OUTBOX_ENTRY_HELD || entry->state == OUTBOX_ENTRY_DONE;
}

/* The oldest entry that is not; the window's end: all are. */
static uint64
first_unsettled(const OutboxWindow *window)
{
	uint64		seq = window->first;

	while (seq < window->next && is_settled(outbox_window_entry(window, seq)))
		seq++;
	return seq;
}

/*
 * Collect the ids that are done beyond a window's oldest entry that is not; or
 * that are when what is held is.
 */
static uint64 *
collect_done(const OutboxWindow *window, bool behind_held, uint64 *ids, uint64 *n,
			 uint64 *allocated)
{
	uint64		seq = behind_held ? first_unsettled(window) : window->first;

	for (; seq < window->next; seq++)
	{
		const OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry == NULL ||
			!(behind_held ? is_settled(entry) : entry->state == OUTBOX_ENTRY_DONE))
			continue;
		if (*n == *allocated)
		{
			*allocated = Max(1024, *allocated * 2);
			ids = ids == NULL ? palloc(*allocated * sizeof(uint64)) :
				repalloc_huge(ids, *allocated * sizeof(uint64));
		}
		ids[(*n)++] = entry->message.id;
	}
	return ids;
}

/* Sort ranges, and join those that overlap. */
static void
merge_ranges(OutboxStoredPosition *position)
{
	int64	   *ranges = position->acked;
	int			n = 0;

	qsort(ranges, position->nacked / 2, 2 * sizeof(int64), compare_ids);
	for (int i = 2; i < position->nacked; i += 2)
	{
		if (ranges[i] <= ranges[n + 1] + 1)
			ranges[n + 1] = Max(ranges[n + 1], ranges[i + 1]);
		else
		{
			n += 2;
			ranges[n] = ranges[i];
			ranges[n + 1] = ranges[i + 1];
		}
	}
	position->nacked = n + 2;
}

/* What is acknowledged beyond the cursors, for the main stream's position. */
static void
fill_acked(Relay *relay, bool behind_held, OutboxStoredPosition *position)
{
	uint64		n = 0;
	uint64		allocated = 0;
	uint64	   *ids = collect_done(relay->main.window, behind_held, NULL, &n, &allocated);
	ListCell   *lc;

	foreach(lc, relay->lagging)
		ids = collect_done(((OutboxStream *) lfirst(lc))->window, behind_held, ids, &n,
						   &allocated);

	/* those of the last stop that were not met yet, and others: no matter */
	if (relay->acked.left > 0)
	{
		position->acked = palloc((n + relay->acked.n) * 2 * sizeof(int64));
		memcpy(position->acked, relay->acked.ranges, relay->acked.n * 2 * sizeof(int64));
		position->nacked = relay->acked.n * 2;
	}
	else if (n > 0)
		position->acked = palloc(n * 2 * sizeof(int64));
	if (n == 0)
		return;
	qsort(ids, n, sizeof(uint64), compare_ids);
	for (uint64 i = 0; i < n; i++)
	{
		if (i > 0 && ids[i] == ids[i - 1] + 1)
			position->acked[position->nacked - 1] = (int64) ids[i];
		else
		{
			position->acked[position->nacked++] = (int64) ids[i];
			position->acked[position->nacked++] = (int64) ids[i];
		}
	}
	merge_ranges(position);
}

/* Is a snapshot that of the stored position, or a later one? */
static bool
is_stored_or_later(const OutboxStream *stream, const OutboxSnapshot *s)
{
	return s->xmax > stream->stored_xmax ||
		(s->xmax == stream->stored_xmax && s->nxip <= stream->stored_nxip);
}

/*
 * Where a stream stands; behind_held: when what is held is done.  Of a batch that
 * standbys don't have yet nothing is sent; and the position must not name its
 * snapshot: then it is the one before the batch.
 */
static void
stream_position(OutboxStream *stream, bool behind_held, OutboxPosition *pos)
{
	OutboxWindow *window = stream->window;
	OutboxBatch *batch = outbox_reader_batch(stream->reader);
	uint64		seq;

	outbox_window_pop(window);
	seq = behind_held ? first_unsettled(window) : window->first;
	if (seq == window->next)
		outbox_reader_position(stream->reader, pos);
	else
	{
		const OutboxMessage *first = &outbox_window_entry(window, seq)->message;

		batch = first->batch;
		outbox_position_before(first, pos);
	}
	if (batch != NULL && !outbox_lsn_replicated(pos->lsn) &&
		is_stored_or_later(stream, batch->s1))
		(void) outbox_position_before_batch(batch, pos);
}

/*
 * Add a stream's position to the list of those to store, if it moved.  False
 * when standbys don't have yet what it rests on.
 */
static bool
add_moved(List **list, OutboxStream *stream, bool anyway)
{
	OutboxStoredPosition *position = palloc0(sizeof(OutboxStoredPosition));
	OutboxPosition *pos = &position->pos;

	stream_position(stream, false, pos);
	if (stream->stored && !anyway && OUTBOX_RULE("position-when-moved") &&
		pos->cursor == stream->stored_cursor && pos->low == stream->stored_low &&
		pos->s2->xmax == stream->stored_xmax && pos->s2->nxip == stream->stored_nxip &&
		is_between(pos) == stream->stored_between)
		return true;
	if (!outbox_lsn_replicated(pos->lsn))
		return false;
	if (stream->topic != NULL)
		position->topic = stream->topic->name;
	*list = lappend(*list, position);
	return true;
}

/* The positions of all streams when the transaction under way is committed. */
List *
relay_positions_behind_chunk(Relay *relay)
{
	OutboxStoredPosition *position = palloc0(sizeof(OutboxStoredPosition));
	List	   *positions = list_make1(position);
	ListCell   *lc;

	stream_position(&relay->main, true, &position->pos);
	fill_acked(relay, true, position);
	foreach(lc, relay->lagging)
	{
		OutboxStream *stream = lfirst(lc);

		position = palloc0(sizeof(OutboxStoredPosition));
		position->topic = stream->topic->name;
		stream_position(stream, true, &position->pos);
		positions = lappend(positions, position);
	}
	return positions;
}

static void
write_positions(Relay *relay, List *positions)
{
	ListCell   *lc;
	MemoryContext scratch = CurrentMemoryContext;

	OUTBOX_FAULT("relay-before-position");
	StartTransactionCommand();
	MemoryContextSwitchTo(scratch);
	PushActiveSnapshot(GetTransactionSnapshot());
	foreach(lc, relay->rejoined)
		outbox_position_forget_topic(relay->serverid, lfirst(lc));
	foreach(lc, positions)
	{
		OutboxStoredPosition *position = lfirst(lc);

		position->epoch = relay->db->epoch;
		outbox_position_store(relay->serverid, relay->server->name_local,
							  ++relay->position_n, position);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(scratch);
	OUTBOX_FAULT("relay-after-position");
}

/* Take note of what was committed. */
static void
note_all_stored(Relay *relay, List *positions)
{
	ListCell   *lc;

	foreach(lc, positions)
	{
		OutboxStoredPosition *position = lfirst(lc);

		if (position->topic == NULL)
		{
			note_stored(&relay->main, &position->pos);
			relay->position_epoch = position->epoch;
		}
		else
			note_stored(topics_find(relay->windows->topics, position->topic,
									strlen(position->topic))->stream, &position->pos);
	}
	list_free_deep(relay->rejoined);
	relay->rejoined = NIL;
}

/*
 * Store the positions that moved; false when some could not be, because
 * standbys don't have them yet.  The last time, with what is acknowledged
 * beyond them.  To announce a bookmark, also when they did not move.
 *
 * The main stream's row speaks for a topic that has no row of its own.  So
 * where a topic gets its first, or loses its last, either all rows are written
 * or none.  With exactly-once delivery always: a row alone would outrank the
 * bookmark, and with it rows of other streams that are older than that.  And
 * the main stream's row has what is acknowledged, of all streams, so it goes
 * with each other.
 */
bool
relay_positions_store(Relay *relay, bool last)
{
	MemoryContext old = MemoryContextSwitchTo(relay->scratch);
	bool		exactly_once = relay->server->core.exactly_once;
	List	   *positions = NIL;
	List	   *of_topics = NIL;
	bool		together = last || relay->rejoined != NIL ||
		relay->chunk.state == OUTBOX_CHUNK_CLAIM;
	bool		all_or_none;
	bool		safe = true;
	ListCell   *lc;

	Assert(!last || relay->client == NULL);
	if (!relay_chunk_may_store(relay))
	{
		MemoryContextSwitchTo(old);
		return false;
	}
	foreach(lc, relay->lagging)
	{
		together = together || !((OutboxStream *) lfirst(lc))->stored;
		safe = add_moved(&of_topics, lfirst(lc), false) && safe;
	}
	all_or_none = together || exactly_once;
	safe = add_moved(&positions, &relay->main,
					 together || (exactly_once && of_topics != NIL)) && safe;
	if (positions != NIL &&
		((last && OUTBOX_RULE("position-with-acked")) ||
		 (exactly_once && OUTBOX_RULE("position-with-bookmarks-acked"))))
		fill_acked(relay, false, linitial(positions));
	positions = list_concat(positions, of_topics);
	if (positions != NIL && (safe || !all_or_none))
	{
		write_positions(relay, positions);
		note_all_stored(relay, positions);
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(relay->scratch);
	return safe;
}
