/*-------------------------------------------------------------------------
 *
 * client.c
 *	  The relay's broker client: opened, looked after, given up, closed.
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
 * Refused messages come in runs, and each change of clients takes time: with some
 * client libraries half a second.  So a careful client stays for as long after
 * the last refusal as the change to it took; then neither a run of bad messages nor
 * a single one costs more than twice what it must.
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
#define MANY_SUSPECTS		200
#define SMALL_BATCH			50
#define MAX_CAREFUL_MS		2000	/* after the last refusal */
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
	if (relay->back_off_ms > 0 && outbox_ms_since(relay->retry_at) < relay->back_off_ms)
		return false;
	relay->careful = relay->windows->suspects > 0;
	relay->first_answer_ms = -1;
	INSTR_TIME_SET_CURRENT(relay->opened);
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
	/* before: its threads may compute times of day at once */
	relay->clock_ahead = clock_ahead();
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
	relay_drop_wait_set(relay);
	relay_chunk_client_opened(relay);
	return true;
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
	while (relay->windows->in_flight > 0 && outbox_ms_since(start) < timeout_ms)
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

/* Should the client be a careful one?  See the banner. */
static bool
wants_careful(const Relay *relay)
{
	return relay->windows->suspects > 0 ||
		(relay->careful && OUTBOX_RULE("stay-careful") &&
		 outbox_ms_since(relay->refused_at) < Min(relay->first_answer_ms, MAX_CAREFUL_MS));
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
		(relay->careful != wants_careful(relay) ||
		 relay->small_batches != (relay->narrowing > 0)))
	{
		relay_client_close(relay, true);
		return;
	}
	relay_set_state(relay, state_with_client(relay, &status));
}
