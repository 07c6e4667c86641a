/*-------------------------------------------------------------------------
 *
 * rabbit_producer.c
 *	  A plain rabbitmq-c producer with pipelined confirms: what the relay to
 *	  RabbitMQ is compared with.
 *
 *	rabbit_producer HOST PORT EXCHANGE KEY COUNT PAYLOAD_FILE
 *		publishes COUNT messages like those that the relay makes, with as many
 *		unconfirmed as the relay allows, and prints the seconds from the first
 *		one to the last confirm
 *
 *	rabbit_producer HOST PORT EXCHANGE KEY COUNT PAYLOAD_FILE QUEUE RATE
 *		publishes so many a second, consumes them from the queue, and prints
 *		median and 99th percentile of the milliseconds in between
 *
 *	rabbit_producer HOST PORT "" "" COUNT "" QUEUE 0
 *		consumes only, and takes the time from header timestamp_in_ms
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include <amqp.h>
#include <amqp_tcp_socket.h>

#define WINDOW		8192		/* as rabbit_publish.c */
#define MAX_PAYLOAD	65536
#define KEYS		10000
#define HEADERS		2

static void
fail(const char *what)
{
	fprintf(stderr, "rabbit_producer: %s\n", what);
	exit(2);
}

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static double
wall_ms(void)
{
	struct timeval tv;

	gettimeofday(&tv, NULL);
	return tv.tv_sec * 1000.0 + tv.tv_usec / 1000.0;
}

static amqp_connection_state_t
open_connection(char **argv)
{
	amqp_connection_state_t connection = amqp_new_connection();
	amqp_socket_t *socket = amqp_tcp_socket_new(connection);

	if (amqp_socket_open(socket, argv[1], atoi(argv[2])) != AMQP_STATUS_OK ||
		amqp_login(connection, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest").reply_type
		!= AMQP_RESPONSE_NORMAL)
		fail("could not connect");
	amqp_channel_open(connection, 1);
	return connection;
}

static void
publish(amqp_connection_state_t connection, char **argv, long n, amqp_bytes_t payload)
{
	char		key[16];
	char		id[64];
	amqp_table_entry_t headers[HEADERS];
	amqp_basic_properties_t p;

	snprintf(key, sizeof(key), "key-%ld", 10000 + n % KEYS);
	snprintf(id, sizeof(id), "4bf92f35-77b3-8da6-a3ce-%012lx", n);
	memset(&p, 0, sizeof(p));
	p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_HEADERS_FLAG |
		AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
	p.delivery_mode = 2;
	p.timestamp = (uint64_t) (wall_ms() / 1000);
	p.message_id = amqp_cstring_bytes(id);
	p.content_type = amqp_cstring_bytes("application/json");
	p.headers.num_entries = HEADERS;
	p.headers.entries = headers;
	headers[0].key = amqp_cstring_bytes("outbox-key");
	headers[0].value.kind = AMQP_FIELD_KIND_UTF8;
	headers[0].value.value.bytes = amqp_cstring_bytes(key);
	headers[1].key = amqp_cstring_bytes("timestamp_in_ms");
	headers[1].value.kind = AMQP_FIELD_KIND_I64;
	headers[1].value.value.i64 = (int64_t) wall_ms();
	if (amqp_basic_publish(connection, 1, amqp_cstring_bytes(argv[3]), amqp_cstring_bytes(argv[4]),
						   1, 0, &p, payload) != AMQP_STATUS_OK)
		fail("publish");
}

/* Take confirms, waiting for one or not; how many are confirmed. */
static uint64_t
take_confirms(amqp_connection_state_t connection, uint64_t confirmed, bool wait)
{
	struct timeval none = {0, 0};
	struct timeval some = {10, 0};
	amqp_frame_t frame;
	int			status;

	while ((status = amqp_simple_wait_frame_noblock(connection, &frame, wait ? &some : &none))
		   == AMQP_STATUS_OK)
	{
		amqp_basic_ack_t *ack = frame.payload.method.decoded;

		if (frame.frame_type != AMQP_FRAME_METHOD ||
			frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
			fail("something was refused");
		if (ack->multiple)
			confirmed = ack->delivery_tag;
		else
			confirmed++;
		amqp_maybe_release_buffers(connection);
		wait = false;
	}
	if (status != AMQP_STATUS_TIMEOUT || wait)
		fail("the connection ended");
	return confirmed;
}

static void
throughput(char **argv, long count, amqp_bytes_t payload)
{
	amqp_connection_state_t connection = open_connection(argv);
	double		start = now();
	uint64_t	confirmed = 0;

	amqp_confirm_select(connection, 1);
	for (long n = 0; n < count; n++)
	{
		publish(connection, argv, n, payload);
		if (n % 256 == 0 || (uint64_t) n - confirmed >= WINDOW)
			confirmed = take_confirms(connection, confirmed, (uint64_t) n - confirmed >= WINDOW);
	}
	while (confirmed < (uint64_t) count)
		confirmed = take_confirms(connection, confirmed, true);
	printf("%.3f\n", now() - start);
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static double
time_of(const amqp_envelope_t *e)
{
	const amqp_table_t *headers = &e->message.properties.headers;

	for (int i = 0; i < headers->num_entries; i++)
		if (headers->entries[i].key.len == strlen("timestamp_in_ms") &&
			memcmp(headers->entries[i].key.bytes, "timestamp_in_ms", headers->entries[i].key.len) == 0)
			return (double) headers->entries[i].value.value.i64;
	fail("a message has no time");
	return 0;
}

static void
latency(char **argv, long count, amqp_bytes_t payload, double rate)
{
	amqp_connection_state_t in = open_connection(argv);
	amqp_connection_state_t out = rate > 0 ? open_connection(argv) : NULL;
	double	   *ms = malloc(count * sizeof(double));
	double		start = now();
	long		sent = 0;

	amqp_basic_consume(in, 1, amqp_cstring_bytes(argv[7]), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
	printf("ready\n");
	fflush(stdout);
	for (long n = 0; n < count;)
	{
		double		next = rate > 0 && sent < count ? start + sent / rate - now() : 30;
		struct timeval timeout;
		amqp_envelope_t e;

		if (next <= 0)
		{
			publish(out, argv, sent++, payload);
			continue;
		}
		timeout.tv_sec = (long) next;
		timeout.tv_usec = (long) ((next - (long) next) * 1e6);
		amqp_maybe_release_buffers(in);
		if (amqp_consume_message(in, &e, &timeout, 0).reply_type != AMQP_RESPONSE_NORMAL)
		{
			if (next >= 30)
				fail("nothing comes");
			continue;
		}
		/* published somewhere in that millisecond */
		ms[n++] = wall_ms() - time_of(&e) - 0.5;
		amqp_destroy_envelope(&e);
	}
	qsort(ms, count, sizeof(double), compare);
	printf("%.2f %.2f\n", ms[count / 2], ms[count * 99 / 100]);
}

int
main(int argc, char **argv)
{
	static char payload[MAX_PAYLOAD];
	amqp_bytes_t body = {0, payload};
	FILE	   *f;

	if (argc != 7 && argc != 9)
		fail("usage: HOST PORT EXCHANGE KEY COUNT PAYLOAD_FILE [QUEUE RATE]");
	f = fopen(argv[6], "r");
	if (f != NULL)
	{
		body.len = fread(payload, 1, MAX_PAYLOAD, f);
		fclose(f);
	}
	if (argc == 7)
		throughput(argv, atol(argv[5]), body);
	else
		latency(argv, atol(argv[5]), body, atof(argv[8]));
	return 0;
}
