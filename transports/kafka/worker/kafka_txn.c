/*-------------------------------------------------------------------------
 *
 * kafka_txn.c
 *	  Transactions of the Kafka worker transport.
 *
 * librdkafka's calls go on in the background when their time is over, and are
 * resumed by calling them again, so none of them holds the relay up for long.
 * A record that fails makes the transaction one that can only be aborted; that
 * also takes the place of the gapless guarantee.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Is it that a later instance took over? */
bool
kafka_is_fenced(rd_kafka_resp_err_t err)
{
	return err == RD_KAFKA_RESP_ERR__FENCED ||
		err == RD_KAFKA_RESP_ERR_PRODUCER_FENCED ||
		err == RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
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
	if (client->transactional_id != NULL &&
		rd_kafka_conf_set(conf, "transactional.id", config->transactional_id,
						  errstr, sizeof(errstr)) == RD_KAFKA_CONF_OK &&
		rd_kafka_conf_set(conf, "transaction.timeout.ms", timeout,
						  errstr, sizeof(errstr)) == RD_KAFKA_CONF_OK)
		return true;
	kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__INVALID_ARG,
					"librdkafka refuses the settings of transactions");
	return false;
}

static OutboxFailure
set_error(OutboxClient *client, OutboxError *error, OutboxFailure failure,
		  rd_kafka_resp_err_t err, const char *text)
{
	char		scrubbed[sizeof(error->text)];

	snprintf(scrubbed, sizeof(scrubbed), "%s", text);
	kafka_scrub(client, scrubbed, sizeof(scrubbed));
	kafka_error_set(error, failure, err, scrubbed);
	if (err == RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
		snprintf(error->hint, sizeof(error->hint),
				 "Grant this user Describe and Write on transactional id \"%.150s\".",
				 client->transactional_id);
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

/* See transport.h. */
OutboxFailure
kafka_transaction(OutboxClient *client, OutboxTxnStep step, int timeout_ms,
				  OutboxError *error)
{
	rd_kafka_error_t *cause = NULL;
	OutboxFailure failure;

	switch (step)
	{
		case OUTBOX_TXN_INIT:
			cause = rd_kafka_init_transactions(client->rk, timeout_ms);
			break;
		case OUTBOX_TXN_BEGIN:
			client->bookmark_err = RD_KAFKA_RESP_ERR_NO_ERROR;
			cause = rd_kafka_begin_transaction(client->rk);
			break;
		case OUTBOX_TXN_COMMIT:
			cause = rd_kafka_commit_transaction(client->rk, timeout_ms);
			break;
		case OUTBOX_TXN_ABORT:
			cause = rd_kafka_abort_transaction(client->rk, timeout_ms);
			break;
	}
	/* commit and abort have called back for the reports that were left */
	if (client->reports_first < client->reports_end)
		kafka_wake(client);
	if (cause == NULL)
		return OUTBOX_OK;
	failure = failure_of(client, cause);
	if (failure == OUTBOX_ABORT && client->bookmark_err != RD_KAFKA_RESP_ERR_NO_ERROR)
		kafka_bookmark_error(client, error, failure, client->bookmark_err);
	else
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
	cause = rd_kafka_produceva(client->rk, args, sizeof(args) / sizeof(args[0]));
	if (cause == NULL)
		return OUTBOX_OK;
	failure = failure_of(client, cause);
	if (failure == OUTBOX_FATAL && !rd_kafka_error_is_fatal(cause))
		failure = OUTBOX_ABORT;
	if (failure == OUTBOX_ABORT)
		kafka_bookmark_error(client, error, failure, rd_kafka_error_code(cause));
	else
		set_error(client, error, failure, rd_kafka_error_code(cause),
				  rd_kafka_error_string(cause));
	rd_kafka_error_destroy(cause);
	return failure;
}
