/*-------------------------------------------------------------------------
 *
 * rabbit_producer.c
 *	  A plain rabbitmq-c program with pipelined confirms: what the relay to
 *	  RabbitMQ is compared with.
 *
 *	rabbit_producer URL drain QUEUE COUNT PAYLOAD_FILE
 *		publishes COUNT messages like those that the relay makes, with as many
 *		unconfirmed as the relay allows, and prints the seconds from connecting to
 *		the last confirm, and those of CPU
 *
 *	rabbit_producer URL latency QUEUE COUNT PAYLOAD_FILE RATE
 *		publishes so many a second, consumes them from the queue, and prints
 *		median and 99th percentile of the milliseconds in between
 *
 *	rabbit_producer URL consume QUEUE COUNT
 *		consumes only, what others publish: from their header timestamp_in_ms
 *
 * A queue is bound to the exchange by its own name.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <string.h>
#include <sys/time.h>

#include "measure.h"
#include "rabbit_library.h"

#define EXCHANGE	"bench"		/* as Bench/Rabbit.pm */
#define WINDOW		8192		/* as rabbit_publish.c */
#define ASK_EVERY	256			/* records, for confirms */
#define PATIENCE_S	30
#define TIME_HEADER	"timestamp_in_ms"
#define HEADERS		2

/* Which messages are confirmed: a confirm is of one, or of all up to one. */
typedef struct Confirms
{
	bool	   *seen;			/* by delivery tag */
	uint64_t	lowest;			/* that is not */
	uint64_t	n;
} Confirms;

static amqp_connection_state_t
connect_to(const char *url)
{
	char	   *copy = strdup(url);
	amqp_connection_state_t connection = amqp_new_connection();
	amqp_socket_t *socket = amqp_tcp_socket_new(connection);
	struct amqp_connection_info to;

	if (amqp_parse_url(copy, &to) != AMQP_STATUS_OK ||
		amqp_socket_open(socket, to.host, to.port) != AMQP_STATUS_OK ||
		amqp_login(connection, to.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, to.user,
				   to.password).reply_type != AMQP_RESPONSE_NORMAL)
		bench_fail(url, "could not connect");
	amqp_channel_open(connection, 1);
	free(copy);
	return connection;
}

static void
publish(amqp_connection_state_t connection, const char *queue, long n, amqp_bytes_t payload)
{
	char		key[BENCH_KEY_SIZE];
	char		id[BENCH_ID_SIZE];
	double		time = bench_wall_ms();
	amqp_table_entry_t headers[HEADERS];
	amqp_basic_properties_t p;

	bench_name(key, id, n);
	memset(&p, 0, sizeof(p));
	p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_HEADERS_FLAG |
		AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG;
	p.delivery_mode = 2;
	p.timestamp = (uint64_t) (time / 1000);
	p.message_id = amqp_cstring_bytes(id);
	p.content_type = amqp_cstring_bytes("application/json");
	p.headers.num_entries = HEADERS;
	p.headers.entries = headers;
	headers[0].key = amqp_cstring_bytes("outbox-key");
	headers[0].value.kind = AMQP_FIELD_KIND_UTF8;
	headers[0].value.value.bytes = amqp_cstring_bytes(key);
	headers[1].key = amqp_cstring_bytes(TIME_HEADER);
	headers[1].value.kind = AMQP_FIELD_KIND_I64;
	headers[1].value.value.i64 = (int64_t) time;
	if (amqp_basic_publish(connection, 1, amqp_cstring_bytes(EXCHANGE), amqp_cstring_bytes(queue),
						   1, 0, &p, payload) != AMQP_STATUS_OK)
		bench_fail("publish", "the connection ended");
}

/* --- confirms --------------------------------------------------------------------- */

static void
confirm(Confirms *confirms, const amqp_basic_ack_t *ack)
{
	for (uint64_t tag = ack->multiple ? confirms->lowest : ack->delivery_tag;
		 tag <= ack->delivery_tag; tag++)
	{
		confirms->n += !confirms->seen[tag];
		confirms->seen[tag] = true;
	}
	while (confirms->seen[confirms->lowest])
		confirms->lowest++;
}

/* Take the confirms that are there, or wait for one. */
static void
take_confirms(amqp_connection_state_t connection, Confirms *confirms, bool wait)
{
	struct timeval none = {0, 0};
	struct timeval some = {PATIENCE_S, 0};
	amqp_frame_t frame;
	int			status;

	while ((status = amqp_simple_wait_frame_noblock(connection, &frame, wait ? &some : &none))
		   == AMQP_STATUS_OK)
	{
		if (frame.frame_type != AMQP_FRAME_METHOD ||
			frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
			bench_fail("publish", "something was refused");
		confirm(confirms, frame.payload.method.decoded);
		amqp_maybe_release_buffers(connection);
		wait = false;
	}
	if (status != AMQP_STATUS_TIMEOUT || wait)
		bench_fail("confirms", "the connection ended");
}

static void
drain(const char *url, const char *queue, long count, amqp_bytes_t payload)
{
	double		start = bench_now();
	amqp_connection_state_t connection = connect_to(url);
	Confirms	confirms = {calloc(count + 2, sizeof(bool)), 1, 0};

	amqp_confirm_select(connection, 1);
	for (long n = 0; n < count; n++)
	{
		bool		full = (uint64_t) n - confirms.n >= WINDOW;

		if (full || n % ASK_EVERY == 0)
			take_confirms(connection, &confirms, full);
		publish(connection, queue, n, payload);
	}
	while (confirms.n < (uint64_t) count)
		take_confirms(connection, &confirms, true);
	bench_print_seconds(start);
}

/* --- latency ---------------------------------------------------------------------- */

static double
time_of(const amqp_envelope_t *e)
{
	const amqp_table_t *headers = &e->message.properties.headers;

	for (int i = 0; i < headers->num_entries; i++)
		if (headers->entries[i].key.len == strlen(TIME_HEADER) &&
			memcmp(headers->entries[i].key.bytes, TIME_HEADER, headers->entries[i].key.len) == 0)
			return (double) headers->entries[i].value.value.i64;
	bench_fail("consumer", "a message has no time");
	return 0;
}

/* Rate 0: somebody else publishes. */
static void
latency(const char *url, const char *queue, long count, amqp_bytes_t payload, double rate)
{
	amqp_connection_state_t in = connect_to(url);
	amqp_connection_state_t out = rate > 0 ? connect_to(url) : NULL;
	double	   *ms = malloc(count * sizeof(double));
	double		start = bench_now();
	long		sent = 0;

	amqp_basic_consume(in, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
	printf("ready\n");
	fflush(stdout);
	for (long n = 0; n < count;)
	{
		bool		publishes = rate > 0 && sent < count;
		double		wait = publishes ? start + sent / rate - bench_now() : PATIENCE_S;
		struct timeval timeout;
		amqp_envelope_t e;

		if (wait <= 0)
		{
			publish(out, queue, sent++, payload);
			continue;
		}
		timeout.tv_sec = (long) wait;
		timeout.tv_usec = (long) ((wait - (double) timeout.tv_sec) * 1e6);
		amqp_maybe_release_buffers(in);
		if (amqp_consume_message(in, &e, &timeout, 0).reply_type != AMQP_RESPONSE_NORMAL)
		{
			if (!publishes)
				bench_fail("consumer", "nothing comes");
			continue;
		}
		/* published somewhere in that millisecond */
		ms[n++] = bench_wall_ms() - time_of(&e) - 0.5;
		amqp_destroy_envelope(&e);
	}
	bench_print_percentiles(ms, count);
}

int
main(int argc, char **argv)
{
	static char payload[BENCH_MAX_PAYLOAD];
	amqp_bytes_t body = {0, payload};

	if (argc < 5 || argc > 7)
		bench_fail("usage", "rabbit_producer URL drain|latency|consume QUEUE COUNT [PAYLOAD_FILE [RATE]]");
	if (argc > 5)
		body.len = bench_read_payload(argv[5], payload);
	if (strcmp(argv[2], "drain") == 0)
		drain(argv[1], argv[3], atol(argv[4]), body);
	else
		latency(argv[1], argv[3], atol(argv[4]), body, argc > 6 ? atof(argv[6]) : 0);
	return 0;
}
