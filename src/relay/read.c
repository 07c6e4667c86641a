/*-------------------------------------------------------------------------
 *
 * read.c
 *	  From the log into the windows.
 *
 * A piece at a time, as far as memory allows, and not long before it is sent.
 * Routing happens here: what a server does not want is not even copied.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fault.h"
#include "guc.h"
#include "relay/relay.h"
#include "utils/inval.h"

/* Does this stream get a message? */
static bool
wanted(void *arg, const char *topic, int topic_len, const char *target, uint64 id)
{
	OutboxStream *stream = arg;
	Relay	   *relay = stream->relay;

	if (target != NULL && strcmp(target, relay->server->name) != 0)
		return false;
	if (target == NULL && !router_wants(relay->router, topic, topic_len))
	{
		if (stream == &relay->main && router_is_unrouted(relay->router, topic, topic_len))
			pg_atomic_fetch_add_u64(&relay->db->unrouted, 1);
		return false;
	}
	if (relay->lagging == NIL)
		return true;
	else
	{
		OutboxTopic *known = topics_find(relay->windows->topics, topic, topic_len);

		/* each message belongs to one stream */
		return stream->topic == NULL ? known == NULL || known->stream == NULL :
			known == stream->topic;
	}
}

/* Read a piece of a stream's batch into its window. */
void
relay_stream_read(OutboxStream *stream, Size max_bytes)
{
	Relay	   *relay = stream->relay;

	Assert(relay->nfetched == 0);
	outbox_reader_fetch(stream->reader, relay->windows->context,
						offsetof(OutboxEntry, message), relay->fetched, &relay->nfetched,
					    FETCH_MESSAGES, max_bytes, wanted, stream);
	relay->adding = true;
	for (int i = 0; i < relay->nfetched; i++)
	{
		if (i == relay->nfetched / 2)
			OUTBOX_FAULT("relay-between-entries");
		if (i + PREFETCH_ENTRIES < relay->nfetched)
			outbox_entry_prefetch_whole(outbox_entry_of(relay->fetched[i + PREFETCH_ENTRIES]));
		outbox_window_add(stream->window, relay->fetched[i],
						  relay_is_acked(relay, relay->fetched[i]->id));
	}
	relay->adding = false;
	relay->nfetched = 0;
}

/* Has the main window room for another piece? */
static bool
has_room(Relay *relay)
{
	OutboxWindow *window = relay->main.window;
	Size		budget = (Size) outbox_relay_memory * 1024;
	Size		reserved = lagging_reserved(relay);

	/* something is always left for it, and a large message goes alone */
	budget = Max(budget - Min(reserved, budget), budget / 16);
	return (window->bytes == 0 || window->bytes + FETCH_BYTES <= budget) &&
		window->next - window->first <= RELAY_MAX_ENTRIES - FETCH_MESSAGES;
}

/*
 * Is enough read for now?  What waits for its turn, see flow.c, would only be far from
 * the processor's caches by then.
 */
static bool
is_ahead(const Relay *relay)
{
	const OutboxWindow *window = relay->main.window;

	return relay->flow.held_back && window->next - window->unsent >= FETCH_MESSAGES;
}

/* Read what is new, as far as there is room; true when there is more. */
bool
relay_read_log(Relay *relay)
{
	OutboxReader *reader = relay->main.reader;
	bool		more = lagging_read(relay);

	lagging_watch_head(relay);
	lagging_rejoin(relay);
	if (outbox_reader_batch(reader) == NULL)
	{
		if (lagging_hold_main(relay) || !outbox_reader_begin(reader))
			return more;

		/*
		 * Since we last looked, a server may have been altered and a message
		 * published under its new patterns.  What the snapshot sees must not
		 * be routed by older ones, so the next turn looks first.
		 */
		AcceptInvalidationMessages();
		if (OUTBOX_RULE("reload-before-route") &&
			pg_atomic_read_u32(&relay->slot->reload) != 0)
			return true;
	}
	if (!has_room(relay))
		lagging_find_stalled(relay);
	else if (!is_ahead(relay))
	{
		/* what comes into an empty window is its head from now on */
		if (outbox_window_is_empty(relay->main.window))
			INSTR_TIME_SET_CURRENT(relay->head_since);
		relay_stream_read(&relay->main, FETCH_BYTES);
	}
	return more || (outbox_reader_batch(reader) != NULL && has_room(relay) &&
					!is_ahead(relay));
}
