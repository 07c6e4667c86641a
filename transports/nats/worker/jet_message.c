/*-------------------------------------------------------------------------
 *
 * jet_message.c
 *	  Records as NATS messages.
 *
 *	subject					prefix and topic
 *	payload					payload
 *	Nats-Msg-Id				the header "message-id"
 *	outbox-key				key
 *	outbox-tombstone		"true": there is no payload, not an empty one
 *	outbox-time				publish time, in milliseconds since 1970
 *	content-type			of the payload
 *	other headers			as they are
 *
 * A header's value is a line of text.  Where one has line ends, zero bytes or
 * white space around it, or is empty (clients of NATS disagree on these), all
 * values of that name are escaped: %XX stands for a byte, %- for no value at
 * all, and a lone % for an empty one; the header outbox-escaped has the names,
 * with spaces between them.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SHORT_VALUE		512

static bool
is_blank(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Bytes that a line can't have anywhere. */
static bool
is_forbidden(char c)
{
	return c == '\0' || c == '\r' || c == '\n' || c == '\v' || c == '\f';
}

static bool
must_escape(const char *value, size_t len)
{
	if (value == NULL || len == 0 || is_blank(value[0]) || is_blank(value[len - 1]))
		return true;
	for (size_t i = 0; i < len; i++)
		if (is_forbidden(value[i]))
			return true;
	return false;
}

/* To "to", of 3 * len + 3 bytes. */
static void
escape(char *to, const char *value, size_t len)
{
	if (value == NULL || len == 0)
	{
		strcpy(to, value == NULL ? "%-" : "%");
		return;
	}
	for (size_t i = 0; i < len; i++)
	{
		char		c = value[i];

		if (c == '%' || is_forbidden(c) || (is_blank(c) && (i == 0 || i == len - 1)))
			to += sprintf(to, "%%%02X", (unsigned char) c);
		else
			*to++ = c;
	}
	*to = '\0';
}

static void
add_name(char *names, size_t size, const char *name)
{
	size_t		used = strlen(names);

	snprintf(names + used, size - used, "%s%s", used ? " " : "", name);
}

/* Are the values of that name escaped? */
static bool
is_escaped(const OutboxRecord *record, const char *name)
{
	for (int i = 0; i < record->nheaders; i++)
		if (strcmp(record->headers[i].name, name) == 0 &&
			must_escape(record->headers[i].value, record->headers[i].value_len))
			return true;
	return false;
}

static bool
same_name(const char *name, const char *of)
{
	return strcmp(name, of) == 0;
}

/* --- what can't be sent ----------------------------------------------------------- */

static const char *
cannot_name(const char *name)
{
	if (*name == '\0')
		return "a NATS header has a name";
	if (strncasecmp(name, "Nats-", 5) == 0)
		return "NATS keeps headers that begin with \"Nats-\" for itself";
	for (const char *c = name; *c; c++)
		if ((unsigned char) *c <= ' ' || *c == ':' || *c == 0x7f)
			return "the name of a NATS header has no colon, white space or control characters";
	if (strncasecmp(name, "outbox-", 7) == 0)
		return "headers that begin with \"outbox-\" are pg_outbox's own on NATS";
	return NULL;
}

/* What NATS can't carry, whoever let it pass; NULL: it can. */
const char *
jet_cannot_carry(const OutboxRecord *record)
{
	const char *token = record->topic;

	if (strlen(record->topic) > JET_MAX_SUBJECT / 2)
		return "the topic is too long for a NATS subject";
	for (const char *c = record->topic;; c++)
	{
		if (*c != '\0' && ((unsigned char) *c <= ' ' || *c == 0x7f))
			return "a NATS subject has no white space or control characters";
		if (*c != '\0' && *c != '.')
			continue;
		if (c == token)
			return "a NATS subject is a list of tokens, separated by single dots";
		if (c == token + 1 && (*token == '*' || *token == '>'))
			return "a NATS subject that is published to has no wildcards";
		if (*c == '\0')
			break;
		token = c + 1;
	}
	for (int i = 0; i < record->nheaders; i++)
	{
		const char *why = cannot_name(record->headers[i].name);

		if (why != NULL)
			return why;
	}
	return NULL;
}

/* --- making a message --------------------------------------------------------------- */

static natsStatus
add_value(natsMsg *msg, const char *name, const char *value, size_t len, bool escaped)
{
	char		buffer[SHORT_VALUE];
	size_t		size = escaped ? 3 * len + 3 : len + 1;
	char	   *text = size <= sizeof(buffer) ? buffer : malloc(size);
	natsStatus	status;

	if (text == NULL)
		return NATS_NO_MEMORY;
	if (escaped)
		escape(text, value, len);
	else
	{
		memcpy(text, value, len);
		text[len] = '\0';
	}
	status = natsMsgHeader_Add(msg, name, text);
	if (text != buffer)
		free(text);
	return status;
}

/* Keep the record's message id; false: out of memory. */
bool
jet_make_id(JetRecord *record)
{
	const OutboxRecord *data = &record->io.data;

	for (int i = 0; i < data->nheaders; i++)
	{
		const OutboxHeader *header = &data->headers[i];
		size_t		size = 3 * header->value_len + 3;
		bool		escaped;

		if (!same_name(header->name, JET_ID_HEADER))
			continue;
		escaped = must_escape(header->value, header->value_len);
		if (!escaped)
			size = header->value_len + 1;
		record->id = size <= sizeof(record->id_buffer) ? record->id_buffer : malloc(size);
		if (record->id == NULL)
			return false;
		if (escaped)
			escape(record->id, header->value, header->value_len);
		else
		{
			memcpy(record->id, header->value, header->value_len);
			record->id[header->value_len] = '\0';
		}
		return true;
	}
	return true;
}

void
jet_forget_id(IoRecord *record)
{
	JetRecord  *mine = jet_record(record);

	if (mine->id != mine->id_buffer)
		free(mine->id);
}

static natsStatus
add_headers(natsMsg *msg, const OutboxRecord *record, char *escaped, size_t size)
{
	bool		id_seen = false;

	for (int i = 0; i < record->nheaders; i++)
	{
		const OutboxHeader *header = &record->headers[i];
		bool		escape_it;
		natsStatus	status;

		escape_it = is_escaped(record, header->name);
		if (escape_it && must_escape(header->value, header->value_len))
			add_name(escaped, size, header->name);
		if (!id_seen && same_name(header->name, JET_ID_HEADER))
		{
			id_seen = true;
			continue;
		}
		status = add_value(msg, header->name, header->value, header->value_len, escape_it);
		if (status != NATS_OK)
			return status;
	}
	return NATS_OK;
}

/* Room for the names of all headers. */
static size_t
names_size(const OutboxRecord *record)
{
	size_t		size = sizeof(JET_KEY_HEADER) + 1;

	for (int i = 0; i < record->nheaders; i++)
		size += strlen(record->headers[i].name) + 1;
	return size;
}

static bool
has_content_type(const OutboxRecord *record)
{
	for (int i = 0; i < record->nheaders; i++)
		if (strcasecmp(record->headers[i].name, JET_CONTENT_HEADER) == 0)
			return true;
	return false;
}

static natsStatus
fill_headers(natsMsg *msg, const JetRecord *record, char *escaped, size_t size)
{
	const OutboxRecord *data = &record->io.data;
	char		number[32];
	natsStatus	status = NATS_OK;

	if (record->id != NULL)
		status = natsMsgHeader_Add(msg, "Nats-Msg-Id", record->id);
	if (status == NATS_OK)
		status = add_headers(msg, data, escaped, size);
	if (status == NATS_OK && data->key != NULL)
	{
		bool		escape_it = must_escape(data->key, data->key_len);

		if (escape_it)
			add_name(escaped, size, JET_KEY_HEADER);
		status = add_value(msg, JET_KEY_HEADER, data->key, data->key_len, escape_it);
	}
	if (status == NATS_OK && data->payload == NULL)
		status = natsMsgHeader_Add(msg, JET_TOMBSTONE_HEADER, "true");
	if (status == NATS_OK && data->content_type != NULL && !has_content_type(data))
		status = natsMsgHeader_Add(msg, JET_CONTENT_HEADER, data->content_type);
	snprintf(number, sizeof(number), "%lld", (long long) data->timestamp_ms);
	if (status == NATS_OK)
		status = natsMsgHeader_Add(msg, JET_TIME_HEADER, number);
	if (status == NATS_OK && *escaped != '\0')
		status = natsMsgHeader_Add(msg, JET_ESCAPED_HEADER, escaped);
	return status;
}

/* The message of a record. */
natsStatus
jet_message_make(natsMsg **msg, const JetRecord *record, const char *subject, const char *reply)
{
	const OutboxRecord *data = &record->io.data;
	char		buffer[SHORT_VALUE];
	size_t		size = names_size(data);
	char	   *escaped = size <= sizeof(buffer) ? buffer : malloc(size);
	natsStatus	status;

	if (escaped == NULL)
		return NATS_NO_MEMORY;
	escaped[0] = '\0';
	status = natsMsg_Create(msg, subject, reply, data->payload ? data->payload : "",
							data->payload ? (int) data->payload_len : 0);
	if (status == NATS_OK)
	{
		status = fill_headers(*msg, record, escaped, size);
		if (status != NATS_OK)
			natsMsg_Destroy(*msg);
	}
	if (escaped != buffer)
		free(escaped);
	return status;
}
