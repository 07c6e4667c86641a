/*-------------------------------------------------------------------------
 *
 * latency.c
 *	  From the begin of a publishing transaction to the consumer, or from the
 *	  producer to the effect of a subscription.
 *
 *	bench_latency pg CONNINFO BOOTSTRAP TOPIC RATE SECONDS PAYLOAD_FILE
 *	bench_latency kafka '' BOOTSTRAP TOPIC RATE SECONDS PAYLOAD_FILE
 *	bench_latency inbox CONNINFO BOOTSTRAP TOPIC RATE SECONDS PAYLOAD_FILE
 *
 * pg: connections publish, each in BEGIN, SELECT outbox.publish(...), COMMIT;
 * the time just before BEGIN is sent travels as the key.  kafka: a producer
 * with the relay's properties sends the same records itself, which is the
 * floor that no relay gets below.  Either way a consumer in this process reads
 * the topic and takes the difference, so that one clock is used.  inbox: a
 * producer sends as well, and the consumer is a session that listens on the
 * channel effect, where a subscription's handler notifies of the key.
 *
 * Messages are due at times that don't depend on how earlier ones fared; one
 * connection's transaction that takes long delays its next one, but not that
 * one's begin.  The first second is not counted.
 *
 * Prints count, p50, p90, p99 and the maximum in microseconds.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "settings.h"

#define MAX_CONNECTIONS		32
#define RATE_PER_CONNECTION	125
#define MAX_PAYLOAD			4096
#define WARM_UP_US			1000000
#define LAST_WAIT_US		10000000	/* without a message: they are lost */

typedef struct Publisher
{
	pthread_t	thread;
	int			number;
} Publisher;

static const char *conninfo;
static const char *bootstrap;
static const char *topic;
static double rate;
static double seconds;
static char payload[MAX_PAYLOAD + 1];
static size_t payload_len;
static int	npublishers;
static int64_t started;
static atomic_long sent = 0;
static long acknowledged = 0;	/* of a producer's records */
static atomic_bool consumer_ready = false;
static atomic_bool all_sent = false;

static int64_t *samples;
static long nsamples = 0;
static long nread = 0;

static int64_t
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static void
sleep_until(int64_t us)
{
	struct timespec ts = {us / 1000000, (us % 1000000) * 1000};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0)
		;
}

/* --- consuming ------------------------------------------------------------ */

/* A message has come, whose key says when it was begun. */
static void
count(const char *key)
{
	int64_t		begun = strtoll(key, NULL, 10);

	nread++;
	if (begun >= started + WARM_UP_US)
		samples[nsamples++] = now_us() - begun;
}

/* Nothing has come since: is that too long? */
static void
check_patience(int64_t last)
{
	char		text[64];

	if (now_us() - last <= LAST_WAIT_US)
		return;
	snprintf(text, sizeof(text), "%ld of %ld messages have come", nread, (long) sent);
	bench_fail("consumer", text);
}

static void
take(const rd_kafka_message_t *m)
{
	char		key[32] = "";

	if (m->err)
	{
		fprintf(stderr, "consumer: %s\n", rd_kafka_message_errstr(m));
		return;
	}
	memcpy(key, m->key, m->key_len < sizeof(key) ? m->key_len : sizeof(key) - 1);
	count(key);
}

static void *
consume(void *arg)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	const struct rd_kafka_metadata *md;
	rd_kafka_queue_t *queue;
	rd_kafka_topic_t *rkt;
	rd_kafka_t *rk;
	char		errstr[256];
	int64_t		last = 0;

	bench_set(conf, "bootstrap.servers", bootstrap);
	bench_set(conf, "group.id", "bench");
	bench_set(conf, "enable.auto.commit", "false");
	bench_set(conf, "fetch.wait.max.ms", "100");
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, errstr, sizeof(errstr));
	if (rk == NULL)
		bench_fail("consumer", errstr);
	rkt = rd_kafka_topic_new(rk, topic, NULL);
	if (rd_kafka_metadata(rk, 0, rkt, &md, 10000))
		bench_fail(topic, "no metadata");
	queue = rd_kafka_queue_new(rk);
	for (int i = 0; i < md->topics[0].partition_cnt; i++)
		rd_kafka_consume_start_queue(rkt, md->topics[0].partitions[i].id,
									 RD_KAFKA_OFFSET_BEGINNING, queue);
	rd_kafka_metadata_destroy(md);
	consumer_ready = true;

	while (!all_sent || nread < sent)
	{
		rd_kafka_message_t *m = rd_kafka_consume_queue(queue, 100);

		if (m != NULL)
		{
			take(m);
			rd_kafka_message_destroy(m);
		}
		if (m != NULL || !all_sent)
			last = now_us();
		else
			check_patience(last);
	}
	return NULL;
}

static void
execute(PGconn *conn, PGresult *result, ExecStatusType expected)
{
	if (PQresultStatus(result) != expected)
		bench_fail("statement", PQerrorMessage(conn));
	PQclear(result);
}

static void *
listen_to_effects(void *arg)
{
	PGconn	   *conn = PQconnectdb(conninfo);
	int64_t		last = 0;

	if (PQstatus(conn) != CONNECTION_OK)
		bench_fail("connection", PQerrorMessage(conn));
	execute(conn, PQexec(conn, "LISTEN effect"), PGRES_COMMAND_OK);
	consumer_ready = true;
	while (!all_sent || nread < sent)
	{
		struct pollfd socket = {.fd = PQsocket(conn), .events = POLLIN};
		PGnotify   *notification;

		(void) poll(&socket, 1, 100);
		if (!PQconsumeInput(conn))
			bench_fail("connection", PQerrorMessage(conn));
		if (!all_sent)
			last = now_us();
		while ((notification = PQnotifies(conn)) != NULL)
		{
			count(notification->extra);
			last = now_us();
			PQfreemem(notification);
		}
		if (all_sent)
			check_patience(last);
	}
	PQfinish(conn);
	return NULL;
}

/* --- publishing ------------------------------------------------------------- */

static void
publish_one(PGconn *conn)
{
	char		key[32];
	const char *values[3] = {topic, payload, key};

	snprintf(key, sizeof(key), "%" PRId64, now_us());
	execute(conn, PQexec(conn, "BEGIN"), PGRES_COMMAND_OK);
	execute(conn, PQexecPrepared(conn, "publish", 3, values, NULL, NULL, 0), PGRES_TUPLES_OK);
	execute(conn, PQexec(conn, "COMMIT"), PGRES_COMMAND_OK);
	sent++;
}

static void *
publish(void *arg)
{
	Publisher  *publisher = arg;
	PGconn	   *conn = PQconnectdb(conninfo);
	double		interval = 1e6 * npublishers / rate;
	double		due = started + interval * publisher->number / npublishers;

	if (PQstatus(conn) != CONNECTION_OK)
		bench_fail("connection", PQerrorMessage(conn));
	execute(conn, PQprepare(conn, "publish",
							"SELECT outbox.publish($1, $2::jsonb, $3)", 3, NULL),
			PGRES_COMMAND_OK);
	for (; due < started + seconds * 1e6; due += interval)
	{
		sleep_until((int64_t) due);
		publish_one(conn);
	}
	PQfinish(conn);
	return NULL;
}

static void
publish_all(void)
{
	Publisher	publishers[MAX_CONNECTIONS];

	npublishers = (int) (rate / RATE_PER_CONNECTION) + 1;
	if (npublishers > MAX_CONNECTIONS)
		npublishers = MAX_CONNECTIONS;
	started = now_us() + 500000;	/* when all are connected */
	for (int i = 0; i < npublishers; i++)
	{
		publishers[i].number = i;
		if (pthread_create(&publishers[i].thread, NULL, publish, &publishers[i]))
			bench_fail("thread", "can't be started");
	}
	for (int i = 0; i < npublishers; i++)
		pthread_join(publishers[i].thread, NULL);
}

static void
on_report(rd_kafka_t *rk, const rd_kafka_message_t *message, void *arg)
{
	if (message->err)
		bench_fail("a record was refused", rd_kafka_err2str(message->err));
	acknowledged++;
}

static void
produce_all(void)
{
	char		errstr[256];
	rd_kafka_conf_t *conf = bench_producer_conf(bootstrap);
	rd_kafka_t *rk;

	rd_kafka_conf_set_dr_msg_cb(conf, on_report);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	if (rk == NULL)
		bench_fail("producer", errstr);
	started = now_us();
	for (double due = started; due < started + seconds * 1e6; due += 1e6 / rate)
	{
		char		key[32];
		char		id[64];
		int64_t		now;

		sleep_until((int64_t) due);
		now = now_us();
		snprintf(key, sizeof(key), "%" PRId64, now);
		snprintf(id, sizeof(id), "4bf92f35-77b3-8da6-a3ce-%012" PRIx64, now);
		if (rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic),
							  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
							  RD_KAFKA_V_KEY(key, strlen(key)),
							  RD_KAFKA_V_VALUE(payload, payload_len),
							  RD_KAFKA_V_HEADER("message-id", id, strlen(id)),
							  RD_KAFKA_V_END))
			bench_fail("produce", "refused");
		sent++;
		rd_kafka_poll(rk, 0);
	}
	while (acknowledged < sent)
		rd_kafka_poll(rk, 10);
}

static int
by_value(const void *a, const void *b)
{
	int64_t		x = *(const int64_t *) a;
	int64_t		y = *(const int64_t *) b;

	return x < y ? -1 : x > y;
}

static void
print_percentiles(void)
{
	if (nsamples == 0)
		bench_fail("result", "no samples");
	qsort(samples, nsamples, sizeof(int64_t), by_value);
	printf("%ld %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", nsamples,
		   samples[nsamples / 2], samples[nsamples * 9 / 10],
		   samples[nsamples * 99 / 100], samples[nsamples - 1]);
}

int
main(int argc, char **argv)
{
	pthread_t	consumer;
	FILE	   *f;

	if (argc != 8)
		bench_fail("usage", "bench_latency pg|kafka|inbox CONNINFO BOOTSTRAP TOPIC RATE SECONDS PAYLOAD_FILE");
	conninfo = argv[2];
	bootstrap = argv[3];
	topic = argv[4];
	rate = atof(argv[5]);
	seconds = atof(argv[6]);
	f = fopen(argv[7], "r");
	if (f == NULL)
		bench_fail(argv[7], "can't be read");
	payload_len = fread(payload, 1, MAX_PAYLOAD, f);
	fclose(f);
	samples = malloc(sizeof(int64_t) * (size_t) (rate * (seconds + 1) + MAX_CONNECTIONS));

	started = now_us() + 3600 * 1000000LL;
	if (pthread_create(&consumer, NULL,
					   strcmp(argv[1], "inbox") == 0 ? listen_to_effects : consume, NULL))
		bench_fail("thread", "can't be started");
	while (!consumer_ready)
		sleep_until(now_us() + 1000);
	if (strcmp(argv[1], "pg") == 0)
		publish_all();
	else
		produce_all();
	all_sent = true;
	pthread_join(consumer, NULL);
	print_percentiles();
	/* the consumer's handle is not destroyed: that may wait for connections */
	fflush(stdout);
	_exit(0);
}
