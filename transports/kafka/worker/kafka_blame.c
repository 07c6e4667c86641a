/*-------------------------------------------------------------------------
 *
 * kafka_blame.c
 *	  Which topic a transaction failed for.
 *
 * A partition is added to a transaction before its first record is sent.  Where
 * brokers refuse that, as its topic may not be written, the library makes the
 * transaction one that can only be aborted and gives back all that it has queued,
 * whatever topic it is of, as purged: no report names the culprit.  The next
 * transaction would fail in the same way, and that topic stop all others, for ever
 * and without a word.
 *
 * So it is inferred.  A topic of which the transaction has stored a record is none
 * that was refused.  Of the others that it has records of, the bookmark's among them,
 * one was at least.  Where there are several, transactions go step by step for a minute:
 * none of another topic is sent while there is one that nothing was stored of yet, and
 * the bookmark is not either.  Then the next failure has one culprit.  That costs a round
 * trip for each topic of a transaction.  It goes on when one is found, as there may be
 * more of them.  A topic that does not answer holds up the others for some seconds only,
 * so that there are answers that tell it from them (see chunk.c).
 *
 * Rights that are taken away between two partitions of a topic can put the blame on
 * another one.  It waits for some seconds, as a topic does that was refused, and goes on.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#define STEP_BY_STEP_MS		60000
#define PATIENCE_MS			5000	/* for a topic's first answer */

/* Monotonic ms; the process's, as a client may not survive the abort. */
static int64_t step_by_step_until;

/* A transaction begins. */
void
kafka_blame_begin(OutboxClient *client)
{
	client->txn++;
	client->unproven = NULL;
	client->bookmark_sent = client->bookmark_stored = false;
}

static bool
is_step_by_step(void)
{
	return step_by_step_until != 0 && thread_now_ms() < step_by_step_until;
}

/* May nothing be sent of this topic, or of the bookmark's (NULL), for now? */
bool
kafka_blame_has_to_wait(const OutboxClient *client, const KafkaTopic *topic)
{
	const KafkaTopic *unproven = client->unproven;

	return unproven != NULL && unproven != topic && unproven->stored_in != client->txn &&
		(topic == NULL || topic->sent_in != client->txn) && is_step_by_step() &&
		thread_now_ms() - client->unproven_ms < PATIENCE_MS;
}

/* The library has taken a record. */
void
kafka_blame_sent(OutboxClient *client, KafkaTopic *topic)
{
	if (topic->sent_in == client->txn)
		return;
	topic->sent_in = client->txn;
	client->unproven = topic;
	client->unproven_ms = thread_now_ms();
}

/* ... and has reported that one is stored. */
void
kafka_blame_stored(OutboxClient *client, const rd_kafka_message_t *message)
{
	KafkaTopic *topic = rd_kafka_topic_opaque(message->rkt);

	if (topic != NULL)
		topic->stored_in = client->txn;
}

/* A topic that may be to blame, the last one found, and how many there are. */
static int
find_unproven(OutboxClient *client, KafkaTopic **found)
{
	int			n = 0;

	for (int i = 0; i < KAFKA_TOPIC_BUCKETS; i++)
		for (KafkaTopic *topic = client->topics[i]; topic != NULL; topic = topic->next)
			if (topic->sent_in == client->txn && topic->stored_in != client->txn)
			{
				*found = topic;
				n++;
			}
	return n;
}

/*
 * The transaction has failed with an error that names no topic: ABORT with *error
 * set when the bookmark's is to blame; TOPIC when another one is, which then is refused
 * when it is sent next; RETRY when that will come out; or OK.
 */
OutboxFailure
kafka_blame(OutboxClient *client, rd_kafka_resp_err_t err, OutboxError *error)
{
	KafkaTopic *topic = NULL;
	bool		bookmark = client->bookmark_sent && !client->bookmark_stored;
	int			ntopics;

	if (err != RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
		return OUTBOX_OK;
	ntopics = find_unproven(client, &topic);
	if (ntopics + bookmark == 0)
		return OUTBOX_OK;
	step_by_step_until = thread_now_ms() + STEP_BY_STEP_MS;
	if (ntopics + bookmark > 1)
		return OUTBOX_RETRY;
	if (!bookmark)
	{
		kafka_verdict_add(topic->name, err);
		return OUTBOX_TOPIC;
	}
	kafka_bookmark_error(client, error, OUTBOX_ABORT, err);
	return OUTBOX_ABORT;
}
