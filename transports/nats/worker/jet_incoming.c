/*-------------------------------------------------------------------------
 *
 * jet_incoming.c
 *	  NATS messages as a handler is to see them: what jet_message.c does, backwards.
 *
 * Of others' messages the subject is the topic, all headers are shown, and
 * Nats-Msg-Id is the header "message-id".
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet_source.h"

#include <stdlib.h>
#include <string.h>

#define ID_HEADER	"Nats-Msg-Id"

/* Room that lasts until the next receive(), in one array for all. */
static bool
ensure(void **array, size_t *size, size_t needed, size_t element)
{
	size_t		n = *size == 0 ? 64 : *size;
	void	   *bigger;

	if (needed <= *size)
		return true;
	while (n < needed)
		n *= 2;
	bigger = realloc(*array, n * element);
	if (bigger == NULL)
		return false;
	*array = bigger;
	*size = n;
	return true;
}

static const char *
get(natsMsg *msg, const char *name)
{
	const char *value;

	return natsMsgHeader_Get(msg, name, &value) == NATS_OK ? value : NULL;
}

static bool
is_escaped(const char *list, const char *name)
{
	size_t		len = strlen(name);

	while (list != NULL && *list)
	{
		size_t		n = strcspn(list, " ");

		if (n == len && memcmp(list, name, n) == 0)
			return true;
		list += n;
		list += strspn(list, " ");
	}
	return false;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* A value that was escaped, as it was, in place: it belongs to the message. */
static void
unescape(const char **value, size_t *len)
{
	char	   *to = (char *) *value;
	const char *from = *value;
	char	   *begin = to;

	if (strcmp(from, "%-") == 0)
	{
		*value = NULL;
		*len = 0;
		return;
	}
	while (*from)
	{
		int			high = *from == '%' ? hex_digit(from[1]) : -1;
		int			low = high >= 0 ? hex_digit(from[2]) : -1;

		if (low >= 0)
		{
			*to++ = (char) (high << 4 | low);
			from += 3;
		}
		else if (*from == '%' && from[1] == '\0')
			from++;				/* a lone one: nothing */
		else
			*to++ = *from++;
	}
	*len = to - begin;
}

static void
set_header(OutboxHeader *header, const char *name, const char *value, bool escaped)
{
	header->name = name;
	header->value = value;
	header->value_len = strlen(value);
	if (escaped)
		unescape(&header->value, &header->value_len);
}

/* Is it for the handler? */
static bool
is_shown(const char *name)
{
	return strcmp(name, JET_KEY_HEADER) != 0 && strcmp(name, JET_TOMBSTONE_HEADER) != 0 &&
		strcmp(name, JET_TIME_HEADER) != 0 && strcmp(name, JET_ESCAPED_HEADER) != 0 &&
		strncmp(name, "Nats-Expected-", 14) != 0;
}

/* Its headers, behind those of the messages before it: how many; -1: out of memory. */
static int
add_headers(OutboxConsumer *consumer, natsMsg *msg, const char *escaped, size_t used)
{
	const char **names;
	int			nnames;
	int			n = 0;

	if (natsMsgHeader_Keys(msg, &names, &nnames) != NATS_OK)
		return 0;
	for (int i = 0; i < nnames && n >= 0; i++)
	{
		const char *name = strcmp(names[i], ID_HEADER) == 0 ? JET_ID_HEADER : names[i];
		const char **values;
		int			nvalues;

		if (!is_shown(names[i]) || natsMsgHeader_Values(msg, names[i], &values, &nvalues) != NATS_OK)
			continue;
		if (!ensure((void **) &consumer->headers, &consumer->headers_size, used + n + nvalues,
					sizeof(OutboxHeader)))
			n = -1;
		for (int k = 0; k < nvalues && n >= 0; k++)
			set_header(&consumer->headers[used + n++], name, values[k], is_escaped(escaped, name));
		free(values);
	}
	if (nnames > 0)
		free(names);
	return n;
}

static void
fill(OutboxConsumer *consumer, OutboxIncoming *to, const JetArrival *arrival, const char *escaped)
{
	natsMsg    *msg = arrival->msg;
	const char *time = get(msg, JET_TIME_HEADER);
	const char *key = get(msg, JET_KEY_HEADER);

	to->topic = consumer->config.stream;
	to->offset = (int64_t) arrival->sequence;
	to->subject = natsMsg_GetSubject(msg) + strlen(consumer->config.prefix);
	to->timestamp_ms = time ? atoll(time) : arrival->stored_ms;
	if (key != NULL)
	{
		OutboxHeader header;

		set_header(&header, JET_KEY_HEADER, key, is_escaped(escaped, JET_KEY_HEADER));
		to->key = header.value;
		to->key_len = header.value_len;
	}
	if (get(msg, JET_TOMBSTONE_HEADER) == NULL)
	{
		to->payload_len = natsMsg_GetDataLength(msg);
		to->payload = to->payload_len > 0 ? natsMsg_GetData(msg) : "";
	}
}

/* Of all that receive() gives out; how many, fewer when there is no memory. */
int
jet_incoming_fill(OutboxConsumer *consumer)
{
	size_t		used = 0;
	int			n = 0;

	for (JetArrival *arrival = consumer->out.first; arrival != NULL; arrival = arrival->next)
	{
		const char *escaped = get(arrival->msg, JET_ESCAPED_HEADER);
		int			nheaders = add_headers(consumer, arrival->msg, escaped, used);

		if (nheaders < 0 || !ensure((void **) &consumer->messages, &consumer->messages_size, n + 1,
									sizeof(OutboxIncoming)))
			break;
		memset(&consumer->messages[n], 0, sizeof(OutboxIncoming));
		fill(consumer, &consumer->messages[n], arrival, escaped);
		consumer->messages[n++].nheaders = nheaders;
		used += nheaders;
	}
	/* only now the array stays where it is */
	used = 0;
	for (int i = 0; i < n; i++)
	{
		consumer->messages[i].headers = consumer->headers + used;
		used += consumer->messages[i].nheaders;
	}
	return n;
}
