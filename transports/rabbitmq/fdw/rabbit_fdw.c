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

#include "fmgr.h"
#include "transport/validate.h"

PG_MODULE_MAGIC;

#define MAX_SHORT	255			/* bytes of AMQP's short strings */
#define MAX_PORT	65535
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

static const OutboxRule rabbit_rules[] = {
	{OUTBOX_RULE_SECRET, "password"},
	{OUTBOX_RULE_SECRET, "tls_key"},
	{OUTBOX_RULE_CREDENTIAL, "user"},
	{OUTBOX_RULE_CREDENTIAL, "tls_certificate"},
	{OUTBOX_RULE_CREDENTIAL, "tls_ca"},
};

/* host, or host:port; an IPv6 address in brackets. */
static bool
is_address(const char *text, const char *end)
{
	const char *host_end = text;

	if (text < end && *text == '[')
	{
		while (host_end < end && *host_end != ']')
			host_end++;
		if (host_end == end || host_end < text + 3)
			return false;
		host_end++;
	}
	else
	{
		while (host_end < end && *host_end != ':')
		{
			if ((unsigned char) *host_end <= ' ')
				return false;
			host_end++;
		}
		if (host_end == text)
			return false;
	}
	if (host_end == end)
		return true;
	if (*host_end++ != ':' || host_end == end || end - host_end > 5 ||
		strspn(host_end, "0123456789") < (size_t) (end - host_end))
		return false;
	return atoi(host_end) >= 1 && atoi(host_end) <= MAX_PORT;
}

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

	if (end - text > 7 && strncmp(text, "amqp://", 7) == 0)
		text += 7;
	else if (end - text > 8 && strncmp(text, "amqps://", 8) == 0)
		text += 8;
	else
		return false;
	for (slash = text; slash < end && *slash != '/'; slash++)
		;
	return is_address(text, slash) && (slash == end || is_vhost(slash + 1, end));
}

/* Where something stands that may be a password: not in the error. */
static bool
has_user(const char *value)
{
	return strchr(value, '@') != NULL;
}

static bool
check_url(const char *name, const char *value, OutboxOptionError *error)
{
	const char *pos = value;

	if (has_user(value))
		return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
								   psprintf("invalid value for option \"%s\"", name),
								   pstrdup("It contains a user, or a password."),
								   pstrdup("Set \"user\" and \"password\" in a user mapping: CREATE USER MAPPING."));
	for (;;)
	{
		const char *end;
		const char *next;

		pos += strspn(pos, " ");
		next = end = pos + strcspn(pos, ",");
		while (end > pos && end[-1] == ' ')
			end--;
		if (!is_url(pos, end))
			return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
									   psprintf("invalid value for option \"%s\": \"%s\"", name, value),
									   NULL,
									   pstrdup("Allowed is a comma-separated list of URLs such as 'amqp://host:5672/vhost' or 'amqps://host'."));
		if (*next == '\0')
			return true;
		pos = next + 1;
	}
}

static bool
rabbit_check_value(const char *name, const char *value, OutboxOptionError *error)
{
	if (strcmp(name, "url") == 0)
		return check_url(name, value, error);
	if (strcmp(name, "exchange") == 0 && strlen(value) > MAX_SHORT)
		return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
								   psprintf("invalid value for option \"%s\": \"%s\"", name, value),
								   pstrdup("The name of an exchange has at most 255 bytes."), NULL);

	/* the value may be a secret: not in the error */
	if (strncmp(name, "tls_", 4) == 0 && strcmp(name, "tls_verify") != 0 &&
		strstr(value, "-----BEGIN ") == NULL)
		return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
								   psprintf("invalid value for option \"%s\"", name),
								   pstrdup("It is not PEM text: there is no \"-----BEGIN\" line."),
								   NULL);
	return true;
}

static bool
rabbit_check_server(int noptions, const OutboxOption *options, OutboxOptionError *error)
{
	const char *exchange = outbox_option_find(noptions, options, "exchange");

	if (outbox_option_find(noptions, options, "url") == NULL)
		return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
								   pstrdup("option \"url\" is required"), NULL,
								   pstrdup("Name one broker or more: OPTIONS (url 'amqp://host:5672/vhost')."));
	if (outbox_option_find(noptions, options, "declare") != NULL &&
		(exchange == NULL || *exchange == '\0'))
		return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
								   pstrdup("option \"exchange\" is required for \"declare\""), NULL,
								   pstrdup("Name the exchange that is to be declared."));
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
	.library = "RabbitMQ",
	.nproperties = lengthof(rabbit_properties),
	.properties = rabbit_properties,
	.nrules = lengthof(rabbit_rules),
	.rules = rabbit_rules,
	.check_topic = rabbit_check_topic,
	.check_value = rabbit_check_value,
	.check_server = rabbit_check_server
};

PG_FUNCTION_INFO_V1(outbox_rabbitmq_validator);

Datum
outbox_rabbitmq_validator(PG_FUNCTION_ARGS)
{
	outbox_validate(&rabbit_validator, PG_GETARG_DATUM(0), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

static const OutboxTransportDdl rabbit_ddl = {
	.abi = OUTBOX_TRANSPORT_ABI,
	.name = "rabbitmq",
	.check_topic = rabbit_check_topic,
	.check_header = rabbit_check_header,
	.own_numbers = true			/* a queue has no positions */
};

extern PGDLLEXPORT const OutboxTransportDdl *outbox_transport_ddl(void);

const OutboxTransportDdl *
outbox_transport_ddl(void)
{
	return &rabbit_ddl;
}
