/*-------------------------------------------------------------------------
 *
 * client.c
 *	  The relay's dealings with its broker client: open, send, answers, close.
 *
 * Failures are classes, see transport.h.  A broker that is down is nobody's
 * failure here: the client keeps trying, and is kept, since giving it up would
 * send twice what the broker still appends.
 *
 * A record that is refused takes its whole batch with it, and the client goes
 * fatal so that none of its successors overtakes it.  What was in the batch is
 * suspect.  The client is given up, after what is on its way to other
 * partitions has been answered, and everything unanswered is sent again from
 * the windows.  While there are suspects the client is a careful one: one
 * record a request, and no topic has more than one in flight.  So what is
 * refused is refused alone, and becomes a dead letter before its successors
 * are sent.  Where many are suspect, a client with small batches goes first, to
 * find the few among which the bad one is.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include <unistd.h>

#include "compat.h"
#include "elapsed.h"
#include "fault.h"
#include "guc.h"
#include "log/wal.h"
#include "miscadmin.h"
#include "relay/relay.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define MIN_BACK_OFF_MS		100
#define MAX_BACK_OFF_MS		30000
#define CLOSE_TIMEOUT_MS	5000
#define DRAIN_TIMEOUT_MS	10000
#define GIVE_UP_TIMEOUT_MS	3000
#define PURGE_TIMEOUT_MS	1000
#define REPORTS_AT_ONCE		1024
#define LATENCY_WEIGHT		64		/* of the past in its running mean */
#define MANY_SUSPECTS		200
#define SMALL_BATCH			50
#define LOOK_BEYOND			4096	/* entries looked at behind one that waits */
#define PREFETCH			8		/* reports ahead */
#define SET_BACK_US			(1000 * 1000)	/* of a clock that is not just adjusted */

/* Microseconds by which the time of day is ahead of the clock that nobody sets. */
static int64
clock_ahead(void)
{
	return GetCurrentTimestamp() - outbox_clock_ms() * 1000;
}

/* Wait longer after each failure in a row. */
void
relay_back_off(Relay *relay)
{
	relay->back_off_ms = relay->back_off_ms == 0 ? MIN_BACK_OFF_MS :
		Min(relay->back_off_ms * 2, MAX_BACK_OFF_MS);
	INSTR_TIME_SET_CURRENT(relay->retry_at);
}

/* Where positions are kept, with exactly-once delivery; in the current context. */
static char *
position_topic(const OutboxServer *server)
{
	char	   *topic;

	if (server->core.position_topic != NULL)
		return server->core.position_topic;
	/* characters that every broker takes in a name */
	topic = psprintf("pg_outbox.position.%s", server->name);
	for (char *c = topic; *c; c++)
		if (!isalnum((unsigned char) *c) && strchr("._-", *c) == NULL)
			*c = '_';
	return topic;
}

/* Have a client; false while it can't be had. */
bool
relay_client_ensure(Relay *relay)
{
	OutboxTransportConfig config = {0};
	OutboxError error = {0};
	MemoryContext scratch;
	MemoryContext old;

	if (relay->client != NULL)
		return true;
	if (relay->back_off_ms > 0 && relay_ms_since(relay->retry_at) < relay->back_off_ms)
		return false;
	relay->careful = relay->windows->suspects > 0;
	relay->small_batches = relay->narrowing > 0;
	scratch = AllocSetContextCreate(relay->context, "pg_outbox client options",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(scratch);
	config.server_name = relay->server->name;
	config.client_id = psprintf("pg_outbox-%s", relay->server->name);
	config.noptions = relay->server->noptions;
	config.options = relay->server->options;
	config.careful = relay->careful;
	config.max_batch = relay->small_batches ? SMALL_BATCH : 0;
	config.max_bytes = (size_t) outbox_relay_memory * 1024;
	config.max_message_size = (size_t) outbox_max_message_size * 1024;
	config.topics = outbox_patterns_included(relay->server->core.patterns);
	if (relay->server->core.exactly_once)
	{
		config.transactional_id = config.bookmark_key =
			psprintf("pg_outbox.%s.%s", relay->server->core.home, relay->server->name);
		config.bookmark_topic = position_topic(relay->server);
	}
	if (config.transactional_id != NULL && relay->transport->transaction == NULL)
	{
		strlcpy(error.text, "this kind of server can't deliver exactly once", sizeof(error.text));
		strlcpy(error.hint, "Set its option exactly_once to false.", sizeof(error.hint));
	}
	else
		relay->client = relay->transport->open(&config, &error);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	if (relay->client == NULL)
	{
		relay_set_error(relay, error.text, error.hint);
		relay_set_state(relay, OUTBOX_STATE_ERROR);
		relay_back_off(relay);
		return false;
	}
	relay->errors_seen = 0;
	relay->clock_ahead = clock_ahead();
	relay_drop_wait_set(relay);
	relay_chunk_client_opened(relay);
	return true;
}

/* What one poll brought, for the figures. */
typedef struct Delivered
{
	TimestampTz now;
	instr_time	moved;
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
		for (int i = 0; i < n; i++)
		{
			if (i + PREFETCH < n)
				outbox_entry_prefetch(reports[i + PREFETCH].tag);
			take_report(relay, &reports[i], &d);
		}
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
	OutboxError error = {0};
	OutboxTopic *topic = entry->topic;

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
			topic->later = relay->passes;
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
 * Send what a stream has queued, in order, as far as the client takes it.  A
 * refused entry stops it: nothing of its key goes before it is kept.
 */
static void
send_stream(Relay *relay, OutboxStream *stream)
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
			owner = topic->stream;
			/* when its topic left, the entry did too, and may be gone */
			if (!send_entry(relay, entry) && topic->stream == owner)
				return;
			if (topic->later != relay->passes)
				continue;
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
	send_stream(relay, &relay->main);
	waits = relay->main.waits_for_standby;
	/* a topic that leaves main meanwhile is added at the end */
	foreach(lc, relay->lagging)
	{
		send_stream(relay, lfirst(lc));
		waits = waits || ((OutboxStream *) lfirst(lc))->waits_for_standby;
	}
	return waits;
}

/* Wait for reports and take them. */
void
relay_await_reports(Relay *relay, long timeout_ms)
{
	(void) WaitLatchOrSocket(MyLatch,
							 WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 relay->transport->event_fd(relay->client), timeout_ms,
							 outbox_wait_event("OutboxRelayDrain"));
	ResetLatch(MyLatch);
	relay_collect(relay);
}

/* Have all reports, within bounds. */
static void
drain(Relay *relay, long timeout_ms)
{
	instr_time	start;

	INSTR_TIME_SET_CURRENT(start);
	relay_collect(relay);
	while (relay->windows->in_flight > 0 && relay_ms_since(start) < timeout_ms)
		relay_await_reports(relay, 50);
}

/*
 * Exit handlers of libraries take away what the client library's threads use
 * (OpenSSL's does), and a worker that crashes takes the whole cluster with it.
 * PostgreSQL's own part of the exit is done by now, or nothing of it is left
 * that matters to others.
 */
static void
exit_beside_threads(int code, Datum arg)
{
	_exit(code);
}

/*
 * Close a client.  It is not ours any more, also when it fails: nobody may
 * close it twice.  False when its library could not be stopped in time: the
 * process has to end, and does so without disturbing what still runs.
 */
bool
relay_client_destroy(Relay *relay, int timeout_ms)
{
	OutboxClient *client = relay->client;
	bool		in_time = OUTBOX_RULE("client-stops");

	relay->client = NULL;
	if (relay->transport->close(client, in_time ? timeout_ms : 0) && in_time)
		return true;
	on_proc_exit(exit_beside_threads, (Datum) 0);
	return false;
}

/*
 * Close the client.  With wait, all that it has is waited for, so that nothing
 * is sent twice; else only what is on its way, not for long.  What is without an
 * answer then is sent again later.  Nothing is waited for where no broker was
 * ever reached.
 */
void
relay_client_close(Relay *relay, bool wait)
{
	OutboxTransportStatus status;
	bool		held_too;

	if (relay->client == NULL)
		return;
	if (wait)
		relay_chunk_finish(relay, DRAIN_TIMEOUT_MS);
	if (relay->client == NULL)
		return;					/* it was lost meanwhile */
	relay->transport->status(relay->client, &status);
	/* what is in a transaction that is not committed is sent again anyway */
	if (!status.was_connected || relay->chunk.state != OUTBOX_CHUNK_NONE)
	{
		relay->transport->purge(relay->client, true);
		drain(relay, PURGE_TIMEOUT_MS);
	}
	else if (wait)
	{
		relay->transport->flush(relay->client);
		drain(relay, DRAIN_TIMEOUT_MS);
	}
	else
	{
		relay->transport->purge(relay->client, false);
		drain(relay, GIVE_UP_TIMEOUT_MS);
		relay->transport->purge(relay->client, true);
		drain(relay, PURGE_TIMEOUT_MS);
	}
	relay_drop_wait_set(relay);
	if (!relay_client_destroy(relay, CLOSE_TIMEOUT_MS))
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("the client library of server \"%s\" could not be stopped in time",
						relay->server->name_local)));
	relay->connected = false;
	held_too = relay_chunk_client_closed(relay);
	outbox_window_rewind(relay->main.window, held_too);
	for (int i = 0; i < list_length(relay->lagging); i++)
		outbox_window_rewind(((OutboxStream *) list_nth(relay->lagging, i))->window, held_too);
}

/*
 * After a failure: are there too many suspects to be sent one by one?  Then
 * they go in small batches, once; what is refused then is few.
 */
static void
narrow(Relay *relay, bool was_careful)
{
	ListCell   *lc;

	if (was_careful || relay->small_batches || relay->windows->suspects <= MANY_SUSPECTS)
	{
		relay->narrowing = 0;
		return;
	}
	relay->narrowing = relay->windows->suspects;
	outbox_window_clear(relay->main.window);
	foreach(lc, relay->lagging)
		outbox_window_clear(((OutboxStream *) lfirst(lc))->window);
}

/* The state to show while there is a client. */
static OutboxRelayState
state_with_client(Relay *relay, const OutboxTransportStatus *status)
{
	ListCell   *lc;

	if (!status->connected)
		return status->error.failure == OUTBOX_CONFIG ? OUTBOX_STATE_ERROR :
			status->nerrors > 0 ? OUTBOX_STATE_RETRYING : OUTBOX_STATE_STARTING;
	if (status->blocked)
		return status->error.failure == OUTBOX_CONFIG ? OUTBOX_STATE_ERROR :
			OUTBOX_STATE_BLOCKED;
	if (relay->chunk.failing)
		return OUTBOX_STATE_ERROR;
	if (relay->chunk.state == OUTBOX_CHUNK_INIT || relay->chunk.state == OUTBOX_CHUNK_LOAD)
		return OUTBOX_STATE_STARTING;
	if (relay->main.waits_for_standby || relay->chunk.state == OUTBOX_CHUNK_CLAIM)
		return OUTBOX_STATE_WAITING_FOR_STANDBY;
	if (relay->server->core.on_error == OUTBOX_ON_ERROR_BLOCK)
		foreach(lc, relay->lagging)
			if (((OutboxStream *) lfirst(lc))->topic->state != OUTBOX_TOPIC_FINE)
				return OUTBOX_STATE_BLOCKED;
	return OUTBOX_STATE_RUNNING;
}

/*
 * Was the clock set back?  A client library's threads may sleep until a time of
 * day before they connect again, and would sleep for longer by that.
 */
static bool
clock_was_set_back(Relay *relay)
{
	int64		was = relay->clock_ahead;

	relay->clock_ahead = clock_ahead();
	return relay->clock_ahead < was - SET_BACK_US;
}

/*
 * Look at the client's state: give it up when it failed, change between
 * careful and normal.
 */
void
relay_client_check(Relay *relay)
{
	OutboxTransportStatus status;
	bool		was_careful = relay->careful;

	if (clock_was_set_back(relay))
	{
		ereport(LOG,
				(errmsg("pg_outbox server \"%s\" begins with a new client, since the system's clock was set back",
						relay->server->name_local)));
		relay_client_close(relay, true);
		return;
	}
	relay->transport->status(relay->client, &status);
	relay->connected = status.connected;
	if (status.nerrors != relay->errors_seen)
	{
		relay->errors_seen = status.nerrors;
		relay_tell_error(relay, &status.error);
	}
	if (status.failed && relay->chunk.state != OUTBOX_CHUNK_NONE)
	{
		relay_chunk_lost(relay, &status.error);
		return;
	}
	if (status.failed)
	{
		relay_client_close(relay, false);
		narrow(relay, was_careful);
		if (was_careful || (relay->windows->suspects == 0 && relay->narrowing == 0))
			relay_back_off(relay);
		relay_set_state(relay, status.error.failure == OUTBOX_CONFIG ?
						OUTBOX_STATE_ERROR : OUTBOX_STATE_RETRYING);
		return;
	}
	if (relay->chunk.state == OUTBOX_CHUNK_READY && relay->windows->suspects > 0)
		narrow(relay, was_careful);
	if (relay->chunk.state <= OUTBOX_CHUNK_READY &&
		(relay->careful != (relay->windows->suspects > 0) ||
		 relay->small_batches != (relay->narrowing > 0)))
	{
		relay_client_close(relay, true);
		return;
	}
	relay_set_state(relay, state_with_client(relay, &status));
}
