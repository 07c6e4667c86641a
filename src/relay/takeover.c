/*-------------------------------------------------------------------------
 *
 * takeover.c
 *	  Exactly-once delivery: what a new client has to do first.
 *
 * It takes over the server's identity at the broker, which fences whoever had it
 * and settles what that one left open (INIT); reads the bookmark, to know where
 * to go on (LOAD); and announces the bookmarks that it is going to write (CLAIM).
 *
 * An open outcome.  A client that is lost while it commits leaves the question
 * of whether it did.  Its successor first settles what it left (INIT), and then
 * the bookmark's number tells.  Held messages wait for that.
 *
 * Announcement.  Whoever starts next must know which bookmarks are of its own
 * past, and not of a copy: see bookmark.c.  So before the first bookmark of a
 * start of the server, the position is stored with that start's epoch, and
 * flushed; and the WAL that a bookmark rests on includes that.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "elapsed.h"
#include "fault.h"
#include "log/bookmark.h"
#include "relay/relay.h"
#include "utils/memutils.h"

#define PENDING_MS		10000		/* that it may take before that is told */

/*
 * The first steps take their time where brokers start or move.  What
 * holds them up is told once that is no explanation any more.
 */
void
relay_takeover_pending(Relay *relay, const OutboxError *error)
{
	if (!relay->connected || error->text[0] == '\0' || outbox_ms_since(relay->chunk.begun) < PENDING_MS)
		return;
	relay_chunk_show(relay, error);
	relay->chunk.failing = true;
	relay_set_state(relay, OUTBOX_STATE_ERROR);
}

/* Is anything in a window? */
static bool
holds_messages(Relay *relay)
{
	ListCell   *lc;

	if (!outbox_window_is_empty(relay->main.window))
		return true;
	foreach(lc, relay->lagging)
		if (!outbox_window_is_empty(((OutboxStream *) lfirst(lc))->window))
			return true;
	return false;
}

/* Take the bookmark's positions for those of the database, if they are newer. */
static void
choose_position(Relay *relay, const char *text)
{
	OutboxBookmark *bookmark = text ? outbox_bookmark_in(text) : NULL;
	const char *problem = NULL;

	if (text == NULL || !OUTBOX_RULE("position-at-broker"))
		return;					/* there is none yet */
	if (bookmark == NULL)
		problem = "it can't be read";
	else if (bookmark->n <= relay->position_n)
		return;
	else
		problem = outbox_bookmark_problem(bookmark, relay->server->core.home,
										  relay->serverid, relay->db,
										  relay->position_epoch);
	if (problem != NULL)
	{
		ereport(LOG,
				(errmsg("pg_outbox server \"%s\" does not go on from its position at the broker: %s",
						relay->server->name_local, problem),
				 errdetail("It goes on from the position in the database.")));
		return;
	}
	/* a server that was switched over may have read on by its own position */
	if (holds_messages(relay))
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("server \"%s\" starts again, from its position at the broker",
						relay->server->name_local)));
	relay->chunk.base_lsn = bookmark->lsn;
	relay_positions_replace(relay, bookmark);
}

/* The bookmark is there: where do we stand? */
static void
take_bookmark(Relay *relay, const char *text)
{
	OutboxChunk *chunk = &relay->chunk;
	MemoryContext old = MemoryContextSwitchTo(relay->scratch);

	if (chunk->uncertain)
	{
		OutboxBookmark *bookmark = text ? outbox_bookmark_in(text) : NULL;

		chunk->uncertain = false;
		if (bookmark != NULL && bookmark->n == chunk->n && bookmark->epoch == chunk->announced &&
			strcmp(bookmark->log_uuid, relay->server->core.home) == 0)
			relay_chunk_committed(relay);
		else
			relay_chunk_aborted(relay);
	}
	else
		choose_position(relay, text);
	MemoryContextSwitchTo(old);
	MemoryContextReset(relay->scratch);
	chunk->loaded = true;
	chunk->state = OUTBOX_CHUNK_CLAIM;
}

/* Announce the bookmarks to come; false while standbys lack what that takes. */
static bool
claim(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	if (chunk->announced != relay->db->epoch)
	{
		if (relay->position_epoch != relay->db->epoch && !relay_positions_store(relay, false))
			return false;
		chunk->base_lsn = Max(chunk->base_lsn, XactLastCommitEnd);
		XLogFlush(chunk->base_lsn);
		chunk->announced = relay->db->epoch;
	}
	relay_chunk_start_over(chunk);
	return true;
}

static void
load_bookmark(Relay *relay)
{
	OutboxError error = {0};
	const char *text;

	switch (relay->transport->bookmark_read(relay->client, &text, &error))
	{
		case OUTBOX_OK:
			take_bookmark(relay, text);
			relay->chunk.failing = false;
			break;
		case OUTBOX_RETRY:
			relay_takeover_pending(relay, &error);
			break;
		default:
			relay_chunk_show(relay, &error);
			relay_set_state(relay, OUTBOX_STATE_ERROR);
			relay->chunk.failing = true;
	}
}

/* Go on with the first steps; true when the next turn should follow without a pause. */
bool
relay_takeover_turn(Relay *relay)
{
	OutboxChunk *chunk = &relay->chunk;

	switch (chunk->state)
	{
		case OUTBOX_CHUNK_INIT:
			if (!relay_chunk_step(relay, OUTBOX_TXN_INIT))
				return false;	/* its outcome wakes us */
			chunk->failing = false;
			chunk->state = chunk->loaded && !chunk->uncertain ?
				OUTBOX_CHUNK_CLAIM : OUTBOX_CHUNK_LOAD;
			return true;
		case OUTBOX_CHUNK_LOAD:
			load_bookmark(relay);
			return chunk->state == OUTBOX_CHUNK_CLAIM;
		default:
			return claim(relay);
	}
}
