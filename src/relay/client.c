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
 * suspect.  The client is given up, and everything unanswered is sent again
 * from the window: up to the last suspect in careful mode, one record at a
 * time, so that what is refused then is refused alone and becomes a dead
 * letter before its successors are sent; then normally.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "guc.h"
#include "miscadmin.h"
#include "relay/dead_letter.h"
#include "relay/relay.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define MIN_BACK_OFF_MS		100
#define MAX_BACK_OFF_MS		30000
#define CLOSE_TIMEOUT_MS	5000
#define DRAIN_TIMEOUT_MS	10000
#define GIVE_UP_TIMEOUT_MS	5000
#define PROBE_EVERY_MS		1000
#define REPORTS_AT_ONCE		1024

/* Wait longer after each failure in a row. */
static void
back_off(Relay *relay)
{
	relay->back_off_ms = relay->back_off_ms == 0 ? MIN_BACK_OFF_MS :
		Min(relay->back_off_ms * 2, MAX_BACK_OFF_MS);
	INSTR_TIME_SET_CURRENT(relay->retry_at);
}

/* Have a client; false while it can't be had. */
bool
relay_client_ensure(Relay *relay)
{
	OutboxTransportConfig config = {0};
	OutboxError error = {0};

	if (relay->client != NULL)
		return true;
	if (relay->back_off_ms > 0 && relay_ms_since(relay->retry_at) < relay->back_off_ms)
		return false;
	config.server_name = relay->server->name;
	config.client_id = psprintf("pg_outbox-%s", relay->server->name);
	config.noptions = relay->server->noptions;
	config.options = relay->server->options;
	config.careful = relay->careful;
	config.max_bytes = (size_t) outbox_relay_memory * 1024;
	config.max_message_size = (size_t) outbox_max_message_size * 1024;
	relay->client = relay->transport->open(&config, &error);
	if (relay->client == NULL)
	{
		relay_set_error(relay, error.text, error.hint);
		relay_set_state(relay, OUTBOX_STATE_ERROR);
		back_off(relay);
		return false;
	}
	relay->errors_seen = 0;
	relay_drop_wait_set(relay);
	return true;
}

/* Note that a topic is in trouble; its messages stay queued. */
static void
topic_trouble(Relay *relay, const OutboxMessage *m, const char *name, const char *text)
{
	MemoryContext old;
	OutboxTopicTrouble *trouble;
	ListCell   *lc;

	foreach(lc, relay->troubles)
		if (strcmp(((OutboxTopicTrouble *) lfirst(lc))->topic, m->topic) == 0)
			return;
	old = MemoryContextSwitchTo(relay->context);
	trouble = palloc0(sizeof(OutboxTopicTrouble));
	trouble->topic = pstrdup(m->topic);
	strlcpy(trouble->error.name, name, sizeof(trouble->error.name));
	strlcpy(trouble->error.text, text, sizeof(trouble->error.text));
	INSTR_TIME_SET_CURRENT(trouble->since);
	trouble->probed = trouble->since;
	relay->troubles = lappend(relay->troubles, trouble);
	MemoryContextSwitchTo(old);
	relay_set_error(relay, psprintf("topic \"%s\": %s", m->topic, text), "");
}

static OutboxTopicTrouble *
find_trouble(Relay *relay, const char *topic)
{
	ListCell   *lc;

	foreach(lc, relay->troubles)
		if (strcmp(((OutboxTopicTrouble *) lfirst(lc))->topic, topic) == 0)
			return lfirst(lc);
	return NULL;
}

/* An entry was refused for good. */
static void
refuse(Relay *relay, OutboxEntry *entry, const char *name, const char *text)
{
	entry->state = OUTBOX_ENTRY_REFUSED;
	entry->error = MemoryContextStrdup(relay->window->context, name);
	entry->reason = MemoryContextStrdup(relay->window->context, text);
}

/* The broker's answer for one entry. */
static void
take_report(Relay *relay, const OutboxReport *report)
{
	OutboxWindow *window = relay->window;
	uint64		seq = (uint64) (uintptr_t) report->tag;
	OutboxEntry *entry;

	if (seq < window->first || seq >= window->next)
		return;
	entry = outbox_window_entry(window, seq);
	if (entry->state != OUTBOX_ENTRY_SENT)
		return;
	window->in_flight--;
	switch (report->failure)
	{
		case OUTBOX_OK:
			entry->state = OUTBOX_ENTRY_DONE;
			relay->back_off_ms = 0;
			pg_atomic_fetch_add_u64(&relay->slot->delivered, 1);
			break;
		case OUTBOX_DEAD:
			refuse(relay, entry, report->name, report->text ? report->text : report->name);
			break;
		case OUTBOX_TOPIC:
			entry->state = OUTBOX_ENTRY_QUEUED;
			topic_trouble(relay, entry->message, report->name,
						  report->text ? report->text : report->name);
			window->unsent = Min(window->unsent, seq);
			break;
		case OUTBOX_SUSPECT:
			entry->suspect = true;
			relay->careful_until = Max(relay->careful_until, seq + 1);
			/* FALLTHROUGH */
		default:
			entry->state = OUTBOX_ENTRY_QUEUED;
			window->unsent = Min(window->unsent, seq);
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
		n = relay->transport->poll(relay->client, reports, REPORTS_AT_ONCE);
		for (int i = 0; i < n; i++)
			take_report(relay, &reports[i]);
		CHECK_FOR_INTERRUPTS();
	} while (n == REPORTS_AT_ONCE);
}

/* Send what is queued, in order, as far as the client takes it. */
void
relay_send(Relay *relay)
{
	OutboxWindow *window = relay->window;
	OutboxError error = {0};
	bool		skipped = false;
	uint64		seq;

	for (seq = window->unsent; seq < window->next; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);
		OutboxFailure failure;

		if (entry->state == OUTBOX_ENTRY_REFUSED)
			break;				/* nothing of its key goes before it is kept */
		if (entry->state != OUTBOX_ENTRY_QUEUED)
			continue;
		if (relay->troubles != NIL && find_trouble(relay, entry->message->topic))
		{
			if (!skipped)
				window->unsent = seq;
			skipped = true;
			continue;
		}
		if (relay->careful && window->in_flight > 0)
			break;
		failure = outbox_window_send(window, seq, relay->transport, relay->client, &error);
		if (failure == OUTBOX_OK)
			continue;
		if (failure == OUTBOX_DEAD)
			refuse(relay, entry, error.name, error.text);
		else if (failure == OUTBOX_TOPIC)
			topic_trouble(relay, entry->message, error.name, error.text);
		break;
	}
	if (!skipped)
		window->unsent = seq;
}

/* Keep refused messages as dead letters. */
void
relay_handle_refused(Relay *relay)
{
	OutboxWindow *window = relay->window;

	for (uint64 seq = window->first; seq < window->next; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry->state != OUTBOX_ENTRY_REFUSED)
			continue;
		outbox_dead_letter(relay->server->name_local, entry->message,
						   entry->error, entry->reason, Max(entry->attempts, 1));
		entry->state = OUTBOX_ENTRY_DONE;
		pg_atomic_fetch_add_u64(&relay->slot->dead, 1);
	}
}

/* A topic waited long enough: its messages become dead letters. */
static void
give_up_topic(Relay *relay, OutboxTopicTrouble *trouble)
{
	OutboxWindow *window = relay->window;

	for (uint64 seq = window->first; seq < window->next; seq++)
	{
		OutboxEntry *entry = outbox_window_entry(window, seq);

		if (entry->state == OUTBOX_ENTRY_QUEUED &&
			strcmp(entry->message->topic, trouble->topic) == 0)
			refuse(relay, entry, trouble->error.name, trouble->error.text);
	}
}

/* Ask again for topics in trouble; resume what is there, give up in time. */
void
relay_probe_topics(Relay *relay)
{
	ListCell   *lc;

	if (relay->client == NULL)
		return;
	foreach(lc, relay->troubles)
	{
		OutboxTopicTrouble *trouble = lfirst(lc);
		int64		timeout = relay->server->core.topic_timeout;
		OutboxFailure failure;

		if (relay_ms_since(trouble->probed) < PROBE_EVERY_MS)
			continue;
		failure = relay->transport->probe_topic(relay->client, trouble->topic, &trouble->error);
		if (failure == OUTBOX_RETRY)
			continue;
		INSTR_TIME_SET_CURRENT(trouble->probed);
		if (failure == OUTBOX_OK)
		{
			relay->window->unsent = relay->window->first;
			relay->troubles = foreach_delete_current(relay->troubles, lc);
			continue;
		}
		if (relay->server->core.on_error == OUTBOX_ON_ERROR_DEAD_LETTER &&
			timeout != OUTBOX_FOR_EVER && relay_ms_since(trouble->since) >= timeout)
			give_up_topic(relay, trouble);
	}
}

/* Have all reports, within bounds. */
static void
drain(Relay *relay, long timeout_ms)
{
	instr_time	start;

	INSTR_TIME_SET_CURRENT(start);
	while (relay->window->in_flight > 0 && relay_ms_since(start) < timeout_ms)
	{
		(void) WaitLatchOrSocket(MyLatch,
								 WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 relay->transport->event_fd(relay->client), 50,
								 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		relay_collect(relay);
	}
}

/*
 * Close the client.  With drain, what is in flight is waited for, so that
 * nothing is sent twice; else it is given back and sent again later.
 */
void
relay_client_close(Relay *relay, bool wait)
{
	if (relay->client == NULL)
		return;
	if (wait)
	{
		relay->transport->flush(relay->client);
		drain(relay, DRAIN_TIMEOUT_MS);
	}
	else
	{
		relay->transport->purge(relay->client, true);
		drain(relay, GIVE_UP_TIMEOUT_MS);
	}
	relay_drop_wait_set(relay);
	if (!relay->transport->close(relay->client, CLOSE_TIMEOUT_MS))
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("the client library of server \"%s\" could not be stopped in time",
						relay->server->name_local)));
	relay->client = NULL;
	outbox_window_rewind(relay->window);
}

/*
 * Look at the client's state: give it up when it failed, change between
 * careful and normal mode.  False when there is no client now.
 */
bool
relay_client_check(Relay *relay)
{
	OutboxTransportStatus status;

	relay->transport->status(relay->client, &status);
	if (status.nerrors != relay->errors_seen)
	{
		relay->errors_seen = status.nerrors;
		relay_set_error(relay, status.error.text, status.error.hint);
	}
	if (status.failed)
	{
		relay_client_close(relay, false);
		relay->careful = relay->careful_until > relay->window->first;
		if (!relay->careful)
			back_off(relay);
		relay_set_state(relay, status.error.failure == OUTBOX_CONFIG ?
						OUTBOX_STATE_ERROR : OUTBOX_STATE_RETRYING);
		return false;
	}
	if (relay->careful && relay->window->first >= relay->careful_until)
	{
		relay_client_close(relay, true);
		relay->careful = false;
		return false;
	}
	relay_set_state(relay,
					!status.connected ?
					(status.error.failure == OUTBOX_CONFIG ? OUTBOX_STATE_ERROR : OUTBOX_STATE_RETRYING) :
					relay->troubles != NIL && relay->server->core.on_error == OUTBOX_ON_ERROR_BLOCK ?
					OUTBOX_STATE_BLOCKED : OUTBOX_STATE_RUNNING);
	return true;
}
