/*-------------------------------------------------------------------------
 *
 * rabbit_fdw.c
 *	  What DDL and publishing need to know of RabbitMQ.
 *
 * Loaded into client backends, so it is not linked with rabbitmq-c, which has
 * no properties of its own either: all options are ours, and the worker's
 * rabbit_config.c takes what this lets pass.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "transport/validate.h"

PG_MODULE_MAGIC;

#define MAX_SHORT	255			/* bytes of AMQP's short strings */
#define MAX_HEARTBEAT	3600

#define BOTH	(OUTBOX_FOR_PRODUCER | OUTBOX_FOR_CONSUMER)

static const OutboxProperty rabbit_properties[] = {
	{"url", OUTBOX_PROPERTY_STRING, BOTH},
	{"exchange", OUTBOX_PROPERTY_STRING, BOTH},
	{"declare", OUTBOX_PROPERTY_ENUM, BOTH, 0, 0, "topic,fanout,direct"},
	{"mandatory", OUTBOX_PROPERTY_BOOLEAN, BOTH},
	{"heartbeat", OUTBOX_PROPERTY_INTEGER, BOTH, 1, MAX_HEARTBEAT},
	{"tls_ca", OUTBOX_PROPERTY_STRING, BOTH},
	{"tls_certificate", OUTBOX_PROPERTY_STRING, BOTH},
	{"tls_key", OUTBOX_PROPERTY_STRING, BOTH},
	{"tls_verify", OUTBOX_PROPERTY_ENUM, BOTH, 0, 0, "full,ca,none"},
	{"user", OUTBOX_PROPERTY_STRING, BOTH},
	{"password", OUTBOX_PROPERTY_STRING, BOTH},
};

/* A virtual host: one segment, what is special in it as %XX. */
static bool
is_vhost(const char *text, const char *end)
{
	for (const char *c = text; c < end; c++)
	{
		if (*c == '%')
		{
			if (end - c < 3 || !isxdigit((unsigned char) c[1]) ||
				!isxdigit((unsigned char) c[2]))
				return false;
		}
		else if (*c == '/' || *c == '?' || *c == '#' || (unsigned char) *c <= ' ')
			return false;
	}
	return true;
}

static bool
is_url(const char *text, const char *end)
{
	const char *slash;

	if (!outbox_skip(&text, end, "amqp://") && !outbox_skip(&text, end, "amqps://"))
		return false;
	slash = memchr(text, '/', end - text);
	return outbox_is_address(text, slash ? slash : end) &&
		(slash == NULL || is_vhost(slash + 1, end));
}

static bool
check_url(const char *name, const char *value, OutboxOptionError *error)
{
	/* something stands there that may be a password */
	if (strchr(value, '@') != NULL)
		return outbox_bad_value(name, NULL, "It contains a user, or a password.",
								"Set \"user\" and \"password\" in a user mapping: CREATE USER MAPPING.",
								error);
	return outbox_check_list(name, value, is_url,
							 "Allowed is a comma-separated list of URLs such as 'amqp://host:5672/vhost' or 'amqps://host'.",
							 error);
}

static bool
check_exchange(const char *name, const char *value, OutboxOptionError *error)
{
	return strlen(value) <= MAX_SHORT ||
		outbox_bad_value(name, value, "The name of an exchange has at most 255 bytes.", NULL, error);
}

static const OutboxRule rabbit_rules[] = {
	{OUTBOX_RULE_SECRET, "password"},
	{OUTBOX_RULE_SECRET, "tls_key"},
	{OUTBOX_RULE_CREDENTIAL, "user"},
	{OUTBOX_RULE_CREDENTIAL, "tls_certificate"},
	{OUTBOX_RULE_CREDENTIAL, "tls_ca"},

	{OUTBOX_RULE_REQUIRED, "url", .hint = "Name one broker or more: OPTIONS (url 'amqp://host:5672/vhost')."},

	{OUTBOX_RULE_CHECK, "url", .check = check_url},
	{OUTBOX_RULE_CHECK, "exchange", .check = check_exchange},
	{OUTBOX_RULE_CHECK, "tls_ca", .check = outbox_check_pem},
	{OUTBOX_RULE_CHECK, "tls_certificate", .check = outbox_check_pem},
	{OUTBOX_RULE_CHECK, "tls_key", .check = outbox_check_pem},
};

static bool
rabbit_check_server(int noptions, const OutboxOption *options, OutboxOptionError *error)
{
	const char *exchange = outbox_option_find(noptions, options, "exchange");

	if (outbox_option_find(noptions, options, "declare") != NULL &&
		(exchange == NULL || *exchange == '\0'))
		return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
								   "option \"exchange\" is required for \"declare\"", NULL,
								   "Name the exchange that is to be declared.");
	return true;
}

/* The reasons begin a sentence. */
static const char *
rabbit_check_topic(const char *topic, size_t len)
{
	if (len > MAX_SHORT)
		return "A RabbitMQ routing key has at most 255 bytes";
	return NULL;
}

/* "CC" and "BCC" are further routing keys to the broker, and not text. */
static const char *
rabbit_check_header(const char *name, size_t len)
{
	if (len > MAX_SHORT)
		return "The name of a RabbitMQ header has at most 255 bytes";
	if ((len == 2 && memcmp(name, "CC", 2) == 0) || (len == 3 && memcmp(name, "BCC", 3) == 0))
		return "RabbitMQ takes the headers \"CC\" and \"BCC\" for further routing keys";
	return NULL;
}

static const OutboxValidator rabbit_validator = {
	.ddl = {
		.abi = OUTBOX_TRANSPORT_ABI,
		.name = "rabbitmq",
		.check_topic = rabbit_check_topic,
		.check_header = rabbit_check_header,
		.own_numbers = true		/* a queue has no positions */
	},
	.library = "RabbitMQ",
	.nproperties = lengthof(rabbit_properties),
	.properties = rabbit_properties,
	.nrules = lengthof(rabbit_rules),
	.rules = rabbit_rules,
	.check_server = rabbit_check_server
};

OUTBOX_DDL_LIBRARY(outbox_rabbitmq_validator, rabbit_validator);
