/*-------------------------------------------------------------------------
 *
 * kafka_admin.c
 *	  Topics and access lists of a Kafka, without the seconds that the Java
 *	  tools take to start.
 *
 *	kafka_admin [-X property=value] BOOTSTRAP COMMAND
 *
 *	create TOPIC PARTITIONS [REPLICAS] [config=value ...]
 *	delete TOPIC ...
 *	partitions TOPIC COUNT			adds partitions
 *	config TOPIC config=value ...	sets these, and resets all others
 *	describe TOPIC					one config=value a line, what was set only
 *	list							one topic a line: name, partitions
 *	leaders TOPIC					one partition a line: partition, leader, how many
 *									replicas are in sync
 *	watermarks TOPIC				one partition a line: partition, low, high
 *	brokers COUNT [SECONDS]			waits until so many brokers answer
 *	fence TRANSACTIONAL_ID			takes it over, as another instance would
 *	leave-open TRANSACTIONAL_ID TOPIC	leaves a transaction that has written to it; fence
 *									aborts that
 *
 * create and delete return when the brokers' metadata say so too.  The exit code
 * is 1 where the broker refused, with its error's name on stderr.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#define TIMEOUT_MS		15000
#define POLL_MS			50
#define MAX_TOPICS		1000

static rd_kafka_t *rk;
static rd_kafka_queue_t *queue;
static char errstr[512];

static void
fail(const char *what, const char *why)
{
	fprintf(stderr, "kafka_admin: %s: %s\n", what, why);
	exit(1);
}

static void
usage(void)
{
	fprintf(stderr, "usage: kafka_admin [-X property=value] BOOTSTRAP COMMAND ...\n");
	exit(2);
}

/* Splits "name=value" in place and gives the value. */
static char *
split(char *pair)
{
	char	   *equals = strchr(pair, '=');

	if (!equals)
		usage();
	*equals = '\0';
	return equals + 1;
}

static rd_kafka_AdminOptions_t *
admin_options(void)
{
	rd_kafka_AdminOptions_t *o = rd_kafka_AdminOptions_new(rk, RD_KAFKA_ADMIN_OP_ANY);

	rd_kafka_AdminOptions_set_request_timeout(o, TIMEOUT_MS, errstr, sizeof(errstr));
	return o;
}

static rd_kafka_event_t *
wait_event(const char *what)
{
	rd_kafka_event_t *event = rd_kafka_queue_poll(queue, TIMEOUT_MS + 5000);

	if (!event)
		fail(what, "no answer");
	if (rd_kafka_event_error(event))
		fail(what, rd_kafka_event_error_string(event));
	return event;
}

static void
check_topics(const rd_kafka_topic_result_t **results, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (rd_kafka_topic_result_error(results[i]))
			fail(rd_kafka_topic_result_name(results[i]),
				 rd_kafka_err2name(rd_kafka_topic_result_error(results[i])));
}

/* Partitions of a topic that have a leader; -1: no such topic. */
static int
partitions_led(const char *topic)
{
	const struct rd_kafka_metadata *md;
	rd_kafka_topic_t *rkt = rd_kafka_topic_new(rk, topic, NULL);
	int			led = -1;

	if (!rd_kafka_metadata(rk, 0, rkt, &md, TIMEOUT_MS))
	{
		if (md->topic_cnt == 1 && !md->topics[0].err)
		{
			led = 0;
			for (int i = 0; i < md->topics[0].partition_cnt; i++)
				led += md->topics[0].partitions[i].leader >= 0;
		}
		rd_kafka_metadata_destroy(md);
	}
	rd_kafka_topic_destroy(rkt);
	return led;
}

static void
wait_partitions(const char *topic, int count)
{
	for (int waited = 0; partitions_led(topic) != count; waited += POLL_MS)
	{
		if (waited > TIMEOUT_MS)
			fail(topic, "metadata do not follow");
		usleep(POLL_MS * 1000);
	}
}

static void
create(int argc, char **argv)
{
	int			partitions = argc > 1 ? atoi(argv[1]) : 0;
	int			replicas = argc > 2 && !strchr(argv[2], '=') ? atoi(argv[2]) : 1;
	rd_kafka_NewTopic_t *topic;
	const rd_kafka_topic_result_t **results;
	rd_kafka_event_t *event;
	size_t		n;

	if (partitions < 1)
		usage();
	topic = rd_kafka_NewTopic_new(argv[0], partitions, replicas, errstr, sizeof(errstr));
	if (!topic)
		fail(argv[0], errstr);
	for (int i = 2; i < argc; i++)
		if (strchr(argv[i], '='))
		{
			char	   *value = split(argv[i]);

			rd_kafka_NewTopic_set_config(topic, argv[i], value);
		}
	rd_kafka_CreateTopics(rk, &topic, 1, admin_options(), queue);
	event = wait_event("create");
	results = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &n);
	check_topics(results, n);
	wait_partitions(argv[0], partitions);
}

static void
delete(int argc, char **argv)
{
	rd_kafka_DeleteTopic_t *topics[MAX_TOPICS];
	const rd_kafka_topic_result_t **results;
	rd_kafka_event_t *event;
	size_t		n;

	if (argc < 1 || argc > MAX_TOPICS)
		usage();
	for (int i = 0; i < argc; i++)
		topics[i] = rd_kafka_DeleteTopic_new(argv[i]);
	rd_kafka_DeleteTopics(rk, topics, argc, admin_options(), queue);
	event = wait_event("delete");
	results = rd_kafka_DeleteTopics_result_topics(rd_kafka_event_DeleteTopics_result(event), &n);
	check_topics(results, n);
	for (int i = 0; i < argc; i++)
		wait_partitions(argv[i], -1);
}

static void
add_partitions(int argc, char **argv)
{
	rd_kafka_NewPartitions_t *new;
	const rd_kafka_topic_result_t **results;
	rd_kafka_event_t *event;
	size_t		n;

	if (argc != 2)
		usage();
	new = rd_kafka_NewPartitions_new(argv[0], atoi(argv[1]), errstr, sizeof(errstr));
	if (!new)
		fail(argv[0], errstr);
	rd_kafka_CreatePartitions(rk, &new, 1, admin_options(), queue);
	event = wait_event("partitions");
	results = rd_kafka_CreatePartitions_result_topics(rd_kafka_event_CreatePartitions_result(event), &n);
	check_topics(results, n);
	wait_partitions(argv[0], atoi(argv[1]));
}

static void
check_resources(const rd_kafka_ConfigResource_t **resources, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (rd_kafka_ConfigResource_error(resources[i]))
			fail(rd_kafka_ConfigResource_name(resources[i]),
				 rd_kafka_err2name(rd_kafka_ConfigResource_error(resources[i])));
}

static void
config(int argc, char **argv)
{
	rd_kafka_ConfigResource_t *resource;
	const rd_kafka_ConfigResource_t **resources;
	rd_kafka_event_t *event;
	size_t		n;

	if (argc < 1)
		usage();
	resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, argv[0]);
	for (int i = 1; i < argc; i++)
	{
		char	   *value = split(argv[i]);

		rd_kafka_ConfigResource_set_config(resource, argv[i], value);
	}
	rd_kafka_AlterConfigs(rk, &resource, 1, admin_options(), queue);
	event = wait_event("config");
	resources = rd_kafka_AlterConfigs_result_resources(rd_kafka_event_AlterConfigs_result(event), &n);
	check_resources(resources, n);
}

static void
describe(int argc, char **argv)
{
	rd_kafka_ConfigResource_t *resource;
	const rd_kafka_ConfigResource_t **resources;
	const rd_kafka_ConfigEntry_t **entries;
	rd_kafka_event_t *event;
	size_t		n;

	if (argc != 1)
		usage();
	resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, argv[0]);
	rd_kafka_DescribeConfigs(rk, &resource, 1, admin_options(), queue);
	event = wait_event("describe");
	resources = rd_kafka_DescribeConfigs_result_resources(rd_kafka_event_DescribeConfigs_result(event), &n);
	check_resources(resources, n);
	entries = rd_kafka_ConfigResource_configs(resources[0], &n);
	for (size_t i = 0; i < n; i++)
		if (rd_kafka_ConfigEntry_source(entries[i]) == RD_KAFKA_CONFIG_SOURCE_DYNAMIC_TOPIC_CONFIG)
			printf("%s=%s\n", rd_kafka_ConfigEntry_name(entries[i]),
				   rd_kafka_ConfigEntry_value(entries[i]));
}

/* Metadata of one topic, or of all; the caller never frees it. */
static const struct rd_kafka_metadata *
metadata(const char *topic)
{
	const struct rd_kafka_metadata *md;
	rd_kafka_topic_t *rkt = topic ? rd_kafka_topic_new(rk, topic, NULL) : NULL;
	rd_kafka_resp_err_t err = rd_kafka_metadata(rk, !topic, rkt, &md, TIMEOUT_MS);

	if (!err && topic)
		err = md->topics[0].err;
	if (err)
		fail(topic ? topic : "list", rd_kafka_err2name(err));
	return md;
}

static void
list(void)
{
	const struct rd_kafka_metadata *md = metadata(NULL);

	for (int i = 0; i < md->topic_cnt; i++)
		printf("%s\t%d\n", md->topics[i].topic, md->topics[i].partition_cnt);
}

static void
leaders(int argc, char **argv)
{
	const struct rd_kafka_metadata *md;

	if (argc != 1)
		usage();
	md = metadata(argv[0]);
	for (int i = 0; i < md->topics[0].partition_cnt; i++)
		printf("%d\t%d\t%d\n", md->topics[0].partitions[i].id, md->topics[0].partitions[i].leader,
			   md->topics[0].partitions[i].isr_cnt);
}

static void
watermarks(int argc, char **argv)
{
	const struct rd_kafka_metadata *md;

	if (argc != 1)
		usage();
	md = metadata(argv[0]);
	for (int i = 0; i < md->topics[0].partition_cnt; i++)
	{
		int64_t		low,
					high;
		rd_kafka_resp_err_t err = rd_kafka_query_watermark_offsets(rk, argv[0], i, &low, &high, TIMEOUT_MS);

		if (err)
			fail(argv[0], rd_kafka_err2name(err));
		printf("%d\t%lld\t%lld\n", i, (long long) low, (long long) high);
	}
}

static void
brokers(int argc, char **argv)
{
	int			wanted = argc > 0 ? atoi(argv[0]) : 1;
	time_t		until = time(NULL) + (argc > 1 ? atoi(argv[1]) : 60);

	for (;;)
	{
		const struct rd_kafka_metadata *md;
		int			seen = 0;

		if (!rd_kafka_metadata(rk, 0, NULL, &md, 1000))
		{
			seen = md->broker_cnt;
			rd_kafka_metadata_destroy(md);
		}
		if (seen >= wanted)
			return;
		if (time(NULL) > until)
			fail("brokers", "not all answer");
		usleep(POLL_MS * 1000);
	}
}

/* What became of the record of leave_open(). */
static void
delivered(rd_kafka_t *producer, const rd_kafka_message_t *message, void *opaque)
{
	(void) producer;
	(void) opaque;
	if (message->err)
		fail("record", rd_kafka_err2name(message->err));
}

static rd_kafka_t *
take_over(const char *bootstrap, const char *id)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *producer;
	rd_kafka_error_t *error;

	rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, NULL, 0);
	rd_kafka_conf_set(conf, "transactional.id", id, NULL, 0);
	/* the brokers' own limit: none ends by itself while a test looks */
	rd_kafka_conf_set(conf, "transaction.timeout.ms", "900000", NULL, 0);
	rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, errstr, sizeof(errstr));
	if (!producer)
		fail(id, errstr);
	error = rd_kafka_init_transactions(producer, TIMEOUT_MS);
	if (error)
		fail(id, rd_kafka_error_name(error));
	return producer;
}

static void
fence(const char *bootstrap, int argc, char **argv)
{
	if (argc != 1)
		usage();
	take_over(bootstrap, argv[0]);
}

static void
leave_open(const char *bootstrap, int argc, char **argv)
{
	rd_kafka_t *producer;
	rd_kafka_error_t *error;
	rd_kafka_resp_err_t err;

	if (argc != 2)
		usage();
	producer = take_over(bootstrap, argv[0]);
	error = rd_kafka_begin_transaction(producer);
	if (error)
		fail("begin", rd_kafka_error_name(error));
	err = rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(argv[1]), RD_KAFKA_V_PARTITION(0),
							RD_KAFKA_V_KEY("open", 4), RD_KAFKA_V_END);
	if (!err)
		err = rd_kafka_flush(producer, TIMEOUT_MS);
	if (err)
		fail(argv[1], rd_kafka_err2name(err));
}

static void
run(const char *bootstrap, const char *command, int argc, char **argv)
{
	if (strcmp(command, "create") == 0 && argc > 1)
		create(argc, argv);
	else if (strcmp(command, "delete") == 0)
		delete(argc, argv);
	else if (strcmp(command, "partitions") == 0)
		add_partitions(argc, argv);
	else if (strcmp(command, "config") == 0)
		config(argc, argv);
	else if (strcmp(command, "describe") == 0)
		describe(argc, argv);
	else if (strcmp(command, "list") == 0)
		list();
	else if (strcmp(command, "leaders") == 0)
		leaders(argc, argv);
	else if (strcmp(command, "watermarks") == 0)
		watermarks(argc, argv);
	else if (strcmp(command, "brokers") == 0)
		brokers(argc, argv);
	else if (strcmp(command, "fence") == 0)
		fence(bootstrap, argc, argv);
	else if (strcmp(command, "leave-open") == 0)
		leave_open(bootstrap, argc, argv);
	else
		usage();
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	int			option;

	/* "+": options end at the bootstrap servers */
	while ((option = getopt(argc, argv, "+X:")) != -1)
	{
		char	   *value;

		if (option != 'X')
			usage();
		value = split(optarg);
		if (rd_kafka_conf_set(conf, optarg, value, errstr, sizeof(errstr)))
			fail(optarg, errstr);
	}
	if (argc - optind < 2)
		usage();
	rd_kafka_conf_set(conf, "bootstrap.servers", argv[optind], NULL, 0);
	rd_kafka_conf_set(conf, "allow.auto.create.topics", "false", NULL, 0);
	rd_kafka_conf_set(conf, "reconnect.backoff.max.ms", "200", NULL, 0);
	rd_kafka_conf_set(conf, "log_level", "0", NULL, 0);
	rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, errstr, sizeof(errstr));
	if (!rk)
		fail("client", errstr);
	queue = rd_kafka_queue_new(rk);
	run(argv[optind], argv[optind + 1], argc - optind - 2, argv + optind + 2);
	fflush(stdout);
	/* the handle is not destroyed: that may wait for connections */
	_exit(0);
}
