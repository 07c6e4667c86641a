/*-------------------------------------------------------------------------
 *
 * kafka_first.c
 *	  Which partition a record goes to, and that the first one goes alone.
 *
 * A broker that knows nothing of a producer in a partition takes whatever sequence
 * number comes first.  So when the first batch of a client there is refused, or has
 * to be tried again, one that is on its way behind it may be stored; with a change of
 * leaders at a broker that never saw the first one.  What the library makes of that
 * is worse than a wrong order: as batches of a producer are taken in order or not at
 * all, it believes that the first one is stored too, and reports its records as
 * delivered.  They are lost.  Therefore a client has no more than one record on its
 * way to a partition until one that was alone has been stored there.  From then on
 * the partition is trusted: brokers refuse what does not follow, its next leaders
 * too, since a producer's last numbers are part of what they replicate.
 *
 * Trust ends.  Brokers forget a producer whose last record is older than a day, or
 * less (producer.id.expiration.ms); they look every ten minutes, and what they look at
 * is the record's timestamp, which is that of its publication.  So a partition that is
 * idle is trusted for some minutes only, behind an old record for a second.  Nothing
 * more goes to one that has records on its way and has been silent for longer than
 * brokers remember, and where they are several, the client is given up.  A topic after
 * an error may have been made anew, and know nobody.  After a transaction that was
 * aborted the library may number its records anew.  What can't be seen here is a topic
 * that is deleted and made anew between two batches, without an error of any.
 *
 * All of that holds for transactions as well: what is reported as delivered is
 * committed.  A careful client has one record of a topic on its way and needs none of
 * it.
 *
 * It must not be a guess where a record leads to.  So it is placed here, by the
 * library's own functions, in a callback from produce(); that may refuse, too.  Only
 * while the library does not know how many partitions there are, or not any more, it
 * takes a record without asking, and has it placed later, in a thread of its own.
 * There is no more than one of these, and while its place is not known, nothing else of
 * the topic goes.  Where something of the topic was on its way before it, it is refused
 * then, and comes back.
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
#include <time.h>

#define TRUSTED_MS		(5 * 60 * 1000)
#define OLD_TRUSTED_MS	1000	/* behind a record of a backlog that old */
#define LOOKS			100		/* in the time that brokers remember us */
#define SILENT_MS		(10 * 60 * 1000)	/* an outage, and not only a pause */
#define KNOWN_WITHIN_MS	5000	/* what partitions there are, once a broker is asked */
#define NOWHERE			INT32_MAX	/* a partition that produce() refuses */
#define MAX_UNSEEN		4096	/* chosen partitions that we take for real at once */

/* How long brokers remember us for sure; tests shorten it. */
int64_t		kafka_remembered_ms = 20 * 3600 * 1000L;

/* The library's partitioners. */
static const struct
{
	const char *name;
	KafkaPartitioner function;
	bool		has_order;		/* a key leads to one partition */
	bool		is_random;		/* no key leads anywhere */
	bool		empty_is_none;	/* an empty key is no key */
}			partitioners[] = {
	{"random", rd_kafka_msg_partitioner_random, false, true, false},
	{"consistent", rd_kafka_msg_partitioner_consistent, true, false, false},
	{"consistent_random", rd_kafka_msg_partitioner_consistent_random, true, true, true},
	{"murmur2", rd_kafka_msg_partitioner_murmur2, true, false, false},
	{"murmur2_random", rd_kafka_msg_partitioner_murmur2_random, true, true, false},
	{"fnv1a", rd_kafka_msg_partitioner_fnv1a, true, false, false},
	{"fnv1a_random", rd_kafka_msg_partitioner_fnv1a_random, true, true, false},
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
		client->keyless_is_random = partitioners[i].is_random;
		client->empty_key_is_none = partitioners[i].empty_is_none;
		client->sticky_ms = partitioners[i].is_random ? sticky_ms : 0;
		return true;
	}
	return false;
}

/* May brokers have forgotten a producer whose last record has this timestamp? */
static bool
is_old(OutboxClient *client, int64_t now, int64_t stamp)
{
	struct timespec ts;

	if (client->day_seen != now)
	{
		clock_gettime(CLOCK_REALTIME, &ts);
		client->day_seen = now;
		client->remembered_since = ts.tv_sec * (int64_t) 1000 - kafka_remembered_ms;
	}
	return stamp < client->remembered_since;
}

/* For how long may answers of a partition be missing? */
static int64_t
patience_ms(OutboxClient *client, int64_t now, const KafkaFirst *first)
{
	if (kafka_remembered_ms > SILENT_MS && first->stamp != 0 && is_old(client, now, first->stamp))
		return SILENT_MS;
	return kafka_remembered_ms;
}

/* Where there is any trust, those on their way went by it, and more may follow. */
static bool
may_go_to(OutboxClient *client, const KafkaFirst *first)
{
	int64_t		now;

	if (first->on_way == 0)
		return true;
	if (first->until == 0)
		return false;
	now = thread_now_ms();
	return now - first->heard < patience_ms(client, now, first);
}

/* Trust none of a topic's partitions, until they have stored a record again. */
void
kafka_first_distrust(KafkaTopic *topic)
{
	if (!topic->has_trust)
		return;
	topic->has_trust = false;
	topic->round++;
	topic->trusted_until = 0;
	for (int i = 0; i < topic->nfirsts; i++)
		topic->firsts[i].until = 0;
}

void
kafka_first_distrust_all(OutboxClient *client)
{
	for (int i = 0; i < KAFKA_TOPIC_BUCKETS; i++)
		for (KafkaTopic *topic = client->topics[i]; topic != NULL; topic = topic->next)
			kafka_first_distrust(topic);
}

/* Know so many partitions, at least; false: no memory. */
static bool
grow(KafkaTopic *topic, int n)
{
	KafkaFirst *grown;

	if (n <= topic->nfirsts)
		return true;
	grown = realloc(topic->firsts, n * sizeof(KafkaFirst));
	if (grown == NULL)
		return false;
	memset(grown + topic->nfirsts, 0, (n - topic->nfirsts) * sizeof(KafkaFirst));
	topic->firsts = grown;
	topic->nfirsts = n;
	topic->trusted_until = 0;
	return true;
}

static bool
has_no_key(const OutboxClient *client, const void *key, size_t keylen)
{
	return key == NULL || (keylen == 0 && client->empty_key_is_none);
}

/* Where a record wants to go. */
static int32_t
choose(OutboxClient *client, KafkaTopic *topic, const void *key, size_t keylen, int32_t n)
{
	int64_t		now;

	if (client->sticky_ms == 0 || !has_no_key(client, key, keylen))
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

/* A partition that has a leader, if possible one where a record need not wait. */
static int32_t
find_other(OutboxClient *client, KafkaTopic *topic, int32_t partition, int32_t n)
{
	int32_t		led = -1;

	for (int32_t i = 0; i < n; i++)
	{
		int32_t		other = (partition + i) % n;

		if (!rd_kafka_topic_partition_available(topic->rkt, other))
			continue;
		if (may_go_to(client, &topic->firsts[other]))
			return other;
		led = led < 0 ? other : led;
	}
	return led < 0 ? partition : led;
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
	{
		KafkaSent  *sent = msg_opaque;

		/* a client's own record, a bookmark, has none */
		if (sent != NULL && !sent->alone)
			return NOWHERE;
		partition = client->partitioner(rkt, key, keylen, n, NULL, NULL);
		if (sent != NULL)
			atomic_store(&sent->assigned, partition);
		return partition;
	}
	partition = choose(client, topic, key, keylen, n);
	/* if it is so, no need to look more closely */
	if (client->careful || (n == topic->nfirsts && thread_now_ms() < topic->trusted_until))
		return client->place = partition;
	client->has_to_wait = !grow(topic, n);
	if (client->has_to_wait)
		return NOWHERE;
	if (!client->keys_have_order ||
		(client->keyless_is_random && has_no_key(client, key, keylen)))
		partition = find_other(client, topic, partition, n);
	client->has_to_wait = !may_go_to(client, &topic->firsts[partition]);
	return client->has_to_wait ? NOWHERE : (client->place = partition);
}

/* Has the library's thread placed the record that it had to keep? */
static void
look_for_unplaced(KafkaTopic *topic)
{
	KafkaSent  *sent = topic->unplaced;
	int32_t		partition = sent != NULL ? atomic_load(&sent->assigned) : -1;

	if (partition < 0 || !grow(topic, partition + 1))
		return;
	sent->place = partition;
	if (topic->firsts[partition].on_way++ == 0)
		topic->firsts[partition].heard = thread_now_ms();
	topic->unplaced = NULL;
	topic->is_known = true;
}

/* Is it of no use to try?  Else the callback may still refuse. */
bool
kafka_first_has_to_wait(OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record)
{
	int32_t		partition = record->partition;

	if (client->careful)
		return false;
	look_for_unplaced(topic);
	if (topic->unplaced != NULL)
		return true;
	if (partition >= 0 && partition < MAX_UNSEEN && !grow(topic, partition + 1))
		return true;
	if (partition >= 0)
		return partition < topic->nfirsts && !may_go_to(client, &topic->firsts[partition]);
	/* where nothing was placed yet, the library may keep it, and place it anywhere */
	return topic->on_way > 0 && !topic->is_known &&
		thread_now_ms() - topic->asked < KNOWN_WITHIN_MS;
}

/*
 * Records of a partition come back in the order in which they went, nearly always.  So
 * one that is reported can have a later one loaded, which would be waited for.
 */
static void
note_later(KafkaFirst *first, KafkaSent *sent)
{
	KafkaSent **place = &first->last[first->nlast++ % KAFKA_PREFETCH];

	if (*place != NULL)
		(*place)->later = sent;
	*place = sent;
}

/* The library has a record. */
static void
note_sent(OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record, KafkaSent *sent)
{
	KafkaFirst *first;

	if (client->careful)
		return;
	if (topic->on_way++ == 0)
		topic->asked = thread_now_ms();
	sent->round = 0;
	sent->place = record->partition;
	if (record->partition < 0)
	{
		topic->is_known = client->place >= 0;
		sent->place = client->place;
	}
	if (sent->place < 0 || sent->place >= topic->nfirsts)
	{
		sent->place = -1;
		topic->unplaced = sent;
		kafka_first_distrust(topic);
		sent->round = topic->round;
		topic->has_trust = true;
		return;
	}
	first = &topic->firsts[sent->place];
	note_later(first, sent);
	if (first->on_way++ > 0)
		return;
	first->heard = thread_now_ms();
	if (first->heard < first->until)
		return;
	first->until = 0;
	sent->round = topic->round;
	topic->has_trust = true;
}

/*
 * Have the library take a record; *later: it has to wait for others of its topic, and
 * no error is made of that.
 */
rd_kafka_error_t *
kafka_first_produce(OutboxClient *client, KafkaTopic *topic, const OutboxRecord *record,
					KafkaSent *sent, const rd_kafka_vu_t *args, size_t nargs, bool *later)
{
	rd_kafka_error_t *refusal;

	sent->alone = topic->on_way == 0;
	client->place = -1;
	client->has_to_wait = false;
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

/* A partition is trusted, for so long at least. */
static void
trust(KafkaTopic *topic, KafkaFirst *first, int64_t until)
{
	first->until = topic->trusted_until = until;
	for (int i = 0; i < topic->nfirsts; i++)
		if (topic->firsts[i].until < topic->trusted_until)
			topic->trusted_until = topic->firsts[i].until;
}

/* The library has reported a record. */
void
kafka_first_reported(OutboxClient *client, const rd_kafka_message_t *message)
{
	KafkaTopic *topic = rd_kafka_topic_opaque(message->rkt);
	KafkaSent  *sent = message->_private;
	KafkaFirst *first;
	int64_t		now;
	int64_t		ms;

	if (topic == NULL || client->careful)
		return;
	__builtin_prefetch(sent->later, 1);
	look_for_unplaced(topic);
	topic->on_way--;
	if (sent->place >= 0)
		topic->firsts[sent->place].on_way--;
	else if (topic->unplaced == sent)
		topic->unplaced = NULL;
	if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		kafka_first_distrust(topic);
		return;
	}
	if (!grow(topic, message->partition + 1))
		return;
	first = &topic->firsts[message->partition];
	now = thread_now_ms();
	first->heard = now;
	first->stamp = sent->timestamp_ms;
	/* one that was on its way when trust ended tells nothing */
	if (first->until == 0 && sent->round != topic->round)
		return;
	ms = is_old(client, now, first->stamp) ? OLD_TRUSTED_MS : TRUSTED_MS;
	/* it need not be to the point */
	if (first->until > now + ms || first->until < now + ms * 4 / 5)
		trust(topic, first, now + ms);
}

/* May brokers have forgotten us, while records that go on from before wait? */
bool
kafka_first_is_forgotten(OutboxClient *client)
{
	int64_t		now = thread_now_ms();

	if (client->careful || now - client->looked_ms < kafka_remembered_ms / LOOKS)
		return false;
	client->looked_ms = now;
	for (int i = 0; i < KAFKA_TOPIC_BUCKETS; i++)
		for (KafkaTopic *topic = client->topics[i]; topic != NULL; topic = topic->next)
			for (int j = 0; j < topic->nfirsts; j++)
			{
				const KafkaFirst *first = &topic->firsts[j];

				if (first->on_way > 1 && now - first->heard > patience_ms(client, now, first))
					return true;
			}
	return false;
}
