/*-------------------------------------------------------------------------
 *
 * chunk.c
 *	  Exactly-once delivery: chunks of messages in the broker's transactions.
 *
 * A chunk is what has been sent since the last commit, of all streams.  When
 * there is nothing more to send, or it is large or old enough, the positions
 * behind it are sent after it as the client's bookmark, all answers are waited
 * for, and chunk and bookmark are committed together.  So a reader of what is
 * committed sees a message if and only if the bookmark says that it is done,
 * whatever crashes, and whoever starts next goes on from the bookmark.  The
 * bookmark takes for granted that the answers will be good ones; where one is
 * not, it is aborted with all the others.
 *
 * Until then an answered message is held, not done: it stays in its window,
 * and no position passes it.  When the transaction is aborted (a record was
 * refused, a topic is missing) it is queued again, in its place.
 *
 * Numbers.  Every position that is stored, here or in the database, gets the
 * next number; the higher one counts.  The database's is stored after a commit
 * and never from the moment when a bookmark has its number until its outcome is
 * known: else it would, with an older position, outrank a bookmark that was
 * committed.
 *
 * Fencing.  The identity of a client at the broker is made of the log's uuid and
 * the server's name, so a second relay with the same ones makes the broker
 * refuse the first, which stops and does not fight.  The broker does the same
 * to a transaction that was open for longer than it waits, with the same error:
 * a client that lost touch for so long is replaced.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "elapsed.h"
#include "fault.h"
#include "guc.h"
#include "log/bookmark.h"
#include "log/position.h"
#include "relay/relay.h"
#include "utils/memutils.h"

#define SILENT_MS			10000	/* for an answer, before it is aborted */
#define MAX_ABORT_PAUSE_MS	10000

/* A quarter of the time that the broker waits for its end. */
static bool
is_old(const Relay *relay, long more_ms)
{
	return outbox_ms_since(relay->chunk.begun) >= relay->transport->transaction_ms / 4 + more_ms;
}

/* Nearly all of that time. */
static bool
is_expired(const Relay *relay)
{
	return relay->chunk.state >= OUTBOX_CHUNK_OPEN &&
		outbox_ms_since(relay->chunk.begun) >= relay->transport->transaction_ms * 5L / 6;
}

bool
relay_chunk_may_read(const Relay *relay)
{
	return !relay->server->core.exactly_once || relay->chunk.loaded;
}

bool
relay_chunk_may_store(const Relay *relay)
{
	/* fenced: another one may have delivered more than we know of */
	return relay->chunk.state != OUTBOX_CHUNK_MARKED &&
		relay->chunk.state != OUTBOX_CHUNK_COMMIT && !relay->chunk.uncertain &&
		!relay->fenced && relay_chunk_may_read(relay);
}

/* Show an error, unless it is the one that is shown. */
void
relay_chunk_show(Relay *relay, const OutboxError *error)
{
	if (strcmp(relay->slot->last_error, error->text) != 0 ||
		relay->slot->state != OUTBOX_STATE_ERROR)
		relay_tell_error(relay, error);
}

/* Go on with another client, after a while. */
static void
replace_client(Relay *relay, OutboxRelayState state)
{
	relay_client_close(relay, false);
	relay_back_off(relay);
	relay_set_state(relay, state);
}

/* The client is of no more use. */
void
relay_chunk_lost(Relay *relay, const OutboxError *error)
{
	if (error->failure == OUTBOX_FENCED && !is_expired(relay))
	{
		relay_set_error(relay, "fenced by another instance",
						"Another relay delivers for this server. When it does not any more, run outbox.pause() and outbox.resume().");
		relay->fenced = true;
		relay_client_close(relay, false);
		relay_set_state(relay, OUTBOX_STATE_FENCED);
		return;
	}
	relay_chunk_show(relay, error);
	replace_client(relay, error->failure == OUTBOX_CONFIG ?
				   OUTBOX_STATE_ERROR : OUTBOX_STATE_RETRYING);
}

/* Take a step of the transaction; true when it is done. */
bool
relay_chunk_step(Relay *relay, OutboxTxnStep which)
{
	OutboxChunk *chunk = &relay->chunk;
	OutboxError error = {0};
	OutboxFailure failure = relay->transport->transaction(relay->client, which, &error);

	switch (failure)
	{
		case OUTBOX_OK:
			return true;
		case OUTBOX_RETRY:
			if (which == OUTBOX_TXN_INIT)
				relay_takeover_pending(relay, &error);
			return false;
		case OUTBOX_ABORT:
			chunk->state = OUTBOX_CHUNK_ABORT;
			chunk->cause = error;
			return false;
		default:
			relay_chunk_lost(relay, &error);
			return false;
	}
}

/* Call for each stream's window. */
static void
for_all_windows(Relay *relay, void (*function) (Relay *relay, OutboxWindow *window))
{
	ListCell   *lc;

	function(relay, relay->main.window);
	foreach(lc, relay->lagging)
		function(relay, ((OutboxStream *) lfirst(lc))->window);
}

static void
requeue_held(Relay *relay, OutboxWindow *window)
{
	outbox_window_rewind(window, true);
}

void
relay_chunk_start_over(OutboxChunk *chunk)
{
	chunk->state = OUTBOX_CHUNK_READY;
	chunk->must_abort = false;
	chunk->bytes = 0;
	memset(&chunk->cause, 0, sizeof(chunk->cause));
	INSTR_TIME_SET_ZERO(chunk->aborting);
}

void
relay_chunk_committed(Relay *relay)
{
	INSTR_TIME_SET_CURRENT(relay->chunk.committed_at);
	OUTBOX_FAULT("chunk-committed");
	for_all_windows(relay, relay_take_held);
	relay->chunk.aborts = 0;
	relay->chunk.failing = false;
	relay_chunk_start_over(&relay->chunk);
}

/*
 * Tell why a transaction is aborted, unless that is being dealt with, as the causes
 * of a first and a second one are that nobody can do something about: the second may be
 * a consequence of the first, and would be shown in place of a topic in trouble.
 */
static void
show_cause(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	if (chunk->cause.text[0] == '\0' || relay->windows->suspects > 0 ||
		(chunk->aborts < 2 && chunk->cause.hint[0] == '\0'))
		return;
	relay_chunk_show(relay, &chunk->cause);
	chunk->failing = true;
}

/* Aborted: everything of it is sent again, after a while where that recurs. */
void
relay_chunk_aborted(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	for_all_windows(relay, requeue_held);
	show_cause(relay);
	chunk->aborts++;
	INSTR_TIME_SET_CURRENT(chunk->aborted_at);
	relay_chunk_start_over(chunk);
}

/*
 * A topic is out of the way, so what comes next is not the same again: with many that
 * are forbidden, the pauses would outlast the time for which each of them is left alone.
 */
void
relay_chunk_eased(Relay *relay)
{
	if (relay->chunk.state == OUTBOX_CHUNK_NONE)
		return;
	relay->chunk.aborts = Min(relay->chunk.aborts, 1);
	relay->back_off_ms = 0;
}

/*
 * Is it too early for the next transaction?  Brokers may still write the end of
 * the last one, and refuse until they have, which costs more.
 */
bool
relay_chunk_settles(const Relay *relay)
{
	return relay->chunk.state == OUTBOX_CHUNK_READY &&
		!INSTR_TIME_IS_ZERO(relay->chunk.committed_at) &&
		outbox_ms_since(relay->chunk.committed_at) < relay->transport->transaction_settles_ms;
}

/* Have a transaction to send in; false: not now. */
bool
relay_chunk_begin(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;
	long		pause;

	if (chunk->state == OUTBOX_CHUNK_NONE || chunk->state == OUTBOX_CHUNK_OPEN)
		return true;
	if (chunk->state != OUTBOX_CHUNK_READY || relay_chunk_settles(relay))
		return false;
	/* the first abort has a cause that was dealt with, as a rule */
	pause = chunk->aborts < 2 ? 0 : Min(10L << Min(chunk->aborts, 10), MAX_ABORT_PAUSE_MS);
	if (pause > 0 && outbox_ms_since(chunk->aborted_at) < pause)
		return false;
	if (!relay_chunk_step(relay, OUTBOX_TXN_BEGIN))
		return false;
	chunk->state = OUTBOX_CHUNK_OPEN;
	INSTR_TIME_SET_CURRENT(chunk->begun);
	return true;
}

/*
 * Does memory allow one more in flight?  What is held has given back what the
 * library used for it, and takes it again when it is sent again.  Something may
 * always be: a large message may have filled the memory by itself.
 */
bool
relay_chunk_has_room(const Relay *relay, const OutboxEntry *entry)
{
	const OutboxWindows *all = relay->windows;
	Size		library_bytes = all->library_bytes + entry->library_bytes;
	Size		budget = (Size) outbox_relay_memory * 1024;

	return relay->chunk.state == OUTBOX_CHUNK_NONE || all->in_flight == 0 ||
		all->bytes + library_bytes <= budget || library_bytes <= budget / 8;
}

/*
 * The positions behind the chunk, as text; NULL while standbys don't have yet
 * what they rest on.
 */
static char *
make_bookmark(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;
	OutboxBookmark bookmark = {0};
	ListCell   *lc;

	if (!outbox_lsn_replicated(chunk->base_lsn))
		return NULL;
	bookmark.positions = relay_positions_behind_chunk(relay);
	bookmark.lsn = chunk->base_lsn;
	foreach(lc, bookmark.positions)
	{
		XLogRecPtr	lsn = ((OutboxStoredPosition *) lfirst(lc))->pos.lsn;

		if (!outbox_lsn_replicated(lsn))
			return NULL;
		bookmark.lsn = Max(bookmark.lsn, lsn);
	}
	bookmark.log_uuid = relay->server->core.home;
	bookmark.serverid = relay->serverid;
	bookmark.epoch = chunk->announced;
	bookmark.n = chunk->n = ++relay->position_n;
	bookmark.timeline = GetWALInsertionTimeLine();
	return outbox_bookmark_out(&bookmark);
}

/* All of the chunk is sent: the bookmark follows. */
static void
write_bookmark(Relay *relay)
{
	MemoryContext old = MemoryContextSwitchTo(relay->scratch);
	OutboxError error = {0};
	char	   *text = make_bookmark(relay);

	if (text != NULL)
	{
		OUTBOX_FAULT("chunk-before-bookmark");
		switch (relay->transport->bookmark_write(relay->client, text, &error))
		{
			case OUTBOX_OK:
				relay->chunk.state = OUTBOX_CHUNK_MARKED;
				break;
			case OUTBOX_RETRY:
				break;
			case OUTBOX_ABORT:
				relay->chunk.state = OUTBOX_CHUNK_ABORT;
				relay->chunk.cause = error;
				break;
			default:
				relay_chunk_lost(relay, &error);
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(relay->scratch);
}

/*
 * The chunk can't be completed: some partition does not answer.  Its topics that
 * are silent wait until they can be looked up.  Where none has answered, that may
 * be the brokers' doing: they have not ended the last transaction yet, because
 * some partition of that lacks replicas.
 *
 * The client goes with it: with messages on their way, an abort would leave it
 * unsure of what brokers have appended (see transport.h).
 */
static void
give_up_silent(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;
	OutboxError error = {OUTBOX_TOPIC};
	OutboxTopic *topic;
	int			pos = 0;

	chunk->state = OUTBOX_CHUNK_ABORT;
	if (relay->windows->held == 0)
	{
		relay->transport->explain_silence(relay->client, &error);
		relay_chunk_lost(relay, &error);
		return;
	}
	strlcpy(error.name, "SILENT", sizeof(error.name));
	strlcpy(error.text, "no answer from its brokers", sizeof(error.text));
	while ((topic = topics_next(relay->windows->topics, &pos)) != NULL)
		if (topic->in_flight > 0 && topic->state == OUTBOX_TOPIC_FINE &&
			outbox_ms_since(topic->moved) >= SILENT_MS)
			relay_topic_trouble(relay, topic, OUTBOX_TOPIC_MISSING, &error);
	/* the errors of the topics name them, and stay */
	replace_client(relay, OUTBOX_STATE_RETRYING);
}

/* May it be aborted?  Not before all that is on its way has been answered. */
static bool
may_abort(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	if (relay->windows->in_flight == 0)
		return true;
	if (INSTR_TIME_IS_ZERO(chunk->aborting))
		INSTR_TIME_SET_CURRENT(chunk->aborting);
	if (relay->connected && outbox_ms_since(chunk->aborting) >= SILENT_MS)
		give_up_silent(relay);
	return false;
}

/*
 * Is it time to close the open chunk?  It is not while something has only to wait for
 * the answer to what was sent before it.
 */
static bool
is_complete(Relay *relay, bool more)
{
	bool		waits = relay->later == relay->passes && relay->windows->in_flight > 0;

	return (!more && !waits) || relay->chunk.bytes >= (Size) outbox_relay_memory * 1024 / 2 ||
		is_old(relay, 0);
}

/* A new client: what it has to do first. */
void
relay_chunk_client_opened(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	chunk->failing = false;
	INSTR_TIME_SET_CURRENT(chunk->begun);
	if (relay->server->core.exactly_once)
		chunk->state = OUTBOX_CHUNK_INIT;
	else
	{
		/* nobody will tell any more whether the last one was committed */
		if (chunk->uncertain)
			for_all_windows(relay, requeue_held);
		chunk->uncertain = false;
		chunk->state = OUTBOX_CHUNK_NONE;
		chunk->loaded = false;
	}
}

/* The client is closed: true when held messages are to be sent again. */
bool
relay_chunk_client_closed(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	if (chunk->state == OUTBOX_CHUNK_COMMIT)
		chunk->uncertain = true;
	relay_chunk_start_over(chunk);
	chunk->state = OUTBOX_CHUNK_NONE;
	return !chunk->uncertain;
}

/* Close the open chunk: bring it to where it is committed or aborted. */
static void
close_chunk(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	if (chunk->state == OUTBOX_CHUNK_CLOSING && !chunk->must_abort)
		write_bookmark(relay);
	if (chunk->state != OUTBOX_CHUNK_CLOSING && chunk->state != OUTBOX_CHUNK_MARKED)
		return;					/* it failed */
	if (chunk->must_abort)
		chunk->state = OUTBOX_CHUNK_ABORT;
	else if (relay->windows->in_flight > 0)
	{
		if (relay->connected && is_old(relay, SILENT_MS))
			give_up_silent(relay);
	}
	else if (chunk->state == OUTBOX_CHUNK_MARKED)
	{
		OUTBOX_FAULT("chunk-before-commit");
		chunk->state = OUTBOX_CHUNK_COMMIT;
	}
}

/*
 * Go on with the transaction.  More: there is more to send at once.  True when
 * the next turn should follow without a pause.
 */
bool
relay_chunk_turn(Relay *relay, bool more)
{
	OutboxChunk *chunk = &relay->chunk;

	switch (chunk->state)
	{
		case OUTBOX_CHUNK_NONE:
			return more;
		case OUTBOX_CHUNK_READY:
			return more && chunk->aborts < 2;
		case OUTBOX_CHUNK_INIT:
		case OUTBOX_CHUNK_LOAD:
		case OUTBOX_CHUNK_CLAIM:
			return relay_takeover_turn(relay);
		case OUTBOX_CHUNK_OPEN:
			if (chunk->must_abort || is_complete(relay, more))
				chunk->state = OUTBOX_CHUNK_CLOSING;
			else
				return more;
			/* FALLTHROUGH */
		case OUTBOX_CHUNK_CLOSING:
		case OUTBOX_CHUNK_MARKED:
			close_chunk(relay);
			if (chunk->state == OUTBOX_CHUNK_CLOSING || chunk->state == OUTBOX_CHUNK_MARKED)
				return more;
			break;
		default:
			break;
	}
	if (chunk->state == OUTBOX_CHUNK_COMMIT)
	{
		if (relay_chunk_step(relay, OUTBOX_TXN_COMMIT))
			relay_chunk_committed(relay);
		else if (chunk->state == OUTBOX_CHUNK_COMMIT)
			return more;		/* its outcome wakes us */
	}
	else if (chunk->state == OUTBOX_CHUNK_ABORT)
	{
		show_cause(relay);
		if (!may_abort(relay))
			return more && relay->client != NULL;
		if (!relay_chunk_step(relay, OUTBOX_TXN_ABORT))
			return false;		/* nor is anything read until then */
		relay_collect(relay);
		relay_chunk_aborted(relay);
	}
	return relay->client != NULL && chunk->state != OUTBOX_CHUNK_NONE;
}

/* End the open chunk, as far as that can be had in time. */
void
relay_chunk_finish(Relay *relay, long timeout_ms)
{
	OutboxChunk *chunk = &relay->chunk;
	instr_time	start;

	INSTR_TIME_SET_CURRENT(start);
	while (relay->client != NULL && chunk->state >= OUTBOX_CHUNK_OPEN &&
		   outbox_ms_since(start) < timeout_ms)
	{
		if (!relay_chunk_turn(relay, false) && relay->client != NULL)
			relay_await_reports(relay, 5);
	}
}
