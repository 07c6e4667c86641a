/*-------------------------------------------------------------------------
 *
 * lagging.c
 *	  Topics that are behind the others, each delivered on its own.
 *
 * A topic that is missing, forbidden or blocked by a refused message, or whose
 * partition has no leader, must not hold back the others: neither may its
 * messages fill the window, nor keep the position (and with it the log) where
 * the first of them stands.  So it leaves the main stream: it gets a reader, a
 * window and a position of its own, and the main reader leaves it out.
 *
 * Leaving.  The new reader stands where the main reader stands, and the
 * topic's entries move from the main window to the new one, answers to come
 * included.  So nothing is read twice, and the topic's order is kept.
 * What was never sent is dropped again where there is much of it, and the
 * reader put back before it: a topic in trouble costs hardly any memory,
 * however large its backlog.
 *
 * Following.  The reader of a lagging topic takes no snapshots of its own.
 * Between batches it reads up to the last snapshot whose batch the main reader
 * has finished.  So it is never ahead, except by the batch that both stood in
 * when the topic left, and the two can meet exactly.
 *
 * Rejoining.  Both are between batches, at the same snapshot, and all that
 * both have read is answered: then the topic is the main stream's again, and
 * one position tells of both without a rest.  Under load they would rarely meet, as
 * the main reader begins its next batch at once; so when little is left, it
 * waits for the topic, for a second at most, and not again for some time when
 * that was in vain.
 *
 * In the database.  A lagging topic has position rows under its name.  After
 * it left, and until its first row is committed, the main stream's last row,
 * which is older, speaks for it; they are written in one transaction.  Its
 * rows go in the transaction that stores the main stream's position after it
 * rejoined.  So at every moment what is stored says of each message once
 * whether it is done, and a crash sends a window again, at most.
 *
 * How many: as many as are in trouble.  One in trouble costs a few kilobytes
 * and one row whenever it moves, which it doesn't.  At most MAX_READING of
 * them read and are sent at the same time; the others wait their turn.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "elapsed.h"
#include "guc.h"
#include "log/snapshot.h"
#include "relay/relay.h"
#include "utils/memutils.h"

#define MAX_READING			16
#define PROBE_EVERY_MS		1000
#define STALLED_MS			1000	/* without an answer */
#define ALL_STALLED_MS		5000	/* ... nobody */
#define MIN_BLOCK_MS		30000	/* until a refused message is tried again */
#define MAX_BLOCK_MS		600000
#define NEAR_IDS			131072	/* so little left that main may wait */
#define HOLD_MS				1000
#define HOLD_AGAIN_MS		10000

/* What all lagging topics together may keep in memory unsent. */
static Size
memory_share(void)
{
	return (Size) outbox_relay_memory * 1024 / 4;
}

static bool
in_trouble(const OutboxStream *stream)
{
	return stream->topic->state != OUTBOX_TOPIC_FINE && !stream->topic->given_up;
}

/* A stream for a topic, without a reader yet. */
static OutboxStream *
new_stream(Relay *relay, OutboxTopic *topic)
{
	MemoryContext context = AllocSetContextCreate(relay->context, "pg_outbox lagging topic",
												  ALLOCSET_SMALL_SIZES);
	OutboxStream *stream = MemoryContextAllocZero(context, sizeof(OutboxStream));
	MemoryContext old = MemoryContextSwitchTo(relay->context);

	stream->relay = relay;
	stream->context = context;
	stream->topic = topic;
	stream->window = outbox_window_create(relay->windows, context);
	topic->stream = stream;
	relay->lagging = lappend(relay->lagging, stream);
	MemoryContextSwitchTo(old);
	return stream;
}

/*
 * Drop what was not sent, and read it again when its time has come.  A message
 * that blocks its topic stays, to be tried again.
 */
static void
trim(OutboxStream *stream)
{
	OutboxPosition pos;
	MemoryContext old = MemoryContextSwitchTo(stream->context);
	int			keep = stream->topic->state == OUTBOX_TOPIC_BLOCKED ? 1 : 0;

	if (outbox_window_trim(stream->window, keep, &pos))
	{
		outbox_reader_free(stream->reader);
		stream->reader = outbox_reader_create(stream->relay->context,
											  stream->relay->extoid, &pos);
		pfree(pos.s1);
		pfree(pos.s2);
	}
	MemoryContextSwitchTo(old);
}

/*
 * A topic leaves the main stream, see the banner.  Its suspects are none any
 * more: while they wait, the others would have to be sent with care too.  What is
 * wrong with them will come out again.
 */
static void
leave(Relay *relay, OutboxTopic *topic)
{
	OutboxStream *stream = new_stream(relay, topic);

	stream->reader = outbox_reader_clone(relay->context, relay->main.reader);
	outbox_window_move_topic(relay->main.window, stream->window, topic);
	outbox_window_clear(stream->window);
	trim(stream);
}

/* A topic that lagged when the relay stopped. */
OutboxStream *
lagging_restore(Relay *relay, const char *name, const OutboxPosition *pos)
{
	OutboxStream *stream = new_stream(relay, topics_get(relay->windows->topics,
														name, strlen(name)));

	stream->reader = outbox_reader_create(relay->context, relay->extoid, pos);
	return stream;
}

/* Forget all of them; they hold nothing. */
void
lagging_drop_all(Relay *relay)
{
	ListCell   *lc;

	foreach(lc, relay->lagging)
	{
		OutboxStream *stream = lfirst(lc);

		stream->topic->stream = NULL;
		outbox_reader_free(stream->reader);
		outbox_window_free(stream->window);
		MemoryContextDelete(stream->context);
	}
	list_free(relay->lagging);
	relay->lagging = NIL;
}

static void
show_trouble(Relay *relay, const OutboxTopic *topic, const char *text, const char *hint)
{
	char		line[OUTBOX_ERROR_LEN];

	snprintf(line, sizeof(line), "topic \"%s\": %s", topic->name, text);
	relay_set_error(relay, line, hint);
}

/* Note that a topic is in trouble; its messages wait. */
void
relay_topic_trouble(Relay *relay, OutboxTopic *topic, OutboxTopicState state,
					const OutboxError *error)
{
	bool		again = topic->state == state || topic->on_trial;

	topic->state = state;
	topic->error = *error;
	INSTR_TIME_SET_CURRENT(topic->tried);
	if (topic->stream == NULL)
		leave(relay, topic);
	else
		outbox_window_clear(topic->stream->window);
	if (!again)
	{
		/* it grows until something of the topic is delivered */
		topic->retry_ms = topic->retry_ms > 0 ?
			Min(topic->retry_ms * 2, MAX_BLOCK_MS) : MIN_BLOCK_MS;
		INSTR_TIME_SET_CURRENT(topic->since);
		topic->given_up = false;
		relay_chunk_eased(relay);
		show_trouble(relay, topic, error->text, error->hint);
	}
}

/* Out of trouble: what waits is sent, in its order. */
static void
resume(OutboxTopic *topic, bool on_trial)
{
	topic->state = OUTBOX_TOPIC_FINE;
	topic->given_up = false;
	topic->on_trial = on_trial;
	topic->stream->window->unsent = topic->stream->window->first;
	INSTR_TIME_SET_CURRENT(topic->moved);
}

/* Has a missing topic been waited for long enough? */
static bool
waited_enough(Relay *relay, const OutboxTopic *topic)
{
	int64		timeout = relay->server->core.topic_timeout;

	return relay->server->core.on_error == OUTBOX_ON_ERROR_DEAD_LETTER &&
		timeout != OUTBOX_FOR_EVER && outbox_ms_since(topic->since) >= timeout;
}

/*
 * A refused message blocks its topic: try it again, alone.  As a suspect it is
 * sent by a careful client, which does not fail when it is refused again.
 */
static void
retry_blocked(Relay *relay, OutboxStream *stream, bool at_once)
{
	OutboxTopic *topic = stream->topic;
	OutboxEntry *entry;

	if (!at_once && outbox_ms_since(topic->tried) < topic->retry_ms)
		return;
	outbox_window_pop(stream->window);
	if (!outbox_window_is_empty(stream->window))
	{
		entry = outbox_window_entry(stream->window, stream->window->first);
		outbox_entry_suspect(entry);
	}
	resume(topic, false);
}

/* Has a lagging topic nothing left that the main reader has read? */
static bool
has_caught_up(Relay *relay, OutboxStream *stream)
{
	return outbox_window_is_empty(stream->window) &&
		outbox_reader_batch(stream->reader) == NULL &&
		outbox_snapshot_compare(outbox_reader_last(stream->reader),
								outbox_reader_last(relay->main.reader)) == 0;
}

/*
 * Ask again for a missing topic.  Once it is there it is resumed, but not before
 * all that the client has of it is answered: what comes back unsent must go
 * before what is queued behind it.  Where only a message tells whether it is
 * there, it is resumed on trial, and its time of trouble goes on until one is
 * delivered.
 */
static void
probe_missing(Relay *relay, OutboxStream *stream, bool at_once)
{
	OutboxTopic *topic = stream->topic;
	OutboxError error = {0};
	OutboxFailure failure;

	if (!at_once && outbox_ms_since(topic->tried) < PROBE_EVERY_MS &&
		!(topic->given_up && topic->on_trial && has_caught_up(relay, stream)))
		return;
	if (waited_enough(relay, topic) && !topic->given_up)
	{
		topic->given_up = true;
		/* what waits is given up before another one is tried */
		if (topic->on_trial)
		{
			INSTR_TIME_SET_CURRENT(topic->tried);
			return;
		}
	}
	failure = relay->transport->probe_topic(relay->client, topic->name, &error);
	if (failure == OUTBOX_RETRY)
		return;
	INSTR_TIME_SET_CURRENT(topic->tried);
	if (failure != OUTBOX_OK)
		topic->error = error;
	else if (topic->in_flight == 0)
		resume(topic, relay->transport->topics_on_trial);
}

/* Look again at topics in trouble. */
void
lagging_probe(Relay *relay)
{
	bool		at_once = relay->probe_now;
	ListCell   *lc;

	if (relay->client == NULL)
		return;
	relay->probe_now = false;
	foreach(lc, relay->lagging)
	{
		OutboxStream *stream = lfirst(lc);
		OutboxTopic *topic = stream->topic;

		if (topic->state == OUTBOX_TOPIC_FINE)
			continue;
		/* nothing of it is wanted any more, nor waits: let it catch up */
		if (!router_wants(relay->router, topic->name, strlen(topic->name)) &&
			outbox_window_is_empty(stream->window))
			resume(topic, false);
		else if (topic->state == OUTBOX_TOPIC_MISSING)
			probe_missing(relay, stream, at_once);
		else if (topic->state == OUTBOX_TOPIC_BLOCKED &&
				 stream->window->refused == 0 && topic->suspects == 0)
			retry_blocked(relay, stream, at_once);
	}
}

/* Is there a lagging topic that is not just waiting to be probed? */
bool
lagging_is_active(Relay *relay)
{
	ListCell   *lc;

	foreach(lc, relay->lagging)
		if (!in_trouble(lfirst(lc)))
			return true;
	return false;
}

/* Memory that lagging topics hold. */
static Size
held_by_lagging(Relay *relay)
{
	Size		held = 0;
	ListCell   *lc;

	foreach(lc, relay->lagging)
		held += ((OutboxStream *) lfirst(lc))->window->bytes;
	return held;
}

/* Memory that they hold or are entitled to. */
Size
lagging_reserved(Relay *relay)
{
	return relay->lagging == NIL ? 0 : Max(held_by_lagging(relay), memory_share());
}

/* A topic from which no answer comes leaves. */
static void
leave_stalled(Relay *relay, OutboxTopic *topic)
{
	show_trouble(relay, topic, "no answer from its brokers",
				 "It is delivered on its own until it has caught up.");
	leave(relay, topic);
}

static bool
is_silent(const OutboxTopic *topic)
{
	return topic->stream == NULL && topic->in_flight > 0 &&
		outbox_ms_since(topic->moved) >= STALLED_MS;
}

/* Keep watch over the oldest message without an answer; called once a turn. */
void
lagging_watch_head(Relay *relay)
{
	outbox_window_pop(relay->main.window);
	if (relay->head == relay->main.window->first)
		return;
	relay->head = relay->main.window->first;
	INSTR_TIME_SET_CURRENT(relay->head_since);
}

/*
 * Has something behind the oldest message been answered before it?  Asked of the
 * window, not of the time of the last answer: behind the second of two topics
 * that are stuck all may have been answered before the first one left.
 */
static bool
is_overtaken(const OutboxWindow *window)
{
	for (uint64 seq = window->first + 1; seq < window->next; seq++)
	{
		const OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry != NULL && entry->state == OUTBOX_ENTRY_DONE)
			return true;
	}
	return false;
}

/*
 * The main window is full, a broker is connected, and the oldest message has
 * stood there for long.  Who keeps the window full?
 * - Where answers came for what stands behind it, that message does, however
 *   few its topic's are: the topic leaves, and with it all that were sent
 *   something and have been as silent.
 * - Else a topic does that holds much of the window and is silent.  Each may
 *   hold a quarter of what the lagging ones before it have left, so that
 *   however many leave, something remains for the rest.
 * While no broker answers anybody, only those leave that hold much; for some
 * seconds, as many may share the window, and behind them wait others whose broker
 * is fine.
 *
 * In transactions, what is sent is answered together or not at all: see chunk.c.
 */
void
lagging_find_stalled(Relay *relay)
{
	OutboxWindow *window = relay->main.window;
	OutboxTopic *topic;
	Size		budget = (Size) outbox_relay_memory * 1024;
	bool		all_leave;
	int			pos = 0;

	if (!relay->connected || relay->careful || outbox_window_is_empty(window) ||
		relay->chunk.state != OUTBOX_CHUNK_NONE ||
		outbox_ms_since(relay->head_since) < STALLED_MS ||
		outbox_window_entry(window, window->first)->state != OUTBOX_ENTRY_SENT)
		return;
	all_leave = is_overtaken(window) ||
		(outbox_ms_since(relay->head_since) >= ALL_STALLED_MS &&
		 held_by_lagging(relay) <= budget);
	if (all_leave)
		leave_stalled(relay, outbox_window_entry(window, window->first)->topic);
	while ((topic = topics_next(relay->windows->topics, &pos)) != NULL)
	{
		Size		held = Min(held_by_lagging(relay), budget);

		if (is_silent(topic) && (all_leave || topic->bytes >= (budget - held) / 4))
			leave_stalled(relay, topic);
	}
}

/* Read for one lagging topic; true when there is more at once. */
static bool
read_one(Relay *relay, OutboxStream *stream, Size share)
{
	if (outbox_reader_batch(stream->reader) == NULL &&
		!outbox_reader_follow(stream->reader, relay->main.reader))
		return false;
	relay_stream_read(stream, Min(share, FETCH_BYTES));
	return stream->window->bytes < share &&
		outbox_reader_batch(stream->reader) != NULL;
}

/* Read for the lagging topics whose turn it is; true when there is more. */
bool
lagging_read(Relay *relay)
{
	int			ready = 0;
	int			reading = 0;
	bool		more = false;
	Size		share;
	ListCell   *lc;

	foreach(lc, relay->lagging)
	{
		/* whatever is not with the client can be read again */
		if (in_trouble(lfirst(lc)))
			trim(lfirst(lc));
		else
			ready++;
	}
	share = memory_share() / Max(1, Min(ready, MAX_READING));
	foreach(lc, relay->lagging)
	{
		OutboxStream *stream = lfirst(lc);

		if (in_trouble(stream) || stream->window->bytes >= share)
			continue;
		if (reading++ == MAX_READING)
			break;
		if (read_one(relay, stream, share))
			more = true;
	}
	return more;
}

/* Has a lagging topic little left to read and answer? */
static bool
is_near(Relay *relay, OutboxStream *stream)
{
	uint64		at = outbox_reader_next_id(stream->reader);

	return outbox_reader_next_id(relay->main.reader) < at + NEAR_IDS;
}

/* Should the main reader, between batches, wait for a topic to rejoin? */
bool
lagging_hold_main(Relay *relay)
{
	ListCell   *lc;
	bool		hold = false;

	foreach(lc, relay->lagging)
	{
		OutboxStream *stream = lfirst(lc);

		if (stream->topic->state != OUTBOX_TOPIC_FINE ||
			stream->topic->suspects > 0 || !is_near(relay, stream) ||
			(!outbox_window_is_empty(stream->window) &&
			 outbox_ms_since(stream->topic->moved) >= STALLED_MS))
		{
			stream->holding = false;
			continue;
		}
		if (!stream->holding)
		{
			if (!INSTR_TIME_IS_ZERO(stream->held) &&
				outbox_ms_since(stream->held) < HOLD_AGAIN_MS)
				continue;
			stream->holding = true;
			INSTR_TIME_SET_CURRENT(stream->held);
		}
		if (outbox_ms_since(stream->held) < HOLD_MS)
			hold = true;
		else
			stream->holding = false;
	}
	return hold;
}

/* Topics that have caught up are the main stream's again. */
void
lagging_rejoin(Relay *relay)
{
	ListCell   *lc;
	MemoryContext old;

	if (relay->lagging == NIL || outbox_reader_batch(relay->main.reader) != NULL ||
		!outbox_window_is_empty(relay->main.window))
		return;
	foreach(lc, relay->lagging)
	{
		OutboxStream *stream = lfirst(lc);

		if (stream->topic->state != OUTBOX_TOPIC_FINE || !has_caught_up(relay, stream))
			continue;
		old = MemoryContextSwitchTo(relay->context);
		relay->rejoined = lappend(relay->rejoined, pstrdup(stream->topic->name));
		MemoryContextSwitchTo(old);
		stream->topic->stream = NULL;
		outbox_reader_free(stream->reader);
		outbox_window_free(stream->window);
		relay->lagging = foreach_delete_current(relay->lagging, lc);
		MemoryContextDelete(stream->context);
	}
}
