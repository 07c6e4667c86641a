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
 * Prints the seconds from the first record to the last report, and those of CPU.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "settings.h"

#define MAX_IN_FLIGHT	100000

static long acknowledged = 0;

static void
on_report(rd_kafka_t *rk, const rd_kafka_message_t *message, void *arg)
{
	if (message->err)
		bench_fail("a record was refused", rd_kafka_err2str(message->err));
	acknowledged++;
}

/* Hand one record over, waiting while the library has enough. */
static void
produce(rd_kafka_t *rk, rd_kafka_topic_t *topic, long n, char *payload, size_t len)
{
	char		key[BENCH_KEY_SIZE];
	char		id[BENCH_ID_SIZE];
	rd_kafka_resp_err_t err;

	bench_name(key, id, n);
	err = rd_kafka_producev(rk, RD_KAFKA_V_RKT(topic),
							RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
							RD_KAFKA_V_KEY(key, strlen(key)),
							RD_KAFKA_V_VALUE(payload, len),
							RD_KAFKA_V_TIMESTAMP((int64_t) bench_wall_ms()),
							RD_KAFKA_V_HEADER("message-id", id, strlen(id)),
							RD_KAFKA_V_END);
	if (err)
		bench_fail("produce", rd_kafka_err2str(err));
}

int
main(int argc, char **argv)
{
	static char payload[BENCH_MAX_PAYLOAD];
	rd_kafka_conf_t *conf;
	rd_kafka_t *rk;
	rd_kafka_topic_t *topic;
	char		errstr[256];
	size_t		len;
	long		count;
	long		poll_every;
	double		start;

	if (argc < 6)
		bench_fail("usage", "bench_producer BOOTSTRAP TOPIC COUNT PAYLOAD_FILE POLL_EVERY [property=value ...]");
	count = atol(argv[3]);
	poll_every = atol(argv[5]);
	len = bench_read_payload(argv[4], payload);
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

	start = bench_now();
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
	bench_print_seconds(start);
	return 0;
}
