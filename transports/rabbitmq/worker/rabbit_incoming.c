/*-------------------------------------------------------------------------
 *
 * rabbit_incoming.c
 *	  A delivery's properties and headers, as the subscription wants them.
 *
 * Properties that have a place of their own in a message (key, time, tombstone)
 * are not among its headers; the others are, under the names that the HTTP
 * interface of the broker gives them with dashes.  Values that are no text are
 * shown as text; tables and arrays, as x-death, as JSON.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit_source.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH		16		/* of tables in tables */
#define MAX_PROPERTIES	12		/* of ours among the headers */

/* Text that grows; pointers into it are offsets until it is complete. */
typedef struct Text
{
	char	   *data;
	size_t		len;
	size_t		size;
	bool		failed;			/* out of memory */
} Text;

/* A header, as offsets; value_at SIZE_MAX: none. */
typedef struct Header
{
	size_t		name_at;
	size_t		value_at;
	size_t		value_len;
} Header;

typedef struct Reading
{
	Text		text;
	Header	   *headers;
	int			nheaders;
	size_t		key_at;
	size_t		key_len;
	size_t		subject_at;
	bool		has_key;
	bool		tombstone;
	int64_t		time_ms;
} Reading;

static void
put(Text *text, const void *data, size_t len)
{
	if (text->len + len + 1 > text->size)
	{
		size_t		size = (text->len + len + 1) * 2;
		char	   *grown = realloc(text->data, size);

		if (grown == NULL)
		{
			text->failed = true;
			return;
		}
		text->data = grown;
		text->size = size;
	}
	if (len > 0)
		memcpy(text->data + text->len, data, len);
	text->len += len;
	text->data[text->len] = '\0';
}

static void
put_string(Text *text, const char *string)
{
	put(text, string, strlen(string));
}

/* With its NUL; where it begins. */
static size_t
keep(Text *text, const void *data, size_t len)
{
	size_t		at = text->len;

	put(text, data, len);
	put(text, "", 1);
	return at;
}

/* --- values ------------------------------------------------------------------------- */

static void
put_json_string(Text *text, amqp_bytes_t bytes)
{
	const unsigned char *c = bytes.bytes;

	put(text, "\"", 1);
	for (size_t i = 0; i < bytes.len; i++)
	{
		char		escaped[8];

		if (c[i] == '"' || c[i] == '\\')
			put(text, "\\", 1);
		if (c[i] < 0x20)
		{
			snprintf(escaped, sizeof(escaped), "\\u%04x", c[i]);
			put_string(text, escaped);
		}
		else
			put(text, &c[i], 1);
	}
	put(text, "\"", 1);
}

/* A number or a boolean as text; false: it is something else. */
static bool
put_scalar(Text *text, const amqp_field_value_t *v)
{
	char		buf[64];

	switch (v->kind)
	{
		case AMQP_FIELD_KIND_BOOLEAN:
			put_string(text, v->value.boolean ? "true" : "false");
			return true;
		case AMQP_FIELD_KIND_I8:
			snprintf(buf, sizeof(buf), "%d", v->value.i8);
			break;
		case AMQP_FIELD_KIND_U8:
			snprintf(buf, sizeof(buf), "%u", v->value.u8);
			break;
		case AMQP_FIELD_KIND_I16:
			snprintf(buf, sizeof(buf), "%d", v->value.i16);
			break;
		case AMQP_FIELD_KIND_U16:
			snprintf(buf, sizeof(buf), "%u", v->value.u16);
			break;
		case AMQP_FIELD_KIND_I32:
			snprintf(buf, sizeof(buf), "%" PRId32, v->value.i32);
			break;
		case AMQP_FIELD_KIND_U32:
			snprintf(buf, sizeof(buf), "%" PRIu32, v->value.u32);
			break;
		case AMQP_FIELD_KIND_I64:
			snprintf(buf, sizeof(buf), "%" PRId64, v->value.i64);
			break;
		case AMQP_FIELD_KIND_U64:
		case AMQP_FIELD_KIND_TIMESTAMP:
			snprintf(buf, sizeof(buf), "%" PRIu64, v->value.u64);
			break;
		case AMQP_FIELD_KIND_F32:
			snprintf(buf, sizeof(buf), "%.9g", v->value.f32);
			break;
		case AMQP_FIELD_KIND_F64:
			snprintf(buf, sizeof(buf), "%.17g", v->value.f64);
			break;
		case AMQP_FIELD_KIND_DECIMAL:
			snprintf(buf, sizeof(buf), "%" PRIu32 "e-%u", v->value.decimal.value,
					 v->value.decimal.decimals);
			break;
		default:
			return false;
	}
	put_string(text, buf);
	return true;
}

static void
put_json(Text *text, const amqp_field_value_t *v, int depth)
{
	if (put_scalar(text, v))
		return;
	if (v->kind == AMQP_FIELD_KIND_UTF8 || v->kind == AMQP_FIELD_KIND_BYTES)
		put_json_string(text, v->value.bytes);
	else if (v->kind == AMQP_FIELD_KIND_ARRAY && depth < MAX_DEPTH)
	{
		put(text, "[", 1);
		for (int i = 0; i < v->value.array.num_entries; i++)
		{
			put_string(text, i > 0 ? ", " : "");
			put_json(text, &v->value.array.entries[i], depth + 1);
		}
		put(text, "]", 1);
	}
	else if (v->kind == AMQP_FIELD_KIND_TABLE && depth < MAX_DEPTH)
	{
		put(text, "{", 1);
		for (int i = 0; i < v->value.table.num_entries; i++)
		{
			put_string(text, i > 0 ? ", " : "");
			put_json_string(text, v->value.table.entries[i].key);
			put_string(text, ": ");
			put_json(text, &v->value.table.entries[i].value, depth + 1);
		}
		put(text, "}", 1);
	}
	else
		put_string(text, "null");
}

/* --- headers -------------------------------------------------------------------------- */

static void
add_header(Reading *r, const void *name, size_t name_len, const void *value, size_t value_len)
{
	Header	   *header = &r->headers[r->nheaders++];

	header->name_at = keep(&r->text, name, name_len);
	header->value_at = keep(&r->text, value, value_len);
	header->value_len = value_len;
}

static void
add_property(Reading *r, const amqp_basic_properties_t *p, amqp_flags_t flag,
			 const char *name, amqp_bytes_t value)
{
	if (p->_flags & flag)
		add_header(r, name, strlen(name), value.bytes, value.len);
}

static bool
is_named(const amqp_table_entry_t *entry, const char *name)
{
	return entry->key.len == strlen(name) && memcmp(entry->key.bytes, name, entry->key.len) == 0;
}

/* One of the table; those that are ours have places of their own. */
static void
take_entry(Reading *r, const amqp_table_entry_t *entry)
{
	const amqp_field_value_t *v = &entry->value;
	Header	   *header;

	if (is_named(entry, RABBIT_KEY_HEADER) &&
		(v->kind == AMQP_FIELD_KIND_UTF8 || v->kind == AMQP_FIELD_KIND_BYTES))
	{
		r->has_key = true;
		r->key_len = v->value.bytes.len;
		r->key_at = keep(&r->text, v->value.bytes.bytes, r->key_len);
		return;
	}
	if (is_named(entry, RABBIT_TOMBSTONE_HEADER) && v->kind == AMQP_FIELD_KIND_BOOLEAN)
	{
		r->tombstone = v->value.boolean != 0;
		return;
	}
	if (is_named(entry, RABBIT_TIME_HEADER) && v->kind == AMQP_FIELD_KIND_I64)
	{
		r->time_ms = v->value.i64;
		return;
	}
	header = &r->headers[r->nheaders++];
	header->name_at = keep(&r->text, entry->key.bytes, entry->key.len);
	header->value_at = r->text.len;
	if (v->kind == AMQP_FIELD_KIND_UTF8 || v->kind == AMQP_FIELD_KIND_BYTES)
		put(&r->text, v->value.bytes.bytes, v->value.bytes.len);
	else if (v->kind == AMQP_FIELD_KIND_VOID)
	{
		header->value_at = SIZE_MAX;
		return;
	}
	else
		put_json(&r->text, v, 0);
	header->value_len = r->text.len - header->value_at;
	put(&r->text, "", 1);
}

static void
take_properties(Reading *r, const amqp_basic_properties_t *p, bool redelivered)
{
	static const char yes[] = "true";

	if (p->_flags & AMQP_BASIC_TIMESTAMP_FLAG)
		r->time_ms = (int64_t) p->timestamp * 1000;
	if ((p->_flags & AMQP_BASIC_MESSAGE_ID_FLAG) && p->message_id.len > 0)
		add_property(r, p, AMQP_BASIC_MESSAGE_ID_FLAG, "message-id", p->message_id);
	if (p->_flags & AMQP_BASIC_HEADERS_FLAG)
		for (int i = 0; i < p->headers.num_entries; i++)
			take_entry(r, &p->headers.entries[i]);
	add_property(r, p, AMQP_BASIC_CONTENT_TYPE_FLAG, "content-type", p->content_type);
	add_property(r, p, AMQP_BASIC_CONTENT_ENCODING_FLAG, "content-encoding", p->content_encoding);
	add_property(r, p, AMQP_BASIC_CORRELATION_ID_FLAG, "correlation-id", p->correlation_id);
	add_property(r, p, AMQP_BASIC_REPLY_TO_FLAG, "reply-to", p->reply_to);
	add_property(r, p, AMQP_BASIC_EXPIRATION_FLAG, "expiration", p->expiration);
	add_property(r, p, AMQP_BASIC_TYPE_FLAG, "type", p->type);
	add_property(r, p, AMQP_BASIC_USER_ID_FLAG, "user-id", p->user_id);
	add_property(r, p, AMQP_BASIC_APP_ID_FLAG, "app-id", p->app_id);
	if (redelivered)
		add_header(r, "redelivered", strlen("redelivered"), yes, strlen(yes));
}

/* --- a delivery ------------------------------------------------------------------------- */

/* From basic.deliver; NULL: out of memory. */
RabbitDelivery *
rabbit_delivery_begin(const RabbitQueue *queue, int number, const amqp_basic_deliver_t *deliver)
{
	RabbitDelivery *delivery = calloc(1, sizeof(RabbitDelivery));

	if (delivery == NULL)
		return NULL;
	delivery->queue = number;
	delivery->tag = deliver->delivery_tag;
	delivery->incoming.topic = queue->name;
	/* until its header is there: the routing key, and whether it came before */
	delivery->chunk = malloc(deliver->routing_key.len + 2);
	if (delivery->chunk == NULL)
	{
		free(delivery);
		return NULL;
	}
	delivery->chunk[0] = deliver->redelivered ? 1 : 0;
	memcpy(delivery->chunk + 1, deliver->routing_key.bytes, deliver->routing_key.len);
	delivery->chunk[deliver->routing_key.len + 1] = '\0';
	return delivery;
}

/* Its properties; false: out of memory. */
bool
rabbit_incoming_read(RabbitDelivery *delivery, const amqp_basic_properties_t *properties)
{
	OutboxIncoming *m = &delivery->incoming;
	int			ntable = properties->_flags & AMQP_BASIC_HEADERS_FLAG ?
		properties->headers.num_entries : 0;
	Reading		r = {.time_ms = -1};
	OutboxHeader *headers;
	char	   *text;

	r.headers = calloc(ntable + MAX_PROPERTIES, sizeof(Header));
	if (r.headers == NULL)
		return false;
	r.subject_at = keep(&r.text, delivery->chunk + 1, strlen(delivery->chunk + 1));
	take_properties(&r, properties, delivery->chunk[0] != 0);
	free(delivery->chunk);
	delivery->chunk = NULL;
	/* headers first, for their alignment */
	if (!r.text.failed)
		delivery->chunk = malloc(r.nheaders * sizeof(OutboxHeader) + r.text.len);
	if (delivery->chunk != NULL)
	{
		headers = (OutboxHeader *) delivery->chunk;
		text = delivery->chunk + r.nheaders * sizeof(OutboxHeader);
		memcpy(text, r.text.data, r.text.len);
		for (int i = 0; i < r.nheaders; i++)
		{
			headers[i].name = text + r.headers[i].name_at;
			headers[i].value = r.headers[i].value_at == SIZE_MAX ? NULL : text + r.headers[i].value_at;
			headers[i].value_len = r.headers[i].value_len;
		}
		m->headers = headers;
		m->nheaders = r.nheaders;
		m->subject = text + r.subject_at;
		m->key = r.has_key ? text + r.key_at : NULL;
		m->key_len = r.key_len;
		m->timestamp_ms = r.time_ms;
		m->payload = r.tombstone ? NULL : "";
		delivery->bytes = sizeof(RabbitDelivery) + r.nheaders * sizeof(OutboxHeader) + r.text.len;
	}
	free(r.text.data);
	free(r.headers);
	return delivery->chunk != NULL;
}
