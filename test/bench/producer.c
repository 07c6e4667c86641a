/*-------------------------------------------------------------------------
 *
 * producer.c
 *	  A plain librdkafka producer: what a drain is compared with.
 *
 *	bench_producer BOOTSTRAP TOPIC COUNT PAYLOAD_FILE POLL_EVERY [property=value ...]
 *
 * Produces COUNT records like those that the relay makes of the benchmark's
 * messages: the payload of the file, a key of 10,000 different ones, the
 * publish time as timestamp, and a header message-id of 36 characters; with
 * the relay's properties, and waits for the delivery report of each.  With
 * POLL_EVERY 1 it is written as the library's own example is, which polls for
 * reports after each record; with more, say 100, it saves most of those calls.
 * No more than as many records as the library queues by default are in flight.
 *
 * Prints the seconds from the first record to the last report.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "settings.h"

#define MAX_IN_FLIGHT	100000
#define MAX_PAYLOAD		65536
#define KEYS			10000

static long acknowledged = 0;

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void
on_report(rd_kafka_t *rk, const rd_kafka_message_t *message, void *arg)
{
	if (message->err)
		bench_fail("a record was refused", rd_kafka_err2str(message->err));
	acknowledged++;
}

static size_t
read_payload(const char *path, char *payload)
{
	FILE	   *f = fopen(path, "r");
	size_t		len;

	if (f == NULL)
		bench_fail(path, "can't be read");
	len = fread(payload, 1, MAX_PAYLOAD, f);
	fclose(f);
	return len;
}

/* Hand one record over, waiting while the library has enough. */
static void
produce(rd_kafka_t *rk, rd_kafka_topic_t *topic, long n, char *payload, size_t len)
{
	char		key[16];
	char		id[64];
	struct timespec ts;
	rd_kafka_resp_err_t err;

	snprintf(key, sizeof(key), "key-%ld", 10000 + n % KEYS);
	snprintf(id, sizeof(id), "4bf92f35-77b3-8da6-a3ce-%012lx", n);
	clock_gettime(CLOCK_REALTIME, &ts);
	err = rd_kafka_producev(rk, RD_KAFKA_V_RKT(topic),
							RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
							RD_KAFKA_V_KEY(key, strlen(key)),
							RD_KAFKA_V_VALUE(payload, len),
							RD_KAFKA_V_TIMESTAMP(ts.tv_sec * 1000LL + ts.tv_nsec / 1000000),
							RD_KAFKA_V_HEADER("message-id", id, strlen(id)),
							RD_KAFKA_V_END);
	if (err)
		bench_fail("produce", rd_kafka_err2str(err));
}

int
main(int argc, char **argv)
{
	static char payload[MAX_PAYLOAD];
	rd_kafka_conf_t *conf;
	rd_kafka_t *rk;
	rd_kafka_topic_t *topic;
	char		errstr[256];
	struct rusage usage;
	size_t		len;
	long		count;
	long		poll_every;
	double		start;

	if (argc < 6)
		bench_fail("usage", "bench_producer BOOTSTRAP TOPIC COUNT PAYLOAD_FILE POLL_EVERY [property=value ...]");
	count = atol(argv[3]);
	poll_every = atol(argv[5]);
	len = read_payload(argv[4], payload);
	conf = bench_producer_conf(argv[1]);
	for (int i = 6; i < argc; i++)
	{
		char	   *equals = strchr(argv[i], '=');

		if (equals == NULL)
			bench_fail(argv[i], "no value");
		*equals = '\0';
		bench_set(conf, argv[i], equals + 1);
	}
	rd_kafka_conf_set_dr_msg_cb(conf, on_report);

	start = now();
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	if (rk == NULL)
		bench_fail("client", errstr);
	topic = rd_kafka_topic_new(rk, argv[2], NULL);
	for (long n = 0; n < count; n++)
	{
		produce(rk, topic, n, payload, len);
		if (n % poll_every == 0)
			rd_kafka_poll(rk, 0);
		while (n - acknowledged >= MAX_IN_FLIGHT)
			rd_kafka_poll(rk, 10);
	}
	while (acknowledged < count)
		rd_kafka_poll(rk, 10);
	getrusage(RUSAGE_SELF, &usage);
	printf("%.3f %.3f\n", now() - start,
		   usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 +
		   usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6);
	return 0;
}
