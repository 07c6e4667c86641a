/*-------------------------------------------------------------------------
 *
 * kafka_first.c
 *	  The first record of a partition goes ahead.
 *
 * A broker that knows nothing of a producer in a partition takes whatever
 * sequence number comes first.  So when the first batch of a client is refused
 * there, or has to be tried again, one that is on the wire behind it may be
 * stored; the library goes fatal then, as it should, and what was refused is sent
 * again, behind what it ought to precede.  Therefore a client has no more than one
 * record with a key on its way to a partition until one has been stored there.
 * From then on the broker refuses what does not follow.  It forgets a producer
 * that has not written for a day (producer.id.expiration.ms); so we don't trust it
 * for longer than an hour.
 *
 * Which partition a key leads to is the library's business, and is computed here
 * in the same way, from the count of partitions that a look-up tells.  While that
 * is not known the whole topic counts as one partition.  When it has changed, we
 * are wrong until the next look-up, about when to wait and nothing else.
 *
 * A careful client needs none of this, having one record on its way, nor does a
 * transaction, of which all is undone.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdlib.h>
#include <string.h>

#define TRUSTED_MS	(3600 * 1000)
#define NOTED_MS	(60 * 1000)

/* The library's partitioners of keys; "random" has no order. */
static const struct
{
	const char *name;
	KafkaPartitioner function;
	bool		empty_is_none;	/* an empty key is no key */
}			partitioners[] = {
	{"consistent", rd_kafka_msg_partitioner_consistent, false},
	{"consistent_random", rd_kafka_msg_partitioner_consistent_random, true},
	{"murmur2", rd_kafka_msg_partitioner_murmur2, false},
	{"murmur2_random", rd_kafka_msg_partitioner_murmur2_random, false},
	{"fnv1a", rd_kafka_msg_partitioner_fnv1a, false},
	{"fnv1a_random", rd_kafka_msg_partitioner_fnv1a_random, false},
};

/* How this client's keys are spread. */
void
kafka_first_configure(OutboxClient *client, const char *partitioner)
{
	client->partitioner = NULL;
	for (size_t i = 0; i < sizeof(partitioners) / sizeof(partitioners[0]); i++)
	{
		if (strcmp(partitioners[i].name, partitioner) != 0)
			continue;
		client->partitioner = partitioners[i].function;
		client->empty_key_is_none = partitioners[i].empty_is_none;
	}
}

/* Take over what a look-up has told, while nothing depends on what we had. */
static void
resize(KafkaTopic *topic)
{
	int			n = atomic_load(&topic->partitions);
	KafkaFirst *grown;

	if (n == topic->nfirsts || topic->npioneers > 0)
		return;
	grown = realloc(topic->firsts, n * sizeof(KafkaFirst));
	if (grown == NULL)
		return;
	if (n > topic->nfirsts)
		memset(grown + topic->nfirsts, 0, (n - topic->nfirsts) * sizeof(KafkaFirst));
	topic->firsts = grown;
	topic->nfirsts = n;
	topic->trusted_until = 0;
}

/* Where a record leads to; NULL: it has no order. */
static KafkaFirst *
first_of(OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record)
{
	int32_t		partition = record->partition;

	if (record->key == NULL ||
		(partition < 0 && (client->partitioner == NULL ||
						   (record->key_len == 0 && client->empty_key_is_none))))
		return NULL;
	if (topic->nfirsts == 0)
		return &topic->any;
	if (partition < 0)
		partition = client->partitioner(topic->rkt, record->key, record->key_len,
										topic->nfirsts, NULL, NULL);
	return partition < topic->nfirsts ? &topic->firsts[partition] : NULL;
}

static bool
is_trusted(const KafkaFirst *first)
{
	return first->stored != 0 && thread_now_ms() - first->stored < TRUSTED_MS;
}

/*
 * May this record go?  If so, *first is what it is a pioneer of, or NULL; see
 * kafka_first_sent().
 */
bool
kafka_first_allows(OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record,
				   KafkaFirst **first)
{
	*first = NULL;
	if (client->careful || client->transactional)
		return true;
	resize(topic);
	/* by far the most frequent case: no need to know where it leads to */
	if (thread_now_ms() < topic->trusted_until)
		return true;
	*first = first_of(client, topic, record);
	if (*first != NULL && is_trusted(*first))
		*first = NULL;
	return *first == NULL || (*first)->pioneer == NULL;
}

void
kafka_first_sent(OutboxClient *client, KafkaTopic *topic, KafkaFirst *first, KafkaSent *sent)
{
	if (first == NULL)
		return;
	first->pioneer = sent;
	topic->npioneers++;
	/* known by the time when it has been stored, at best */
	if (first == &topic->any)
		kafka_count_partitions(client, topic);
}

/* A record is not on its way any more. */
static void
forget_pioneer(KafkaTopic *topic, const rd_kafka_message_t *message)
{
	KafkaSent  *sent = message->_private;
	int32_t		partition = message->partition;
	KafkaFirst *first = NULL;

	if (topic->any.pioneer == sent)
		first = &topic->any;
	else if (partition >= 0 && partition < topic->nfirsts && topic->firsts[partition].pioneer == sent)
		first = &topic->firsts[partition];
	for (int i = 0; first == NULL && i < topic->nfirsts; i++)
		if (topic->firsts[i].pioneer == sent)
			first = &topic->firsts[i];	/* it went elsewhere */
	if (first == NULL)
		return;
	first->pioneer = NULL;
	topic->npioneers--;
}

/* Until when are all of its partitions trusted? */
static int64_t
trusted_until(const KafkaTopic *topic)
{
	int64_t		oldest = INT64_MAX - TRUSTED_MS;

	for (int i = 0; i < topic->nfirsts; i++)
	{
		if (topic->firsts[i].stored == 0)
			return 0;
		if (topic->firsts[i].stored < oldest)
			oldest = topic->firsts[i].stored;
	}
	return oldest + TRUSTED_MS;
}

/* The library has reported a record. */
void
kafka_first_reported(OutboxClient *client, const rd_kafka_message_t *message)
{
	KafkaTopic *topic = rd_kafka_topic_opaque(message->rkt);
	KafkaFirst *first;
	int64_t		now;

	if (topic == NULL || client->careful)
		return;
	if (topic->npioneers > 0)
		forget_pioneer(topic, message);
	if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	if (message->partition >= topic->nfirsts)
	{
		kafka_count_partitions(client, topic);
		return;
	}
	first = &topic->firsts[message->partition];
	now = thread_now_ms();
	if (first->stored != 0 && now - first->stored <= NOTED_MS)
		return;
	first->stored = now;
	topic->trusted_until = trusted_until(topic);
}
