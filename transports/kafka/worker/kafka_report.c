/*-------------------------------------------------------------------------
 *
 * kafka_report.c
 *	  What comes back: delivery reports, errors, the state of connections.
 *
 * Failures are told apart by librdkafka's error codes, never by its texts.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PURGE_EVERY_MS			100

/* An older CONFIG error than this gives way to later ones. */
#define CONFIG_ERROR_STICKS_MS	90000

/* Is this thread's broker connected?  Each broker has a thread of its own. */
static __thread bool this_broker_up;

/* Broker thread.  A connection counts once it is authenticated. */
static rd_kafka_resp_err_t
broker_state_changed(rd_kafka_t *rk, int32_t broker_id, const char *secproto,
					 const char *name, int port, const char *state,
					 void *opaque)
{
	OutboxClient *client = opaque;
	bool		up = strcmp(state, "UP") == 0 || strcmp(state, "UPDATE") == 0;

	(void) rk;
	(void) broker_id;
	(void) secproto;
	if (up == this_broker_up || name == NULL || name[0] == '\0' || port == 0)
		return RD_KAFKA_RESP_ERR_NO_ERROR;	/* librdkafka's internal broker */
	this_broker_up = up;
	if (up)
		atomic_store(&client->was_up, true);
	atomic_fetch_add(&client->brokers_up, up ? 1 : -1);
	kafka_wake(client);
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* The interceptor that rd_kafka_new() calls to install the one above. */
rd_kafka_resp_err_t
kafka_watch_brokers(rd_kafka_t *rk, const rd_kafka_conf_t *conf, void *opaque,
					char *errstr, size_t errstr_size)
{
	(void) conf;
	(void) errstr;
	(void) errstr_size;
	return rd_kafka_interceptor_add_on_broker_state_change(rk, "pg_outbox",
														   broker_state_changed,
														   opaque);
}

/* What a person can do about it, or "". */
static const char *
hint_for(OutboxFailure failure, rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
		case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM:
		case RD_KAFKA_RESP_ERR_ILLEGAL_SASL_STATE:
			return "Check sasl.mechanism, and sasl.username and sasl.password of the user mapping.";
		case RD_KAFKA_RESP_ERR__SSL:
			return "Check security.protocol, the broker's certificate and the ssl options.";
		case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
			return "Grant this user Write on its topics or IdempotentWrite on the cluster.";
		case RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE:
			return "The brokers must support idempotent producers (Kafka 0.11 or newer).";
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			return "Grant this user Write and Describe on the topic.";
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
			return "Create the topic.";
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			return "Add partitions to the topic, or publish to one that it has.";
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
			return "Raise the topic's max.message.bytes, or message.max.bytes of the server.";
		case RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT:
			return "Raise transaction.max.timeout.ms of the brokers to 60000 or more.";
		case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
		case RD_KAFKA_RESP_ERR__RESOLVE:
		case RD_KAFKA_RESP_ERR__TRANSPORT:
			return "Check bootstrap.servers, security.protocol and that the brokers run.";
		default:
			break;
	}
	return failure == OUTBOX_CONFIG ? "Check the options of the server and its user mapping." : "";
}

/* Fill *error; text NULL: the library's text of the code. */
OutboxFailure
kafka_error_set(OutboxError *error, OutboxFailure failure,
				rd_kafka_resp_err_t err, const char *text)
{
	if (error == NULL)
		return failure;
	if (text == NULL || text[0] == '\0')
		text = rd_kafka_err2str(err);
	error->failure = failure;
	snprintf(error->name, sizeof(error->name), "%s", rd_kafka_err2name(err));
	snprintf(error->text, sizeof(error->text), "%s", text);
	snprintf(error->hint, sizeof(error->hint), "%s", hint_for(failure, err));
	return failure;
}

/* Errors that only new options or grants can mend. */
bool
kafka_is_config_error(rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR__AUTHENTICATION:
		case RD_KAFKA_RESP_ERR__SSL:
		case RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE:
		case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM:
		case RD_KAFKA_RESP_ERR_ILLEGAL_SASL_STATE:
		case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE:
		case RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS:
		case RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT:
			return true;
		default:
			return false;
	}
}

static bool
is_size_error(rd_kafka_resp_err_t err)
{
	return err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE ||
		err == RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE;
}

/* The broker refused the batch for what is in one of its records. */
static bool
is_record_error(rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_INVALID_MSG:
		case RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE:
		case RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP:
		case RD_KAFKA_RESP_ERR_INVALID_RECORD:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT:
			return true;
		default:
			return false;
	}
}

/* Codes that say nothing about the record or its topic. */
static bool
is_undecided(rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER:
		case RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER:
		case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH:
		case RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID:
		case RD_KAFKA_RESP_ERR_INVALID_TXN_STATE:
		case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING:
		case RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS:
		case RD_KAFKA_RESP_ERR_TRANSACTION_COORDINATOR_FENCED:
		case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
			return true;
		default:
			return err < RD_KAFKA_RESP_ERR_UNKNOWN; /* the library's own */
	}
}

/*
 * The class of a failed report.  The gapless client is fatal as soon as a
 * broker refuses a batch, before its reports are queued; so an error without
 * a fatal state comes from the topic's metadata (or from a careful client).
 */
static OutboxFailure
classify(OutboxClient *client, const rd_kafka_message_t *message)
{
	rd_kafka_resp_err_t err = message->err;
	bool		fatal = rd_kafka_fatal_error(client->rk, NULL, 0) != 0;
	const char *name = rd_kafka_topic_name(message->rkt);

	switch (err)
	{
		case RD_KAFKA_RESP_ERR__PURGE_QUEUE:
		case RD_KAFKA_RESP_ERR__PURGE_INFLIGHT:
		case RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE:
		case RD_KAFKA_RESP_ERR__FATAL:
			return OUTBOX_PURGED;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
			return OUTBOX_TOPIC;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			if (fatal || client->careful || client->transactional)
				kafka_verdict_add(name, err);	/* not seen in metadata */
			return OUTBOX_TOPIC;
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
			kafka_verdict_add(name, err);
			return OUTBOX_DEAD;
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			if (message->partition < 0)
				return OUTBOX_PURGED;	/* see kafka_first.c */
			return kafka_partition_missing(client,
										   kafka_topic_find(client, name),
										   message->partition)
				? OUTBOX_DEAD : OUTBOX_TOPIC;
		default:
			break;
	}
	if (is_record_error(err) && client->careful)
	{
		if (is_size_error(err))
			kafka_config_record_refused();
		return OUTBOX_DEAD;
	}
	if (is_record_error(err))
		return OUTBOX_SUSPECT;
	if (kafka_is_config_error(err))
	{
		client->refused_config = true;
		return OUTBOX_PURGED;
	}
	if (client->transactional && is_undecided(err))
		return OUTBOX_PURGED;	/* the transaction is aborted */
	if (fatal || client->purging)
		return is_undecided(err) || client->purging ? OUTBOX_PURGED
			: OUTBOX_SUSPECT;
	return OUTBOX_TOPIC;
}

/*
 * A batch of several records was refused as too large: tell the configuration,
 * once a client.  All of a batch are reported together.
 */
static void
note_too_large(OutboxClient *client, const rd_kafka_message_t *message)
{
	bool		several = client->too_large_topic == message->rkt &&
		client->too_large_partition == message->partition;

	if (several && !client->too_large_noted)
	{
		client->too_large_noted = true;
		kafka_config_batch_refused(client);
	}
	client->too_large_topic = message->rkt;
	client->too_large_partition = message->partition;
}

/*
 * The library's delivery report callback.  It frees the record right after, so
 * that the record's memory is touched once; what the relay needs to know is
 * kept for poll().  There is room, see kafka_reports_reserve().
 */
void
kafka_delivered(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	OutboxClient *client = opaque;
	OutboxReport *report;

	(void) rk;
	/* see kafka_txn.c about aborts */
	if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR &&
		rd_kafka_message_status(message) != RD_KAFKA_MSG_STATUS_NOT_PERSISTED)
		client->unsure = true;
	if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR &&
		message->err != RD_KAFKA_RESP_ERR__PURGE_QUEUE)
		client->explained = true;
	if (client->transactional && message->_private == NULL)
	{
		/* a bookmark; when it failed, so has the transaction, or the other way round */
		if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
			client->bookmark_stored = true;
		else if (message->err != RD_KAFKA_RESP_ERR__PURGE_QUEUE)
			client->bookmark_err = message->err;
		return;
	}
	kafka_first_reported(client, message);
	if (client->transactional && message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		kafka_blame_stored(client, message);
	report = &client->reports[client->reports_end++];
	report->tag = kafka_sent_detach(message);
	if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		report->failure = OUTBOX_OK;
		report->name = "";
		report->text = NULL;
		if (kafka_verdicts_any())
			kafka_verdict_lift(rd_kafka_topic_name(message->rkt));
		return;
	}
	if (is_size_error(message->err))
		note_too_large(client, message);
	report->failure = classify(client, message);
	report->name = rd_kafka_err2name(message->err); /* both are static */
	report->text = rd_kafka_err2str(message->err);
	client->failure_ahead = true;
}

/*
 * Make sure that every accepted record, and one more, has room for its report.
 * False when there is no memory.
 */
bool
kafka_reports_reserve(OutboxClient *client)
{
	size_t		size = client->reports_size ? client->reports_size * 2 : 1024;
	OutboxReport *grown;

	if (client->reports_first + client->accepted < client->reports_size)
		return true;
	grown = realloc(client->reports, size * sizeof(OutboxReport));
	if (grown == NULL)
		return false;
	client->reports = grown;
	client->reports_size = size;
	return true;
}

/* Take in an error of the client as a whole: fatal, or status only. */
static void
note_error(OutboxClient *client, rd_kafka_resp_err_t err, const char *errstr)
{
	char		text[512];
	OutboxFailure failure = OUTBOX_RETRY;
	int64_t		now = thread_now_ms();

	snprintf(text, sizeof(text), "%s", errstr ? errstr : "");
	kafka_scrub(client, text, sizeof(text));
	if (kafka_is_config_error(err))
		failure = OUTBOX_CONFIG;

	/* "Connection lost" follows each refused password: keep the cause. */
	if (failure == OUTBOX_RETRY && client->error.failure == OUTBOX_CONFIG &&
		atomic_load(&client->brokers_up) == 0 &&
		now - client->config_error_ms < CONFIG_ERROR_STICKS_MS)
		return;
	if (failure == OUTBOX_CONFIG)
		client->config_error_ms = now;
	kafka_error_set(&client->error, failure, err, text);
	kafka_txn_hint(client, err, &client->error);
	client->nerrors++;
}

/*
 * Has the client given up?  Not news when purge() was what broke it: of what is in
 * flight, or of a request that was made and not written yet.
 */
static void
check_fatal(OutboxClient *client)
{
	char		text[512] = "";
	rd_kafka_resp_err_t err = rd_kafka_fatal_error(client->rk, text,
												   sizeof(text));
	OutboxFailure failure;

	if (err == RD_KAFKA_RESP_ERR_NO_ERROR || client->purging ||
		(client->draining && err == RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE))
		return;
	failure = kafka_is_fenced(err) ? OUTBOX_FENCED
		: kafka_is_config_error(err) || client->refused_config
		? OUTBOX_CONFIG : OUTBOX_FATAL;
	if (client->failed && client->error.failure == failure)
		return;
	client->failed = true;
	kafka_scrub(client, text, sizeof(text));
	kafka_error_set(&client->error, failure, err, text);
	kafka_txn_hint(client, err, &client->error);
	client->nerrors++;
}

/* The library's error callback; in the main thread, as all others. */
void
kafka_failed(rd_kafka_t *rk, int err, const char *reason, void *opaque)
{
	OutboxClient *client = opaque;

	(void) rk;
	if (kafka_is_step_thread())
		return;
	if (err == RD_KAFKA_RESP_ERR__FATAL)
		check_fatal(client);
	else if (!client->failed)
		note_error(client, err, reason);
}

/* The library's log callback; it may log when the option "debug" is set. */
void
kafka_logged(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
	OutboxClient *client = rk == NULL ? NULL : rd_kafka_opaque(rk);
	char		line[1024];

	if (client == NULL || !client->debug || kafka_is_step_thread())
		return;
	snprintf(line, sizeof(line), "%s", text);
	kafka_scrub(client, line, sizeof(line));
	kafka_log_line(level, facility, line);
}

/* Have the library call back for all that it has. */
static void
serve(OutboxClient *client)
{
	(void) rd_kafka_queue_poll_callback(client->queue, 0);
	client->drained_tick = thread_now_ms();
}

/*
 * Take in what has arrived, to learn whether a failure is among it (see
 * kafka_send.c).  The eventfd is left readable for poll().
 */
void
kafka_look_ahead(OutboxClient *client)
{
	serve(client);
	if (client->reports_first < client->reports_end)
		kafka_wake(client);
}

/*
 * A client that has failed sends nothing more, but what was in flight and has
 * to be tried again goes back to its queue all the same, and would stay there:
 * a request of a refused batch's partition, or of a broker that went away.  So
 * the queue is purged again and again.  (A client that has not failed sends it
 * again under its old sequence number, which makes no duplicates.)
 */
static void
purge_returned(OutboxClient *client)
{
	if (client->accepted > 0 &&
		thread_now_ms() - client->purged_ms >= PURGE_EVERY_MS &&
		(client->purging || rd_kafka_fatal_error(client->rk, NULL, 0) != 0))
		kafka_purge_queues(client);
}

/* See transport.h. */
int
kafka_poll(OutboxClient *client, OutboxReport *reports, int max)
{
	uint64_t	counter;
	size_t		n;

	while (read(client->fd, &counter, sizeof(counter)) < 0 && errno == EINTR)
		;
	if (client->draining)
		purge_returned(client);
	if (client->reports_first == client->reports_end)
		serve(client);
	n = client->reports_end - client->reports_first;
	if (n > (size_t) max)
	{
		n = max;
		kafka_wake(client);		/* there is more */
	}
	if (n > 0)
		memcpy(reports, client->reports + client->reports_first, n * sizeof(OutboxReport));
	client->accepted -= n;
	client->reports_first += n;
	kafka_sent_back(client, reports, n);
	if (client->reports_first == client->reports_end)
	{
		client->reports_first = client->reports_end = 0;
		client->failure_ahead = false;
	}
	return (int) n;
}

/* See transport.h. */
void
kafka_status(OutboxClient *client, OutboxTransportStatus *status)
{
	check_fatal(client);
	if (!client->failed && kafka_first_is_forgotten(client))
	{
		client->failed = true;
		kafka_error_set(&client->error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__TIMED_OUT,
						"brokers may have forgotten a client that waited for answers for so long");
		client->nerrors++;
	}
	*status = (OutboxTransportStatus) {
		.connected = atomic_load(&client->brokers_up) > 0,
		.was_connected = atomic_load(&client->was_up),
		.failed = client->failed,
		.nerrors = client->nerrors,
		.error = client->error,
	};
}
