/*-------------------------------------------------------------------------
 *
 * rabbit_send.c
 *	  The main thread's side of the way out: send() and poll().
 *
 * How a message looks at the broker:
 *
 *	routing key				topic
 *	body					payload
 *	message_id				the header "message-id"; one that is too long for
 *							the property stays a header
 *	timestamp				publish time; its milliseconds in the header
 *							timestamp_in_ms, as in the broker's own plugin
 *	delivery_mode			2, persistent
 *	content_type			of the payload
 *	header outbox-key		key
 *	header outbox-tombstone true: there is no payload, not an empty one
 *	other headers			as they are, text
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <string.h>

#define OUR_ENTRIES		3		/* key, tombstone, timestamp */
#define ENTRY_OVERHEAD	6		/* on the wire: two lengths and a kind */
#define FRAME_OVERHEAD	64		/* ... a frame's, and of properties */

static amqp_table_entry_t *
add_entry(RabbitRecord *record, const char *name, uint8_t kind, size_t value_len)
{
	amqp_table_entry_t *entry = &record->entries[record->nentries++];

	entry->key = amqp_cstring_bytes(name);
	entry->value.kind = kind;
	record->properties += entry->key.len + value_len + ENTRY_OVERHEAD;
	return entry;
}

static void
add_text(RabbitRecord *record, const char *name, const char *value, size_t len)
{
	amqp_table_entry_t *entry = add_entry(record, name, AMQP_FIELD_KIND_UTF8, len);

	entry->value.value.bytes.bytes = (void *) value;
	entry->value.value.bytes.len = len;
}

/* One of the caller's headers, or the message id, which is the first. */
static void
add_header(RabbitRecord *record, const OutboxHeader *header)
{
	if (strcmp(header->name, "message-id") == 0 && record->message_id == NULL &&
		header->value_len <= RABBIT_MAX_SHORT)
	{
		record->message_id = header->value;
		record->message_id_len = header->value_len;
		return;
	}
	if (strcmp(header->name, "content-type") == 0 && header->value_len <= RABBIT_MAX_SHORT)
	{
		record->content_type = header->value;
		record->content_type_len = header->value_len;
	}
	if (header->value == NULL)
		(void) add_entry(record, header->name, AMQP_FIELD_KIND_VOID, 0);
	else
		add_text(record, header->name, header->value, header->value_len);
}

static void
fill(RabbitRecord *record, const OutboxRecord *from)
{
	record->io.data.payload_len = from->payload ? from->payload_len : 0;
	record->content_type = from->content_type;
	record->content_type_len = from->content_type ? strlen(from->content_type) : 0;
	for (int i = 0; i < from->nheaders; i++)
		add_header(record, &from->headers[i]);
	if (from->key != NULL)
		add_text(record, RABBIT_KEY_HEADER, from->key, from->key_len);
	if (from->payload == NULL)
		add_entry(record, RABBIT_TOMBSTONE_HEADER, AMQP_FIELD_KIND_BOOLEAN, 1)
			->value.value.boolean = 1;
	add_entry(record, RABBIT_TIME_HEADER, AMQP_FIELD_KIND_I64, sizeof(int64_t))
		->value.value.i64 = from->timestamp_ms;
	record->properties += record->message_id_len + record->content_type_len + FRAME_OVERHEAD;
	record->io.bytes = record->io.data.payload_len + record->properties;
}

/* What AMQP can't carry, or the broker would close the channel for. */
static const char *
cannot_carry(const OutboxRecord *record)
{
	if (strlen(record->topic) > RABBIT_MAX_SHORT)
		return "a routing key has at most 255 bytes";
	for (int i = 0; i < record->nheaders; i++)
	{
		const char *name = record->headers[i].name;

		if (strlen(name) > RABBIT_MAX_SHORT)
			return "the name of a header has at most 255 bytes";
		if (strcmp(name, "CC") == 0 || strcmp(name, "BCC") == 0)
			return "headers \"CC\" and \"BCC\" are the broker's own";
	}
	return NULL;
}

/* --- send and poll --------------------------------------------------------------- */

/* See transport.h. */
OutboxFailure
rabbit_send(OutboxClient *client, const OutboxRecord *record, OutboxError *error)
{
	const char *why = cannot_carry(record);
	IoTopic    *topic;
	IoRecord   *mine;

	if (why != NULL)
		return error_set(error, OUTBOX_DEAD, "SYNTAX_ERROR", why, NULL);
	topic = io_topic_get(&client->io, record->topic, error);
	if (topic == NULL)
		return error->failure;
	mine = io_record_new(&client->io, topic, record, record->nheaders + OUR_ENTRIES, error);
	if (mine == NULL)
		return error->failure;
	fill(rabbit_record(mine), record);
	if (!io_has_room(&client->io, mine->bytes, error))
	{
		io_record_free(&client->io, mine);
		return error->failure;
	}
	io_hand_over(&client->io, mine);
	return OUTBOX_OK;
}

/* See transport.h. */
int
rabbit_poll(OutboxClient *client, OutboxReport *reports, int max)
{
	int			n = io_poll(client, reports, max);

	rabbit_connection_watch(&client->connection);
	return n;
}
