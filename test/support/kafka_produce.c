/*-------------------------------------------------------------------------
 *
 * kafka_produce.c
 *	  Sends any message to a Kafka, also such as pg_outbox itself would not.
 *
 *	kafka_produce BOOTSTRAP
 *
 * One message a line of the input, fields separated by tabs:
 *
 *	topic  partition  timestamp  key  payload  [name value] ...
 *
 * Key, payload and the values of headers are hexadecimal digits, or \N for none.
 * Partition -1: by the key.  Timestamp 0: now; else milliseconds since 1970.
 * Lines are sent as they come; the program ends when the input does and all is
 * acknowledged.  Exit code 1: something was not.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <librdkafka/rdkafka.h>

#define MAX_FIELDS		200
#define FLUSH_MS		300000

static long nfailed = 0;

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "kafka_produce: %s: %s\n", what, why);
	exit(1);
}

static void
answered(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		return;
	if (nfailed++ == 0)
		fprintf(stderr, "kafka_produce: %s\n", rd_kafka_err2str(message->err));
}

static rd_kafka_t *
open_producer(const char *bootstrap)
{
	const char *const settings[][2] = {
		{"bootstrap.servers", bootstrap},
		{"linger.ms", "5"},
		/* without it a batch that is tried again comes behind later ones */
		{"enable.idempotence", "true"},
		/* while a broker is away */
		{"message.timeout.ms", "300000"},
		{"reconnect.backoff.max.ms", "200"},
		{"topic.metadata.propagation.max.ms", "60000"},
		{"partitioner", "murmur2_random"}
	};
	char		errstr[512];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
		if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK)
			fail(settings[i][0], errstr);
	rd_kafka_conf_set_dr_msg_cb(conf, answered);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	if (rk == NULL)
		fail("producer", errstr);
	return rk;
}

/* Turns hexadecimal digits into bytes in their place; NULL: there is no value. */
static void *
unhex(char *text, size_t *length)
{
	unsigned char *bytes = (unsigned char *) text;

	*length = strlen(text) / 2;
	if (strcmp(text, "\\N") == 0)
	{
		*length = 0;
		return NULL;
	}
	for (size_t i = 0; i < *length; i++)
	{
		unsigned int byte;

		if (sscanf(text + 2 * i, "%2x", &byte) != 1)
			fail("not hexadecimal", text + 2 * i);
		bytes[i] = (unsigned char) byte;
	}
	return bytes;
}

static void
send_line(rd_kafka_t *rk, char *line)
{
	char	   *fields[MAX_FIELDS];
	int			n = 0;
	rd_kafka_headers_t *headers;
	void	   *key;
	void	   *payload;
	size_t		key_len;
	size_t		payload_len;
	rd_kafka_resp_err_t err;

	for (char *field = line; field != NULL && n < MAX_FIELDS;)
		fields[n++] = strsep(&field, "\t");
	if (n < 5 || n % 2 == 0)
		fail("not a message", line);
	headers = rd_kafka_headers_new(8);
	for (int i = 5; i < n; i += 2)
	{
		size_t		length;
		void	   *value = unhex(fields[i + 1], &length);

		rd_kafka_header_add(headers, fields[i], -1, value, length);
	}
	key = unhex(fields[3], &key_len);
	payload = unhex(fields[4], &payload_len);
	do
	{
		rd_kafka_headers_t *copy = rd_kafka_headers_copy(headers);

		err = rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(fields[0]), RD_KAFKA_V_PARTITION(atoi(fields[1])),
								RD_KAFKA_V_TIMESTAMP(atoll(fields[2])), RD_KAFKA_V_KEY(key, key_len),
								RD_KAFKA_V_VALUE(payload, payload_len), RD_KAFKA_V_HEADERS(copy),
								RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
		if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
			rd_kafka_headers_destroy(copy);
		rd_kafka_poll(rk, err == RD_KAFKA_RESP_ERR__QUEUE_FULL ? 100 : 0);
	} while (err == RD_KAFKA_RESP_ERR__QUEUE_FULL);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		fail(fields[0], rd_kafka_err2str(err));
	rd_kafka_headers_destroy(headers);
}

int
main(int argc, char **argv)
{
	rd_kafka_t *rk;
	char	   *line = NULL;
	size_t		size = 0;
	ssize_t		length;

	if (argc != 2)
	{
		fprintf(stderr, "usage: kafka_produce BOOTSTRAP <MESSAGES\n");
		return 2;
	}
	rk = open_producer(argv[1]);
	while ((length = getline(&line, &size, stdin)) > 0)
	{
		if (line[length - 1] == '\n')
			line[length - 1] = '\0';
		send_line(rk, line);
	}
	free(line);
	if (rd_kafka_flush(rk, FLUSH_MS) != RD_KAFKA_RESP_ERR_NO_ERROR)
		nfailed++;
	rd_kafka_destroy(rk);
	return nfailed > 0;
}
