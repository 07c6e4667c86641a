/*-------------------------------------------------------------------------
 *
 * judge_consume.c
 *	  Reads topics from the beginning and prints what is there, for the judge.
 *
 *	judge_consume [options] BOOTSTRAP TOPIC ...
 *
 *	(default)		reads up to the end of every partition, then stops
 *	-n COUNT		waits for COUNT messages, also for topics that don't exist yet
 *	-f				follows until SIGTERM or the timeout
 *	-t SECONDS		gives up after that (60; exit code 1, what was read is printed)
 *	-c				read_committed instead of read_uncommitted
 *	-o FILE			instead of stdout
 *	-p none|hex|text	payload: left out, bytea's hex (default), text
 *	-X property=value	of librdkafka
 *
 * One line a message, in the text format of PostgreSQL's COPY (backslash, tab,
 * newline and return escaped by a backslash, \N for null), so that table
 * judge.consumed takes it as it is:
 *
 *	topic, partition, offset, timestamp (ms), message-id header, ledger header,
 *	key (hex), headers (JSON array of [name, value]), payload,
 *	time of reading (microseconds since 1970)
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#include "judge_line.h"

#define MAX_TOPICS			1000
#define OUT_BUFFER			(1 << 20)
#define BATCH				1000
#define METADATA_INTERVAL	1	/* seconds between looks for missing topics */

typedef enum PayloadFormat
{
	PAYLOAD_NONE,
	PAYLOAD_HEX,
	PAYLOAD_TEXT
} PayloadFormat;

static volatile sig_atomic_t stopped = 0;
typedef struct Partition
{
	const char *topic;
	int32_t		partition;
	int64_t		high;			/* its end, when reading began */
	bool		open;			/* not read to there yet */
} Partition;

static FILE *out;
static PayloadFormat payload_format = PAYLOAD_HEX;
static rd_kafka_t *rk;
static rd_kafka_queue_t *queue;
static char **topics;
static int	ntopics;
static bool assigned[MAX_TOPICS];
static Partition *partitions;
static int	npartitions = 0;
static int	open_partitions = 0;	/* not read to their end yet */
static long nread = 0;

static void
stop(int signo)
{
	stopped = 1;
}

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "judge_consume: %s: %s\n", what, why);
	exit(2);
}

/* The first header of that name, or null. */
static void
put_header(rd_kafka_headers_t *headers, const char *name)
{
	const void *value;
	size_t		len;

	if (headers && !rd_kafka_header_get(headers, 0, name, &value, &len) && value)
		put_text(out, value, len);
	else
		fputs("\\N", out);
}

static void
put_headers(rd_kafka_headers_t *headers)
{
	const char *name;
	const void *value;
	size_t		len;

	putc_unlocked('[', out);
	for (size_t i = 0; headers && !rd_kafka_header_get_all(headers, i, &name, &value, &len); i++)
	{
		fputs(i > 0 ? ",[" : "[", out);
		put_json(out, name, strlen(name));
		putc_unlocked(',', out);
		if (value)
			put_json(out, value, len);
		else
			fputs("null", out);
		putc_unlocked(']', out);
	}
	putc_unlocked(']', out);
}

static void
put_payload(const rd_kafka_message_t *m)
{
	if (!m->payload || payload_format == PAYLOAD_NONE)
		fputs("\\N", out);
	else if (payload_format == PAYLOAD_HEX)
		put_hex(out, m->payload, m->len);
	else
		put_text(out, m->payload, m->len);
}

static void
put_message(const rd_kafka_message_t *m, int64_t now)
{
	rd_kafka_headers_t *headers = NULL;

	rd_kafka_message_headers(m, &headers);
	fprintf(out, "%s\t%d\t%lld\t%lld\t", rd_kafka_topic_name(m->rkt), m->partition,
			(long long) m->offset, (long long) rd_kafka_message_timestamp(m, NULL));
	put_header(headers, "message-id");
	putc_unlocked('\t', out);
	put_header(headers, "ledger");
	putc_unlocked('\t', out);
	if (m->key)
		put_hex(out, m->key, m->key_len);
	else
		fputs("\\N", out);
	putc_unlocked('\t', out);
	put_headers(headers);
	putc_unlocked('\t', out);
	put_payload(m);
	fprintf(out, "\t%lld\n", (long long) now);
}

/* A partition that is read, up to where it ended when that began. */
static void
add_partition(const char *topic, int32_t partition)
{
	Partition  *p;
	int64_t		low;

	partitions = realloc(partitions, (npartitions + 1) * sizeof(Partition));
	p = &partitions[npartitions++];
	p->topic = topic;
	p->partition = partition;
	p->high = 0;
	p->open = true;
	open_partitions++;
	for (int tries = 0; tries < 10; tries++)
		if (!rd_kafka_query_watermark_offsets(rk, topic, partition, &low, &p->high, 5000))
			return;
	fail(topic, "no watermarks");
}

/* The library says "end" also where it only believes so: ask whether it is. */
static void
close_partition(const rd_kafka_message_t *m)
{
	for (int i = 0; i < npartitions; i++)
	{
		Partition  *p = &partitions[i];

		if (p->open && p->partition == m->partition && m->offset >= p->high &&
			strcmp(p->topic, rd_kafka_topic_name(m->rkt)) == 0)
		{
			p->open = false;
			open_partitions--;
		}
	}
}

/* Starts to read what exists of the topics that are not read yet. */
static void
assign_topics(void)
{
	for (int i = 0; i < ntopics; i++)
	{
		const struct rd_kafka_metadata *md;
		rd_kafka_topic_t *rkt;

		if (assigned[i])
			continue;
		rkt = rd_kafka_topic_new(rk, topics[i], NULL);
		if (!rd_kafka_metadata(rk, 0, rkt, &md, 5000))
		{
			const struct rd_kafka_metadata_topic *t = &md->topics[0];

			for (int p = 0; !t->err && p < t->partition_cnt; p++)
			{
				rd_kafka_consume_start_queue(rkt, t->partitions[p].id,
											 RD_KAFKA_OFFSET_BEGINNING, queue);
				add_partition(topics[i], t->partitions[p].id);
				assigned[i] = true;
			}
			rd_kafka_metadata_destroy(md);
		}
		/* rkt is kept: its partitions are being read */
	}
}

static void
take(const rd_kafka_message_t *m, int64_t now)
{
	if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
		close_partition(m);
	else if (m->err)
		fprintf(stderr, "judge_consume: %s\n", rd_kafka_message_errstr(m));
	else
	{
		put_message(m, now);
		nread++;
	}
}

/* Reads until the wanted end; false: the time was over before. */
static bool
consume(long wanted, bool follow, int timeout)
{
	rd_kafka_message_t *batch[BATCH];
	time_t		until = time(NULL) + timeout;
	time_t		looked = 0;

	while (!stopped)
	{
		struct timeval tv;
		ssize_t		n;

		if (time(NULL) - looked >= METADATA_INTERVAL)
		{
			assign_topics();
			looked = time(NULL);
		}
		if (wanted > 0 ? nread >= wanted : !follow && open_partitions <= 0)
			return true;
		if (time(NULL) > until)
			return follow;
		n = rd_kafka_consume_batch_queue(queue, follow || wanted > 0 ? 1 : 100,
										 batch, BATCH);
		gettimeofday(&tv, NULL);
		for (ssize_t i = 0; i < n; i++)
		{
			take(batch[i], tv.tv_sec * 1000000LL + tv.tv_usec);
			rd_kafka_message_destroy(batch[i]);
		}
		if (follow && n > 0)
			fflush(out);
	}
	return true;
}

static rd_kafka_conf_t *
default_conf(void)
{
	static const char *const settings[][2] = {
		{"group.id", "judge"},
		{"enable.auto.commit", "false"},
		{"enable.partition.eof", "true"},
		{"auto.offset.reset", "earliest"},
		{"allow.auto.create.topics", "false"},
		{"isolation.level", "read_uncommitted"},
		{"fetch.wait.max.ms", "10"},
		{"fetch.error.backoff.ms", "50"},
		{"fetch.message.max.bytes", "16777216"},
		{"receive.message.max.bytes", "1000000000"},
		{"queued.max.messages.kbytes", "131072"},
		{"reconnect.backoff.max.ms", "500"},
		{"check.crcs", "true"},
		{"log_level", "3"},
		{NULL, NULL}
	};
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char		errstr[256];

	for (int i = 0; settings[i][0]; i++)
		if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], errstr, sizeof(errstr)))
			fail(settings[i][0], errstr);
	return conf;
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = default_conf();
	char		errstr[256];
	long		wanted = 0;
	bool		follow = false;
	int			timeout = 60;
	int			option;
	bool		complete;

	out = stdout;
	while ((option = getopt(argc, argv, "n:ft:co:p:X:")) != -1)
	{
		char	   *equals;

		switch (option)
		{
			case 'n':
				wanted = atol(optarg);
				break;
			case 'f':
				follow = true;
				break;
			case 't':
				timeout = atoi(optarg);
				break;
			case 'c':
				rd_kafka_conf_set(conf, "isolation.level", "read_committed", NULL, 0);
				break;
			case 'o':
				if (!(out = fopen(optarg, "w")))
					fail(optarg, "can't be written");
				break;
			case 'p':
				payload_format = strcmp(optarg, "none") == 0 ? PAYLOAD_NONE :
					strcmp(optarg, "text") == 0 ? PAYLOAD_TEXT : PAYLOAD_HEX;
				break;
			case 'X':
				if (!(equals = strchr(optarg, '=')))
					fail(optarg, "no value");
				*equals = '\0';
				if (rd_kafka_conf_set(conf, optarg, equals + 1, errstr, sizeof(errstr)))
					fail(optarg, errstr);
				break;
			default:
				return 2;
		}
	}
	if (argc - optind < 2 || argc - optind - 1 > MAX_TOPICS)
		fail("usage", "judge_consume [options] BOOTSTRAP TOPIC ...");
	rd_kafka_conf_set(conf, "bootstrap.servers", argv[optind], NULL, 0);
	topics = argv + optind + 1;
	ntopics = argc - optind - 1;

	setvbuf(out, NULL, _IOFBF, OUT_BUFFER);
	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, errstr, sizeof(errstr));
	if (!rk)
		fail("client", errstr);
	queue = rd_kafka_queue_new(rk);
	complete = consume(wanted, follow, timeout);
	if (fflush(out))
		fail("output", "can't be written");
	if (!complete)
		fprintf(stderr, "judge_consume: time is over, %ld read\n", nread);
	/* the handle is not destroyed: that may wait for connections */
	_exit(complete ? 0 : 1);
}
