/*-------------------------------------------------------------------------
 *
 * kafka_transactions.c
 *	  Transactions of the Kafka transport, tried against a real broker.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "kafka_driver.h"

#define ROUNDS		100
#define CLOSINGS	6

OutboxClient *
open_transactional(char *bookmark_topic)
{
	OutboxTransportConfig config = {
		.server_name = "driver", .client_id = "pg_outbox_driver",
		.noptions = noptions, .options = options,
		.max_bytes = 64 << 20, .max_message_size = 16 << 20,
		.transactional_id = bookmark_topic, .bookmark_topic = bookmark_topic,
		.bookmark_key = "driver",
	};
	OutboxError error;
	OutboxClient *client = T.open(&config, &error);

	if (client == NULL)
		printf("# open: %d %s %s\n", error.failure, error.name, error.text);
	return client;
}

/* Take a step until it is done. */
OutboxFailure
transaction_step(OutboxClient *client, Tally *tally, OutboxTxnStep which)
{
	double		start = now();
	OutboxFailure failure;
	OutboxError error;

	do
	{
		failure = T.transaction(client, which, &error);
		gather(client, tally);
	} while (failure == OUTBOX_RETRY && now() - start < 30);
	if (failure != OUTBOX_OK)
		printf("# step %d: %d %s %s\n", which, failure, error.name, error.text);
	return failure;
}

bool
load_bookmark(OutboxClient *client, const char **text)
{
	double		start = now();
	OutboxFailure failure;
	OutboxError error;

	do
	{
		failure = T.bookmark_read(client, text, &error);
		(void) poll(NULL, 0, 10);
	} while (failure == OUTBOX_RETRY && now() - start < 30);
	if (failure != OUTBOX_OK)
		printf("# bookmark: %d %s %s\n", failure, error.name, error.text);
	return failure == OUTBOX_OK;
}

/*
 * A commit is asked for again and again, without a pause, until its outcome is
 * there.  A library that is called each time gets confused, and ends the program.
 */
static void
check_commits(OutboxClient *client, const char *topic)
{
	Tally		tally = {0};
	OutboxError error;
	char		text[32];
	int			committed = 0;

	for (int i = 0; i < ROUNDS; i++)
	{
		snprintf(text, sizeof(text), "round %d", i);
		if (transaction_step(client, &tally, OUTBOX_TXN_BEGIN) == OUTBOX_OK &&
			send_one(client, topic, -1, text, strlen(text), i + 1, &error) == OUTBOX_OK &&
			T.bookmark_write(client, text, &error) == OUTBOX_OK &&
			wait_total(client, &tally, i + 1, 10) &&
			transaction_step(client, &tally, OUTBOX_TXN_COMMIT) == OUTBOX_OK)
			committed++;
	}
	ok(committed == ROUNDS && tally.by[OUTBOX_OK] == ROUNDS,
	   "commits that are asked after without a pause");
	ok(consume(topic, 1, NULL, NULL) == ROUNDS, "all of it is there");
}

/*
 * The first record of a partition goes ahead in a transaction too, and again after
 * one that was aborted.
 */
static void
check_first_in_transaction(OutboxClient *client)
{
	char		topic[128];
	Tally		tally = {0};
	OutboxError error;

	topic_name(topic, "transactions-first");
	topic_admin(topic, 1, NULL);
	for (int i = 0; i < 3; i++)
	{
		bool		trusted = i == 1;
		OutboxFailure second;

		ok(transaction_step(client, &tally, OUTBOX_TXN_BEGIN) == OUTBOX_OK &&
		   send_one(client, topic, -1, "x", 1, 1, &error) == OUTBOX_OK, "a transaction");
		second = send_one(client, topic, -1, "x", 1, 2, &error);
		ok(second == (trusted ? OUTBOX_OK : OUTBOX_LATER),
		   trusted ? "takes several where one was stored" : "takes one at first");
		ok(send_in_turn(client, &tally, topic, 0, "x", 1, 3, &error) == OUTBOX_OK &&
		   send_one(client, topic, 0, "x", 1, 4, &error) == OUTBOX_OK &&
		   wait_total(client, &tally, (int[]) {3, 7, 10}[i], 10) &&
		   transaction_step(client, &tally, i == 1 ? OUTBOX_TXN_ABORT : OUTBOX_TXN_COMMIT) ==
		   OUTBOX_OK, i == 1 ? "is aborted" : "is committed");
	}
}

/* Begin a commit, and look at it some times. */
static bool
leave_commit(OutboxClient *client, const char *topic, const char *text, int looks)
{
	Tally		tally = {0};
	OutboxError error;

	if (transaction_step(client, &tally, OUTBOX_TXN_BEGIN) != OUTBOX_OK ||
		send_one(client, topic, -1, text, strlen(text), 1, &error) != OUTBOX_OK ||
		T.bookmark_write(client, text, &error) != OUTBOX_OK ||
		!wait_total(client, &tally, 1, 10))
		return false;
	for (int i = 0; i < looks; i++)
	{
		OutboxFailure failure = T.transaction(client, OUTBOX_TXN_COMMIT, &error);

		if (failure != OUTBOX_RETRY)
			return failure == OUTBOX_OK;
		(void) poll(NULL, 0, 1);
	}
	return true;
}

/*
 * Clients that are closed before or while they commit, or just after: each
 * closes in time, and the next one's bookmark tells what became of it.
 */
static void
check_closings(char *bookmark_topic, const char *topic, int before)
{
	const char *found;
	char		text[32] = "";
	int			committed = 0;
	int			good = 0;

	for (int i = 0; i <= CLOSINGS; i++)
	{
		OutboxClient *client = open_transactional(bookmark_topic);
		Tally		tally = {0};
		bool		fine = transaction_step(client, &tally, OUTBOX_TXN_INIT) == OUTBOX_OK &&
			load_bookmark(client, &found) && found != NULL;

		if (fine && strcmp(found, text) == 0)
			committed++;
		snprintf(text, sizeof(text), "closing %d", i);
		if (fine && i < CLOSINGS)
			fine = leave_commit(client, topic, text, i * 2);
		if (T.close(client, 5000) && fine)
			good++;
	}
	ok(good == CLOSINGS + 1, "closed while they commit");
	printf("# %d of %d were committed\n", committed, CLOSINGS);
	ok(consume(topic, 1, NULL, NULL) == before + committed,
	   "what the bookmark says is there, and no more");
}

void
check_transactions(void)
{
	char		topic[128];
	char		bookmark_topic[128];
	char		last[32];
	OutboxClient *client;
	const char *text;
	Tally		tally = {0};

	topic_name(topic, "transactions");
	topic_name(bookmark_topic, "bookmarks");
	topic_admin(topic, 1, NULL);
	client = open_transactional(bookmark_topic);
	ok(transaction_step(client, &tally, OUTBOX_TXN_INIT) == OUTBOX_OK &&
	   load_bookmark(client, &text) && text == NULL, "no bookmark at first");
	check_commits(client, topic);
	check_first_in_transaction(client);
	ok(T.close(client, 5000), "closed");

	client = open_transactional(bookmark_topic);
	snprintf(last, sizeof(last), "round %d", ROUNDS - 1);
	ok(transaction_step(client, &tally, OUTBOX_TXN_INIT) == OUTBOX_OK &&
	   load_bookmark(client, &text) && text != NULL && strcmp(text, last) == 0,
	   "the bookmark is that of the last commit");
	ok(T.close(client, 5000), "closed");
	check_closings(bookmark_topic, topic, ROUNDS);
}
