/*-------------------------------------------------------------------------
 *
 * kafka_source.h
 *	  What the parts of the Kafka consumer share.
 *
 * The library hands out messages and rebalances through one queue, in one
 * call for many: so an event of the group is only noted when the library calls
 * back, and given to the subscription by a later receive().  What decides
 * whether a message may be handed out is our own table of partitions, and not
 * the library's.
 *
 * Threads: main, librdkafka's (see kafka.h), the finder, one a consumer and
 * started when a place is first asked for (kafka_find.c), and at the end the
 * closer, when nothing else runs.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KAFKA_SOURCE_H
#define OUTBOX_KAFKA_SOURCE_H

#include "kafka.h"

#define KAFKA_MAX_PATTERN	1024	/* bytes, as in patterns.h */
#define KAFKA_MAX_EXPRESSION	(2 * KAFKA_MAX_PATTERN + 4)

/* Topics that no pattern means; a regular expression. */
#define KAFKA_INTERNAL_TOPICS \
	"^__(consumer_offsets|transaction_state|share_group_state|cluster_metadata)$"

/* A partition that the group gave us. */
typedef struct KafkaPartition
{
	char	   *topic;
	int32_t		partition;
	int64_t		position;		/* of the next message to hand out; -1: no
								 * seek() has told yet */
	bool		started;		/* the library fetches, or is paused */
	bool		paused;
	bool		gap;			/* the broker has not what is asked for */
} KafkaPartition;

/* What receive() is to tell, in order. */
typedef struct KafkaEvent
{
	struct KafkaEvent *next;
	OutboxSourceEvent kind;
	int			n;
	OutboxPlace places[];		/* topics are behind them */
} KafkaEvent;

typedef enum KafkaGroupState
{
	GROUP_NOTHING,				/* no partitions are ours */
	GROUP_ASSIGN,				/* some are, and seek() has to come */
	GROUP_OURS,
	GROUP_REVOKE				/* give_up() has to come */
} KafkaGroupState;

struct OutboxConsumer
{
	OutboxClient client;		/* handle, queue, eventfd, errors, secrets */
	char	   *group_id;
	char	  **topics;			/* as asked for: names and patterns */
	int			ntopics;
	atomic_bool closing;		/* the closer calls the library */

	/* partitions, see kafka_partitions.c */
	KafkaGroupState state;
	KafkaPartition *partitions; /* sorted by topic and number */
	int			npartitions;
	KafkaEvent *events;
	KafkaEvent *told;			/* the last one given out */
	unsigned	nrebalances;	/* grows with each */
	int64_t		outside_ms;		/* since when the group owes us a share; 0: we
								 * have one, maybe an empty one */

	/* the last batch: the library's messages, and ours that point to them */
	rd_kafka_message_t **received;
	int			nreceived;
	OutboxIncoming *messages;
	int			max_messages;
	OutboxHeader *headers;
	size_t		max_headers;

	/* see kafka_keep_fetching() */
	size_t		most_queued;
	int64_t		nudged_ms;

	struct KafkaFinder *finder;
	KafkaEvent *listed;			/* what list() has told */
};

/* kafka_source_error.c */
extern OutboxFailure kafka_source_class(rd_kafka_resp_err_t err);
extern void kafka_source_note(OutboxConsumer *consumer, rd_kafka_resp_err_t err,
							  const char *topic, const char *text);
extern OutboxFailure kafka_source_error(OutboxConsumer *consumer, OutboxError *error,
										rd_kafka_resp_err_t err, const char *topic,
										const char *text);
extern void kafka_source_no_memory(OutboxConsumer *consumer);

/* kafka_partitions.c */
extern KafkaEvent *kafka_event_new(OutboxSourceEvent kind, const KafkaPartition *partitions,
								   int n);
extern void kafka_rebalanced(rd_kafka_t *rk, rd_kafka_resp_err_t err,
							 rd_kafka_topic_partition_list_t *list, void *opaque);
extern KafkaPartition *kafka_partition_find(OutboxConsumer *consumer,
											const char *topic, int32_t partition);
extern void kafka_partition_gap(OutboxConsumer *consumer, KafkaPartition *partition);
extern bool kafka_event_next(OutboxConsumer *consumer, OutboxSourceEvent *kind,
							 const OutboxPlace **places, int *n);
extern OutboxFailure kafka_seek(OutboxConsumer *consumer, const OutboxPlace *places,
								int n, OutboxError *error);
extern OutboxFailure kafka_pause(OutboxConsumer *consumer, const OutboxPlace *places,
								 int n, bool paused, OutboxError *error);
extern void kafka_give_up(OutboxConsumer *consumer);
extern void kafka_partitions_free(OutboxConsumer *consumer);

/* kafka_list.c */
extern bool kafka_topics_ask(OutboxConsumer *consumer, const OutboxSourceConfig *config);
extern bool kafka_topic_expression(const char *topic,
								   char expression[KAFKA_MAX_EXPRESSION]);
extern rd_kafka_resp_err_t kafka_list_ask(OutboxConsumer *consumer, KafkaEvent **answer);

/* kafka_find.c */
extern OutboxFailure kafka_find(OutboxConsumer *consumer, const char *topic,
								int32_t partition, OutboxFrom from, int64_t time_ms,
								int64_t *offset, OutboxError *error);
extern OutboxFailure kafka_list(OutboxConsumer *consumer, const OutboxPlace **places,
								int *n, OutboxError *error);
extern int64_t kafka_known_end(OutboxConsumer *consumer, const char *topic,
							   int32_t partition);
extern void kafka_keep_fetching(OutboxConsumer *consumer, size_t queued);
extern void kafka_find_stop(OutboxConsumer *consumer);
extern void kafka_find_free(OutboxConsumer *consumer);

#endif							/* OUTBOX_KAFKA_SOURCE_H */
