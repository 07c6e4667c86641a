/*-------------------------------------------------------------------------
 *
 * rabbit_consume.c
 *	  Reads queues of RabbitMQ from their beginning and prints what is there, for the
 *	  judge.
 *
 *	rabbit_consume [options] HOST PORT VHOST USER PASSWORD QUEUE ...
 *
 *	(default)		reads what was there when reading began, then stops
 *	-n COUNT		waits for COUNT messages
 *	-t SECONDS		gives up after that (60; exit code 1, what was read is printed)
 *	-a				acknowledges; else all is in the queues again afterwards
 *	-s				the queues are streams
 *	-o FILE			instead of stdout
 *	-p none|hex|text	payload: left out, bytea's hex (default), text
 *
 * Lines as judge_consume's: the topic is the routing key, the partition the queue's
 * number among the arguments, the offset that of the delivery.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "judge_line.h"
#include "rabbit_library.h"

#define MAX_QUEUES	1000
#define PREFETCH	5000		/* of a stream, which must have a bound */

static FILE *out;
static const char *payload_format = "hex";
static bool acknowledge = false;
static bool stream = false;
static amqp_connection_state_t connection;
static long offsets[MAX_QUEUES];

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "rabbit_consume: %s: %s\n", what, why);
	exit(2);
}

static void
check(amqp_rpc_reply_t reply, const char *what)
{
	if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION)
	{
		amqp_channel_close_t *m = reply.reply.decoded;

		fprintf(stderr, "rabbit_consume: %s: %.*s\n", what,
				(int) m->reply_text.len, (char *) m->reply_text.bytes);
		exit(2);
	}
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
		fail(what, amqp_error_string2(reply.library_error));
}

static void
connect_to(char **args)
{
	struct timeval timeout = {10, 0};
	amqp_socket_t *socket;

	connection = amqp_new_connection();
	socket = amqp_tcp_socket_new(connection);
	if (amqp_socket_open_noblock(socket, args[0], atoi(args[1]), &timeout) != AMQP_STATUS_OK)
		fail(args[0], "could not connect");
	check(amqp_login(connection, args[2], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, args[3], args[4]),
		  "login");
	amqp_channel_open(connection, 1);
	check(amqp_get_rpc_reply(connection), "channel");
}

/* How many are ready in a queue. */
static long
count(const char *queue)
{
	amqp_queue_declare_ok_t *ok = amqp_queue_declare(connection, 1, amqp_cstring_bytes(queue),
													 1, 0, 0, 0, amqp_empty_table);

	check(amqp_get_rpc_reply(connection), queue);
	return ok->message_count;
}

static void
begin(const char *queue, int number)
{
	char		tag[16];
	amqp_table_entry_t first;
	amqp_table_t arguments = {stream ? 1 : 0, &first};

	first.key = amqp_cstring_bytes("x-stream-offset");
	first.value.kind = AMQP_FIELD_KIND_UTF8;
	first.value.value.bytes = amqp_cstring_bytes("first");
	snprintf(tag, sizeof(tag), "%d", number);
	amqp_basic_consume(connection, 1, amqp_cstring_bytes(queue), amqp_cstring_bytes(tag),
					   0, 0, 0, arguments);
	check(amqp_get_rpc_reply(connection), queue);
}

/* --- a line --------------------------------------------------------------------- */

static const amqp_table_entry_t *
find(const amqp_table_t *headers, const char *name)
{
	for (int i = 0; i < headers->num_entries; i++)
		if (headers->entries[i].key.len == strlen(name) &&
			memcmp(headers->entries[i].key.bytes, name, strlen(name)) == 0)
			return &headers->entries[i];
	return NULL;
}

static void
put_string(const amqp_table_entry_t *entry)
{
	if (entry != NULL && entry->value.kind == AMQP_FIELD_KIND_UTF8)
		put_text(out, entry->value.value.bytes.bytes, entry->value.value.bytes.len);
	else
		fputs("\\N", out);
}

static void
put_value(const amqp_field_value_t *value)
{
	char		number[32];

	switch (value->kind)
	{
		case AMQP_FIELD_KIND_UTF8:
		case AMQP_FIELD_KIND_BYTES:
			put_json(out, value->value.bytes.bytes, value->value.bytes.len);
			return;
		case AMQP_FIELD_KIND_BOOLEAN:
			strcpy(number, value->value.boolean ? "true" : "false");
			break;
		case AMQP_FIELD_KIND_I64:
			snprintf(number, sizeof(number), "%" PRId64, value->value.i64);
			break;
		case AMQP_FIELD_KIND_VOID:
			fputs("null", out);
			return;
		default:
			snprintf(number, sizeof(number), "kind %c", value->kind);
	}
	put_json(out, number, strlen(number));
}

static void
put_headers(const amqp_table_t *headers)
{
	putc_unlocked('[', out);
	for (int i = 0; i < headers->num_entries; i++)
	{
		fputs(i > 0 ? ",[" : "[", out);
		put_json(out, headers->entries[i].key.bytes, headers->entries[i].key.len);
		putc_unlocked(',', out);
		put_value(&headers->entries[i].value);
		putc_unlocked(']', out);
	}
	putc_unlocked(']', out);
}

static void
put_payload(const amqp_message_t *m, const amqp_table_t *headers)
{
	if (find(headers, "outbox-tombstone") != NULL || strcmp(payload_format, "none") == 0)
		fputs("\\N", out);
	else if (strcmp(payload_format, "hex") == 0)
		put_hex(out, m->body.bytes, m->body.len);
	else
		put_text(out, m->body.bytes, m->body.len);
}

static void
put_message(const amqp_envelope_t *e)
{
	const amqp_basic_properties_t *p = &e->message.properties;
	amqp_table_t headers = p->_flags & AMQP_BASIC_HEADERS_FLAG ? p->headers : amqp_empty_table;
	const amqp_table_entry_t *key = find(&headers, "outbox-key");
	const amqp_table_entry_t *ms = find(&headers, "timestamp_in_ms");
	char		tag[16] = "";
	struct timeval now;
	int			queue;

	memcpy(tag, e->consumer_tag.bytes, e->consumer_tag.len < 15 ? e->consumer_tag.len : 15);
	queue = atoi(tag);
	put_text(out, e->routing_key.bytes, e->routing_key.len);
	fprintf(out, "\t%d\t%ld\t%" PRId64 "\t", queue, offsets[queue]++,
			ms ? ms->value.value.i64 : (int64_t) p->timestamp * 1000);
	if (p->_flags & AMQP_BASIC_MESSAGE_ID_FLAG)
		put_text(out, p->message_id.bytes, p->message_id.len);
	else
		put_string(find(&headers, "message-id"));
	putc_unlocked('\t', out);
	put_string(find(&headers, "ledger"));
	putc_unlocked('\t', out);
	if (key != NULL)
		put_hex(out, key->value.value.bytes.bytes, key->value.value.bytes.len);
	else
		fputs("\\N", out);
	putc_unlocked('\t', out);
	put_headers(&headers);
	putc_unlocked('\t', out);
	put_payload(&e->message, &headers);
	gettimeofday(&now, NULL);
	fprintf(out, "\t%lld\n", (long long) now.tv_sec * 1000000 + now.tv_usec);
}

/* False: the time was over before. */
static bool
consume(long wanted, int seconds)
{
	time_t		until = time(NULL) + seconds;

	for (long n = 0; n < wanted; n++)
	{
		struct timeval timeout = {until - time(NULL), 100000};
		amqp_envelope_t e;
		amqp_rpc_reply_t reply;

		if (timeout.tv_sec < 0)
			return false;
		amqp_maybe_release_buffers(connection);
		reply = amqp_consume_message(connection, &e, &timeout, 0);
		if (reply.library_error == AMQP_STATUS_TIMEOUT)
			return false;
		check(reply, "consume");
		put_message(&e);
		if (acknowledge || stream)
			amqp_basic_ack(connection, 1, e.delivery_tag, 0);
		amqp_destroy_envelope(&e);
	}
	return true;
}

int
main(int argc, char **argv)
{
	long		wanted = -1;
	long		there = 0;
	int			seconds = 60;
	bool		good;
	int			c;

	out = stdout;
	while ((c = getopt(argc, argv, "n:t:aso:p:")) != -1)
	{
		switch (c)
		{
			case 'n':
				wanted = atol(optarg);
				break;
			case 't':
				seconds = atoi(optarg);
				break;
			case 'a':
				acknowledge = true;
				break;
			case 's':
				stream = true;
				break;
			case 'o':
				out = fopen(optarg, "w");
				if (out == NULL)
					fail(optarg, "could not open");
				break;
			case 'p':
				payload_format = optarg;
				break;
			default:
				exit(2);
		}
	}
	if (argc - optind < 6 || argc - optind - 5 > MAX_QUEUES)
		fail("usage", "[options] HOST PORT VHOST USER PASSWORD QUEUE ...");
	connect_to(argv + optind);
	if (stream)
		amqp_basic_qos(connection, 1, 0, PREFETCH, 0);
	for (int i = optind + 5; i < argc; i++)
		there += count(argv[i]);
	for (int i = optind + 5; i < argc; i++)
		begin(argv[i], i - optind - 5);
	good = consume(wanted >= 0 ? wanted : there, seconds);
	if (fclose(out) != 0)
		fail("output", "could not write");
	if (acknowledge)
		amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
	amqp_destroy_connection(connection);
	if (!good)
		fprintf(stderr, "rabbit_consume: time is over\n");
	return good ? 0 : 1;
}
