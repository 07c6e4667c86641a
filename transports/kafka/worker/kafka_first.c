/*-------------------------------------------------------------------------
 *
 * kafka_first.c
 *	  Which partition a record goes to, and that the first one goes ahead.
 *
 * A broker that knows nothing of a producer in a partition takes whatever sequence
 * number comes first.  So when the first batch of a client there is refused, or has
 * to be tried again, one that is on its way behind it may be stored; with a change of
 * leaders at a broker that never saw the first one.  What the library makes of that
 * is worse than a wrong order: as batches of a producer are taken in order or not at
 * all, it believes that the first one is stored too, and reports its records as
 * delivered.  They are lost.  Therefore a client has no more than one record on its
 * way to a partition until one has been stored there.  From then on brokers refuse
 * what does not follow.  They forget a producer that has not written for a day, or less
 * (producer.id.expiration.ms); so they are not trusted for longer than some minutes.
 * Nor is a topic after an error: it may have been made anew, and know nobody.
 *
 * That holds for transactions as well: what is reported as delivered is committed.
 * After one that was aborted the library may number its records anew, and nothing is
 * trusted.  A careful client has one record of a topic on its way and needs none of
 * this.
 *
 * It must not be a guess where a record leads to.  So it is placed here, by the
 * library's own functions, in a callback from produce(); that may refuse, too.  Only
 * while the library does not know yet how many partitions there are, it takes a
 * record without asking, and places it later, in a thread of its own: then the topic
 * counts as one partition.
 *
 * A record without a key may go anywhere, and prefers a partition where it does not
 * have to wait.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdlib.h>
#include <string.h>

#define TRUSTED_MS	(5 * 60 * 1000)
#define NOTED_MS	(60 * 1000)
#define NOWHERE		INT32_MAX	/* a partition that produce() refuses */

/* The library's partitioners. */
static const struct
{
	const char *name;
	KafkaPartitioner function;
	bool		has_order;		/* a key leads to one partition */
	bool		empty_is_none;	/* an empty key is no key */
	bool		sticks;			/* records without one stay for a while */
}			partitioners[] = {
	{"random", rd_kafka_msg_partitioner_random, false, false, true},
	{"consistent", rd_kafka_msg_partitioner_consistent, true, false, false},
	{"consistent_random", rd_kafka_msg_partitioner_consistent_random, true, true, true},
	{"murmur2", rd_kafka_msg_partitioner_murmur2, true, false, false},
	{"murmur2_random", rd_kafka_msg_partitioner_murmur2_random, true, false, true},
	{"fnv1a", rd_kafka_msg_partitioner_fnv1a, true, false, false},
	{"fnv1a_random", rd_kafka_msg_partitioner_fnv1a_random, true, false, true},
};

/* Is this thread in produce()?  Else the library places a record in its own. */
static __thread bool producing;

/* How this client spreads records; false: by a partitioner that we don't know. */
bool
kafka_first_configure(OutboxClient *client, const char *partitioner, int sticky_ms)
{
	for (size_t i = 0; i < sizeof(partitioners) / sizeof(partitioners[0]); i++)
	{
		if (strcmp(partitioners[i].name, partitioner) != 0)
			continue;
		client->partitioner = partitioners[i].function;
		client->keys_have_order = partitioners[i].has_order;
		client->empty_key_is_none = partitioners[i].empty_is_none;
		client->sticky_ms = partitioners[i].sticks ? sticky_ms : 0;
		return true;
	}
	return false;
}

static bool
is_trusted(const KafkaFirst *first)
{
	return first->stored != 0 && thread_now_ms() - first->stored < TRUSTED_MS;
}

static bool
may_go_to(const KafkaFirst *first)
{
	return first->pioneer == NULL || is_trusted(first);
}

/* Know so many partitions; false: no memory. */
static bool
grow(KafkaTopic *topic, int n)
{
	KafkaFirst *grown = realloc(topic->firsts, n * sizeof(KafkaFirst));

	if (grown == NULL)
		return false;
	memset(grown + topic->nfirsts, 0, (n - topic->nfirsts) * sizeof(KafkaFirst));
	topic->firsts = grown;
	topic->nfirsts = n;
	topic->trusted_until = 0;
	return true;
}

/* Trust none of a topic's partitions, until they have stored a record again. */
static void
distrust(KafkaTopic *topic)
{
	topic->trusted_until = 0;
	for (int i = 0; i < topic->nfirsts; i++)
		topic->firsts[i].stored = 0;
}

/* Where a record wants to go. */
static int32_t
choose(OutboxClient *client, KafkaTopic *topic, const void *key, size_t keylen, int32_t n)
{
	int64_t		now;

	if (client->sticky_ms == 0 || (key != NULL && (keylen > 0 || !client->empty_key_is_none)))
		return client->partitioner(topic->rkt, key, keylen, n, NULL, NULL);
	now = thread_now_ms();
	if (now >= topic->sticky_until ||
		!rd_kafka_topic_partition_available(topic->rkt, topic->sticky))
	{
		topic->sticky = rd_kafka_msg_partitioner_random(topic->rkt, NULL, 0, n, NULL, NULL);
		topic->sticky_until = now + client->sticky_ms;
	}
	return topic->sticky;
}

/* The library's partitioner callback. */
int32_t
kafka_first_place(const rd_kafka_topic_t *rkt, const void *key, size_t keylen,
				  int32_t n, void *rkt_opaque, void *msg_opaque)
{
	KafkaTopic *topic = rkt_opaque;
	OutboxClient *client = topic->client;
	int32_t		partition;

	if (!producing)
		return client->partitioner(rkt, key, keylen, n, NULL, msg_opaque);
	client->placed = true;
	partition = choose(client, topic, key, keylen, n);
	/* by far the most frequent case */
	if (client->careful || (n == topic->nfirsts && thread_now_ms() < topic->trusted_until))
		return partition;
	client->has_to_wait = n > topic->nfirsts && !grow(topic, n);
	if (client->has_to_wait)
		return NOWHERE;
	if (key == NULL || !client->keys_have_order || (keylen == 0 && client->empty_key_is_none))
		for (int32_t i = 1; i < n && !may_go_to(&topic->firsts[partition]); i++)
			partition = (partition + 1) % n;
	client->has_to_wait = !may_go_to(&topic->firsts[partition]);
	if (client->has_to_wait)
		return NOWHERE;
	client->pioneer_of = is_trusted(&topic->firsts[partition]) ? NULL : &topic->firsts[partition];
	return partition;
}

/* Where a record goes whose publisher chose; NULL: we don't know that partition yet. */
static KafkaFirst *
chosen(KafkaTopic *topic, const OutboxRecord *record)
{
	return record->partition < topic->nfirsts ? &topic->firsts[record->partition] : NULL;
}

/* Is it of no use to try?  Else the callback may still refuse. */
static bool
is_known_to_wait(const OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record)
{
	const KafkaFirst *first;

	if (client->careful)
		return false;
	if (topic->any.pioneer != NULL)
		return true;
	if (record->partition < 0)
		return false;
	first = chosen(topic, record);
	return first != NULL && !may_go_to(first);
}

/* The library has a record. */
static void
note_sent(OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record, KafkaSent *sent)
{
	KafkaFirst *first = client->pioneer_of;

	if (client->careful)
		return;
	if (record->partition >= 0)
	{
		first = chosen(topic, record);
		if (first == NULL)
			first = &topic->any;
		else if (is_trusted(first))
			first = NULL;
	}
	else if (!client->placed)
	{
		distrust(topic);
		first = &topic->any;
	}
	if (first == NULL)
		return;
	first->pioneer = sent;
	topic->npioneers++;
}

/*
 * Have the library take a record; *later: it has to wait for another one of its
 * topic, and no error is made of that.
 */
rd_kafka_error_t *
kafka_first_produce(OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record,
					KafkaSent *sent, const rd_kafka_vu_t *args, size_t nargs, bool *later)
{
	rd_kafka_error_t *refusal;

	*later = is_known_to_wait(client, topic, record);
	if (*later)
		return NULL;
	client->placed = client->has_to_wait = false;
	client->pioneer_of = NULL;
	producing = true;
	refusal = rd_kafka_produceva(client->rk, args, nargs);
	producing = false;
	*later = refusal != NULL && client->has_to_wait;
	if (refusal == NULL)
		note_sent(client, topic, record, sent);
	if (!*later)
		return refusal;
	rd_kafka_error_destroy(refusal);
	return NULL;
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
			first = &topic->firsts[i];	/* it failed before it had a partition */
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
	{
		distrust(topic);
		return;
	}
	if (message->partition >= topic->nfirsts && !grow(topic, message->partition + 1))
		return;
	first = &topic->firsts[message->partition];
	now = thread_now_ms();
	if (first->stored != 0 && now - first->stored <= NOTED_MS)
		return;
	first->stored = now;
	topic->trusted_until = trusted_until(topic);
}

/* Trust nobody any more. */
void
kafka_first_distrust(OutboxClient *client)
{
	for (int i = 0; i < KAFKA_TOPIC_BUCKETS; i++)
		for (KafkaTopic *topic = client->topics[i]; topic != NULL; topic = topic->next)
			distrust(topic);
}
