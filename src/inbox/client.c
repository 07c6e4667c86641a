/*-------------------------------------------------------------------------
 *
 * client.c
 *	  The broker client of a subscription's worker: opened, looked after, closed; and
 *	  what is shown of it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "elapsed.h"
#include "guc.h"
#include "inbox/worker.h"
#include "utils/guc.h"

#define LAG_EVERY_MS		1000
#define MIN_BACK_OFF_MS		500
#define MAX_BACK_OFF_MS		30000

static void
drop_wait_set(InboxWorker *worker)
{
	if (worker->wait_set != NULL)
		FreeWaitEventSet(worker->wait_set);
	worker->wait_set = NULL;
}

/*
 * Commits don't wait for the disk where the broker gives once more what a crash takes
 * back.  What a shared group is told must not be lost, see places.c; nor may what a
 * broker forgets when it is told that it is done.
 */
void
inbox_client_set_durability(InboxWorker *worker)
{
	bool		durable = worker->subscription->shared_group ||
		(worker->client != NULL && worker->source->forgets != NULL &&
		 worker->source->forgets(worker->client));

	SetConfigOption("synchronous_commit", durable ? "on" : "off", PGC_SUSET, PGC_S_OVERRIDE);
}

/* Leave the group.  What has come and was not handled comes again. */
void
inbox_client_close(InboxWorker *worker)
{
	OutboxConsumer *client = worker->client;

	if (client == NULL)
		return;
	worker->client = NULL;
	drop_wait_set(worker);
	inbox_partitions_gone(worker);
	inbox_start_forget(worker);
	worker->joined = false;
	if (!worker->source->close(client, INBOX_CLOSE_MS))
		ereport(FATAL,
				(errmsg("the client library of subscription \"%s\" could not be stopped",
						NameStr(worker->slot->name))));
}

/* Wait longer after each failure in a row. */
void
inbox_back_off(InboxWorker *worker)
{
	worker->back_off_ms = worker->back_off_ms == 0 ? MIN_BACK_OFF_MS :
		Min(worker->back_off_ms * 2, MAX_BACK_OFF_MS);
	INSTR_TIME_SET_CURRENT(worker->failed_at);
}

/* Have a client; false while it can't be had. */
bool
inbox_client_ensure(InboxWorker *worker)
{
	OutboxSourceConfig config = {0};
	OutboxError error = {0};

	if (worker->client != NULL)
		return true;
	if (worker->transport == NULL)
	{
		StartTransactionCommand();
		worker->transport = registry_load_transport(worker->server->library);
		CommitTransactionCommand();
		MemoryContextSwitchTo(worker->context);
		worker->source = worker->transport->source;
	}
	if (worker->source == NULL)
	{
		inbox_set_error(worker->slot, "this kind of server can't be consumed from", "");
		inbox_set_state(worker->slot, INBOX_STATE_ERROR);
		return false;
	}
	config.server_name = worker->server->name;
	config.client_id = worker->slot->number == 0 ?
		psprintf("pg_outbox-inbox-%s", worker->subscription->name) :
		psprintf("pg_outbox-inbox-%s-%d", worker->subscription->name, worker->slot->number + 1);
	config.noptions = worker->server->noptions;
	config.options = worker->server->options;
	config.group_id = worker->subscription->group_id;
	config.ntopics = worker->subscription->ntopics;
	config.topics = (const char *const *) worker->subscription->topics;
	config.max_bytes = (size_t) outbox_relay_memory * 1024;
	config.member = worker->slot->number;
	worker->client = worker->source->open(&config, &error);
	if (worker->client == NULL)
	{
		inbox_set_error(worker->slot, error.text, error.hint);
		inbox_set_state(worker->slot, INBOX_STATE_ERROR);
		inbox_back_off(worker);
		return false;
	}
	worker->errors_seen = 0;
	drop_wait_set(worker);
	return true;
}

/*
 * The state to show while there is a client.  It does not run before the places of
 * its partitions are known: what is published after somebody saw "running" is
 * consumed, also by a subscription that begins with the latest.
 */
static InboxState
state_with_client(InboxWorker *worker, const OutboxTransportStatus *status)
{
	bool		placed = true;
	bool		stopped = false;
	ListCell   *lc;

	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);

		placed = placed && partition->placed;
		stopped = stopped || partition->stopped;
	}
	if (worker->failing || stopped ||
		(status->nerrors > 0 && status->error.failure == OUTBOX_CONFIG && worker->partitions == NIL))
		return INBOX_STATE_ERROR;
	if (!status->connected || !worker->joined || !placed)
		return status->nerrors > 0 ? INBOX_STATE_RETRYING : INBOX_STATE_STARTING;
	return INBOX_STATE_RUNNING;
}

/* Show what the client says of itself; give it up when it failed. */
void
inbox_client_check(InboxWorker *worker)
{
	OutboxTransportStatus status = {0};
	InboxState	state;

	worker->source->status(worker->client, &status);
	if (status.nerrors != worker->errors_seen)
	{
		worker->errors_seen = status.nerrors;
		if (status.error.failure == OUTBOX_OK)
			inbox_clear_error(worker->slot);
		else
			inbox_set_error(worker->slot, status.error.text, status.error.hint);
	}
	if (status.failed)
	{
		inbox_set_state(worker->slot, status.error.failure == OUTBOX_CONFIG ?
						INBOX_STATE_ERROR : INBOX_STATE_RETRYING);
		inbox_client_close(worker);
		inbox_back_off(worker);
		return;
	}
	state = state_with_client(worker, &status);
	if (state == INBOX_STATE_RUNNING && worker->slot->state != INBOX_STATE_RUNNING)
	{
		inbox_clear_error(worker->slot);
		worker->topics_checked = false; /* so that it is shown again */
	}
	inbox_set_state(worker->slot, state);
}

void
inbox_client_show_figures(InboxWorker *worker)
{
	uint64		handled = pg_atomic_read_u64(&worker->slot->handled);
	long		ms = outbox_ms_since(worker->lag_shown);
	int64		lag = 0;
	ListCell   *lc;

	if (ms < LAG_EVERY_MS)
		return;
	foreach(lc, worker->partitions)
	{
		InboxPartition *partition = lfirst(lc);
		int64		end = worker->source->known_end(worker->client, partition->topic,
													partition->partition);

		if (end > partition->next && partition->next >= 0)
			lag += end - partition->next;
	}
	pg_atomic_write_u64(&worker->slot->lag, (uint64) lag);
	worker->slot->rate = (handled - worker->handled_then) * 1000 / ms;
	worker->handled_then = handled;
	INSTR_TIME_SET_CURRENT(worker->lag_shown);
}
