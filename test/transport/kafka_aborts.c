/*-------------------------------------------------------------------------
 *
 * kafka_aborts.c
 *	  Aborts of transactions in bad moments, against a real broker behind a proxy.
 *
 * The moment: a broker has appended a batch, its answer is lost with the
 * connection, so the library has the batch in its queue again.  A transaction that
 * is aborted now throws it away there; and the library goes on with the sequence
 * numbers that it takes to be unused then, though the broker has seen them.  The
 * broker takes the next batch for the same one: it is acknowledged, and never written.
 *
 * The proxy is the caller's: a line "proxy COMMAND" asks for one, a line of input
 * answers.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "kafka_driver.h"

#define BATCH	500

static void
tell_proxy(const char *command)
{
	char		line[64];

	printf("proxy %s\n", command);
	fflush(stdout);
	if (fgets(line, sizeof(line), stdin) == NULL)
		ok(false, "the proxy does what it is told to");
}

/* Wait until a partition has so many records and marks. */
static bool
wait_appended(const char *topic, int64_t least)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	int64_t		low,
				high = 0;

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rd_kafka_conf_set(conf, "isolation.level", "read_uncommitted", NULL, 0);
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, NULL, 0);
	for (double until = now() + 20; high < least && now() < until;)
	{
		if (rd_kafka_query_watermark_offsets(rk, topic, 0, &low, &high, 1000))
			high = 0;
		(void) poll(NULL, 0, 10);
	}
	rd_kafka_destroy(rk);
	return high >= least;
}

static bool
send_many(OutboxClient *client, Tally *tally, const char *topic, int n)
{
	OutboxError error;

	for (int i = 0; i < n; i++)
		if (send_in_turn(client, tally, topic, 0, "x", 1, i + 1, &error) != OUTBOX_OK)
			return false;
	return true;
}

/* A transaction of n messages that all goes well. */
static bool
send_committed(OutboxClient *client, const char *topic, int n)
{
	OutboxError error;
	Tally		tally = {0};

	return transaction_step(client, &tally, OUTBOX_TXN_BEGIN) == OUTBOX_OK &&
		send_many(client, &tally, topic, n) &&
		T.bookmark_write(client, "here", &error) == OUTBOX_OK &&
		wait_total(client, &tally, n, 20) &&
		transaction_step(client, &tally, OUTBOX_TXN_COMMIT) == OUTBOX_OK &&
		tally.by[OUTBOX_OK] == n;
}

static OutboxClient *
open_ready(char *bookmark_topic)
{
	OutboxClient *client = open_transactional(bookmark_topic);
	const char *text;
	Tally		tally = {0};

	if (client != NULL &&
		transaction_step(client, &tally, OUTBOX_TXN_INIT) == OUTBOX_OK &&
		load_bookmark(client, &text))
		return client;
	ok(false, "a client");
	return NULL;
}

/*
 * Open a transaction, have a batch appended, and its answer lost.  The other topic
 * becomes part of the transaction as well.
 */
static bool
lose_an_answer(OutboxClient *client, const char *topic, const char *other)
{
	Tally		tally = {0};
	OutboxTransportStatus status;

	if (transaction_step(client, &tally, OUTBOX_TXN_BEGIN) != OUTBOX_OK ||
		!send_many(client, &tally, other, 1) || !send_many(client, &tally, topic, 1) ||
		!wait_total(client, &tally, 2, 10))
		return false;
	tell_proxy("0 half");
	/* begin, and what stands before it: one committed record and its mark */
	if (!send_many(client, &tally, topic, BATCH) || !wait_appended(topic, 3 + BATCH))
		return false;
	tell_proxy("0 reset");
	do
	{
		gather(client, &tally);
		T.status(client, &status);
	} while (status.connected && poll(NULL, 0, 1) == 0);
	tell_proxy("0 pass");
	return tally.total == 2;
}

/*
 * In that moment the transaction is aborted, because a record of another topic is
 * refused or just so.  Then its messages are sent once more, by the same client
 * where that may go on.
 */
static void
check_abort(bool refused, const char *what)
{
	char		topic[128];
	char		other[128];
	char		bookmark_topic[128];
	static char large[4096];
	OutboxClient *client;
	OutboxFailure failure;
	OutboxError error;
	Tally		tally = {0};

	topic_name(topic, refused ? "refused" : "aborts");
	topic_name(other, refused ? "small" : "others");
	topic_name(bookmark_topic, refused ? "bookmarks-refused" : "bookmarks-aborts");
	topic_admin(topic, 1, NULL);
	topic_admin(other, 1, "max.message.bytes=1000");
	client = open_ready(bookmark_topic);
	if (client == NULL)
		return;
	ok(send_committed(client, topic, 1) && lose_an_answer(client, topic, other),
	   "an answer is lost");
	if (refused)
		ok(send_one(client, other, 0, large, sizeof(large), 1, &error) == OUTBOX_OK &&
		   wait_total(client, &tally, BATCH + 1, 20) && tally.by[OUTBOX_SUSPECT] == 1 &&
		   tally.by[OUTBOX_PURGED] == BATCH, "a record is refused meanwhile");
	failure = transaction_step(client, &tally, OUTBOX_TXN_ABORT);
	if (failure != OUTBOX_OK)
	{
		ok(T.close(client, 5000), "closed");
		client = open_ready(bookmark_topic);
	}
	ok(client != NULL && send_committed(client, topic, BATCH) &&
	   consume(topic, 1, NULL, NULL) == 1 + BATCH, what);
	if (client != NULL)
		T.close(client, 5000);
}

void
check_aborts(void)
{
	printf("# librdkafka %s\n", rd_kafka_version_str());
	check_abort(false, "nothing is lost by an abort after a lost answer");
	check_abort(true, "nor where a refused record is the cause");
}
