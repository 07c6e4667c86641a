/*-------------------------------------------------------------------------
 *
 * nats_consume.c
 *	  Reads subjects of a JetStream stream from their beginning and prints what is
 *	  there, for the judge.
 *
 *	nats_consume [options] URL STREAM SUBJECT ...
 *
 *	(default)		reads what was there when reading began, then stops
 *	-n COUNT		waits for COUNT messages
 *	-t SECONDS		gives up after that (60; exit code 1, what was read is printed)
 *	-u USER:PASSWORD
 *	-o FILE			instead of stdout
 *	-p none|hex|text	payload: left out, bytea's hex (default), text
 *
 * Lines as judge_consume's: the topic is the subject, the partition 0, the offset the
 * stream's sequence; headers in no order, but for values of one name.  What pg_outbox
 * has escaped (see the header outbox-escaped) is shown as it was.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <nats/nats.h>

#include "judge_line.h"

static FILE *out;
static const char *payload_format = "hex";
static natsConnection *connection;
static jsCtx *js;

static void
check(natsStatus status, const char *what)
{
	if (status == NATS_OK)
		return;
	fprintf(stderr, "nats_consume: %s: %s\n", what, nats_GetLastError(NULL));
	exit(2);
}

static void
connect_to(const char *url, char *user)
{
	natsOptions *options;

	check(natsOptions_Create(&options), "options");
	check(natsOptions_SetURL(options, url), url);
	if (user != NULL)
	{
		char	   *colon = strchr(user, ':');

		*colon = '\0';
		check(natsOptions_SetUserInfo(options, user, colon + 1), "user");
	}
	check(natsConnection_Connect(&connection, options), url);
	natsOptions_Destroy(options);
	check(natsConnection_JetStream(&js, connection, NULL), "JetStream");
}

/* --- a line --------------------------------------------------------------------- */

static const char *
header(natsMsg *msg, const char *name)
{
	const char *value;

	return natsMsgHeader_Get(msg, name, &value) == NATS_OK ? value : NULL;
}

static bool
is_escaped(natsMsg *msg, const char *name)
{
	const char *list = header(msg, "outbox-escaped");
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

/* As it was: its length, or -1 for no value at all; malloc'd. */
static long
unescape(natsMsg *msg, const char *name, const char *value, char **to)
{
	long		n = 0;

	*to = malloc(strlen(value) + 1);
	if (!is_escaped(msg, name))
	{
		strcpy(*to, value);
		return (long) strlen(value);
	}
	if (strcmp(value, "%-") == 0)
		return -1;
	for (; *value; value++)
	{
		char		hex[3] = {0};

		if (*value != '%')
		{
			(*to)[n++] = *value;
			continue;
		}
		if (value[1] == '\0')
			break;				/* a lone one: nothing */
		memcpy(hex, value + 1, 2);
		(*to)[n++] = (char) strtol(hex, NULL, 16);
		value += 2;
	}
	return n;
}

static void
put_column(natsMsg *msg, const char *name, bool hex)
{
	const char *value = header(msg, name);
	char	   *text = NULL;
	long		len = value ? unescape(msg, strcmp(name, "Nats-Msg-Id") ? name : "message-id", value, &text) : -1;

	if (len < 0)
		fputs("\\N", out);
	else if (hex)
		put_hex(out, text, len);
	else
		put_text(out, text, len);
	free(text);
	putc_unlocked('\t', out);
}

static void
put_headers(natsMsg *msg)
{
	const char **names;
	int			n;
	bool		any = false;

	putc_unlocked('[', out);
	if (natsMsgHeader_Keys(msg, &names, &n) != NATS_OK)
		n = 0;
	for (int i = 0; i < n; i++)
	{
		const char **values;
		int			nvalues;

		check(natsMsgHeader_Values(msg, names[i], &values, &nvalues), "headers");
		for (int k = 0; k < nvalues; k++)
		{
			char	   *text;
			long		len = unescape(msg, names[i], values[k], &text);

			fputs(any ? ",[" : "[", out);
			put_json(out, names[i], strlen(names[i]));
			putc_unlocked(',', out);
			if (len < 0)
				fputs("null", out);
			else
				put_json(out, text, len);
			putc_unlocked(']', out);
			free(text);
			any = true;
		}
		free(values);
	}
	if (n > 0)
		free(names);
	putc_unlocked(']', out);
}

static void
put_message(natsMsg *msg, const jsMsgMetaData *meta)
{
	const char *ms = header(msg, "outbox-time");
	const char *data = natsMsg_GetData(msg);
	int			len = natsMsg_GetDataLength(msg);
	struct timeval now;

	put_text(out, natsMsg_GetSubject(msg), strlen(natsMsg_GetSubject(msg)));
	fprintf(out, "\t0\t%llu\t%lld\t", (unsigned long long) meta->Sequence.Stream,
			ms ? atoll(ms) : (long long) meta->Timestamp / 1000000);
	put_column(msg, "Nats-Msg-Id", false);
	put_column(msg, "ledger", false);
	put_column(msg, "outbox-key", true);
	put_headers(msg);
	putc_unlocked('\t', out);
	if (header(msg, "outbox-tombstone") != NULL || strcmp(payload_format, "none") == 0)
		fputs("\\N", out);
	else if (strcmp(payload_format, "hex") == 0)
		put_hex(out, data, len);
	else
		put_text(out, data, len);
	gettimeofday(&now, NULL);
	fprintf(out, "\t%lld\n", (long long) now.tv_sec * 1000000 + now.tv_usec);
}

/* --- reading -------------------------------------------------------------------- */

/* One subject: up to its end, or "wanted" messages; how many. */
static long
consume(const char *stream, const char *subject, long wanted, time_t until)
{
	natsSubscription *sub;
	jsSubOptions options;
	jsConsumerInfo *info;
	uint64_t	left;
	long		n = 0;

	jsSubOptions_Init(&options);
	options.Stream = stream;
	options.Ordered = true;
	check(js_SubscribeSync(&sub, js, subject, NULL, &options, NULL), subject);
	check(natsSubscription_SetPendingLimits(sub, -1, -1), subject);
	check(natsSubscription_GetConsumerInfo(&info, sub, NULL, NULL), subject);
	left = info->NumPending + info->Delivered.Consumer;
	jsConsumerInfo_Destroy(info);
	while (wanted >= 0 ? n < wanted : left > 0)
	{
		natsMsg    *msg;
		jsMsgMetaData *meta;
		natsStatus	status = natsSubscription_NextMsg(&msg, sub, 100);

		if (status == NATS_TIMEOUT && time(NULL) < until)
			continue;
		if (status == NATS_TIMEOUT)
			break;
		check(status, subject);
		check(natsMsg_GetMetaData(&meta, msg), subject);
		put_message(msg, meta);
		n++;
		left--;
		jsMsgMetaData_Destroy(meta);
		natsMsg_Destroy(msg);
	}
	natsSubscription_Unsubscribe(sub);
	natsSubscription_Destroy(sub);
	return wanted >= 0 ? n : left == 0 ? n : -1;
}

int
main(int argc, char **argv)
{
	long		wanted = -1;
	int			seconds = 60;
	char	   *user = NULL;
	bool		good = true;
	time_t		until;
	int			c;

	out = stdout;
	while ((c = getopt(argc, argv, "n:t:u:o:p:")) != -1)
	{
		switch (c)
		{
			case 'n':
				wanted = atol(optarg);
				break;
			case 't':
				seconds = atoi(optarg);
				break;
			case 'u':
				user = optarg;
				break;
			case 'o':
				out = fopen(optarg, "w");
				if (out == NULL)
				{
					perror(optarg);
					exit(2);
				}
				break;
			case 'p':
				payload_format = optarg;
				break;
			default:
				exit(2);
		}
	}
	if (argc - optind < 3)
	{
		fprintf(stderr, "usage: nats_consume [options] URL STREAM SUBJECT ...\n");
		exit(2);
	}
	until = time(NULL) + seconds;
	connect_to(argv[optind], user);
	for (int i = optind + 2; i < argc; i++)
	{
		/* of several subjects the last one is waited for */
		long		n = consume(argv[optind + 1], argv[i],
								i == argc - 1 ? wanted : -1, until);

		if (n >= 0 && wanted >= 0)
			wanted -= n;
		good = good && n >= 0 && (i < argc - 1 || wanted <= 0);
	}
	if (fclose(out) != 0)
	{
		perror("output");
		exit(2);
	}
	jsCtx_Destroy(js);
	natsConnection_Destroy(connection);
	nats_Close();
	return good ? 0 : 1;
}
