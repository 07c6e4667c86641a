/*-------------------------------------------------------------------------
 *
 * send.c
 *	  What the relay hands to its client, and the answers.
 *
 * A window is sent in order.  An entry that has to wait for the answer to another one
 * lets other topics go before it, within bounds; one that waits for standbys, or was
 * refused, stops its stream.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "elapsed.h"
#include "log/wal.h"
#include "miscadmin.h"
#include "relay/relay.h"
#include "utils/timestamp.h"

#define REPORTS_AT_ONCE		1024
#define LATENCY_WEIGHT		64		/* of the past in its running mean */
#define LOOK_BEYOND			4096	/* entries looked at behind one that waits */

/* What one poll brought, for the figures. */
typedef struct Delivered
{
	TimestampTz now;
	instr_time	moved;
	uint64		of_main;		/* answers for the main stream */
	uint64		n;
	uint64		timed;			/* of those, that tell of the latency */
	uint64		latency_us;		/* sum of theirs */
} Delivered;

static void
show_delivered(Relay *relay, const Delivered *d)
{
	uint64		mean = pg_atomic_read_u64(&relay->slot->latency_us);
	uint64		latency;
	uint64		weight;

	if (d->n == 0)
		return;
	pg_atomic_fetch_add_u64(&relay->slot->delivered, d->n);
	if (d->timed == 0)
		return;
	latency = Max(d->latency_us / d->timed, 1);
	weight = Max(LATENCY_WEIGHT / d->timed, 1);
	pg_atomic_write_u64(&relay->slot->latency_us, mean == 0 ? latency :
						mean - mean / weight + latency / weight);
}

/* An entry is acknowledged: by far the most frequent answer. */
static void
take_ok(Relay *relay, OutboxEntry *entry, Delivered *d)
{
	d->n++;
	/* redriven messages keep the time when they were published first */
	if (entry->message.target == NULL)
	{
		d->timed++;
		d->latency_us += Max(d->now - entry->message.published, 0);
	}
	outbox_entry_done(entry);
	relay->back_off_ms = 0;
	entry->topic->retry_ms = 0;
	entry->topic->on_trial = false;
	if (relay->narrowing > 0)
		relay->narrowing--;
}

/* The topic of an entry is missing or forbidden. */
static void
take_topic(Relay *relay, OutboxEntry *entry, const OutboxReport *report,
		   const char *text)
{
	OutboxError error = {OUTBOX_TOPIC};

	outbox_entry_queue(entry);
	strlcpy(error.name, report->name, sizeof(error.name));
	strlcpy(error.text, text, sizeof(error.text));
	strlcpy(error.hint, "Create the topic, or allow it to be written; its messages wait.",
			sizeof(error.hint));
	relay_topic_trouble(relay, entry->topic, OUTBOX_TOPIC_MISSING, &error);
}

/* The broker's answer for one entry. */
static void
take_report(Relay *relay, const OutboxReport *report, Delivered *d)
{
	OutboxEntry *entry = report->tag;
	const char *text = report->text ? report->text : report->name;

	outbox_entry_answered(entry);
	entry->topic->moved = d->moved;
	d->of_main += entry->topic->stream == NULL;
	if (report->failure != OUTBOX_OK)
		relay->chunk.must_abort = true;
	switch (report->failure)
	{
		case OUTBOX_OK:
			if (relay->chunk.state == OUTBOX_CHUNK_NONE)
				take_ok(relay, entry, d);
			else
				outbox_entry_hold(entry);
			break;
		case OUTBOX_DEAD:
			relay_refuse(relay, entry, report->name, text);
			break;
		case OUTBOX_TOPIC:
			take_topic(relay, entry, report, text);
			break;
		case OUTBOX_SUSPECT:
			if (entry->topic->state == OUTBOX_TOPIC_FINE)
				outbox_entry_suspect(entry);
			outbox_entry_queue(entry);
			break;
		default:
			outbox_entry_queue(entry);
			break;
	}
}

/* Take the answers that are there. */
void
relay_collect(Relay *relay)
{
	OutboxReport reports[REPORTS_AT_ONCE];
	int			n;

	if (relay->client == NULL)
		return;
	do
	{
		Delivered	d = {0};

		n = relay->transport->poll(relay->client, reports, REPORTS_AT_ONCE);
		if (n == 0)
			return;
		d.now = GetCurrentTimestamp();
		INSTR_TIME_SET_CURRENT(d.moved);
		if (relay->first_answer_ms < 0)
			relay->first_answer_ms = outbox_ms_since(relay->opened);
		for (int i = 0; i < n; i++)
		{
			if (i + PREFETCH_ENTRIES < n)
				outbox_entry_prefetch(reports[i + PREFETCH_ENTRIES].tag);
			take_report(relay, &reports[i], &d);
		}
		relay->flow.answered += d.of_main;
		show_delivered(relay, &d);
		CHECK_FOR_INTERRUPTS();
	} while (n == REPORTS_AT_ONCE);
}

/* The transaction of a window's held entries is committed. */
void
relay_take_held(Relay *relay, OutboxWindow *window)
{
	Delivered	d = {0};

	d.now = GetCurrentTimestamp();
	for (uint64 seq = window->first; seq < window->next && relay->windows->held > 0; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry != NULL && entry->state == OUTBOX_ENTRY_HELD)
			take_ok(relay, entry, &d);
	}
	show_delivered(relay, &d);
	outbox_window_pop(window);
}

/* May an entry be sent by what standbys have?  Asked once a batch. */
static bool
is_replicated(const OutboxEntry *entry, const OutboxBatch **last)
{
	if (*last != entry->message.batch)
	{
		if (!outbox_lsn_replicated(entry->message.batch->lsn))
			return false;
		*last = entry->message.batch;
	}
	return true;
}

/* Hand over one entry; true when those behind it may be sent too. */
static bool
send_entry(Relay *relay, OutboxEntry *entry)
{
	OutboxError error;
	OutboxTopic *topic = entry->topic;

	/* its texts are large, and nearly always of no use */
	error.failure = OUTBOX_OK;
	error.name[0] = error.text[0] = error.hint[0] = '\0';
	if (!relay_chunk_begin(relay) || !relay_chunk_has_room(relay, entry))
		return false;
	switch (outbox_entry_send(entry, relay->transport, relay->client, &error))
	{
		case OUTBOX_OK:
			relay->chunk.bytes += outbox_entry_bytes(entry);
			return true;
		case OUTBOX_ABORT:
			relay->chunk.must_abort = true;
			return false;
		case OUTBOX_DEAD:
			relay_refuse(relay, entry, error.name, error.text);
			return false;
		case OUTBOX_TOPIC:
			relay_topic_trouble(relay, topic, OUTBOX_TOPIC_MISSING, &error);
			return false;
		case OUTBOX_LATER:
			topic->later = relay->later = relay->passes;
			return true;
		default:
			return false;		/* full, or the client has failed */
	}
}

/* Does a topic's next entry wait for one that is on its way? */
static bool
has_to_wait(const Relay *relay, const OutboxTopic *topic)
{
	return (relay->careful && topic->in_flight > 0) || topic->later == relay->passes;
}

/*
 * Send what a stream has queued, in order, as far as the client takes it and there
 * is room.  A refused entry stops it: nothing of its key goes before it is kept.
 */
static void
send_stream(Relay *relay, OutboxStream *stream, uint64 room)
{
	OutboxWindow *window = stream->window;
	const OutboxBatch *batch = NULL;
	bool		passing = true;	/* all so far is sent or done */
	uint64		end = window->next;

	stream->waits_for_standby = false;
	for (uint64 seq = window->unsent; seq < end; seq++)
	{
		OutboxEntry *entry;
		OutboxTopic *topic;
		OutboxStream *owner;

		/* a topic that just left took entries away */
		if (seq < window->first)
			continue;
		entry = outbox_window_entry(window, seq);
		if (seq + PREFETCH_ENTRIES < end)
			outbox_entry_prefetch_whole(outbox_window_entry(window, seq + PREFETCH_ENTRIES));
		if (passing)
			window->unsent = seq;
		if (entry == NULL || entry->state == OUTBOX_ENTRY_SENT ||
			entry->state == OUTBOX_ENTRY_HELD || entry->state == OUTBOX_ENTRY_DONE)
			continue;
		if (entry->state == OUTBOX_ENTRY_REFUSED ||
			entry->topic->state != OUTBOX_TOPIC_FINE)
			return;
		topic = entry->topic;
		if (!has_to_wait(relay, topic))
		{
			if (!is_replicated(entry, &batch))
			{
				stream->waits_for_standby = true;
				return;
			}
			if (room == 0)
			{
				relay->flow.held_back = true;
				return;
			}
			owner = topic->stream;
			/* when its topic left, the entry did too, and may be gone */
			if (!send_entry(relay, entry) && topic->stream == owner)
				return;
			if (topic->later != relay->passes)
			{
				room--;
				continue;
			}
		}
		/* others may go meanwhile, within reason */
		end = Min(end, window->unsent + LOOK_BEYOND);
		passing = false;
	}
	if (passing)
		window->unsent = Max(end, window->first);
}

/* Send what is queued; true when something waits for standbys. */
bool
relay_send(Relay *relay)
{
	bool		waits;
	ListCell   *lc;

	if (relay->chunk.state != OUTBOX_CHUNK_NONE && relay->chunk.state != OUTBOX_CHUNK_READY &&
		relay->chunk.state != OUTBOX_CHUNK_OPEN)
		return relay->main.waits_for_standby;
	relay->passes++;
	send_stream(relay, &relay->main, relay_flow_room(relay));
	waits = relay->main.waits_for_standby;
	/* a topic that leaves main meanwhile is added at the end */
	foreach(lc, relay->lagging)
	{
		send_stream(relay, lfirst(lc), PG_UINT64_MAX);
		waits = waits || ((OutboxStream *) lfirst(lc))->waits_for_standby;
	}
	return waits;
}
