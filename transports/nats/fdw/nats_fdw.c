/*-------------------------------------------------------------------------
 *
 * nats_fdw.c
 *	  What DDL and publishing need to know of NATS.
 *
 * Loaded into client backends, so it is not linked with cnats, which has no
 * properties of its own either: all options are ours, and the worker's
 * jet_config.c takes what this lets pass.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/validate.h"

PG_MODULE_MAGIC;

#define MAX_STREAM		255		/* bytes of a stream's name */
#define MAX_REPLICAS	5
#define SEED_LEN		58		/* characters of an nkey's seed */

#define BOTH	(OUTBOX_FOR_PRODUCER | OUTBOX_FOR_CONSUMER)

static const OutboxProperty nats_properties[] = {
	{"url", OUTBOX_PROPERTY_STRING, BOTH},
	{"stream", OUTBOX_PROPERTY_STRING, BOTH},
	{"create_stream", OUTBOX_PROPERTY_BOOLEAN, BOTH},
	{"replicas", OUTBOX_PROPERTY_INTEGER, BOTH, 1, MAX_REPLICAS},
	{"subject_prefix", OUTBOX_PROPERTY_STRING, BOTH},
	{"tls_ca", OUTBOX_PROPERTY_STRING, BOTH},
	{"tls_certificate", OUTBOX_PROPERTY_STRING, BOTH},
	{"tls_key", OUTBOX_PROPERTY_STRING, BOTH},
	{"tls_verify", OUTBOX_PROPERTY_ENUM, BOTH, 0, 0, "full,none"},
	{"user", OUTBOX_PROPERTY_STRING, BOTH},
	{"password", OUTBOX_PROPERTY_STRING, BOTH},
	{"token", OUTBOX_PROPERTY_STRING, BOTH},
	{"nkey_seed", OUTBOX_PROPERTY_STRING, BOTH},
	{"credentials", OUTBOX_PROPERTY_STRING, BOTH},
};

/* --- url ------------------------------------------------------------------------- */

static bool
is_url(const char *text, const char *end)
{
	return (outbox_skip(&text, end, "nats://") || outbox_skip(&text, end, "tls://")) &&
		outbox_is_address(text, end);
}

static bool
check_url(const char *name, const char *value, OutboxOptionError *error)
{
	/* something stands there that may be a password */
	if (strchr(value, '@') != NULL)
		return outbox_bad_value(name, NULL, "It contains a user, a password or a token.",
								"Set them in a user mapping: CREATE USER MAPPING.", error);
	return outbox_check_list(name, value, is_url,
							 "Allowed is a comma-separated list of URLs such as 'nats://host:4222' or 'tls://host'.",
							 error);
}

/* --- subjects -------------------------------------------------------------------- */

/*
 * What is wrong with a subject that is published to, a sentence's beginning, or
 * NULL.  Of a prefix only its tokens that are complete are looked at.
 */
static const char *
check_subject(const char *subject, size_t len, bool prefix)
{
	const char *token = subject;
	const char *end = subject + len;

	if (len > 0 && *subject == '$')
		return "NATS keeps subjects that begin with \"$\" for itself";
	if (len >= 7 && memcmp(subject, "_INBOX.", 7) == 0)
		return "NATS keeps subjects that begin with \"_INBOX.\" for replies";
	for (const char *c = subject; c <= end; c++)
	{
		if (c < end && ((unsigned char) *c <= ' ' || *c == 0x7f))
			return "A NATS subject has no white space or control characters";
		if (c < end && *c != '.')
			continue;
		if (c == end && prefix)
			break;
		if (c == token)
			return "A NATS subject is a list of tokens, separated by single dots";
		if (c == token + 1 && (*token == '*' || *token == '>'))
			return "A NATS subject that is published to has no wildcards";
		token = c + 1;
	}
	return NULL;
}

static const char *
nats_check_topic(const char *topic, size_t len)
{
	return check_subject(topic, len, false);
}

/* The rest of a header's line is its value. */
static const char *
nats_check_header(const char *name, size_t len)
{
	if (len == 0)
		return "A NATS header has a name";
	if (len >= 5 && pg_strncasecmp(name, "Nats-", 5) == 0)
		return "NATS keeps headers that begin with \"Nats-\" for itself";
	if (len >= 7 && pg_strncasecmp(name, "outbox-", 7) == 0)
		return "Headers that begin with \"outbox-\" are pg_outbox's own on NATS";
	for (size_t i = 0; i < len; i++)
		if ((unsigned char) name[i] <= ' ' || name[i] == ':' || name[i] == 0x7f)
			return "The name of a NATS header has no colon, white space or control characters";
	return NULL;
}

/* --- values ---------------------------------------------------------------------- */

static bool
check_stream(const char *name, const char *value, OutboxOptionError *error)
{
	size_t		len = strlen(value);

	if (len == 0 || len > MAX_STREAM)
		return outbox_bad_value(name, value, "The name of a stream has 1 to 255 bytes.", NULL, error);
	for (const char *c = value; *c; c++)
		if ((unsigned char) *c <= ' ' || *c == 0x7f || strchr(".*>/\\", *c) != NULL)
			return outbox_bad_value(name, value,
									"The name of a stream has no white space and none of the characters . * > / \\.",
									NULL, error);
	return true;
}

static bool
check_prefix(const char *name, const char *value, OutboxOptionError *error)
{
	const char *why = check_subject(value, strlen(value), true);

	return why == NULL || outbox_bad_value(name, value, psprintf("%s.", why), NULL, error);
}

static bool
check_seed(const char *name, const char *value, OutboxOptionError *error)
{
	return (strlen(value) == SEED_LEN && strncmp(value, "SU", 2) == 0) ||
		outbox_bad_value(name, NULL, "The seed of a user's nkey has 58 characters and begins with \"SU\".",
						 NULL, error);
}

static bool
check_credentials(const char *name, const char *value, OutboxOptionError *error)
{
	return (strstr(value, "-----BEGIN NATS USER JWT-----") != NULL &&
			strstr(value, "-----BEGIN USER NKEY SEED-----") != NULL) ||
		outbox_bad_value(name, NULL, "It is not the content of a credentials file.",
						 "Give the text of the file, with a user's JWT and the seed of its nkey.", error);
}

static const OutboxRule nats_rules[] = {
	{OUTBOX_RULE_SECRET, "password"},
	{OUTBOX_RULE_SECRET, "token"},
	{OUTBOX_RULE_SECRET, "nkey_seed"},
	{OUTBOX_RULE_SECRET, "credentials"},
	{OUTBOX_RULE_SECRET, "tls_key"},
	{OUTBOX_RULE_CREDENTIAL, "user"},
	{OUTBOX_RULE_CREDENTIAL, "tls_certificate"},
	{OUTBOX_RULE_CREDENTIAL, "tls_ca"},

	{OUTBOX_RULE_REQUIRED, "url", .hint = "Name one NATS server or more: OPTIONS (url 'nats://host:4222')."},
	{OUTBOX_RULE_REQUIRED, "stream", .hint = "Name the JetStream stream that keeps the messages: OPTIONS (stream 'EVENTS')."},

	{OUTBOX_RULE_CHECK, "url", .check = check_url},
	{OUTBOX_RULE_CHECK, "stream", .check = check_stream},
	{OUTBOX_RULE_CHECK, "subject_prefix", .check = check_prefix},
	{OUTBOX_RULE_CHECK, "nkey_seed", .check = check_seed},
	{OUTBOX_RULE_CHECK, "credentials", .check = check_credentials},
	{OUTBOX_RULE_CHECK, "tls_ca", .check = outbox_check_pem},
	{OUTBOX_RULE_CHECK, "tls_certificate", .check = outbox_check_pem},
	{OUTBOX_RULE_CHECK, "tls_key", .check = outbox_check_pem},
};

static const OutboxValidator nats_validator = {
	.ddl = {
		.abi = OUTBOX_TRANSPORT_ABI,
		.name = "nats",
		.check_topic = nats_check_topic,
		.check_header = nats_check_header
	},
	.library = "NATS",
	.nproperties = lengthof(nats_properties),
	.properties = nats_properties,
	.nrules = lengthof(nats_rules),
	.rules = nats_rules
};

OUTBOX_DDL_LIBRARY(outbox_nats_validator, nats_validator);
