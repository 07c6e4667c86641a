/*-------------------------------------------------------------------------
 *
 * refused.c
 *	  What becomes of messages that a broker refused for good.
 *
 * With on_error 'dead_letter' they are kept in outbox.dead_letter, many in one
 * transaction, which is committed and flushed before any successor of their
 * keys is sent and before the position passes them.  With on_error 'block'
 * the message stays where it is and its topic waits.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "relay/dead_letter.h"
#include "relay/relay.h"

#define LETTERS_AT_ONCE	1000
#define BYTES_AT_ONCE	(4 * 1024 * 1024)

/* An entry was refused for good. */
void
relay_refuse(Relay *relay, OutboxEntry *entry, const char *name, const char *text)
{
	OutboxError error = {OUTBOX_DEAD};

	INSTR_TIME_SET_CURRENT(relay->refused_at);
	if (relay->server->core.on_error == OUTBOX_ON_ERROR_DEAD_LETTER)
	{
		outbox_entry_refuse(entry, name, text);
		return;
	}
	strlcpy(error.name, name, sizeof(error.name));
	snprintf(error.text, sizeof(error.text), "message " UINT64_FORMAT " was refused: %s",
			 entry->message.id, text);
	strlcpy(error.hint, "It is tried again after a while, and when the server is altered.",
			sizeof(error.hint));
	outbox_entry_clear(entry);
	outbox_entry_queue(entry);
	relay_topic_trouble(relay, entry->topic, OUTBOX_TOPIC_BLOCKED, &error);
}

/* A missing topic was given up: what waits for it becomes dead letters. */
static void
refuse_given_up(OutboxStream *stream)
{
	OutboxTopic *topic = stream->topic;
	OutboxWindow *window = stream->window;

	if (topic == NULL || !topic->given_up)
		return;
	for (uint64 seq = window->first; seq < window->next; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry != NULL && entry->state == OUTBOX_ENTRY_QUEUED)
			outbox_entry_refuse(entry, topic->error.name, topic->error.text);
	}
}

/*
 * Keep some of a window's refused messages as dead letters; how many.  None when
 * it can't be done now.
 */
static int
keep_some(Relay *relay, OutboxWindow *window)
{
	OutboxEntry *entries[LETTERS_AT_ONCE];
	Size		bytes = 0;
	int			n = 0;

	for (uint64 seq = window->first; seq < window->next && n < LETTERS_AT_ONCE &&
		 bytes < BYTES_AT_ONCE; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry == NULL || entry->state != OUTBOX_ENTRY_REFUSED)
			continue;
		entries[n++] = entry;
		bytes += entry->message.bytes;
	}
	if (!outbox_dead_letters_begin(relay->server))
		return 0;
	for (int i = 0; i < n; i++)
		outbox_dead_letters_add(&entries[i]->message, entries[i]->error,
								entries[i]->reason, Max(entries[i]->attempts, 1));
	outbox_dead_letters_commit();
	for (int i = 0; i < n; i++)
		outbox_entry_done(entries[i]);
	pg_atomic_fetch_add_u64(&relay->slot->dead, n);
	return n;
}

static void
keep_refused(Relay *relay, OutboxStream *stream)
{
	refuse_given_up(stream);
	while (stream->window->refused > 0 && keep_some(relay, stream->window) > 0)
		;
	outbox_window_pop(stream->window);
}

/* Keep refused messages as dead letters. */
void
relay_keep_refused(Relay *relay)
{
	ListCell   *lc;

	keep_refused(relay, &relay->main);
	foreach(lc, relay->lagging)
		keep_refused(relay, lfirst(lc));
}
