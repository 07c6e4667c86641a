/*-------------------------------------------------------------------------
 *
 * kafka_txn.c
 *	  Transactions of the Kafka worker transport.
 *
 * A record that fails makes the transaction one that can only be aborted; that
 * also takes the place of the gapless guarantee.
 *
 * librdkafka's calls wait for answers, up to a time of day: when the clock is set
 * back meanwhile, for longer by that.  So each of those that ask a broker is made
 * in a thread, and the main thread is free to see that, and to give the client up.
 *
 * Abort.  A message whose request's answer was lost with the connection is in its
 * queue again, though a broker may have appended it.  The library throws away what is
 * queued when a transaction is aborted, and also by itself when a record's refusal
 * makes it one that can only be; and then gives those sequence numbers to the next
 * messages (2.0.2 and 2.14.2: ADVBASE in its debug log).  The broker takes these for
 * the ones it has: they are acknowledged, and lost.  So an abort waits for all
 * answers, the bookmark's too.  Where they don't come, or one that failed may have
 * been written, the client is given up, and the next one's INIT aborts, with a new
 * epoch, in which numbers begin anew.
 *
 * Commit.  A call that is resumed begins with a step of its own.  Should that
 * one's time be over too, the library (seen with 2.0.2) forgets that a commit is
 * under way, takes the coordinator's answer for that of an abort, and stops the
 * process by an assertion, and with it the cluster.  So a commit is called once,
 * and waits as long as it takes, up to COMMIT_TIMEOUT_MS.  One that
 * is not decided then is not asked about again: the client is given up, and the
 * next one's INIT settles what became of it.
 *
 * The thread must find nothing to call back for, since the relay's structures
 * are the main thread's: it starts when all is reported, the bookmark too, and
 * nothing is sent while it runs.  An error or a log line that comes meanwhile may
 * reach either thread, and is dropped by this one (kafka_is_step_thread); a
 * fatal error is seen by status() in any case.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMMIT_TIMEOUT_MS	4000	/* less than the relay waits for close() */
#define STEP_TIMEOUT_MS		1000	/* of the others, which are called again */
#define BOOKMARK_SILENT_MS	10000	/* for answers, before the client is given up */

/* A step under way. */
typedef struct KafkaStep
{
	OutboxTxnStep which;
	pthread_t	thread;
	bool		runs;
	atomic_bool done;
	rd_kafka_error_t *cause;	/* of its failure; once it is done */
	int64_t		asked_ms;		/* since when an end waits for answers; 0: it does
								 * not */
} KafkaStep;

static __thread bool step_thread;

/* Is it that a later instance took over? */
bool
kafka_is_fenced(rd_kafka_resp_err_t err)
{
	return err == RD_KAFKA_RESP_ERR__FENCED ||
		err == RD_KAFKA_RESP_ERR_PRODUCER_FENCED ||
		err == RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
}

/*
 * What a failed bookmark means.  Aborting helps where its topic will take the next
 * one.  A topic that was deleted is made by the next client, when it reads it.
 */
static OutboxFailure
bookmark_failure(rd_kafka_resp_err_t err)
{
	if (err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
		err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
		err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION)
		return OUTBOX_FATAL;
	return OUTBOX_ABORT;
}

/* Properties of a transactional client; all others are as without. */
bool
kafka_txn_configure(OutboxClient *client, rd_kafka_conf_t *conf,
					const OutboxTransportConfig *config, OutboxError *error)
{
	char		errstr[256];
	char		timeout[16];

	snprintf(timeout, sizeof(timeout), "%d", KAFKA_TRANSACTION_MS);
	client->transactional = true;
	free(client->transactional_id);
	client->transactional_id = strdup(config->transactional_id);
	if (client->step == NULL)
		client->step = calloc(1, sizeof(KafkaStep));
	if (client->transactional_id != NULL && client->step != NULL &&
		rd_kafka_conf_set(conf, "transactional.id", config->transactional_id,
						  errstr, sizeof(errstr)) == RD_KAFKA_CONF_OK &&
		rd_kafka_conf_set(conf, "transaction.timeout.ms", timeout,
						  errstr, sizeof(errstr)) == RD_KAFKA_CONF_OK)
		return true;
	kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__INVALID_ARG,
					"librdkafka refuses the settings of transactions");
	return false;
}

/* The hint of an error that is the transactional id's. */
void
kafka_txn_hint(OutboxClient *client, rd_kafka_resp_err_t err, OutboxError *error)
{
	if (err == RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
		snprintf(error->hint, sizeof(error->hint),
				 "Grant this user Describe and Write on transactional id \"%.150s\".",
				 client->transactional_id);
}

static OutboxFailure
set_error(OutboxClient *client, OutboxError *error, OutboxFailure failure,
		  rd_kafka_resp_err_t err, const char *text)
{
	char		scrubbed[sizeof(error->text)];

	snprintf(scrubbed, sizeof(scrubbed), "%s", text);
	kafka_scrub(client, scrubbed, sizeof(scrubbed));
	kafka_error_set(error, failure, err, scrubbed);
	kafka_txn_hint(client, err, error);
	return failure;
}

/* What a call's error means. */
static OutboxFailure
failure_of(OutboxClient *client, const rd_kafka_error_t *cause)
{
	rd_kafka_resp_err_t err = rd_kafka_error_code(cause);

	if (kafka_is_fenced(err) || kafka_is_fenced(rd_kafka_fatal_error(client->rk, NULL, 0)))
		return OUTBOX_FENCED;
	if (kafka_is_config_error(err))
		return OUTBOX_CONFIG;
	if (rd_kafka_error_txn_requires_abort(cause))
		return OUTBOX_ABORT;
	if (rd_kafka_error_is_fatal(cause))
		return OUTBOX_FATAL;
	if (rd_kafka_error_is_retriable(cause) || err == RD_KAFKA_RESP_ERR__TIMED_OUT ||
		err == RD_KAFKA_RESP_ERR__CONFLICT || err == RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS)
		return OUTBOX_RETRY;
	return OUTBOX_FATAL;
}

bool
kafka_is_step_thread(void)
{
	return step_thread;
}

static void *
step_main(void *arg)
{
	OutboxClient *client = arg;
	KafkaStep  *step = client->step;

	step_thread = true;
	switch (step->which)
	{
		case OUTBOX_TXN_INIT:
			step->cause = rd_kafka_init_transactions(client->rk, STEP_TIMEOUT_MS);
			break;
		case OUTBOX_TXN_COMMIT:
			step->cause = rd_kafka_commit_transaction(client->rk, COMMIT_TIMEOUT_MS);
			break;
		case OUTBOX_TXN_ABORT:
			step->cause = rd_kafka_abort_transaction(client->rk, STEP_TIMEOUT_MS);
			break;
		case OUTBOX_TXN_BEGIN:
			break;				/* asks nobody */
	}
	atomic_store(&step->done, true);
	kafka_wake(client);
	return NULL;
}

/* Wait for the thread, where there is one. */
void
kafka_step_stop(OutboxClient *client)
{
	KafkaStep  *step = client->step;

	if (step == NULL || !step->runs)
		return;
	pthread_join(step->thread, NULL);
	step->runs = false;
}

void
kafka_step_free(OutboxClient *client)
{
	if (client->step != NULL && client->step->cause != NULL)
		rd_kafka_error_destroy(client->step->cause);
	free(client->step);
}

/* Is all answered, the bookmark too?  OK, RETRY, or CONFIG when it takes too long. */
static OutboxFailure
await_answers(OutboxClient *client, OutboxError *error)
{
	KafkaStep  *step = client->step;

	if (step->asked_ms == 0)
		step->asked_ms = thread_now_ms();
	kafka_look_ahead(client);
	if (rd_kafka_outq_len(client->rk) > 0)
	{
		if (thread_now_ms() - step->asked_ms < BOOKMARK_SILENT_MS)
			return OUTBOX_RETRY;
		kafka_bookmark_error(client, error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__TIMED_OUT);
		return OUTBOX_CONFIG;
	}
	step->asked_ms = 0;
	return OUTBOX_OK;
}

/*
 * Before an abort that no report explains: what has made the library want one?  Nothing
 * tells that and leaves the transaction as it is but this: to begin another one, which
 * is refused with the same error.  ABORT with *error set, once, when there is something
 * to tell.
 */
static OutboxFailure
ask_why(OutboxClient *client, OutboxError *error)
{
	OutboxFailure failure = OUTBOX_OK;
	rd_kafka_resp_err_t err;
	rd_kafka_error_t *cause;

	if (client->explained)
		return OUTBOX_OK;
	client->explained = true;
	cause = rd_kafka_begin_transaction(client->rk);
	err = rd_kafka_error_code(cause);
	if (rd_kafka_error_txn_requires_abort(cause))
		failure = kafka_blame(client, err, error);
	if (failure == OUTBOX_OK && rd_kafka_error_txn_requires_abort(cause))
	{
		failure = set_error(client, error, OUTBOX_ABORT, err, rd_kafka_error_string(cause));
		error->hint[0] = '\0'; /* often it is dealt with already */
	}
	rd_kafka_error_destroy(cause);
	if (failure != OUTBOX_ABORT)
		return OUTBOX_OK;
	kafka_wake(client);
	return OUTBOX_ABORT;
}

/* Start a step, when its time has come; RETRY: it is under way, or has to wait. */
static OutboxFailure
step_start(OutboxClient *client, OutboxTxnStep which, OutboxError *error)
{
	KafkaStep  *step = client->step;
	OutboxFailure failure = which == OUTBOX_TXN_INIT ? OUTBOX_OK : await_answers(client, error);
	sigset_t	saved;
	int			failed;

	if (failure == OUTBOX_OK && which == OUTBOX_TXN_ABORT)
		failure = ask_why(client, error);
	if (failure != OUTBOX_OK)
		return failure;
	if (which == OUTBOX_TXN_ABORT && client->unsure)
		return set_error(client, error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__PURGE_QUEUE,
						 "the connection was lost while a transaction failed");
	step->which = which;
	atomic_store(&step->done, false);
	kafka_block_signals(&saved);
	failed = pthread_create(&step->thread, NULL, step_main, client);
	kafka_restore_signals(&saved);
	if (failed)
		return set_error(client, error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__FAIL,
						 "could not start a thread");
	step->runs = true;
	return OUTBOX_RETRY;
}

/* Have a step taken; OK: it has been, *cause says how it went. */
static OutboxFailure
step_take(OutboxClient *client, OutboxTxnStep which, rd_kafka_error_t **cause,
		  OutboxError *error)
{
	KafkaStep  *step = client->step;

	if (!step->runs)
		return step_start(client, which, error);
	if (!atomic_load(&step->done))
		return OUTBOX_RETRY;
	kafka_step_stop(client);
	*cause = step->cause;
	step->cause = NULL;
	return OUTBOX_OK;
}

/* See transport.h. */
OutboxFailure
kafka_transaction(OutboxClient *client, OutboxTxnStep step, OutboxError *error)
{
	rd_kafka_error_t *cause = NULL;
	OutboxFailure failure = OUTBOX_OK;

	if (step != OUTBOX_TXN_BEGIN)
		failure = step_take(client, step, &cause, error);
	else
	{
		client->bookmark_err = RD_KAFKA_RESP_ERR_NO_ERROR;
		client->explained = false;
		kafka_blame_begin(client);
		cause = rd_kafka_begin_transaction(client->rk);
	}
	if (failure == OUTBOX_OK && cause == NULL && step == OUTBOX_TXN_ABORT)
		kafka_first_distrust_all(client);
	if (cause == NULL)
		return failure;
	failure = failure_of(client, cause);
	if (failure == OUTBOX_RETRY && step == OUTBOX_TXN_COMMIT)
		failure = OUTBOX_FATAL;
	if (failure == OUTBOX_RETRY && step == OUTBOX_TXN_INIT)
	{
		kafka_error_set(error, failure, rd_kafka_error_code(cause),
						"no coordinator of transactions has answered yet");
		snprintf(error->hint, sizeof(error->hint),
				 "Check that there are as many brokers as transaction.state.log.replication.factor says, and that topics written last have leaders and min.insync.replicas in sync.");
	}
	else if (failure == OUTBOX_ABORT && client->bookmark_err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		failure = bookmark_failure(client->bookmark_err);
		kafka_bookmark_error(client, error, failure, client->bookmark_err);
	}
	else if (failure != OUTBOX_ABORT ||
			 kafka_blame(client, rd_kafka_error_code(cause), error) != OUTBOX_ABORT)
		set_error(client, error, failure, rd_kafka_error_code(cause),
				  rd_kafka_error_string(cause));
	rd_kafka_error_destroy(cause);
	return failure;
}

/* See transport.h. */
OutboxFailure
kafka_bookmark_write(OutboxClient *client, const char *text, OutboxError *error)
{
	/* not before: a producer's interest in a topic may make brokers create it */
	KafkaTopic *topic = kafka_topic_get(client, client->bookmark_topic, error);
	rd_kafka_vu_t args[] = {
		{.vtype = RD_KAFKA_VTYPE_RKT, .u.rkt = topic ? topic->rkt : NULL},
		{.vtype = RD_KAFKA_VTYPE_PARTITION, .u.i32 = 0},
		{.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
		{.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {client->bookmark_key, strlen(client->bookmark_key)}},
		{.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {(void *) text, strlen(text)}},
	};
	rd_kafka_error_t *cause;
	OutboxFailure failure;

	if (topic == NULL)
		return OUTBOX_CONFIG;
	if (kafka_blame_has_to_wait(client, NULL))
		return OUTBOX_RETRY;
	cause = rd_kafka_produceva(client->rk, args, sizeof(args) / sizeof(args[0]));
	client->bookmark_sent = cause == NULL;
	if (cause == NULL)
		return OUTBOX_OK;
	failure = failure_of(client, cause);
	if (rd_kafka_error_code(cause) == RD_KAFKA_RESP_ERR__STATE)
	{
		/* it has failed already, which the abort will explain */
		failure = OUTBOX_ABORT;
		memset(error, 0, sizeof(*error));
	}
	else if (failure == OUTBOX_ABORT ||
			 (failure == OUTBOX_FATAL && !rd_kafka_error_is_fatal(cause)))
	{
		failure = bookmark_failure(rd_kafka_error_code(cause));
		kafka_bookmark_error(client, error, failure, rd_kafka_error_code(cause));
	}
	else
		set_error(client, error, failure, rd_kafka_error_code(cause),
				  rd_kafka_error_string(cause));
	rd_kafka_error_destroy(cause);
	return failure;
}

/* See transport.h. */
void
kafka_explain_silence(OutboxClient *client, OutboxError *error)
{
	kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__TIMED_OUT,
					"no answer to any message of a transaction");
	snprintf(error->hint, sizeof(error->hint),
			 "Check that the topics that are written, and \"%.120s\", have leaders and min.insync.replicas in sync.",
			 client->bookmark_topic);
}
