/*-------------------------------------------------------------------------
 *
 * kafka_source_error.c
 *	  What the errors of a consumer mean, and what a person can do.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka_source.h"

#include <stdio.h>

/* What a failure of consumers means. */
OutboxFailure
kafka_source_class(rd_kafka_resp_err_t err)
{
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
			return OUTBOX_TOPIC;
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_INVALID_GROUP_ID:
		case RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL:
		case RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT:
			return OUTBOX_CONFIG;
		case RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION:
		case RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID:
		case RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID:
		case RD_KAFKA_RESP_ERR__ASSIGNMENT_LOST:
			return OUTBOX_FENCED;
		default:
			return kafka_is_config_error(err) ? OUTBOX_CONFIG : OUTBOX_RETRY;
	}
}

/* What a person can do, where it is not what it is for producers. */
static void
set_hint(OutboxConsumer *consumer, OutboxError *error, rd_kafka_resp_err_t err,
		 const char *topic)
{
	char		quoted[160] = "the topic";

	if (topic != NULL && topic[0] != '\0')
		snprintf(quoted, sizeof(quoted), "topic \"%.140s\"", topic);
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
			snprintf(error->hint, sizeof(error->hint),
					 "Grant this user Read on group \"%.180s\".", consumer->group_id);
			break;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
			snprintf(error->hint, sizeof(error->hint),
					 "Grant this user Read and Describe on %s.", quoted);
			break;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
			/* a pattern, as the library has it */
			if (topic != NULL && topic[0] == '^')
				snprintf(error->hint, sizeof(error->hint), "No topic matches the pattern yet.");
			else
				snprintf(error->hint, sizeof(error->hint), "Create %s.", quoted);
			break;
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			snprintf(error->hint, sizeof(error->hint),
					 "Check the partitions of %s.", quoted);
			break;
		case RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL:
			snprintf(error->hint, sizeof(error->hint),
					 "Group \"%.120s\" has members that share partitions in another way: choose another group.",
					 consumer->group_id);
			break;
		case RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT:
			snprintf(error->hint, sizeof(error->hint),
					 "The brokers' group.min.session.timeout.ms to group.max.session.timeout.ms must allow 10 seconds.");
			break;
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR__BAD_MSG:
			snprintf(error->hint, sizeof(error->hint),
					 "Raise receive.message.max.bytes of the server.");
			break;
		case RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE:
			error->hint[0] = '\0';	/* speaks of producers */
			break;
		default:
			break;
	}
}

/* Fill *error; topic and text may be NULL. */
OutboxFailure
kafka_source_error(OutboxConsumer *consumer, OutboxError *error,
				   rd_kafka_resp_err_t err, const char *topic, const char *text)
{
	char		safe[512];

	snprintf(safe, sizeof(safe), "%s", text != NULL && text[0] != '\0'
			 ? text : rd_kafka_err2str(err));
	kafka_scrub(&consumer->client, safe, sizeof(safe));
	kafka_error_set(error, kafka_source_class(err), err, safe);
	set_hint(consumer, error, err, topic);
	return error->failure;
}

/* An error for status(). */
void
kafka_source_note(OutboxConsumer *consumer, rd_kafka_resp_err_t err,
				  const char *topic, const char *text)
{
	if (consumer->client.failed)
		return;
	kafka_source_error(consumer, &consumer->client.error, err, topic, text);
	consumer->client.nerrors++;
}

/* Something can't be told any more: this consumer is of no more use. */
void
kafka_source_no_memory(OutboxConsumer *consumer)
{
	consumer->client.failed = true;
	consumer->client.nerrors++;
	kafka_error_set(&consumer->client.error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__FAIL,
					"out of memory");
}
