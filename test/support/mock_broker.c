/*-------------------------------------------------------------------------
 *
 * mock_broker.c
 *	  librdkafka's mock cluster as a process of its own.
 *
 * A Kafka without Java, for the demo and for errors that a real broker can't
 * be made to give.  In a process of its own it outlives its clients.  Limits of
 * the library: 5 MB are kept a partition, aborted records are visible, sequence
 * numbers aren't checked; so it never proves order or exactly-once.
 *
 *	mock_broker [-n BROKERS]
 *
 * Prints one line, the bootstrap servers, then reads commands and answers each
 * with a line "ok" or "error: ...":
 *
 *	down [BROKER]				connections are cut and refused (default: all)
 *	up [BROKER]
 *	topic NAME PARTITIONS
 *	leader NAME PARTITION BROKER	BROKER -1: no leader
 *	rtt BROKER MILLISECONDS		delay of each response
 *	error API CODE [COUNT]		the next COUNT responses to requests of this
 *								kind (0 Produce, 1 Fetch, 3 Metadata, ...) fail
 *	topic_error NAME CODE		metadata of the topic says so; 0 ends it
 *
 * Serves until SIGTERM, SIGINT or the end of its input, so that it never
 * survives who started it.
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
#include <unistd.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#define MAX_BROKERS		16
#define MAX_ERRORS		1000

static rd_kafka_mock_cluster_t *cluster;
static int	nbrokers = 1;

/* Applies a change to one broker, or to all where none is named. */
static rd_kafka_resp_err_t
set_brokers(const char *which, bool up)
{
	rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;
	int			first = which ? atoi(which) : 1;
	int			last = which ? first : nbrokers;

	for (int id = first; id <= last && !err; id++)
		err = up ? rd_kafka_mock_broker_set_up(cluster, id)
			: rd_kafka_mock_broker_set_down(cluster, id);
	return err;
}

static rd_kafka_resp_err_t
push_errors(int api, int code, int count)
{
	rd_kafka_resp_err_t errors[MAX_ERRORS];

	if (count < 1 || count > MAX_ERRORS)
		return RD_KAFKA_RESP_ERR__INVALID_ARG;
	for (int i = 0; i < count; i++)
		errors[i] = (rd_kafka_resp_err_t) code;
	rd_kafka_mock_push_request_errors_array(cluster, (int16_t) api, count, errors);
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static rd_kafka_resp_err_t
run_command(char *line)
{
	char	   *word[5] = {NULL};
	int			n = 0;

	for (char *w = strtok(line, " \t\r\n"); w && n < 5; w = strtok(NULL, " \t\r\n"))
		word[n++] = w;
	if (n == 0)
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	if (strcmp(word[0], "down") == 0)
		return set_brokers(word[1], false);
	if (strcmp(word[0], "up") == 0)
		return set_brokers(word[1], true);
	if (strcmp(word[0], "topic") == 0 && n == 3)
		return rd_kafka_mock_topic_create(cluster, word[1], atoi(word[2]), 1);
	if (strcmp(word[0], "leader") == 0 && n == 4)
		return rd_kafka_mock_partition_set_leader(cluster, word[1], atoi(word[2]), atoi(word[3]));
	if (strcmp(word[0], "rtt") == 0 && n == 3)
		return rd_kafka_mock_broker_set_rtt(cluster, atoi(word[1]), atoi(word[2]));
	if (strcmp(word[0], "error") == 0 && n >= 3)
		return push_errors(atoi(word[1]), atoi(word[2]), n > 3 ? atoi(word[3]) : 1);
	if (strcmp(word[0], "topic_error") == 0 && n == 3)
	{
		rd_kafka_mock_topic_set_error(cluster, word[1], (rd_kafka_resp_err_t) atoi(word[2]));
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	}
	return RD_KAFKA_RESP_ERR__UNKNOWN_PROTOCOL;
}

static void
stop(int signo)
{
	_exit(0);
}

int
main(int argc, char **argv)
{
	int			option;
	char		errstr[256];
	char		line[1024];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;

	while ((option = getopt(argc, argv, "n:")) != -1)
	{
		if (option == 'n')
			nbrokers = atoi(optarg);
		else
			return 2;
	}
	if (nbrokers < 1 || nbrokers > MAX_BROKERS)
		return 2;

	/* no state to save: ending at once is clean */
	signal(SIGTERM, stop);
	signal(SIGINT, stop);

	rd_kafka_conf_set(conf, "log_level", "3", NULL, 0);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	cluster = rk ? rd_kafka_mock_cluster_new(rk, nbrokers) : NULL;
	if (!cluster)
	{
		fprintf(stderr, "mock_broker: %s\n", errstr);
		return 1;
	}
	printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
	fflush(stdout);

	while (fgets(line, sizeof(line), stdin))
	{
		rd_kafka_resp_err_t err = run_command(line);

		if (err)
			printf("error: %s\n", rd_kafka_err2name(err));
		else
			printf("ok\n");
		fflush(stdout);
	}
	return 0;
}
