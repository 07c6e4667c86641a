/*-------------------------------------------------------------------------
 *
 * rabbit_config.c
 *	  Options into a RabbitConfig.
 *
 * The wrapper's validator has checked them; what it would refuse is an error
 * here too, since options can be written past it, or by another version.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DEFAULT_HEARTBEAT	10	/* seconds */
#define MAX_HEARTBEAT		3600

static bool
bad(OutboxError *error, const char *name, const char *why)
{
	char		text[256];

	snprintf(text, sizeof(text), "option \"%s\": %s", name, why);
	rabbit_error_set(error, OUTBOX_CONFIG, "INVALID_OPTION", text, "See ALTER SERVER.");
	return false;
}

static bool
copy(char **to, const char *from)
{
	*to = strdup(from);
	return *to != NULL;
}

/* One URL, of len bytes. */
static bool
parse_url(RabbitUrl *url, const char *text, size_t len, OutboxError *error)
{
	char	   *buf = strndup(text, len);
	struct amqp_connection_info info;
	bool		good;

	if (buf == NULL)
		return bad(error, "url", "out of memory");
	amqp_default_connection_info(&info);
	good = amqp_parse_url(buf, &info) == AMQP_STATUS_OK;
	if (good)
	{
		url->port = info.port;
		url->tls = info.ssl != 0;
		good = copy(&url->host, info.host) && copy(&url->vhost, info.vhost);
	}
	free(buf);
	return good || bad(error, "url", "it is not a list of AMQP URLs");
}

static bool
parse_urls(RabbitConfig *config, const char *value, OutboxError *error)
{
	int			n = 1;

	for (const char *c = value; *c; c++)
		n += *c == ',';
	config->urls = calloc(n, sizeof(RabbitUrl));
	if (config->urls == NULL)
		return bad(error, "url", "out of memory");
	for (;;)
	{
		size_t		len;

		value += strspn(value, " ");
		len = strcspn(value, ", ");
		if (!parse_url(&config->urls[config->nurls++], value, len, error))
			return false;
		value += len;
		value += strspn(value, " ");
		if (*value++ != ',')
			return true;
	}
}

static bool
is_true(const char *value)
{
	return strcasecmp(value, "true") == 0 || strcasecmp(value, "t") == 0 ||
		strcmp(value, "1") == 0;
}

static bool
take(RabbitConfig *config, const OutboxOption *option, OutboxError *error)
{
	const struct
	{
		const char *name;
		char	  **field;
	}			texts[] = {
		{"user", &config->user},
		{"password", &config->password},
		{"exchange", &config->exchange},
		{"declare", &config->declare},
		{"tls_ca", &config->tls_ca},
		{"tls_certificate", &config->tls_certificate},
		{"tls_key", &config->tls_key},
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
	{
		if (strcmp(option->name, texts[i].name) == 0)
		{
			free(*texts[i].field);
			return copy(texts[i].field, option->value) || bad(error, option->name, "out of memory");
		}
	}
	if (strcmp(option->name, "url") == 0)
		return parse_urls(config, option->value, error);
	if (strcmp(option->name, "mandatory") == 0)
		config->mandatory = is_true(option->value);
	else if (strcmp(option->name, "heartbeat") == 0)
	{
		config->heartbeat = atoi(option->value);
		if (config->heartbeat < 1 || config->heartbeat > MAX_HEARTBEAT)
			return bad(error, option->name, "out of range");
	}
	else if (strcmp(option->name, "tls_verify") == 0)
	{
		config->tls_verify_peer = strcasecmp(option->value, "none") != 0;
		config->tls_verify_host = strcasecmp(option->value, "full") == 0;
	}
	else
		return bad(error, option->name, "unknown to this version");
	return true;
}

/* Of zeroed memory; false with *error, and rabbit_config_free() in any case. */
bool
rabbit_config_parse(RabbitConfig *config, const char *client_id, int noptions,
					const OutboxOption *options, OutboxError *error)
{
	config->mandatory = true;
	config->heartbeat = DEFAULT_HEARTBEAT;
	config->tls_verify_peer = config->tls_verify_host = true;
	if (!copy(&config->client_id, client_id) || !copy(&config->exchange, "") ||
		!copy(&config->user, "guest") || !copy(&config->password, "guest"))
		return bad(error, "url", "out of memory");
	for (int i = 0; i < noptions; i++)
		if (!take(config, &options[i], error))
			return false;
	if (config->nurls == 0)
		return bad(error, "url", "it is required");
	if (config->declare != NULL && config->exchange[0] == '\0')
		return bad(error, "declare", "it needs the option \"exchange\"");
	if ((config->tls_key == NULL) != (config->tls_certificate == NULL))
		return bad(error, "tls_certificate", "it needs \"tls_key\" beside it");
	return true;
}

void
rabbit_config_free(RabbitConfig *config)
{
	for (int i = 0; i < config->nurls; i++)
	{
		free(config->urls[i].host);
		free(config->urls[i].vhost);
	}
	free(config->urls);
	free(config->client_id);
	free(config->user);
	free(config->password);
	free(config->exchange);
	free(config->declare);
	free(config->tls_ca);
	free(config->tls_certificate);
	free(config->tls_key);
	memset(config, 0, sizeof(*config));
}
