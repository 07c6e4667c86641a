/*-------------------------------------------------------------------------
 *
 * kafka_blame.c
 *	  Which topic a transaction failed for.
 *
 * A mock broker refuses to add partitions to a transaction.  With a real one, what
 * goes into one request with what depends on the moment.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <string.h>

#include "kafka_driver.h"

#define ADD_PARTITIONS	24		/* of the protocol's requests */
#define RTT_MS			200		/* so long there is no answer */
#define SILENT_MS		5200	/* that nobody waits for */

typedef struct Scene
{
	Mock		mock;
	OutboxClient *client;
	Tally		tally;
	char		topics[2][128];
	char		bookmark_topic[128];
} Scene;

/* Refuse what is added next. */
static void
refuse(Scene *scene)
{
	rd_kafka_mock_push_request_errors(scene->mock.cluster, ADD_PARTITIONS, 1,
									  RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
}

static OutboxFailure
step(Scene *scene, OutboxTxnStep which)
{
	return transaction_step(scene->client, &scene->tally, which);
}

static OutboxFailure
send_to(Scene *scene, int topic)
{
	OutboxError error;

	return send_one(scene->client, scene->topics[topic], 0, "x", 1, 1, &error);
}

static OutboxFailure
bookmark(Scene *scene)
{
	OutboxError error;

	return T.bookmark_write(scene->client, "x", &error);
}

static bool
answered(Scene *scene, int n)
{
	return wait_total(scene->client, &scene->tally, scene->tally.total + n, 10);
}

/* Two topics are added together, and that fails: it could be either. */
static void
check_two(Scene *scene)
{
	refuse(scene);
	ok(step(scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK && send_to(scene, 0) == OUTBOX_OK &&
	   send_to(scene, 1) == OUTBOX_OK && answered(scene, 2) &&
	   scene->tally.by[OUTBOX_PURGED] == 2 && step(scene, OUTBOX_TXN_ABORT) == OUTBOX_OK,
	   "a transaction of two topics fails");
	ok(step(scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK && send_to(scene, 0) == OUTBOX_OK,
	   "the next one takes the first topic");
	ok(send_to(scene, 1) == OUTBOX_LATER, "the second has to wait for it");
	ok(bookmark(scene) == OUTBOX_RETRY, "the bookmark has, too");
	ok(answered(scene, 1) && send_to(scene, 1) == OUTBOX_OK, "then it goes");
	ok(bookmark(scene) == OUTBOX_RETRY && answered(scene, 1) && bookmark(scene) == OUTBOX_OK,
	   "and then the bookmark");
	ok(step(scene, OUTBOX_TXN_COMMIT) == OUTBOX_OK, "it is committed");
}

/* One that does not answer holds up the others for a while only. */
static void
check_silent(Scene *scene)
{
	ok(step(scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK, "a transaction");
	rd_kafka_mock_broker_set_down(scene->mock.cluster, 1);
	(void) poll(NULL, 0, 100);
	ok(send_to(scene, 0) == OUTBOX_OK && send_to(scene, 1) == OUTBOX_LATER,
	   "a topic waits for another one");
	(void) poll(NULL, 0, SILENT_MS);
	ok(send_to(scene, 1) == OUTBOX_OK, "but not for long");
	rd_kafka_mock_broker_set_up(scene->mock.cluster, 1);
	ok(answered(scene, 2) && bookmark(scene) == OUTBOX_OK &&
	   step(scene, OUTBOX_TXN_COMMIT) == OUTBOX_OK, "it is committed");
}

/* One is added alone, and that fails. */
static void
check_one(Scene *scene)
{
	ok(step(scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK && send_to(scene, 0) == OUTBOX_OK &&
	   answered(scene, 1), "a topic is written");
	refuse(scene);
	ok(send_to(scene, 1) == OUTBOX_OK && answered(scene, 1) &&
	   step(scene, OUTBOX_TXN_ABORT) == OUTBOX_OK, "one behind it is refused");
	ok(step(scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK && send_to(scene, 1) == OUTBOX_TOPIC,
	   "that one is to blame");
	ok(send_to(scene, 0) == OUTBOX_OK && answered(scene, 1) && bookmark(scene) == OUTBOX_OK &&
	   step(scene, OUTBOX_TXN_COMMIT) == OUTBOX_OK, "the other one goes on");
}

/* The bookmark's topic. */
static void
check_bookmark(Scene *scene)
{
	OutboxFailure failure;
	OutboxError error = {0};

	ok(step(scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK && send_to(scene, 0) == OUTBOX_OK &&
	   answered(scene, 1), "a topic is written");
	refuse(scene);
	ok(bookmark(scene) == OUTBOX_OK, "a bookmark behind it is refused");
	do
	{
		failure = T.transaction(scene->client, OUTBOX_TXN_COMMIT, &error);
		gather(scene->client, &scene->tally);
	} while (failure == OUTBOX_RETRY);
	ok(failure == OUTBOX_ABORT && strstr(error.text, scene->bookmark_topic) != NULL &&
	   strstr(error.hint, scene->bookmark_topic) != NULL, "its topic is to blame, and named");
	ok(send_to(scene, 0) == OUTBOX_ABORT, "nothing more is taken");
	failure = T.transaction(scene->client, OUTBOX_TXN_ABORT, &error);
	ok(failure == OUTBOX_ABORT && strstr(error.text, scene->bookmark_topic) != NULL,
	   "whoever aborts is told, too");
	ok(step(scene, OUTBOX_TXN_ABORT) == OUTBOX_OK, "it is aborted");
	ok(step(scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK && send_to(scene, 0) == OUTBOX_OK &&
	   answered(scene, 1) && bookmark(scene) == OUTBOX_OK &&
	   step(scene, OUTBOX_TXN_COMMIT) == OUTBOX_OK, "the next one is committed");
}

void
check_blame(void)
{
	Scene		scene = {0};

	topic_name(scene.topics[0], "blame-0");
	topic_name(scene.topics[1], "blame-1");
	topic_name(scene.bookmark_topic, "blame-bookmark");
	scene.mock = mock_begin(scene.topics[0], 1);
	rd_kafka_mock_topic_create(scene.mock.cluster, scene.topics[1], 1, 1);
	rd_kafka_mock_topic_create(scene.mock.cluster, scene.bookmark_topic, 1, 1);
	scene.client = open_transactional(scene.bookmark_topic);
	ok(step(&scene, OUTBOX_TXN_INIT) == OUTBOX_OK && step(&scene, OUTBOX_TXN_BEGIN) == OUTBOX_OK &&
	   send_to(&scene, 0) == OUTBOX_OK && send_to(&scene, 1) == OUTBOX_OK && answered(&scene, 2) &&
	   step(&scene, OUTBOX_TXN_COMMIT) == OUTBOX_OK, "a transaction");
	rd_kafka_mock_broker_set_rtt(scene.mock.cluster, 1, RTT_MS);
	check_two(&scene);
	check_silent(&scene);
	check_one(&scene);
	check_bookmark(&scene);
	ok(T.close(scene.client, 5000), "closed");
	mock_end(&scene.mock);
}
