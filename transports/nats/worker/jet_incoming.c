/*-------------------------------------------------------------------------
 *
 * jet_incoming.c
 *	  NATS messages as a handler is to see them: what jet_message.c does, backwards.
 *
 * Of others' messages the subject is the topic, all headers are shown, and
 * Nats-Msg-Id is the header "message-id".
 *
 * Headers are read from the lines that came, since the library takes the next line
 * for the value of a header that has none, and reads nothing where that is the last.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet_source.h"

#include <stdlib.h>
#include <string.h>

#define ID_HEADER		"Nats-Msg-Id"
#define FIRST_LINE		"NATS/1.0"
#define MAX_HEADERS		(1024 * 1024)	/* bytes; a server takes 64 kB */

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

/* --- headers as they came ------------------------------------------------------------ */

/*
 * The lines of the headers, without the first: the library keeps a message that has
 * come as subject, reply, headers and payload, one behind the other, with a zero
 * behind each.  False: there are none, or they are not there.
 */
static bool
raw_headers(natsMsg *msg, char **begin, char **end)
{
	const char *before = natsMsg_GetReply(msg);
	char	   *line;

	if (before == NULL)
		before = natsMsg_GetSubject(msg);
	line = (char *) before + strlen(before) + 1;
	*end = (char *) natsMsg_GetData(msg) - 1;
	if (*end - line < (int) strlen(FIRST_LINE) || *end - line > MAX_HEADERS ||
		memcmp(line, FIRST_LINE, strlen(FIRST_LINE)) != 0 || (*end)[-1] != '\n')
		return false;
	*begin = (char *) memchr(line, '\n', *end - line) + 1;
	return true;
}

/*
 * Of one line.  The library, where it looked for one itself, has put zeros in the
 * place of the colon and behind the value.
 */
static bool
parse_line(char *line, char *end, OutboxHeader *header)
{
	char	   *colon = line;

	while (colon < end && *colon != ':' && *colon != '\0')
		colon++;
	if (colon == line || colon == end)
		return false;
	*colon++ = '\0';
	while (colon < end && (*colon == ' ' || *colon == '\t'))
		colon++;
	while (end > colon && strchr(" \t\r", end[-1]) != NULL)	/* or a zero */
		end--;
	*end = '\0';
	header->name = line;
	header->value = colon;
	header->value_len = end - colon;
	return true;
}

static bool
keep(OutboxConsumer *consumer, size_t n, const OutboxHeader *header)
{
	if (!ensure((void **) &consumer->headers, &consumer->headers_size, n + 1, sizeof(OutboxHeader)))
		return false;
	consumer->headers[n] = *header;
	return true;
}

/* As the library reads them, should it keep them elsewhere. */
static int
library_headers(OutboxConsumer *consumer, natsMsg *msg, size_t used)
{
	const char **names;
	int			nnames;
	int			n = 0;

	if (natsMsgHeader_Keys(msg, &names, &nnames) != NATS_OK)
		return 0;
	for (int i = 0; i < nnames && n >= 0; i++)
	{
		const char **values;
		int			nvalues;

		if (natsMsgHeader_Values(msg, names[i], &values, &nvalues) != NATS_OK)
			continue;
		for (int k = 0; k < nvalues && n >= 0; k++)
		{
			OutboxHeader header = {names[i], values[k], strlen(values[k])};

			n = keep(consumer, used + n, &header) ? n + 1 : -1;
		}
		free(values);
	}
	free(names);
	return n;
}

/* A message's headers, behind those of the messages before it: how many; -1: out of memory. */
static int
read_headers(OutboxConsumer *consumer, natsMsg *msg, size_t used)
{
	char	   *line;
	char	   *end;
	int			n = 0;

	if (!raw_headers(msg, &line, &end))
		return library_headers(consumer, msg, used);
	while (line < end)
	{
		char	   *next = memchr(line, '\n', end - line);
		OutboxHeader header;

		if (next == NULL)
			break;
		if (parse_line(line, next, &header) && !keep(consumer, used + n++, &header))
			return -1;
		line = next + 1;
	}
	return n;
}

/* --- messages ------------------------------------------------------------------------ */

static const OutboxHeader *
find(const OutboxHeader *headers, int n, const char *name)
{
	for (int i = 0; i < n; i++)
		if (strcmp(headers[i].name, name) == 0)
			return &headers[i];
	return NULL;
}

/* Is it for the handler? */
static bool
is_shown(const char *name)
{
	return strcmp(name, JET_KEY_HEADER) != 0 && strcmp(name, JET_TOMBSTONE_HEADER) != 0 &&
		strcmp(name, JET_TIME_HEADER) != 0 && strcmp(name, JET_ESCAPED_HEADER) != 0 &&
		strncmp(name, "Nats-Expected-", 14) != 0;
}

/* Leave those that are, as they were before they were escaped; how many. */
static int
show_headers(OutboxHeader *headers, int n, const char *escaped)
{
	int			shown = 0;

	for (int i = 0; i < n; i++)
	{
		OutboxHeader header = headers[i];

		if (!is_shown(header.name))
			continue;
		if (strcmp(header.name, ID_HEADER) == 0)
			header.name = JET_ID_HEADER;
		if (is_escaped(escaped, header.name))
			unescape(&header.value, &header.value_len);
		headers[shown++] = header;
	}
	return shown;
}

static void
fill(OutboxConsumer *consumer, OutboxIncoming *to, const JetArrival *arrival, OutboxHeader *headers, int n)
{
	natsMsg    *msg = arrival->msg;
	const OutboxHeader *time = find(headers, n, JET_TIME_HEADER);
	const OutboxHeader *key = find(headers, n, JET_KEY_HEADER);
	const OutboxHeader *list = find(headers, n, JET_ESCAPED_HEADER);
	const char *escaped = list ? list->value : NULL;

	to->topic = consumer->config.stream;
	to->offset = (int64_t) arrival->sequence;
	to->subject = natsMsg_GetSubject(msg) + strlen(consumer->config.prefix);
	to->timestamp_ms = time ? atoll(time->value) : arrival->stored_ms;
	if (key != NULL)
	{
		to->key = key->value;
		to->key_len = key->value_len;
		if (is_escaped(escaped, JET_KEY_HEADER))
			unescape(&to->key, &to->key_len);
	}
	if (find(headers, n, JET_TOMBSTONE_HEADER) == NULL)
	{
		to->payload_len = natsMsg_GetDataLength(msg);
		to->payload = to->payload_len > 0 ? natsMsg_GetData(msg) : "";
	}
	to->nheaders = show_headers(headers, n, escaped);
}

/* Of all that receive() gives out; how many, fewer when there is no memory. */
int
jet_incoming_fill(OutboxConsumer *consumer)
{
	size_t		used = 0;
	int			n = 0;

	for (JetArrival *arrival = consumer->out.first; arrival != NULL; arrival = arrival->next)
	{
		int			nheaders = read_headers(consumer, arrival->msg, used);

		if (nheaders < 0 || !ensure((void **) &consumer->messages, &consumer->messages_size, n + 1,
									sizeof(OutboxIncoming)))
			break;
		memset(&consumer->messages[n], 0, sizeof(OutboxIncoming));
		fill(consumer, &consumer->messages[n], arrival, consumer->headers + used, nheaders);
		used += consumer->messages[n++].nheaders;
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
