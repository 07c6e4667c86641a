/*-------------------------------------------------------------------------
 *
 * kafka_list.c
 *	  The topics that a consumer asked for, and their partitions.
 *
 * Matched here as the library does it for the group, by the same expressions,
 * since it tells only of those that the group gives to this member.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka_source.h"

#include <regex.h>
#include <stdlib.h>
#include <string.h>

#define LIST_TIMEOUT_MS		5000

/* Keep what is asked for; false: no memory. */
bool
kafka_topics_ask(OutboxConsumer *consumer, const OutboxSourceConfig *config)
{
	consumer->topics = calloc(config->ntopics, sizeof(char *));
	for (int i = 0; i < config->ntopics && consumer->topics != NULL; i++)
	{
		/* no topic has a longer name */
		if (strlen(config->topics[i]) > KAFKA_MAX_PATTERN)
			continue;
		consumer->topics[consumer->ntopics] = strdup(config->topics[i]);
		if (consumer->topics[consumer->ntopics++] == NULL)
			return false;
	}
	return consumer->topics != NULL;
}

/*
 * A pattern of ours as a regular expression; a name stays one.  False: it is a
 * name.
 */
bool
kafka_topic_expression(const char *topic, char expression[KAFKA_MAX_EXPRESSION])
{
	char	   *to = expression;

	if (strchr(topic, '*') == NULL)
		return false;
	*to++ = '^';
	for (const char *c = topic; *c != '\0'; c++)
	{
		if (*c == '*')
			*to++ = '.';
		else if (strchr(".^$+?()[]{}|\\", *c) != NULL)
			*to++ = '\\';
		*to++ = *c;
	}
	*to++ = '$';
	*to = '\0';
	return true;
}

static bool
matches(const char *expression, const char *topic)
{
	regex_t		compiled;
	bool		found;

	if (regcomp(&compiled, expression, REG_EXTENDED | REG_NOSUB) != 0)
		return false;
	found = regexec(&compiled, topic, 0, NULL, 0) == 0;
	regfree(&compiled);
	return found;
}

static bool
is_asked_for(const OutboxConsumer *consumer, const char *topic)
{
	for (int i = 0; i < consumer->ntopics; i++)
	{
		char		expression[KAFKA_MAX_EXPRESSION];

		if (strcmp(consumer->topics[i], topic) == 0)
			return true;
		if (kafka_topic_expression(consumer->topics[i], expression) &&
			matches(expression, topic) && !matches(KAFKA_INTERNAL_TOPICS, topic))
			return true;
	}
	return false;
}

/* What is in there, as one answer; NULL: no memory. */
static KafkaEvent *
from_metadata(const OutboxConsumer *consumer, const rd_kafka_metadata_t *metadata)
{
	KafkaPartition *partitions;
	KafkaEvent *answer;
	int			most = 0;
	int			n = 0;

	for (int i = 0; i < metadata->topic_cnt; i++)
		most += metadata->topics[i].partition_cnt;
	partitions = calloc(most + 1, sizeof(KafkaPartition));
	if (partitions == NULL)
		return NULL;
	for (int i = 0; i < metadata->topic_cnt; i++)
	{
		const rd_kafka_metadata_topic_t *topic = &metadata->topics[i];

		if (topic->partition_cnt == 0 || !is_asked_for(consumer, topic->topic))
			continue;
		for (int j = 0; j < topic->partition_cnt; j++)
		{
			partitions[n].topic = topic->topic;
			partitions[n].partition = topic->partitions[j].id;
			partitions[n++].position = -1;
		}
	}
	answer = kafka_event_new(OUTBOX_SOURCE_ASSIGN, partitions, n);
	free(partitions);
	return answer;
}

/* Ask the brokers; blocks, so it is for the finder's thread. */
rd_kafka_resp_err_t
kafka_list_ask(OutboxConsumer *consumer, KafkaEvent **answer)
{
	const struct rd_kafka_metadata *metadata;
	rd_kafka_resp_err_t err = rd_kafka_metadata(consumer->client.rk, 1, NULL, &metadata,
												LIST_TIMEOUT_MS);

	*answer = NULL;
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return err;
	*answer = from_metadata(consumer, metadata);
	rd_kafka_metadata_destroy(metadata);
	return *answer != NULL ? RD_KAFKA_RESP_ERR_NO_ERROR : RD_KAFKA_RESP_ERR__FAIL;
}
