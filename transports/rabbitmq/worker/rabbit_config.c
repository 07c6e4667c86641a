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

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DEFAULT_HEARTBEAT	10	/* seconds */
#define MAX_HEARTBEAT		3600

/* One URL, of len bytes. */
static bool
add_url(void *to, const char *text, size_t len, OutboxError *error)
{
	RabbitConfig *config = to;
	RabbitUrl  *urls = realloc(config->urls, (config->nurls + 1) * sizeof(RabbitUrl));
	RabbitUrl  *url;
	char	   *buf = strndup(text, len);
	struct amqp_connection_info info;
	bool		good = false;

	if (urls != NULL)
		config->urls = urls;
	if (urls == NULL || buf == NULL)
	{
		free(buf);
		return settings_bad(error, "url", "out of memory");
	}
	url = memset(&urls[config->nurls++], 0, sizeof(RabbitUrl));
	amqp_default_connection_info(&info);
	if (amqp_parse_url(buf, &info) == AMQP_STATUS_OK)
	{
		url->port = info.port;
		url->tls = info.ssl != 0;
		good = settings_copy(&url->host, info.host) && settings_copy(&url->vhost, info.vhost);
	}
	free(buf);
	return good || settings_bad(error, "url", "it is not a list of AMQP URLs");
}

static bool
take(RabbitConfig *config, const OutboxOption *option, OutboxError *error)
{
	const SettingsText texts[] = {
		{"user", &config->user},
		{"password", &config->password},
		{"exchange", &config->exchange},
		{"declare", &config->declare},
		{"tls_ca", &config->tls_ca},
		{"tls_certificate", &config->tls_certificate},
		{"tls_key", &config->tls_key},
	};
	char	  **field = settings_field(texts, sizeof(texts) / sizeof(texts[0]), option->name);

	if (field != NULL)
		return settings_copy(field, option->value) ||
			settings_bad(error, option->name, "out of memory");
	if (strcmp(option->name, "url") == 0)
		return settings_each(option->value, add_url, config, error);
	if (strcmp(option->name, "mandatory") == 0)
		config->mandatory = settings_is_true(option->value);
	else if (strcmp(option->name, "heartbeat") == 0)
	{
		config->heartbeat = atoi(option->value);
		if (config->heartbeat < 1 || config->heartbeat > MAX_HEARTBEAT)
			return settings_bad(error, option->name, "out of range");
	}
	else if (strcmp(option->name, "tls_verify") == 0)
	{
		config->tls_verify_peer = strcasecmp(option->value, "none") != 0;
		config->tls_verify_host = strcasecmp(option->value, "full") == 0;
	}
	else
		return settings_bad(error, option->name, "unknown to this version");
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
	if (!settings_copy(&config->client_id, client_id) || !settings_copy(&config->exchange, "") ||
		!settings_copy(&config->user, "guest") || !settings_copy(&config->password, "guest"))
		return settings_bad(error, "url", "out of memory");
	for (int i = 0; i < noptions; i++)
		if (!take(config, &options[i], error))
			return false;
	if (config->nurls == 0)
		return settings_bad(error, "url", "it is required");
	if (config->declare != NULL && config->exchange[0] == '\0')
		return settings_bad(error, "declare", "it needs the option \"exchange\"");
	if ((config->tls_key == NULL) != (config->tls_certificate == NULL))
		return settings_bad(error, "tls_certificate", "it needs \"tls_key\" beside it");
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
