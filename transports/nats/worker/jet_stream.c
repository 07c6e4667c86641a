/*-------------------------------------------------------------------------
 *
 * jet_stream.c
 *	  The stream: is it there, how far is it, which of our records does it have.
 *	  The io thread's.
 *
 * Asked before anything is published on a connection, and whenever the chain
 * has to begin anew.  Requests to JetStream's API are messages with a reply,
 * one at a time; nothing is published meanwhile.
 *
 * A stream that is created gets the subjects that are routed here, and is
 * kept as it is ever after.  Patterns of topics know no tokens: what NATS can't
 * say as exactly is the next wider subject, with ">" at its end.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define REQUEST_TIMEOUT_MS	5000
#define LOOK_AGAIN_MS		1000
#define ALIVE_MS			20000	/* a look at least so often */
#define MAX_CREATE			(64 * 1024)
#define MAX_PATTERN			1024

static bool
ask(OutboxClient *client, const char *what, const char *body, OutboxError *error)
{
	char		subject[512];

	snprintf(subject, sizeof(subject), "$JS.API.STREAM.%s.%s", what, client->config.stream);
	client->request = ++client->next_request;
	client->asked_at = thread_now_ms();
	return jet_request(&client->connection, subject, body, client->request, error);
}

/* --- a stream that is created -------------------------------------------------------- */

/* A pattern as a subject; false: it would be all there is. */
static bool
to_subject(char *to, size_t size, const char *prefix, const char *pattern, size_t len)
{
	char		whole[MAX_PATTERN + JET_MAX_SUBJECT];
	char	   *star;
	char	   *dot;

	snprintf(whole, sizeof(whole), "%s%.*s", prefix, (int) len, pattern);
	star = strchr(whole, '*');
	if (star != NULL)
	{
		*star = '\0';
		dot = strrchr(whole, '.');
		if (dot == NULL)
			return false;
		strcpy(dot + 1, ">");
	}
	snprintf(to, size, "%s", whole);
	return true;
}

/* Is it within one of those before it, or of the same kind behind it? */
static bool
is_covered(char subjects[][JET_MAX_SUBJECT], int n, int i)
{
	for (int k = 0; k < n; k++)
		if (k != i && jet_subject_covers(subjects[k], subjects[i]) &&
			(k < i || !jet_subject_covers(subjects[i], subjects[k])))
			return true;
	return false;
}

static int
list_subjects(const JetConfig *config, char subjects[][JET_MAX_SUBJECT], int max)
{
	const char *pos = config->topics;
	int			n = 0;

	while (n < max)
	{
		size_t		len;

		pos += strspn(pos, " ,");
		if (*pos == '\0')
			break;
		len = strcspn(pos, ",");
		while (len > 0 && pos[len - 1] == ' ')
			len--;
		if (!to_subject(subjects[n++], JET_MAX_SUBJECT, config->prefix, pos, len))
			return -1;
		pos += len;
	}
	return n;
}

/* The request's body, malloc'd; NULL with *error. */
static char *
create_body(const JetConfig *config, OutboxError *error)
{
	enum
	{
		MAX_SUBJECTS = 32
	};
	char		(*subjects)[JET_MAX_SUBJECT] = calloc(MAX_SUBJECTS, sizeof(*subjects));
	char	   *body = malloc(MAX_CREATE * 2);
	char		quoted[JET_MAX_SUBJECT + 16];
	size_t		used;
	int			n = subjects == NULL || body == NULL ? 0 :
		list_subjects(config, subjects, MAX_SUBJECTS);

	if (n <= 0)
	{
		error_set(error, OUTBOX_CONFIG, "NO_SUBJECTS",
				  "a stream can't be created for all subjects that there are",
				  "Say which in option \"topics\", such as 'orders.*', set a subject_prefix, or create the stream by hand.");
		free(subjects);
		free(body);
		return NULL;
	}
	jet_json_quote(quoted, sizeof(quoted), config->stream);
	used = snprintf(body, MAX_CREATE, "{\"name\":%s,\"subjects\":[", quoted);
	for (int i = 0, shown = 0; i < n; i++)
	{
		if (is_covered(subjects, n, i))
			continue;
		jet_json_quote(quoted, sizeof(quoted), subjects[i]);
		used += snprintf(body + used, MAX_CREATE * 2 - used, "%s%s", shown++ ? "," : "", quoted);
	}
	snprintf(body + used, MAX_CREATE * 2 - used,
			 "],\"retention\":\"limits\",\"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,"
			 "\"max_age\":0,\"max_msgs_per_subject\":-1,\"max_msg_size\":-1,\"discard\":\"old\","
			 "\"storage\":\"file\",\"num_replicas\":%d}", config->replicas);
	free(subjects);
	return body;
}

static bool
create(OutboxClient *client, OutboxError *error)
{
	char	   *body = create_body(&client->config, error);
	bool		sent;

	if (body == NULL)
	{
		jet_stream_failed(client, error);
		return true;
	}
	client->phase = JET_CREATING;
	sent = ask(client, "CREATE", body, error);
	free(body);
	return sent;
}

/* --- which records are stored --------------------------------------------------------- */

static IoRecord *
unsure_at(OutboxClient *client, size_t n)
{
	IoRecord   *record = client->unsure.first;

	while (--n > 0)
		record = record->next;
	return record;
}

/* Ask for the message that the record in the middle would be. */
static bool
probe(OutboxClient *client, OutboxError *error)
{
	char		body[64];

	if (client->probe_low == client->probe_high)
	{
		jet_resolved(client, client->probe_low);
		return true;
	}
	snprintf(body, sizeof(body), "{\"seq\":%llu}",
			 (unsigned long long) (client->unsure_base + client->probe_at));
	return ask(client, "MSG.GET", body, error);
}

/* Does a message, as the API gives it, have that id? */
static bool
has_id(const char *text, const char *id)
{
	const char *value;
	size_t		len;
	char	   *headers;
	bool		found = false;

	if (id == NULL || !jet_json_find(text, "message.hdrs", &value, &len) || len < 2)
		return false;
	headers = jet_base64(value + 1, len - 2, &len);
	for (char *line = headers; line != NULL && !found; line = strchr(line, '\n'))
	{
		size_t		end;

		if (*line == '\n')
			line++;
		if (strncasecmp(line, "Nats-Msg-Id:", 12) != 0)
			continue;
		line += 12;
		line += strspn(line, " ");
		end = strcspn(line, "\r\n");
		found = end == strlen(id) && memcmp(line, id, end) == 0;
	}
	free(headers);
	return found;
}

/*
 * Those that are stored are the first ones: a search by halves, but for the
 * first step, since mostly all that the stream has more is ours.
 */
static void
probed(OutboxClient *client, const char *text)
{
	if (has_id(text, jet_record(unsure_at(client, client->probe_at))->id))
		client->probe_low = client->probe_at;
	else
		client->probe_high = client->probe_at - 1;
	client->probe_at = (client->probe_low + client->probe_high + 1) / 2;
}

/* --- looking --------------------------------------------------------------------------- */

/* What a person has to see to. */
void
jet_stream_failed(OutboxClient *client, const OutboxError *error)
{
	client->blamed = error->failure == OUTBOX_CONFIG;
	client->request = 0;
	client->phase = JET_LOOK;
	client->look_due = thread_now_ms() + LOOK_AGAIN_MS;
	jet_show_blocked(client);
	io_show_error(&client->io.thread, error);
}

static bool
is_usable(OutboxClient *client, const char *text, OutboxError *error)
{
	const char *value;
	size_t		len;

	if (jet_json_find(text, "config.no_ack", &value, &len) && strncmp(value, "true", 4) == 0)
		error_set(error, OUTBOX_CONFIG, "NO_ACK", "the stream acknowledges nothing (no_ack)",
				  "Name another stream, or make it anew without no_ack.");
	else if (jet_json_find(text, "config.mirror", &value, &len) && *value == '{')
		error_set(error, OUTBOX_CONFIG, "MIRROR", "the stream is a mirror, which takes no messages",
				  "Name the stream that it mirrors.");
	else
		return true;
	return false;
}

static void
seen(OutboxClient *client, const char *text)
{
	int64_t		last;
	int64_t		size;
	OutboxError error;

	if (!is_usable(client, text, &error))
	{
		jet_stream_failed(client, &error);
		return;
	}
	if (!jet_json_number(text, "state.last_seq", &last))
		last = 0;
	client->max_msg_size = jet_json_number(text, "config.max_msg_size", &size) ? size : -1;
	client->last_sequence = (uint64_t) last;
	client->has_before = false;
	if (client->blamed)
	{
		client->blamed = false;
		jet_show_blocked(client);
	}
	client->probe_low = client->probe_high = 0;
	if (client->nunsure > 0 && client->unsure_base != UINT64_MAX &&
		client->last_sequence > client->unsure_base)
	{
		uint64_t	more = client->last_sequence - client->unsure_base;

		client->probe_high = more < client->nunsure ? more : client->nunsure;
	}
	client->probe_at = client->probe_high;
	client->phase = JET_PROBING;
}

/* The answer to the request under way. */
void
jet_stream_answer(OutboxClient *client, const JetAnswer *answer)
{
	int			code = jet_error_code(answer->text);
	OutboxError error;

	if (answer->number != client->request)
		return;
	client->request = 0;
	if (client->phase == JET_PROBING)
	{
		/* one that is gone is none of ours, as far as anybody can tell */
		if (code == 0 || code == JET_NO_MESSAGE)
		{
			probed(client, answer->text);
			return;
		}
	}
	else if (code == 0 && client->phase == JET_CREATING)
	{
		client->phase = JET_LOOK;
		client->look_due = 0;
		return;
	}
	else if (code == 0)
	{
		seen(client, answer->text);
		return;
	}
	else if (code == JET_NO_STREAM && client->phase == JET_LOOKING && client->config.create_stream)
	{
		client->phase = JET_CREATING;
		return;
	}
	(void) jet_error_answer(&error, &client->config,
							client->phase == JET_CREATING ? "could not create" : "could not use",
							answer->text);
	jet_stream_failed(client, &error);
}

/*
 * Ask what is to be asked; false: the connection is of no more use.  When
 * nothing happens it asks too, to see whether the server is alive.
 */
bool
jet_stream_turn(OutboxClient *client, OutboxError *error)
{
	int64_t		now = thread_now_ms();

	if (client->request != 0)
	{
		if (now - client->asked_at < REQUEST_TIMEOUT_MS)
			return true;
		error_set(error, OUTBOX_RETRY, "TIMEOUT",
				  "JetStream did not answer in time",
				  "Has its cluster a leader, and may this user ask \"$JS.API.STREAM.INFO\" and receive at \"_INBOX.>\"?");
		return false;
	}
	switch (client->phase)
	{
		case JET_LOOK:
			if (now < client->look_due)
				return true;
			client->phase = JET_LOOKING;
			return ask(client, "INFO", "", error);
		case JET_CREATING:
			return create(client, error);
		case JET_PROBING:
			return probe(client, error);
		case JET_GO:
			if (client->wire_n > 0 || now - client->connection.heard < ALIVE_MS)
				return true;
			client->phase = JET_LOOKING;
			return ask(client, "INFO", "", error);
		case JET_LOOKING:
		case JET_DRAIN:
			return true;
	}
	return true;
}
