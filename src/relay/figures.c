/*-------------------------------------------------------------------------
 *
 * figures.c
 *	  What a relay shows of itself: state, errors, figures.
 *
 * Written into its slot in shared memory, from where outbox.relay_status and
 * outbox.flush() read it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "elapsed.h"
#include "relay/relay.h"
#include "utils/timestamp.h"

#define SAME_ERROR_MS	10000

void
relay_set_state(Relay *relay, OutboxRelayState state)
{
	SpinLockAcquire(&relay->slot->mutex);
	relay->slot->state = state;
	SpinLockRelease(&relay->slot->mutex);
}

/* Show an error, without a line in the log. */
static void
show_error(Relay *relay, const char *text, const char *hint)
{
	TimestampTz now = GetCurrentTimestamp();

	SpinLockAcquire(&relay->slot->mutex);
	strlcpy(relay->slot->last_error, text, OUTBOX_ERROR_LEN);
	strlcpy(relay->slot->last_hint, hint, sizeof(relay->slot->last_hint));
	relay->slot->last_error_at = now;
	SpinLockRelease(&relay->slot->mutex);
}

void
relay_set_error(Relay *relay, const char *text, const char *hint)
{
	show_error(relay, text, hint);
	ereport(LOG,
			(errmsg("pg_outbox server \"%s\": %s", relay->slot->server_name, text),
			 hint[0] != '\0' ? errhint("%s", hint) : 0));
}

/*
 * Show what the library reports, and log it: but some versions report an outage
 * at each of their attempts, several times a second.
 */
void
relay_tell_error(Relay *relay, const OutboxError *error)
{
	if (strcmp(relay->logged, error->text) == 0 &&
		!outbox_elapsed(relay->logged_at, SAME_ERROR_MS))
	{
		show_error(relay, error->text, error->hint);
		return;
	}
	strlcpy(relay->logged, error->text, sizeof(relay->logged));
	relay->logged_at = outbox_clock_ms();
	relay_set_error(relay, error->text, error->hint);
}

/* Show how things stand. */
void
relay_show_figures(Relay *relay)
{
	OutboxRelaySlot *slot = relay->slot;
	OutboxStream *stream = &relay->main;
	ListCell   *lc = list_head(relay->lagging);
	TimestampTz oldest = 0;
	uint64		confirmed = PG_UINT64_MAX;
	uint64		done_id = PG_UINT64_MAX;

	for (;;)
	{
		OutboxWindow *window = stream->window;

		if (outbox_window_is_empty(window))
		{
			confirmed = Min(confirmed, outbox_reader_confirmed(stream->reader));
			done_id = Min(done_id, outbox_reader_next_id(stream->reader));
		}
		else
		{
			const OutboxMessage *first = &outbox_window_entry(window, window->first)->message;

			confirmed = Min(confirmed, first->batch->s1_count);
			done_id = Min(done_id, first->id);
			if (oldest == 0 || first->published < oldest)
				oldest = first->published;
		}
		if (lc == NULL)
			break;
		stream = lfirst(lc);
		lc = lnext(relay->lagging, lc);
	}
	pg_atomic_write_u64(&slot->confirmed_count, confirmed);
	pg_atomic_write_u64(&slot->done_id, done_id);
	pg_atomic_write_u64(&slot->in_flight, relay->windows->in_flight);
	pg_atomic_write_u64(&slot->memory, relay->windows->bytes + relay->windows->library_bytes);
	SpinLockAcquire(&slot->mutex);
	slot->oldest_unacked = oldest;
	slot->lagging = list_length(relay->lagging);
	SpinLockRelease(&slot->mutex);
}
