/*-------------------------------------------------------------------------
 *
 * rabbit_produce.c
 *	  Publishes what is on its input, as any producer of RabbitMQ may.
 *
 *	rabbit_produce HOST PORT VHOST USER PASSWORD EXCHANGE
 *
 * Lines as kafka_produce takes them: routing key, partition (not used), timestamp
 * (not used), key, payload, then names and values of headers; tab-separated, key,
 * payload and values in hexadecimal, \N for none.  Key, tombstone and message id
 * are written as pg_outbox does.  Ends when the broker has confirmed all.
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

#include "rabbit_library.h"

#define MAX_HEADERS	64

static void
fail(const char *what)
{
	fprintf(stderr, "rabbit_produce: %s\n", what);
	exit(1);
}

static void
check(amqp_rpc_reply_t reply, const char *what)
{
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
		fail(what);
}

/* In place; false: \N. */
static bool
from_hex(char *text, amqp_bytes_t *bytes)
{
	unsigned char *to = (unsigned char *) text;
	unsigned int byte;

	bytes->bytes = text;
	bytes->len = 0;
	if (strcmp(text, "\\N") == 0)
		return false;
	for (; text[0] && text[1]; text += 2)
	{
		char		digits[3] = {text[0], text[1], '\0'};

		byte = (unsigned int) strtoul(digits, NULL, 16);
		to[bytes->len++] = (unsigned char) byte;
	}
	return true;
}

static void
add(amqp_table_t *table, const char *name, uint8_t kind)
{
	if (table->num_entries == MAX_HEADERS)
		fail("too many headers");
	table->entries[table->num_entries].key = amqp_cstring_bytes(name);
	table->entries[table->num_entries++].value.kind = kind;
}

/* One line. */
static void
publish(amqp_connection_state_t connection, const char *exchange, char *line)
{
	amqp_table_entry_t entries[MAX_HEADERS];
	amqp_basic_properties_t p;
	amqp_bytes_t payload;
	amqp_bytes_t value;
	char	   *key = strsep(&line, "\t");

	memset(&p, 0, sizeof(p));
	p._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_HEADERS_FLAG;
	p.delivery_mode = 2;
	p.headers.entries = entries;
	strsep(&line, "\t");
	strsep(&line, "\t");
	if (from_hex(strsep(&line, "\t"), &value))
	{
		add(&p.headers, "outbox-key", AMQP_FIELD_KIND_UTF8);
		entries[0].value.value.bytes = value;
	}
	if (!from_hex(strsep(&line, "\t"), &payload))
	{
		add(&p.headers, "outbox-tombstone", AMQP_FIELD_KIND_BOOLEAN);
		entries[p.headers.num_entries - 1].value.value.boolean = 1;
	}
	while (line != NULL)
	{
		char	   *name = strsep(&line, "\t");
		bool		some = line != NULL && from_hex(strsep(&line, "\t"), &value);

		if (some && strcmp(name, "message-id") == 0 && value.len <= 255)
		{
			p._flags |= AMQP_BASIC_MESSAGE_ID_FLAG;
			p.message_id = value;
			continue;
		}
		add(&p.headers, name, some ? AMQP_FIELD_KIND_UTF8 : AMQP_FIELD_KIND_VOID);
		if (some)
			entries[p.headers.num_entries - 1].value.value.bytes = value;
	}
	if (amqp_basic_publish(connection, 1, amqp_cstring_bytes(exchange), amqp_cstring_bytes(key),
						   0, 0, &p, payload) != AMQP_STATUS_OK)
		fail("publish");
}

static void
await_confirms(amqp_connection_state_t connection, uint64_t n)
{
	uint64_t	confirmed = 0;

	while (confirmed < n)
	{
		amqp_frame_t frame;
		amqp_basic_ack_t *ack;

		if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK)
			fail("the connection ended");
		if (frame.frame_type != AMQP_FRAME_METHOD ||
			frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
			fail("a message was refused");
		/* those of one channel come in order, or all at once */
		ack = frame.payload.method.decoded;
		confirmed = ack->multiple ? ack->delivery_tag : confirmed + 1;
	}
}

int
main(int argc, char **argv)
{
	amqp_connection_state_t connection = amqp_new_connection();
	amqp_socket_t *socket = amqp_tcp_socket_new(connection);
	char	   *line = NULL;
	size_t		size = 0;
	ssize_t		len;
	uint64_t	n = 0;

	if (argc != 7)
		fail("HOST PORT VHOST USER PASSWORD EXCHANGE");
	if (amqp_socket_open(socket, argv[1], atoi(argv[2])) != AMQP_STATUS_OK)
		fail("could not connect");
	check(amqp_login(connection, argv[3], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, argv[4], argv[5]), "login");
	amqp_channel_open(connection, 1);
	check(amqp_get_rpc_reply(connection), "channel");
	amqp_confirm_select(connection, 1);
	check(amqp_get_rpc_reply(connection), "confirm mode");
	while ((len = getline(&line, &size, stdin)) > 0)
	{
		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		publish(connection, argv[6], line);
		n++;
	}
	await_confirms(connection, n);
	free(line);
	amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
	amqp_destroy_connection(connection);
	return 0;
}
