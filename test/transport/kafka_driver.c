/*-------------------------------------------------------------------------
 *
 * kafka_driver.c
 *	  Runs the Kafka transport outside PostgreSQL, against a real broker.
 *
 *	kafka_driver check BOOTSTRAP				scenarios; exit code tells
 *	kafka_driver bench BOOTSTRAP N [name=value ...]	records/s by the transport
 *	kafka_driver plain BOOTSTRAP N [name=value ...]	by librdkafka alone
 *	kafka_driver latency BOOTSTRAP N RATE [name=value ...]
 *	kafka_driver refuse BOOTSTRAP ROUNDS BYTES	how often is what sent twice
 *	kafka_driver stream BOOTSTRAP N RATE TOPIC	send, print, verify: for
 *												outages made from outside
 *	kafka_driver aborts ADMIN_BOOTSTRAP name=value ...	transactions, by a proxy
 *												(see kafka_aborts.c)
 *	kafka_driver source BOOTSTRAP				scenarios of the way in
 *	kafka_driver fill BOOTSTRAP N TOPIC			numbers
 *	kafka_driver watch-source BOOTSTRAP TOPIC GROUP [name=value ...]
 *												errors, until messages come
 *	kafka_driver bench-source BOOTSTRAP N [US]	messages/s of it; us to handle each
 *
 * The broker must let this client create topics, and have
 * auto.create.topics.enable=false.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "kafka_driver.h"

extern void kafka_log_line(int level, const char *facility, const char *text);

#define MAX_REPORTS 1024

const char *bootstrap;
OutboxOption options[32];
int			noptions;
int			failures;
int64_t		started_ms;			/* the records' time: an old one would expire */
static int	bench_partitions = 1;	/* from the environment: PARTITIONS */

void
kafka_log_line(int level, const char *facility, const char *text)
{
	fprintf(stderr, "# %d %s %s\n", level, facility, text);
}

double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

void
ok(bool good, const char *what)
{
	printf("%s - %s\n", good ? "ok" : "not ok", what);
	fflush(stdout);
	failures += !good;
}

OutboxClient *
client_open(bool careful)
{
	return client_open_narrow(careful, 0);
}

/* max_batch: as the transport's option of that name */
OutboxClient *
client_open_narrow(bool careful, int max_batch)
{
	OutboxTransportConfig config = {
		.server_name = "driver", .client_id = "pg_outbox_driver",
		.noptions = noptions, .options = options, .careful = careful,
		.max_batch = max_batch,
		.max_bytes = 64 << 20, .max_message_size = 16 << 20,
	};
	OutboxError error;
	OutboxClient *client = T.open(&config, &error);

	if (client == NULL)
		printf("# open: %d %s %s\n", error.failure, error.name, error.text);
	return client;
}

/* Create a topic and wait until it is known; config: "name=value" or NULL. */
void
topic_admin(const char *topic, int partitions, const char *config)
{
	char		errstr[256];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	rd_kafka_queue_t *queue;
	rd_kafka_event_t *event;

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	queue = rd_kafka_queue_new(rk);
	if (partitions > 0)
	{
		rd_kafka_NewTopic_t *spec = rd_kafka_NewTopic_new(topic, partitions, 1,
														  errstr, sizeof(errstr));

		if (config != NULL)
		{
			char		name[128];
			const char *eq = strchr(config, '=');

			snprintf(name, sizeof(name), "%.*s", (int) (eq - config), config);
			rd_kafka_NewTopic_set_config(spec, name, eq + 1);
		}
		rd_kafka_CreateTopics(rk, &spec, 1, NULL, queue);
		rd_kafka_NewTopic_destroy(spec);
	}
	else
	{
		rd_kafka_DeleteTopic_t *spec = rd_kafka_DeleteTopic_new(topic);

		rd_kafka_DeleteTopics(rk, &spec, 1, NULL, queue);
		rd_kafka_DeleteTopic_destroy(spec);
	}
	event = rd_kafka_queue_poll(queue, 20000);
	if (event == NULL || rd_kafka_event_error(event))
		printf("# topic %s: failed\n", topic);
	if (event)
		rd_kafka_event_destroy(event);
	rd_kafka_queue_destroy(queue);
	rd_kafka_destroy(rk);
}

/* Read all of a topic's partitions; calls back for each record. */
int
consume(const char *topic, int partitions,
		void (*each) (const rd_kafka_message_t *message, void *arg), void *arg)
{
	char		errstr[256];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_topic_partition_list_t *list;
	rd_kafka_t *rk;
	int			n = 0;
	int			at_end = 0;

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rd_kafka_conf_set(conf, "group.id", "driver", NULL, 0);
	rd_kafka_conf_set(conf, "enable.partition.eof", "true", NULL, 0);
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, errstr, sizeof(errstr));
	rd_kafka_poll_set_consumer(rk);
	list = rd_kafka_topic_partition_list_new(partitions);
	for (int i = 0; i < partitions; i++)
		rd_kafka_topic_partition_list_add(list, topic, i)->offset =
			RD_KAFKA_OFFSET_BEGINNING;
	rd_kafka_assign(rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	for (double until = now() + 60; at_end < partitions && now() < until;)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(rk, 1000);

		if (message == NULL)
			continue;
		if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
			at_end++;
		else if (!message->err)
		{
			n++;
			if (each)
				each(message, arg);
		}
		rd_kafka_message_destroy(message);
	}
	rd_kafka_consumer_close(rk);
	rd_kafka_destroy(rk);
	return n;
}

void
gather(OutboxClient *client, Tally *tally)
{
	static OutboxReport reports[MAX_REPORTS];
	int			n;

	while ((n = T.poll(client, reports, MAX_REPORTS)) > 0)
	{
		for (int i = 0; i < n; i++)
		{
			tally->total++;
			tally->by[reports[i].failure]++;
			if (tally->of_tag)
				tally->of_tag[(intptr_t) reports[i].tag] = reports[i].failure;
			if (reports[i].failure != OUTBOX_OK)
				snprintf(tally->name, sizeof(tally->name), "%s", reports[i].name);
		}
	}
}

/* Sleep on the eventfd alone: a lost wake-up shows as a timeout. */
bool
wait_total(OutboxClient *client, Tally *tally, int total, double seconds)
{
	double		until = now() + seconds;

	for (;;)
	{
		struct pollfd pfd = {.fd = T.event_fd(client), .events = POLLIN};
		int			ms = (int) ((until - now()) * 1000);

		gather(client, tally);
		if (tally->total >= total)
			return true;
		if (ms <= 0)
			return false;
		poll(&pfd, 1, ms);
	}
}

static OutboxFailure
send_record(OutboxClient *client, const char *topic, int partition, const char *key,
			const char *payload, size_t size, intptr_t tag, OutboxError *error)
{
	static const OutboxHeader header = {"message-id",
	"0190c0de-0000-8000-8000-000000000001", 36};
	OutboxRecord record = {
		.topic = topic, .partition = partition, .key = key, .key_len = key ? strlen(key) : 0,
		.payload = payload, .payload_len = size, .nheaders = 1,
		.headers = &header, .timestamp_ms = started_ms, .tag = (void *) tag,
	};

	return T.send(client, &record, error);
}

OutboxFailure
send_one(OutboxClient *client, const char *topic, int partition,
		 const char *payload, size_t size, intptr_t tag, OutboxError *error)
{
	return send_record(client, topic, partition, NULL, payload, size, tag, error);
}

/* Waits for the first record of its partition to be stored. */
OutboxFailure
send_in_turn(OutboxClient *client, Tally *tally, const char *topic, int partition,
			 const char *payload, size_t size, intptr_t tag, OutboxError *error)
{
	OutboxFailure failure;

	do
	{
		failure = send_one(client, topic, partition, payload, size, tag, error);
	} while (failure == OUTBOX_LATER && wait_total(client, tally, tally->total + 1, 10));
	return failure;
}

OutboxFailure
send_keyed(OutboxClient *client, const char *topic, int partition,
		   const char *payload, size_t size, intptr_t tag, OutboxError *error)
{
	char		key[16] = "key";	/* copied by send() */

	if (bench_partitions > 1)
		snprintf(key, sizeof(key), "%d", (int) (tag % 1000));
	return send_record(client, topic, partition, key, payload, size, tag, error);
}

/* probe_topic() until it knows */
OutboxFailure
probe(OutboxClient *client, const char *topic, OutboxError *error)
{
	for (double until = now() + 10; now() < until;)
	{
		OutboxFailure failure = T.probe_topic(client, topic, error);
		struct pollfd pfd = {.fd = T.event_fd(client), .events = POLLIN};
		Tally		tally = {0};

		if (failure != OUTBOX_RETRY)
			return failure;
		poll(&pfd, 1, 100);
		gather(client, &tally);
	}
	return OUTBOX_RETRY;
}

void
topic_name(char *out, const char *stem)
{
	sprintf(out, "%s-%d-%ld", stem, (int) getpid(), (long) time(NULL));
}

static void
report_rate(const char *what, int n, double took)
{
	struct rusage usage;
	double		main_cpu;

	getrusage(RUSAGE_THREAD, &usage);
	main_cpu = usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 +
		usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6;
	getrusage(RUSAGE_SELF, &usage);
	printf("%s: %d records in %.2f s, %.0f/s, cpu main %.2f all %.2f s, max rss %ld MB\n",
		   what, n, took, n / took, main_cpu,
		   usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 +
		   usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6,
		   usage.ru_maxrss / 1024);
}

#define BENCH_WINDOW	100000	/* records in flight */

static char bench_payload[200];

static int
bench(int n)
{
	char		topic[128];
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	int			sent = 0;
	double		start;

	topic_name(topic, "bench");
	topic_admin(topic, bench_partitions, NULL);
	client = client_open(false);
	start = now();
	while (sent < n)
	{
		while (sent < n && sent - tally.total < BENCH_WINDOW &&
			   send_keyed(client, topic, -1, bench_payload, 200, sent + 1, &error) ==
			   OUTBOX_OK)
			if (++sent % 500 == 0)
				break;
		gather(client, &tally);
		if (sent - tally.total >= BENCH_WINDOW)
			wait_total(client, &tally, tally.total + 1000, 1);
	}
	wait_total(client, &tally, n, 60);
	report_rate("transport", tally.by[OUTBOX_OK], now() - start);
	T.close(client, 5000);
	topic_admin(topic, 0, NULL);
	return tally.by[OUTBOX_OK] != n;
}

static volatile int plain_done;

static void
plain_report(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	(void) rk;
	(void) opaque;
	plain_done += message->err == 0;
}

/* As anybody would write it: callbacks, defaults but for the guarantees. */
static int
plain(int n)
{
	char		topic[128];
	char		errstr[256];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	double		start;

	topic_name(topic, "plain");
	topic_admin(topic, bench_partitions, NULL);
	rd_kafka_conf_set(conf, "enable.idempotence", "true", NULL, 0);
	rd_kafka_conf_set(conf, "enable.gapless.guarantee", "true", NULL, 0);
	rd_kafka_conf_set(conf, "queue.buffering.max.messages", "0", NULL, 0);
	for (int i = 0; i < noptions; i++)
		rd_kafka_conf_set(conf, options[i].name, options[i].value, NULL, 0);
	rd_kafka_conf_set_dr_msg_cb(conf, plain_report);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	start = now();
	for (int i = 0; i < n; i++)
	{
		char		key[16] = "key";
		size_t		key_len = bench_partitions > 1 ?
			(size_t) snprintf(key, sizeof(key), "%d", i % 1000) : 3;

		while (i - plain_done >= BENCH_WINDOW)
			rd_kafka_poll(rk, 10);
		rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic),
						  RD_KAFKA_V_KEY(key, key_len),
						  RD_KAFKA_V_VALUE(bench_payload, 200),
						  RD_KAFKA_V_HEADER("message-id",
											"0190c0de-0000-8000-8000-000000000001", 36),
						  RD_KAFKA_V_TIMESTAMP(1700000000000), RD_KAFKA_V_END);
		if (i % 500 == 0)
			rd_kafka_poll(rk, 0);
	}
	rd_kafka_flush(rk, 60000);
	report_rate("plain", plain_done, now() - start);
	rd_kafka_destroy(rk);
	topic_admin(topic, 0, NULL);
	return plain_done != n;
}

static int
by_value(const void *a, const void *b)
{
	double		d = *(const double *) a - *(const double *) b;

	return d < 0 ? -1 : d > 0;
}

/* From send() to the report, one record at a time on a steady schedule. */
static int
latency(int n, double rate)
{
	char		topic[128];
	double	   *took = calloc(n, sizeof(double));
	OutboxClient *client;
	OutboxError error;
	Tally		tally = {0};
	double		start;

	topic_name(topic, "latency");
	topic_admin(topic, 1, NULL);
	client = client_open(false);
	send_one(client, topic, -1, "x", 1, 0, &error);
	wait_total(client, &tally, 1, 10);
	start = now();
	for (int i = 0; i < n; i++)
	{
		double		due = start + i / rate;
		double		begin;

		if (due > now())
			usleep((useconds_t) ((due - now()) * 1e6));
		begin = now();
		send_keyed(client, topic, -1, bench_payload, 200, i, &error);
		wait_total(client, &tally, i + 2, 10);
		took[i] = (now() - begin) * 1000;
	}
	qsort(took, n, sizeof(double), by_value);
	printf("latency: p50 %.2f ms, p95 %.2f, p99 %.2f, max %.2f\n", took[n / 2],
		   took[n * 95 / 100], took[n * 99 / 100], took[n - 1]);
	T.close(client, 5000);
	topic_admin(topic, 0, NULL);
	return 0;
}

typedef struct Order
{
	int			next;
	int			bad;
} Order;

static void
seen_number(const rd_kafka_message_t *message, void *arg)
{
	Order	   *order = arg;

	if (atoi(message->payload) != order->next)
	{
		if (order->bad++ < 5)
			printf("# expected %d, found %d at offset %ld\n", order->next,
				   atoi(message->payload), (long) message->offset);
	}
	order->next = atoi(message->payload) + 1;
}

/* A steady stream through whatever happens to the broker meanwhile. */
static int
stream(int n, double rate, const char *topic)
{
	char	   *values = malloc((size_t) n * 12);
	OutboxClient *client;
	OutboxError error;
	OutboxTransportStatus status;
	Tally		tally = {0};
	Order		order = {0};
	bool		connected = false;
	uint64_t	nerrors = 0;
	int			sent = 0;
	int			found;
	double		start;

	topic_admin(topic, 1, NULL);
	client = client_open(false);
	start = now();
	while (tally.total < n && now() - start < n / rate + 90)
	{
		while (sent < n && sent < (now() - start) * rate)
		{
			char	   *value = values + (size_t) sent * 12;

			snprintf(value, 12, "%d", sent);
			if (send_one(client, topic, -1, value, strlen(value), sent,
						 &error) != OUTBOX_OK)
				break;
			sent++;
		}
		wait_total(client, &tally, tally.total + 1, 0.002);
		T.status(client, &status);
		if (status.connected != connected || status.nerrors != nerrors)
			printf("# %.1f s: connected %d failed %d in flight %d %s: %s\n",
				   now() - start, status.connected, status.failed,
				   sent - tally.total, status.error.name, status.error.text);
		connected = status.connected;
		nerrors = status.nerrors;
		fflush(stdout);
	}
	T.close(client, 5000);
	printf("# sent %d reported %d ok %d\n", sent, tally.total,
		   tally.by[OUTBOX_OK]);
	found = consume(topic, 1, seen_number, &order);
	ok(tally.by[OUTBOX_OK] == n && found == n && order.bad == 0,
	   "each once and in order");
	printf("# found %d, out of order %d\n", found, order.bad);
	return failures;
}

int
main(int argc, char **argv)
{
	const char *command = argc > 2 ? argv[1] : "";
	int			n = argc > 3 ? atoi(argv[3]) : 0;

	if (argc < 3)
		return 2;
	bootstrap = argv[2];
	started_ms = (int64_t) time(NULL) * 1000;
	options[noptions++] = (OutboxOption) {"bootstrap.servers", bootstrap};
	if (getenv("PARTITIONS"))
		bench_partitions = atoi(getenv("PARTITIONS"));
	for (int i = 3; i < argc && noptions < 32; i++)
	{
		char	   *eq = strchr(argv[i], '=');

		if (eq == NULL)
			continue;
		*eq = '\0';
		options[noptions++] = (OutboxOption) {argv[i], eq + 1};
	}
	if (strcmp(command, "bench") == 0)
		return bench(n);
	if (strcmp(command, "plain") == 0)
		return plain(n);
	if (strcmp(command, "latency") == 0 && argc > 4)
		return latency(n, atof(argv[4]));
	if (strcmp(command, "stream") == 0 && argc > 5)
		return stream(n, atof(argv[4]), argv[5]);
	if (strcmp(command, "refuse") == 0 && argc > 4)
		return measure_in_flight(n, atoi(argv[4]));
	if (strcmp(command, "aborts") == 0)
	{
		check_aborts();
		return failures != 0;
	}
	if (strcmp(command, "bench-source") == 0)
		return bench_source(n, argc > 4 ? atof(argv[4]) : 0);
	if (strcmp(command, "fill") == 0 && argc > 4)
	{
		put_numbers(argv[4], 0, 0, n);
		return 0;
	}
	if (strcmp(command, "watch-source") == 0 && argc > 4)
		return watch_source(argv[3], argv[4]);
	if (strcmp(command, "source") == 0)
	{
		check_source();
		return failures != 0;
	}
	if (strcmp(command, "check") != 0)
		return 2;
	if (n == 0)
		check_all();
	check_relaying();
	check_in_flight();
	check_transactions();
	check_blame();
	check_memory();
	return failures != 0;
}
