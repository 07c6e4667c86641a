/*-------------------------------------------------------------------------
 *
 * kafka_fdw.c
 *	  What DDL and publishing need to know of Kafka.
 *
 * Loaded into client backends, so it is not linked with librdkafka: the table
 * of properties is made from it at build time (make_option_table.c).  The
 * rules below name properties of any version of the library, also where the
 * table does not have them.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "transport/validate.h"

#include "option_table.h"

PG_MODULE_MAGIC;

#define MAX_TOPIC_LEN	249
#define MAX_IN_FLIGHT	5		/* of an idempotent producer */

#define DURABLE			"The relay owns it: every in-sync replica must acknowledge, and a message is retried until it is delivered."
#define ORDER			"The relay owns it: order and delivery without duplicates rest on it."
#define MEMORY			"The relay owns it: its memory is bounded by outbox.relay_memory."
#define REPORTS			"The relay owns it: it needs every delivery report, as an event."
#define TRANSACTIONS	"It belongs to exactly-once delivery, which sets it itself."
#define FILES			"It makes the server read files."
#define CODE			"It makes the server load code."
#define PROGRAMS		"It makes the server read files and run programs."
#define URLS			"It makes the server call a URL."

/* Words that the library takes for properties that it documents as text. */
static const char *const mechanisms[] = {
	"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI", NULL
};
static const char *const partitioners[] = {
	"random", "consistent", "consistent_random", "murmur2", "murmur2_random",
	"fnv1a", "fnv1a_random", NULL
};

static bool
check_word(const char *name, const char *value, const char *const *words,
		   OutboxOptionError *error)
{
	StringInfoData hint;

	for (int i = 0; words[i]; i++)
	{
		if (strcmp(words[i], value) == 0)
			return true;
	}

	initStringInfo(&hint);
	for (int i = 0; words[i]; i++)
		appendStringInfo(&hint, "%s%s", i ? ", " : "Allowed are: ", words[i]);
	appendStringInfoChar(&hint, '.');
	return outbox_bad_value(name, value, NULL, hint.data, error);
}

static bool
check_mechanism(const char *name, const char *value, OutboxOptionError *error)
{
	if (!check_word(name, value, mechanisms, error))
		return false;
	if (strcmp(value, "GSSAPI") == 0 && !superuser())
		return outbox_option_error(error, ERRCODE_INSUFFICIENT_PRIVILEGE,
								   psprintf("only a superuser may set option \"%s\" to \"%s\", or alter what has it set",
											name, value),
								   PROGRAMS, NULL);
	return true;
}

static bool
check_partitioner(const char *name, const char *value, OutboxOptionError *error)
{
	return check_word(name, value, partitioners, error);
}

static bool
check_in_flight(const char *name, const char *value, OutboxOptionError *error)
{
	return atoi(value) <= MAX_IN_FLIGHT ||
		outbox_bad_value(name, value,
						 "With more requests in flight a broker cannot keep the order of retries.",
						 psprintf("Allowed is an integer from 1 to %d.", MAX_IN_FLIGHT), error);
}

/* One broker: [protocol://]host[:port]. */
static bool
is_broker(const char *text, const char *end)
{
	for (const char *c = text; end - c >= 3; c++)
		if (strncmp(c, "://", 3) == 0)
			return outbox_is_address(c + 3, end);
	return outbox_is_address(text, end);
}

static bool
check_brokers(const char *name, const char *value, OutboxOptionError *error)
{
	return outbox_check_list(name, value, is_broker,
							 "Allowed is a comma-separated list of brokers such as 'broker1:9092,broker2:9092'.",
							 error);
}

static const OutboxRule kafka_rules[] = {
	{OUTBOX_RULE_REFUSED, "metadata.broker.list", "It is another name of a property.", "Use \"bootstrap.servers\"."},
	{OUTBOX_RULE_REFUSED, "enable.idempotence", ORDER},
	{OUTBOX_RULE_REFUSED, "enable.gapless.guarantee", ORDER},
	{OUTBOX_RULE_REFUSED, "queuing.strategy", ORDER},
	{OUTBOX_RULE_REFUSED, "acks", DURABLE},
	{OUTBOX_RULE_REFUSED, "request.required.acks", DURABLE},
	{OUTBOX_RULE_REFUSED, "retries", DURABLE},
	{OUTBOX_RULE_REFUSED, "message.send.max.retries", DURABLE},
	{OUTBOX_RULE_REFUSED, "message.timeout.ms", "The relay owns it: a local timeout would skip a message.", "How long a missing topic is waited for is set by \"topic_timeout\"."},
	{OUTBOX_RULE_REFUSED, "delivery.timeout.ms", "The relay owns it: a local timeout would skip a message.", "How long a missing topic is waited for is set by \"topic_timeout\"."},
	{OUTBOX_RULE_REFUSED, "queue.buffering.max.messages", MEMORY},
	{OUTBOX_RULE_REFUSED, "queue.buffering.max.kbytes", MEMORY},
	{OUTBOX_RULE_REFUSED, "delivery.report.only.error", REPORTS},
	{OUTBOX_RULE_REFUSED, "dr_cb", REPORTS},
	{OUTBOX_RULE_REFUSED, "dr_msg_cb", REPORTS},
	{OUTBOX_RULE_REFUSED, "enabled_events", REPORTS},
	{OUTBOX_RULE_REFUSED, "*_cb", "The relay owns it: callbacks are not values."},
	{OUTBOX_RULE_REFUSED, "statistics.interval.ms", "The relay owns it: nobody would read the statistics.", "See outbox.relay_status."},
	{OUTBOX_RULE_REFUSED, "log.queue", "The relay owns it: the library's log goes to the server's log."},
	{OUTBOX_RULE_REFUSED, "internal.termination.signal", "The relay owns it: signals of a worker belong to the server."},
	{OUTBOX_RULE_REFUSED, "transactional.id", TRANSACTIONS},
	{OUTBOX_RULE_REFUSED, "transaction.timeout.ms", TRANSACTIONS},
	{OUTBOX_RULE_REFUSED, "builtin.features", "It describes the library and is not a setting."},

	{OUTBOX_RULE_SUPERUSER, "plugin.library.paths", CODE},
	{OUTBOX_RULE_SUPERUSER, "interceptors", CODE},
	{OUTBOX_RULE_SUPERUSER, "ssl.engine.*", CODE},
	{OUTBOX_RULE_SUPERUSER, "ssl.providers", CODE},
	{OUTBOX_RULE_SUPERUSER, "ssl.ca.location", FILES, "Give the PEM text itself, as \"ssl.ca.pem\"."},
	{OUTBOX_RULE_SUPERUSER, "ssl.certificate.location", FILES, "Give the PEM text itself, as \"ssl.certificate.pem\"."},
	{OUTBOX_RULE_SUPERUSER, "ssl.key.location", FILES, "Give the PEM text itself, as \"ssl.key.pem\" in a user mapping."},
	{OUTBOX_RULE_SUPERUSER, "*.location", FILES},
	{OUTBOX_RULE_SUPERUSER, "*.file", FILES},
	{OUTBOX_RULE_SUPERUSER, "*.path", FILES},
	{OUTBOX_RULE_SUPERUSER, "*keytab*", FILES},
	{OUTBOX_RULE_SUPERUSER, "sasl.kerberos.*", PROGRAMS},
	{OUTBOX_RULE_SUPERUSER, "sasl.oauthbearer.*url*", URLS},
	{OUTBOX_RULE_SUPERUSER, "sasl.oauthbearer.config", URLS},
	{OUTBOX_RULE_SUPERUSER, "sasl.oauthbearer.metadata.*", URLS},
	{OUTBOX_RULE_SUPERUSER, "debug", "It can fill the server's log, with what is sent too."},

	{OUTBOX_RULE_SECRET, "sasl.password"},
	{OUTBOX_RULE_SECRET, "ssl.key.pem"},
	{OUTBOX_RULE_SECRET, "ssl.key.password"},
	{OUTBOX_RULE_SECRET, "ssl.keystore.password"},
	{OUTBOX_RULE_SECRET, "sasl.oauthbearer.client.secret"},
	{OUTBOX_RULE_SECRET, "*.password"},
	{OUTBOX_RULE_SECRET, "*.passphrase"},
	{OUTBOX_RULE_SECRET, "*.secret"},
	{OUTBOX_RULE_SECRET, "*key.pem"},

	{OUTBOX_RULE_CREDENTIAL, "sasl.username"},
	{OUTBOX_RULE_CREDENTIAL, "ssl.certificate.pem"},
	{OUTBOX_RULE_CREDENTIAL, "ssl.ca.pem"},
	{OUTBOX_RULE_CREDENTIAL, "sasl.oauthbearer.client.id"},
	{OUTBOX_RULE_CREDENTIAL, "sasl.oauthbearer.*.client.id"},
	{OUTBOX_RULE_CREDENTIAL, "sasl.oauthbearer.config"},

	{OUTBOX_RULE_REQUIRED, "bootstrap.servers", .hint = "Name one broker or more: OPTIONS (\"bootstrap.servers\" 'broker1:9092,broker2:9092')."},

	{OUTBOX_RULE_CHECK, "bootstrap.servers", .check = check_brokers},
	{OUTBOX_RULE_CHECK, "sasl.mechanism", .check = check_mechanism},
	{OUTBOX_RULE_CHECK, "sasl.mechanisms", .check = check_mechanism},
	{OUTBOX_RULE_CHECK, "partitioner", .check = check_partitioner},
	{OUTBOX_RULE_CHECK, "max.in.flight*", .check = check_in_flight},
	{OUTBOX_RULE_CHECK, "*.pem", .check = outbox_check_pem},
};

/* The mechanism of a server that uses SASL. */
static bool
check_sasl(int noptions, const OutboxOption *options, const char *mechanism,
		   OutboxOptionError *error)
{
	const char *method = outbox_option_find(noptions, options, "sasl.oauthbearer.method");
	const char *unsecure = outbox_option_find(noptions, options,
											  "enable.sasl.oauthbearer.unsecure.jwt");
	const char *metadata = outbox_option_find(noptions, options,
											  "sasl.oauthbearer.metadata.authentication.type");

	if (mechanism == NULL)
		return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
								   "option \"sasl.mechanism\" is required where \"security.protocol\" uses SASL",
								   "The library's own default is GSSAPI, which is for superusers only.",
								   "Set it, for example to \"PLAIN\" or \"SCRAM-SHA-512\".");
	if (strcmp(mechanism, "OAUTHBEARER") == 0 && metadata == NULL &&
		(method == NULL || pg_strcasecmp(method, "oidc") != 0) &&
		(unsecure == NULL || strchr("tT1", unsecure[0]) == NULL))
		return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
								   "option \"sasl.oauthbearer.method\" is required for \"sasl.mechanism\" \"OAUTHBEARER\"",
								   "The library's default method needs a program that hands it tokens.",
								   "Set it to \"oidc\", with \"sasl.oauthbearer.token.endpoint.url\".");
	return true;
}

static bool
kafka_check_server(int noptions, const OutboxOption *options, OutboxOptionError *error)
{
	const char *protocol = outbox_option_find(noptions, options, "security.protocol");
	const char *mechanism = outbox_option_find(noptions, options, "sasl.mechanism");
	const char *backoff = outbox_option_find(noptions, options, "reconnect.backoff.ms");
	const char *backoff_max = outbox_option_find(noptions, options, "reconnect.backoff.max.ms");

	if (mechanism == NULL)
		mechanism = outbox_option_find(noptions, options, "sasl.mechanisms");

	if (backoff && backoff_max && atoi(backoff) > atoi(backoff_max))
		return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
								   "option \"reconnect.backoff.max.ms\" must not be less than \"reconnect.backoff.ms\"",
								   NULL, NULL);
	if (protocol && pg_strncasecmp(protocol, "sasl", 4) == 0)
		return check_sasl(noptions, options, mechanism, error);
	if (mechanism)
		ereport(WARNING,
				(errmsg("option \"sasl.mechanism\" has no effect where \"security.protocol\" does not use SASL"),
				 errhint("Set \"security.protocol\" to \"sasl_ssl\" or \"sasl_plaintext\"."),
				 errhidestmt(true),
				 errhidecontext(true)));
	return true;
}

/* As the broker checks it; the reasons begin a sentence. */
static const char *
kafka_check_topic(const char *topic, size_t len)
{
	if (len == 0)
		return "A Kafka topic's name must not be empty";
	if (len > MAX_TOPIC_LEN)
		return "A Kafka topic's name has at most 249 characters";
	if ((len == 1 && topic[0] == '.') ||
		(len == 2 && topic[0] == '.' && topic[1] == '.'))
		return "A Kafka topic's name must not be \".\" or \"..\"";
	for (size_t i = 0; i < len; i++)
	{
		char		c = topic[i];

		if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') &&
			!(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-')
			return "A Kafka topic's name consists of ASCII letters, digits, \".\", \"_\" and \"-\"";
	}
	return NULL;
}

static const OutboxValidator kafka_validator = {
	.ddl = {
		.abi = OUTBOX_TRANSPORT_ABI,
		.name = "kafka",
		.check_topic = kafka_check_topic,
		.check_header = NULL	/* any name is fine */
	},
	.library = "librdkafka",
	.nproperties = lengthof(kafka_properties),
	.properties = kafka_properties,
	.nrules = lengthof(kafka_rules),
	.rules = kafka_rules,
	.check_server = kafka_check_server
};

OUTBOX_DDL_LIBRARY(outbox_kafka_validator, kafka_validator);
