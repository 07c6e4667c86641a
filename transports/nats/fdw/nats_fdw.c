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

#include <ctype.h>

#include "fmgr.h"
#include "transport/validate.h"

PG_MODULE_MAGIC;

#define MAX_STREAM		255		/* bytes of a stream's name */
#define MAX_PORT		65535
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

static const OutboxRule nats_rules[] = {
	{OUTBOX_RULE_SECRET, "password"},
	{OUTBOX_RULE_SECRET, "token"},
	{OUTBOX_RULE_SECRET, "nkey_seed"},
	{OUTBOX_RULE_SECRET, "credentials"},
	{OUTBOX_RULE_SECRET, "tls_key"},
	{OUTBOX_RULE_CREDENTIAL, "user"},
	{OUTBOX_RULE_CREDENTIAL, "tls_certificate"},
	{OUTBOX_RULE_CREDENTIAL, "tls_ca"},
};

/* --- url ------------------------------------------------------------------------- */

/* host, or host:port; an IPv6 address in brackets. */
static bool
is_address(const char *text, const char *end)
{
	const char *colon = end;
	long		port;

	for (const char *c = text; c < end; c++)
		if ((unsigned char) *c <= ' ' || strchr("/?#", *c) != NULL)
			return false;
	if (text < end && *text == '[')
	{
		const char *bracket = memchr(text, ']', end - text);

		if (bracket == NULL || bracket < text + 3)
			return false;
		colon = bracket + 1;
	}
	else if ((colon = memchr(text, ':', end - text)) == NULL)
		colon = end;
	if (colon == text)
		return false;
	if (colon == end)
		return true;
	if (*colon++ != ':' || colon == end || end - colon > 5 ||
		strspn(colon, "0123456789") < (size_t) (end - colon))
		return false;
	port = strtol(colon, NULL, 10);
	return port >= 1 && port <= MAX_PORT;
}

static bool
is_url(const char *text, const char *end)
{
	if (end - text > 7 && strncmp(text, "nats://", 7) == 0)
		text += 7;
	else if (end - text > 6 && strncmp(text, "tls://", 6) == 0)
		text += 6;
	else
		return false;
	return is_address(text, end);
}

static bool
check_url(const char *name, const char *value, OutboxOptionError *error)
{
	const char *pos = value;

	/* something stands there that may be a password: not in the error */
	if (strchr(value, '@') != NULL)
		return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
								   psprintf("invalid value for option \"%s\"", name),
								   pstrdup("It contains a user, a password or a token."),
								   pstrdup("Set them in a user mapping: CREATE USER MAPPING."));
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
									   pstrdup("Allowed is a comma-separated list of URLs such as 'nats://host:4222' or 'tls://host'."));
		if (*next == '\0')
			return true;
		pos = next + 1;
	}
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
bad_value(OutboxOptionError *error, const char *name, const char *value, const char *detail,
		  const char *hint)
{
	return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
							   value == NULL ? psprintf("invalid value for option \"%s\"", name) :
							   psprintf("invalid value for option \"%s\": \"%s\"", name, value),
							   pstrdup(detail), hint ? pstrdup(hint) : NULL);
}

static bool
check_stream(const char *name, const char *value, OutboxOptionError *error)
{
	size_t		len = strlen(value);

	if (len == 0 || len > MAX_STREAM)
		return bad_value(error, name, value, "The name of a stream has 1 to 255 bytes.", NULL);
	for (const char *c = value; *c; c++)
		if ((unsigned char) *c <= ' ' || *c == 0x7f || strchr(".*>/\\", *c) != NULL)
			return bad_value(error, name, value,
							 "The name of a stream has no white space and none of the characters . * > / \\.",
							 NULL);
	return true;
}

static bool
check_prefix(const char *name, const char *value, OutboxOptionError *error)
{
	const char *why = check_subject(value, strlen(value), true);

	return why == NULL ||
		bad_value(error, name, value, psprintf("%s.", why), NULL);
}

/* Of a secret: the value is not in the error. */
static bool
check_secret(const char *name, const char *value, OutboxOptionError *error)
{
	if (strcmp(name, "nkey_seed") == 0 && (strlen(value) != SEED_LEN || strncmp(value, "SU", 2) != 0))
		return bad_value(error, name, NULL, "The seed of a user's nkey has 58 characters and begins with \"SU\".",
						 NULL);
	if (strcmp(name, "credentials") == 0 &&
		(strstr(value, "-----BEGIN NATS USER JWT-----") == NULL ||
		 strstr(value, "-----BEGIN USER NKEY SEED-----") == NULL))
		return bad_value(error, name, NULL, "It is not the content of a credentials file.",
						 "Give the text of the file, with a user's JWT and the seed of its nkey.");
	if (strncmp(name, "tls_", 4) == 0 && strstr(value, "-----BEGIN ") == NULL)
		return bad_value(error, name, NULL, "It is not PEM text: there is no \"-----BEGIN\" line.", NULL);
	return true;
}

static bool
nats_check_value(const char *name, const char *value, OutboxOptionError *error)
{
	if (strcmp(name, "url") == 0)
		return check_url(name, value, error);
	if (strcmp(name, "stream") == 0)
		return check_stream(name, value, error);
	if (strcmp(name, "subject_prefix") == 0)
		return check_prefix(name, value, error);
	if (strcmp(name, "tls_verify") == 0)
		return true;
	return check_secret(name, value, error);
}

static bool
nats_check_server(int noptions, const OutboxOption *options, OutboxOptionError *error)
{
	if (outbox_option_find(noptions, options, "url") == NULL)
		return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
								   pstrdup("option \"url\" is required"), NULL,
								   pstrdup("Name one NATS server or more: OPTIONS (url 'nats://host:4222')."));
	if (outbox_option_find(noptions, options, "stream") == NULL)
		return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
								   pstrdup("option \"stream\" is required"), NULL,
								   pstrdup("Name the JetStream stream that keeps the messages: OPTIONS (stream 'EVENTS')."));
	return true;
}

static const OutboxValidator nats_validator = {
	.library = "NATS",
	.nproperties = lengthof(nats_properties),
	.properties = nats_properties,
	.nrules = lengthof(nats_rules),
	.rules = nats_rules,
	.check_topic = nats_check_topic,
	.check_value = nats_check_value,
	.check_server = nats_check_server
};

PG_FUNCTION_INFO_V1(outbox_nats_validator);

Datum
outbox_nats_validator(PG_FUNCTION_ARGS)
{
	outbox_validate(&nats_validator, PG_GETARG_DATUM(0), PG_GETARG_OID(1));
	PG_RETURN_VOID();
}

static const OutboxTransportDdl nats_ddl = {
	.abi = OUTBOX_TRANSPORT_ABI,
	.name = "nats",
	.check_topic = nats_check_topic,
	.check_header = nats_check_header
};

extern PGDLLEXPORT const OutboxTransportDdl *outbox_transport_ddl(void);

const OutboxTransportDdl *
outbox_transport_ddl(void)
{
	return &nats_ddl;
}
