/*-------------------------------------------------------------------------
 *
 * kafka_config.c
 *	  From a server's options to librdkafka's configuration.
 *
 * Three layers, the later wins: our defaults, the user's options, and what
 * the relay's promises need.  Values were checked by the DDL; a text made
 * here names an option and never its value.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* What a record needs on the wire beyond its payload: key, headers, framing. */
#define WIRE_ROOM			(1024 * 1024)
#define MAX_MESSAGE_BYTES	1000000000

#define MAX_STICKY_MS		900000	/* the library's own bound of twice linger.ms */

#define BATCH_SIZE			1000000
#define BATCH_SIZE_MIN		16384
#define BATCH_GROW_MS		(10 * 60 * 1000)

/* bytes that a consumer asks for at a time: of all partitions, of one */
#define MIN_FETCH			(1024 * 1024)
#define MAX_FETCH			(50 * 1024 * 1024)
#define MAX_PARTITION_FETCH (4 * 1024 * 1024)

/* Defaults: an option of the user replaces them. */
static const OutboxOption defaults[] = {
	/*
	 * No lingering: while a request is on its way the next batch fills up by
	 * itself, and a lone record leaves at once.
	 */
	{"linger.ms", "0"},
	{"socket.nagle.disable", "true"},
	{"socket.keepalive.enable", "true"},

	/* as the Java client spreads keys */
	{"partitioner", "murmur2_random"},

	/*
	 * How long an unknown topic counts as "just being created".  Metadata is
	 * asked for once a second meanwhile.
	 */
	{"topic.metadata.propagation.max.ms", "5000"},

	/* come back soon after an outage; the library's 10 s is long */
	{"reconnect.backoff.max.ms", "2000"},
	{NULL, NULL}
};

/* Ours alone.  Aliases of librdkafka write the same field: the last wins. */
static const OutboxOption owned[] = {
	{"enable.idempotence", "true"},
	{"acks", "all"},
	{"retries", "2147483647"},
	{"message.timeout.ms", "0"},	/* a local timeout would skip a record */
	{"queue.buffering.max.messages", "0"},	/* unlimited: we bound bytes */
	{"queuing.strategy", "fifo"},
	{"delivery.report.only.error", "false"},
	{"log.queue", "true"},
	{"statistics.interval.ms", "0"},
	{NULL, NULL}
};

/* The same two for a subscription's consumer. */
static const OutboxOption source_defaults[] = {
	{"socket.nagle.disable", "true"},
	{"socket.keepalive.enable", "true"},
	{"reconnect.backoff.max.ms", "2000"},

	/* new topics and partitions are seen that soon */
	{"topic.metadata.refresh.interval.ms", "10000"},

	/* a worker that is gone is missed by its heartbeats, soon */
	{"session.timeout.ms", "10000"},
	{"heartbeat.interval.ms", "3000"},

	/* a seek waits for the fetch that is under way */
	{"fetch.wait.max.ms", "100"},
	{"fetch.error.backoff.ms", "100"},
	{"fetch.queue.backoff.ms", "5"},
	{NULL, NULL}
};

static const OutboxOption source_owned[] = {
	/* places are PostgreSQL's; the broker's are for its tools */
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"auto.offset.reset", "error"},
	{"isolation.level", "read_committed"},

	/* all is taken away before it is given anew, by the members themselves */
	{"partition.assignment.strategy", "range,roundrobin"},
	{"group.protocol", "classic"},

	/* a handler may take long; its statement timeout says how long */
	{"max.poll.interval.ms", "86400000"},

	{"enable.partition.eof", "false"},
	{"allow.auto.create.topics", "false"},
	{"topic.blacklist", KAFKA_INTERNAL_TOPICS},

	{"log.queue", "true"},
	{"statistics.interval.ms", "0"},
	{NULL, NULL}
};

/* Half of the size that was last refused; 0: none (see below). */
static int	learned_batch_size;
static int	learned_before;			/* until that refusal */
static int	current_batch_size;

/*
 * A batch of several records was refused as too large.  One record may be at
 * fault, or the topic allows less than a batch may hold (max.message.bytes
 * bounds the whole batch).  Against the latter, smaller batches next time;
 * else a backlog for such a topic would go through careful mode for ever.
 */
void
kafka_config_batch_refused(OutboxClient *client)
{
	if (client->careful || client->narrow)
		return;
	learned_before = learned_batch_size;
	learned_batch_size = current_batch_size / 2;
	if (learned_batch_size < BATCH_SIZE_MIN)
		learned_batch_size = BATCH_SIZE_MIN;
}

/* One record was too large, alone: that was it, and not the batch. */
void
kafka_config_record_refused(void)
{
	learned_batch_size = learned_before;
}

/* A client without a failure lived this long: trust larger batches again. */
void
kafka_config_lived(int64_t lived_ms)
{
	if (learned_batch_size == 0 || lived_ms < BATCH_GROW_MS)
		return;
	learned_batch_size *= 2;
	if (learned_batch_size >= BATCH_SIZE)
		learned_batch_size = 0;
	learned_before = learned_batch_size;
}

/* Could this option's value be a secret?  Rather once too often. */
static bool
is_secret(const char *name)
{
	static const char *const marks[] = {
		"password", "secret", "pem", "jaas", "oauth", "token", NULL
	};

	for (int i = 0; marks[i] != NULL; i++)
	{
		if (strcasestr(name, marks[i]) != NULL)
			return true;
	}
	return false;
}

/* Keep a secret's value to compare texts with. */
static void
remember_secret(OutboxClient *client, const OutboxOption *option)
{
	char	  **grown;

	if (!is_secret(option->name) || option->value[0] == '\0')
		return;
	for (int i = 0; i < client->nsecrets; i++)
	{
		if (strcmp(client->secrets[i], option->value) == 0)
			return;
	}
	grown = realloc(client->secrets, (client->nsecrets + 1) * sizeof(char *));
	if (grown == NULL)
		return;
	client->secrets = grown;
	client->secrets[client->nsecrets] = strdup(option->value);
	if (client->secrets[client->nsecrets] != NULL)
		client->nsecrets++;
}

/* Withhold a text that holds the value of a secret option. */
void
kafka_scrub(const OutboxClient *client, char *text, size_t size)
{
	for (int i = 0; i < client->nsecrets; i++)
	{
		if (strstr(text, client->secrets[i]) != NULL)
		{
			snprintf(text, size, "(text withheld: it contains a secret)");
			return;
		}
	}
}

static bool
is_given(const OutboxTransportConfig *config, const char *name)
{
	for (int i = 0; i < config->noptions; i++)
	{
		if (strcmp(config->options[i].name, name) == 0)
			return true;
	}
	return false;
}

/* Set one property; false with *error filled when the library refuses it. */
static bool
set_property(rd_kafka_conf_t *conf, const char *name, const char *value,
			 OutboxError *error)
{
	char		errstr[16];		/* holds the value: never shown */
	char		text[256];
	rd_kafka_conf_res_t res;

	res = rd_kafka_conf_set(conf, name, value, errstr, sizeof(errstr));
	if (res == RD_KAFKA_CONF_OK)
		return true;
	snprintf(text, sizeof(text),
			 res == RD_KAFKA_CONF_UNKNOWN
			 ? "librdkafka knows no property \"%s\""
			 : "librdkafka refuses the value of option \"%s\"", name);
	kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__INVALID_ARG, text);
	snprintf(error->hint, sizeof(error->hint),
			 "Change it by ALTER SERVER or ALTER USER MAPPING.");
	return false;
}

/* The same for what older versions of the library do not know. */
static bool
set_if_known(rd_kafka_conf_t *conf, const char *name, const char *value,
			 OutboxError *error)
{
	char		errstr[16];

	return rd_kafka_conf_set(conf, name, value, errstr,
							 sizeof(errstr)) == RD_KAFKA_CONF_UNKNOWN ||
		set_property(conf, name, value, error);
}

static bool
set_number(rd_kafka_conf_t *conf, const char *name, int64_t value,
		   OutboxError *error)
{
	char		text[32];

	snprintf(text, sizeof(text), "%lld", (long long) value);
	return set_property(conf, name, text, error);
}

/* Our defaults, where the user is silent. */
static bool
set_defaults(rd_kafka_conf_t *conf, const OutboxTransportConfig *config,
			 OutboxError *error)
{
	int64_t		message = (int64_t) config->max_message_size + WIRE_ROOM;

	for (const OutboxOption *option = defaults; option->name; option++)
	{
		if (!set_property(conf, option->name, option->value, error))
			return false;
	}
	if (message > MAX_MESSAGE_BYTES)
		message = MAX_MESSAGE_BYTES;
	if (!set_number(conf, "message.max.bytes", message, error))
		return false;
	if (config->client_id != NULL && config->client_id[0] != '\0')
		return set_property(conf, "client.id", config->client_id, error);
	return true;
}

static bool
set_options(OutboxClient *client, rd_kafka_conf_t *conf,
			const OutboxTransportConfig *config, OutboxError *error)
{
	for (int i = 0; i < config->noptions; i++)
	{
		const OutboxOption *option = &config->options[i];

		remember_secret(client, option);
		if (strcmp(option->name, "transactional.id") == 0)
		{
			kafka_error_set(error, OUTBOX_CONFIG,
							RD_KAFKA_RESP_ERR__INVALID_ARG,
							"option \"transactional.id\" belongs to the relay");
			return false;
		}
		if (!set_property(conf, option->name, option->value, error))
			return false;
	}
	return true;
}

static int64_t
clamp(int64_t value, int64_t min, int64_t max)
{
	return value < min ? min : value > max ? max : value;
}

/* An integer property as it stands now. */
static int64_t
get_number(rd_kafka_conf_t *conf, const char *name)
{
	char		text[64];
	size_t		size = sizeof(text);

	if (rd_kafka_conf_get(conf, name, text, &size) != RD_KAFKA_CONF_OK)
		return 0;
	return strtoll(text, NULL, 10);
}

/* Partitions are chosen by kafka_first.c, as these say, and by the library never. */
static bool
set_placing(OutboxClient *client, rd_kafka_conf_t *conf,
			const OutboxTransportConfig *config, OutboxError *error)
{
	static const char sticky[] = "sticky.partitioning.linger.ms";
	int64_t		sticky_ms = is_given(config, sticky) ? get_number(conf, sticky)
		: clamp(2 * get_number(conf, "linger.ms"), 0, MAX_STICKY_MS);
	char		partitioner[64] = "";
	size_t		size = sizeof(partitioner);

	(void) rd_kafka_conf_get(conf, "partitioner", partitioner, &size);
	if (kafka_first_configure(client, partitioner, (int) sticky_ms))
		return set_if_known(conf, sticky, "0", error);
	kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__INVALID_ARG,
					"option \"partitioner\" is none that pg_outbox knows");
	return false;
}

static bool
set_owned(OutboxClient *client, rd_kafka_conf_t *conf,
		  const OutboxTransportConfig *config, OutboxError *error)
{
	int64_t		kbytes;

	for (const OutboxOption *option = owned; option->name; option++)
	{
		if (!set_property(conf, option->name, option->value, error))
			return false;
	}

	/* The library's own bound counts payloads only and must never bite. */
	kbytes = 2 * ((int64_t) (config->max_bytes / 1024) +
				  (int64_t) (config->max_message_size / 1024)) + 65536;
	if (kbytes > INT32_MAX)
		kbytes = INT32_MAX;
	if (!set_number(conf, "queue.buffering.max.kbytes", kbytes, error))
		return false;

	if (!set_placing(client, conf, config, error))
		return false;
	if (config->careful)
		return set_property(conf, "enable.gapless.guarantee", "false", error) &&
			set_property(conf, "batch.num.messages", "1", error) &&
			set_property(conf, "max.in.flight.requests.per.connection", "1",
						 error);

	current_batch_size = (int) get_number(conf, "batch.size");
	if (learned_batch_size > 0 && learned_batch_size < current_batch_size)
	{
		current_batch_size = learned_batch_size;
		if (!set_number(conf, "batch.size", current_batch_size, error))
			return false;
	}
	if (config->max_batch > 0 &&
		get_number(conf, "batch.num.messages") > config->max_batch &&
		!set_number(conf, "batch.num.messages", config->max_batch, error))
		return false;
	client->lingers = get_number(conf, "linger.ms") > 0;
	return set_property(conf, "enable.gapless.guarantee", "true", error);
}

/*
 * For a consumer that connects as the client does.  Options of producers are
 * set too: the library ignores them, and would log that it does.
 */
rd_kafka_conf_t *
kafka_config_consumer(OutboxClient *client, const OutboxTransportConfig *config,
					  OutboxError *error)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	rd_kafka_conf_set_log_cb(conf, NULL);
	if (set_options(client, conf, config, error) &&
		(config->client_id == NULL || is_given(config, "client.id") ||
		 set_property(conf, "client.id", config->client_id, error)))
		return conf;
	rd_kafka_conf_destroy(conf);
	return NULL;
}

/*
 * What may be received ahead.  The library counts payloads only; a message
 * costs some 300 bytes beside.  So half of the bytes are payload, and a
 * partition's queue is refilled by the number of its messages.  A batch larger
 * than a whole fetch comes all the same, alone.
 */
static bool
set_read_ahead(rd_kafka_conf_t *conf, size_t max_bytes, OutboxError *error)
{
	int64_t		fetch = clamp((int64_t) max_bytes / 4, MIN_FETCH, MAX_FETCH);
	int64_t		partition = fetch < MAX_PARTITION_FETCH ? fetch : MAX_PARTITION_FETCH;
	int64_t		message = clamp(get_number(conf, "message.max.bytes"), 1000, fetch);
	int64_t		answer = get_number(conf, "receive.message.max.bytes");

	if (answer < 2 * fetch)
		answer = 2 * fetch;
	return set_number(conf, "queued.max.messages.kbytes",
					  clamp((int64_t) max_bytes / 2048, 1024, 2097151), error) &&
		set_number(conf, "queued.min.messages",
				   clamp((int64_t) max_bytes / 512, 1000, 100000), error) &&
		set_number(conf, "message.max.bytes", message, error) &&
		set_number(conf, "fetch.max.bytes", fetch, error) &&
		set_number(conf, "fetch.message.max.bytes", partition, error) &&
		set_number(conf, "receive.message.max.bytes", answer, error);
}

/* For a subscription's consumer. */
rd_kafka_conf_t *
kafka_config_source(OutboxClient *client, const OutboxSourceConfig *config,
					OutboxError *error)
{
	OutboxTransportConfig common = {
		.server_name = config->server_name, .client_id = config->client_id,
		.noptions = config->noptions, .options = config->options
	};
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	bool		good = true;

	client->debug = is_given(&common, "debug");
	for (const OutboxOption *option = source_defaults; good && option->name; option++)
		good = set_if_known(conf, option->name, option->value, error);
	good = good &&
		(config->client_id == NULL || config->client_id[0] == '\0' ||
		 set_property(conf, "client.id", config->client_id, error)) &&
		set_options(client, conf, &common, error);
	for (const OutboxOption *option = source_owned; good && option->name; option++)
		good = set_if_known(conf, option->name, option->value, error);
	good = good && set_property(conf, "group.id", config->group_id, error) &&
		set_read_ahead(conf, config->max_bytes, error);
	if (good && !is_given(&common, "bootstrap.servers") &&
		!is_given(&common, "metadata.broker.list"))
	{
		kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__INVALID_ARG,
						"option \"bootstrap.servers\" is missing");
		good = false;
	}
	if (!good)
	{
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	rd_kafka_conf_set_opaque(conf, client);
	rd_kafka_conf_set_error_cb(conf, kafka_failed);
	rd_kafka_conf_set_log_cb(conf, kafka_logged);
	return conf;
}

/* NULL with *error filled when an option is refused. */
rd_kafka_conf_t *
kafka_config_build(OutboxClient *client, const OutboxTransportConfig *config,
				   OutboxError *error)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	client->careful = config->careful;
	client->narrow = config->max_batch > 0;
	client->debug = is_given(config, "debug");
	if (!set_defaults(conf, config, error) ||
		!set_options(client, conf, config, error) ||
		!set_owned(client, conf, config, error))
	{
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	if (!is_given(config, "bootstrap.servers") &&
		!is_given(config, "metadata.broker.list"))
	{
		kafka_error_set(error, OUTBOX_CONFIG, RD_KAFKA_RESP_ERR__INVALID_ARG,
						"option \"bootstrap.servers\" is missing");
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	if (config->transactional_id != NULL &&
		!kafka_txn_configure(client, conf, config, error))
	{
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	rd_kafka_conf_set_opaque(conf, client);
	rd_kafka_conf_set_dr_msg_cb(conf, kafka_delivered);
	rd_kafka_conf_set_error_cb(conf, kafka_failed);
	rd_kafka_conf_set_log_cb(conf, kafka_logged);
	return conf;
}
