/*-------------------------------------------------------------------------
 *
 * kafka_driver.h
 *	  What the parts of the transport's test program share.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_DRIVER_H
#define KAFKA_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#include "transport/transport.h"

extern const OutboxTransport kafka_transport;
extern int64_t kafka_remembered_ms;

#define T kafka_transport

/* What came back of a client: counts by class, and the class of each tag. */
typedef struct Tally
{
	int			total;
	int			by[OUTBOX_CONFIG + 1];
	signed char *of_tag;		/* may be NULL */
	char		name[64];		/* of the last failure */
} Tally;

/* A broker of the library's, of one topic. */
typedef struct Mock
{
	rd_kafka_t *rk;
	rd_kafka_mock_cluster_t *cluster;
	const char *saved;			/* the real one's address */
} Mock;

extern const char *bootstrap;
extern OutboxOption options[32];
extern int	noptions;
extern int	failures;
extern int64_t started_ms;

extern double now(void);
extern void ok(bool good, const char *what);
extern void topic_name(char *out, const char *stem);
extern void topic_admin(const char *topic, int partitions, const char *config);
extern int	consume(const char *topic, int partitions,
					void (*each) (const rd_kafka_message_t *message, void *arg),
					void *arg);
extern OutboxClient *client_open(bool careful);
extern OutboxClient *client_open_narrow(bool careful, int max_batch);
extern void gather(OutboxClient *client, Tally *tally);
extern bool wait_total(OutboxClient *client, Tally *tally, int total,
					   double seconds);
extern OutboxFailure send_one(OutboxClient *client, const char *topic,
							  int partition, const char *payload, size_t size,
							  intptr_t tag, OutboxError *error);
extern OutboxFailure send_in_turn(OutboxClient *client, Tally *tally, const char *topic,
								  int partition, const char *payload, size_t size,
								  intptr_t tag, OutboxError *error);
extern OutboxFailure send_keyed(OutboxClient *client, const char *topic,
								int partition, const char *payload, size_t size,
								intptr_t tag, OutboxError *error);
extern OutboxFailure probe(OutboxClient *client, const char *topic,
						   OutboxError *error);
extern OutboxClient *open_transactional(char *bookmark_topic);
extern OutboxFailure transaction_step(OutboxClient *client, Tally *tally,
									  OutboxTxnStep which);
extern bool load_bookmark(OutboxClient *client, const char **text);

extern Mock mock_begin(const char *topic, int partitions);
extern void mock_end(Mock *mock);

extern void check_all(void);
extern void check_headers(void);
extern void check_first(void);
extern void check_relaying(void);
extern void check_in_flight(void);
extern void check_transactions(void);
extern void check_blame(void);
extern void check_memory(void);
extern void check_aborts(void);
extern void check_source(void);
extern void put_numbers(const char *topic, int partition, int from, int n);
extern int	watch_source(const char *topic, const char *group);
extern int	bench_source(int n, double handle_us);
extern int	measure_in_flight(int rounds, int size);

#endif							/* KAFKA_DRIVER_H */
