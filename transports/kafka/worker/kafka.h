/*-------------------------------------------------------------------------
 *
 * kafka.h
 *	  What the parts of the Kafka worker transport share.
 *
 * One handle of the library is one OutboxClient; a consumer's has one in it
 * (kafka_source.h), for what all handles need: brokers, errors, secrets.  Four
 * kinds of threads meet here:
 *
 *	main		the relay: every function of the transport's table
 *	librdkafka	its own, signals blocked: they enter our code in the broker
 *				state interceptor (kafka_report.c), which only touches atomics
 *				and the eventfd, and in the partitioner (kafka_first.c), which
 *				sets an atomic of the record
 *	prober		one a client, started when a topic is first looked up, since
 *				librdkafka's metadata call blocks (kafka_probe.c)
 *	step		one a step of a transaction, while it is under way (kafka_txn.c)
 *
 * Nothing but kafka_module.c calls the server, so the same objects run in a
 * plain test program.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KAFKA_H
#define OUTBOX_KAFKA_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <librdkafka/rdkafka.h>

#include "common/thread.h"
#include "transport/source.h"
#include "transport/transport.h"

typedef struct KafkaSent KafkaSent;
typedef struct KafkaSentBlock KafkaSentBlock;

#define KAFKA_SHAPES		4
#define KAFKA_SHAPE_HEADERS	8
#define KAFKA_SHAPE_NAMES	256		/* bytes, with a NUL each */
#define KAFKA_SHAPE_VALUES	256

/* Headers of the same names and lengths, of which lists are used again. */
typedef struct KafkaShape
{
	int			nheaders;		/* 0: none yet */
	uint64_t	version;		/* grows when it becomes another one */
	size_t		lens[KAFKA_SHAPE_HEADERS];
	char		names[KAFKA_SHAPE_NAMES];	/* one behind the other */
	KafkaSent **spare;
	size_t		nspare;
	size_t		max_spare;
} KafkaShape;

/* Of a record that is on its way: what the library gives back with its report. */
struct KafkaSent
{
	void	   *tag;			/* the relay's */
	int64_t		timestamp_ms;
	int32_t		place;			/* partition; -1: not known yet */
	atomic_int	assigned;		/* by a thread of the library; -1: not yet */
	bool		alone;			/* nothing else of its topic was on its way */
	uint32_t	round;			/* of its topic, when it was the only one of its
								 * partition, without trust; else 0 */
	struct KafkaSent *later;	/* one of its partition, a few behind it, or any: only
								 * to have it loaded */

	/* kafka_sent.c */
	KafkaSent  *next;			/* among the bare ones */
	int			nvalues;		/* so many have room */
	rd_kafka_headers_t *headers;	/* NULL: it has none */
	KafkaShape *shape;			/* of its list; NULL: is not used again */
	uint64_t	version;		/* ... as it was */
	char	   *values[];		/* where the list has them */
};

/*
 * A payload that small is copied into the library's own record.  Its thread, on another
 * processor, then finds both in one place; that saves more than the copy costs.
 */
#define KAFKA_COPIED_PAYLOAD	1024

#define KAFKA_PREFETCH		4		/* records ahead */

/* A partition, as far as its first record is concerned; see kafka_first.c. */
typedef struct KafkaFirst
{
	int64_t		on_way;			/* records */
	int64_t		until;			/* monotonic ms, about: so long it is trusted while
								 * none is on its way; 0: it is not */
	int64_t		heard;			/* ... when an answer came last, or was first awaited */
	int64_t		stamp;			/* timestamp of the last record that was stored */
	KafkaSent  *last[KAFKA_PREFETCH];	/* that were handed over */
	uint32_t	nlast;			/* so many, modulo */
} KafkaFirst;

typedef int32_t (*KafkaPartitioner) (const rd_kafka_topic_t *rkt, const void *key,
									 size_t keylen, int32_t partition_cnt,
									 void *rkt_opaque, void *msg_opaque);

/* A topic that this client has used; lives as long as the client. */
typedef struct KafkaTopic
{
	struct KafkaTopic *next;	/* in its hash bucket */
	OutboxClient *client;
	rd_kafka_topic_t *rkt;
	bool		invalid;		/* the broker takes no such name */

	/* kafka_first.c */
	int			nfirsts;		/* partitions that we know of */
	KafkaFirst *firsts;
	int64_t		trusted_until;	/* monotonic ms: so long all of them are */
	uint32_t	round;			/* goes up when trust ends */
	bool		has_trust;		/* ... since it went up, some may have been gained */
	int64_t		on_way;			/* records */
	int64_t		asked;			/* monotonic ms, since when some are */
	KafkaSent  *unplaced;		/* the one whose partition is not known yet, or NULL */
	bool		is_known;		/* the library knew its partitions, last time */
	int32_t		sticky;			/* where records without a key go now */
	int64_t		sticky_until;	/* monotonic ms */

	/* kafka_blame.c: the last transaction that sent a record, and stored one */
	uint64_t	sent_in;
	uint64_t	stored_in;

	/* The last look-up; guarded by OutboxClient.probe_lock. */
	struct KafkaTopic *probe_next;	/* in the prober's queue */
	int			probe_state;	/* KafkaProbeState */
	rd_kafka_resp_err_t probe_err;
	int			partitions;		/* as of looked_up */
	int64_t		looked_up;		/* monotonic ms, 0: never */
	int64_t		probe_started;
	char		name[];
} KafkaTopic;

#define KAFKA_TOPIC_BUCKETS 256

/*
 * How long the coordinator waits for a client that went silent.  A relay that
 * was killed fences its former self when it comes back, well before.
 */
#define KAFKA_TRANSACTION_MS 60000

struct OutboxClient
{
	rd_kafka_t *rk;
	rd_kafka_queue_t *queue;	/* the main queue: reports, errors, logs; of a
								 * consumer messages and rebalances too */
	int			fd;				/* eventfd */
	bool		careful;
	bool		narrow;			/* with small batches */
	bool		lingers;		/* linger.ms is not 0 */

	/* kafka_first.c */
	KafkaPartitioner partitioner;
	bool		keys_have_order;	/* a key leads to one partition */
	bool		keyless_is_random;
	bool		empty_key_is_none;
	int			sticky_ms;
	int32_t		place;			/* of the record that is handed over; -1: none */
	bool		has_to_wait;	/* ... it was refused for that */
	int64_t		looked_ms;		/* for what waits too long */
	int64_t		day_seen;		/* monotonic ms, when the time of day was read */
	int64_t		remembered_since;	/* since 1970-01-01 UTC, then: older ones may be
									 * forgotten */

	bool		draining;		/* purge() was called */
	bool		purging;		/* ... in flight included */
	int64_t		purged_ms;		/* last time */
	bool		debug;			/* option "debug" is set: the library may log */
	uint64_t	accepted;		/* sent, not reported yet */
	int64_t		opened_ms;

	KafkaTopic *topics[KAFKA_TOPIC_BUCKETS];
	KafkaTopic *last_topic;		/* of the last send() */

	/* Reports that the library has made and poll() has not handed out. */
	OutboxReport *reports;
	size_t		reports_first;
	size_t		reports_end;
	size_t		reports_size;
	bool		failure_ahead;	/* a failed one waits for poll() */
	int64_t		drained_tick;	/* coarse ms when the queue was last empty */

	/* lists of headers to be used again, see kafka_sent.c */
	KafkaShape	shapes[KAFKA_SHAPES];
	int			next_shape;		/* the place to be taken next */
	int			strangers;		/* records of no known shape since the last was */
	size_t		nspare;			/* of all shapes */
	KafkaSent  *bare[KAFKA_SHAPE_HEADERS + 1];	/* unused, by room for values */
	KafkaSentBlock *sent_blocks;

	/* status */
	atomic_int	brokers_up;
	atomic_bool was_up;			/* a broker has been */
	uint64_t	nerrors;
	bool		failed;
	bool		refused_config; /* a report blamed the configuration */
	OutboxError error;
	int64_t		config_error_ms;	/* when "error" was last a CONFIG one */

	/* the last record that was too large: its neighbours are its batch */
	rd_kafka_topic_t *too_large_topic;
	int32_t		too_large_partition;
	bool		too_large_noted;

	/* prober */
	pthread_mutex_t probe_lock;
	pthread_cond_t probe_wake;
	pthread_t	prober;
	bool		prober_runs;
	bool		probe_stop;
	KafkaTopic *probe_queue;

	/* transactions, see kafka_txn.c */
	bool		transactional;
	char	   *transactional_id;
	bool		unsure;			/* one that failed may have been written */
	bool		explained;		/* what made the transaction fail is known */
	struct KafkaStep *step;		/* of a transaction, under way or not */
	char	   *bookmark_topic;
	rd_kafka_resp_err_t bookmark_err;	/* of one that was refused */
	char	   *bookmark_key;
	struct KafkaBookmarkReader *bookmark_reader;

	/* kafka_blame.c: the transaction */
	uint64_t	txn;			/* counts them */
	KafkaTopic *unproven;		/* the topic that was added last */
	int64_t		unproven_ms;	/* monotonic: since when */
	bool		bookmark_sent;
	bool		bookmark_stored;

	/* values of secret options, to keep them out of texts */
	char	  **secrets;
	int			nsecrets;
};

/* kafka_config.c */
extern rd_kafka_conf_t *kafka_config_build(OutboxClient *client,
										   const OutboxTransportConfig *config,
										   OutboxError *error);
extern rd_kafka_conf_t *kafka_config_consumer(OutboxClient *client,
											  const OutboxTransportConfig *config,
											  OutboxError *error);
extern rd_kafka_conf_t *kafka_config_source(OutboxClient *client,
											const OutboxSourceConfig *config,
											OutboxError *error);
extern void kafka_config_batch_refused(OutboxClient *client);
extern void kafka_config_record_refused(void);
extern void kafka_config_lived(int64_t lived_ms);
extern void kafka_scrub(const OutboxClient *client, char *text, size_t size);

/* kafka_send.c */
extern KafkaTopic *kafka_topic_get(OutboxClient *client, const char *name,
								   OutboxError *error);
extern KafkaTopic *kafka_topic_find(OutboxClient *client, const char *name);
extern void kafka_topics_release(OutboxClient *client);
extern void kafka_topics_free(OutboxClient *client);
extern OutboxFailure kafka_send(OutboxClient *client,
								const OutboxRecord *record,
								OutboxError *error);

/* kafka_first.c */
extern bool kafka_first_configure(OutboxClient *client, const char *partitioner,
								  int sticky_ms);
extern int32_t kafka_first_place(const rd_kafka_topic_t *rkt, const void *key, size_t keylen,
								 int32_t n, void *rkt_opaque, void *msg_opaque);
extern bool kafka_first_has_to_wait(OutboxClient *client, KafkaTopic *topic,
									const OutboxRecord *record);
extern rd_kafka_error_t *kafka_first_produce(OutboxClient *client, KafkaTopic *topic,
											 const OutboxRecord *record, KafkaSent *sent,
											 const rd_kafka_vu_t *args, size_t nargs,
											 bool *later);
extern void kafka_first_reported(OutboxClient *client,
								 const rd_kafka_message_t *message);
extern void kafka_first_distrust(KafkaTopic *topic);
extern void kafka_first_distrust_all(OutboxClient *client);
extern bool kafka_first_is_forgotten(OutboxClient *client);
extern int64_t kafka_remembered_ms;

/* kafka_sent.c */
extern KafkaSent *kafka_sent_make(OutboxClient *client, const OutboxRecord *record);
extern rd_kafka_headers_t *kafka_sent_headers(const KafkaSent *sent);
extern void kafka_sent_refused(OutboxClient *client, KafkaSent *sent);
extern KafkaSent *kafka_sent_detach(const rd_kafka_message_t *message);
extern void kafka_sent_back(OutboxClient *client, OutboxReport *reports, size_t n);
extern void kafka_sent_free(OutboxClient *client);

/* kafka_report.c */
extern int	kafka_poll(OutboxClient *client, OutboxReport *reports, int max);
extern void kafka_look_ahead(OutboxClient *client);
extern void kafka_status(OutboxClient *client, OutboxTransportStatus *status);
extern OutboxFailure kafka_error_set(OutboxError *error, OutboxFailure failure,
									 rd_kafka_resp_err_t err,
									 const char *text);
extern bool kafka_is_config_error(rd_kafka_resp_err_t err);
extern rd_kafka_resp_err_t kafka_watch_brokers(rd_kafka_t *rk,
											   const rd_kafka_conf_t *conf,
											   void *opaque, char *errstr,
											   size_t errstr_size);
extern void kafka_delivered(rd_kafka_t *rk, const rd_kafka_message_t *message,
							void *opaque);
extern void kafka_failed(rd_kafka_t *rk, int err, const char *reason,
						 void *opaque);
extern void kafka_logged(const rd_kafka_t *rk, int level,
						 const char *facility, const char *text);
extern bool kafka_reports_reserve(OutboxClient *client);

/* kafka_probe.c */
extern OutboxFailure kafka_probe_topic(OutboxClient *client, const char *topic,
									   OutboxError *error);
extern void kafka_probe_stop(OutboxClient *client);
extern bool kafka_partition_missing(OutboxClient *client, KafkaTopic *topic,
									int32_t partition);
extern void kafka_verdict_add(const char *topic, rd_kafka_resp_err_t err);
extern rd_kafka_resp_err_t kafka_verdict_find(const char *topic);
extern void kafka_verdict_lift(const char *topic);
extern bool kafka_verdicts_any(void);

/* kafka_txn.c */
extern bool kafka_txn_configure(OutboxClient *client, rd_kafka_conf_t *conf,
								const OutboxTransportConfig *config,
								OutboxError *error);
extern OutboxFailure kafka_transaction(OutboxClient *client, OutboxTxnStep step,
									   OutboxError *error);
extern void kafka_txn_hint(OutboxClient *client, rd_kafka_resp_err_t err,
						   OutboxError *error);
extern bool kafka_is_step_thread(void);
extern void kafka_step_stop(OutboxClient *client);
extern void kafka_step_free(OutboxClient *client);
extern void kafka_explain_silence(OutboxClient *client, OutboxError *error);
extern OutboxFailure kafka_bookmark_write(OutboxClient *client, const char *text,
										  OutboxError *error);
extern bool kafka_is_fenced(rd_kafka_resp_err_t err);

/* kafka_blame.c */
extern void kafka_blame_begin(OutboxClient *client);
extern bool kafka_blame_has_to_wait(const OutboxClient *client, const KafkaTopic *topic);
extern void kafka_blame_sent(OutboxClient *client, KafkaTopic *topic);
extern void kafka_blame_stored(OutboxClient *client, const rd_kafka_message_t *message);
extern OutboxFailure kafka_blame(OutboxClient *client, rd_kafka_resp_err_t err,
								 OutboxError *error);

/* kafka_bookmark.c */
extern bool kafka_bookmark_prepare(OutboxClient *client,
								   const OutboxTransportConfig *config,
								   OutboxError *error);
extern OutboxFailure kafka_bookmark_read(OutboxClient *client, const char **text,
										 OutboxError *error);
extern void kafka_bookmark_error(OutboxClient *client, OutboxError *error,
								 OutboxFailure failure, rd_kafka_resp_err_t err);
extern void kafka_bookmark_stop(OutboxClient *client);
extern void kafka_bookmark_free(OutboxClient *client);

/* kafka_source.c */
extern const OutboxSource kafka_source;

/* kafka.c */
typedef rd_kafka_conf_t *(*KafkaConfigBuilder) (OutboxClient *client,
												const void *config,
												OutboxError *error);

extern const OutboxTransport kafka_transport;
extern bool kafka_client_init(OutboxClient *client, OutboxError *error);
extern bool kafka_client_connect(OutboxClient *client, rd_kafka_type_t type,
								 KafkaConfigBuilder build, const void *config,
								 OutboxError *error);
extern void kafka_client_release(OutboxClient *client);
extern bool kafka_close_within(void (*work) (void *arg), void *arg,
							   int timeout_ms);
extern void kafka_purge_queues(OutboxClient *client);
extern void kafka_wake(OutboxClient *client);
extern void kafka_block_signals(sigset_t *saved);
extern void kafka_restore_signals(const sigset_t *saved);

/* kafka_module.c, or the test program: a line of the library's own log */
extern void kafka_log_line(int level, const char *facility, const char *text);

#endif							/* OUTBOX_KAFKA_H */
