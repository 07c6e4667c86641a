/*-------------------------------------------------------------------------
 *
 * jet_config.c
 *	  Options into a JetConfig.
 *
 * The wrapper's validator has checked them; what it would refuse is an error
 * here too, since options can be written past it, or by another version.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* One URL, of len bytes: scheme, host and port only. */
static bool
parse_url(JetUrl *url, const char *text, size_t len, OutboxError *error)
{
	const char *host = memchr(text, '/', len);
	const char *end = text + len;
	const char *host_end;

	url->tls = strncmp(text, "tls://", 6) == 0;
	if ((!url->tls && strncmp(text, "nats://", 7) != 0) || memchr(text, '@', len) != NULL)
		return settings_bad(error, "url", "it is not a list of NATS URLs");
	host += 2;
	if (*host == '[')
	{
		host++;
		host_end = memchr(host, ']', end - host);
		if (host_end == NULL)
			return settings_bad(error, "url", "it is not a list of NATS URLs");
	}
	else
	{
		host_end = memchr(host, ':', end - host);
		if (host_end == NULL)
			host_end = end;
	}
	url->host = strndup(host, host_end - host);
	url->text = strndup(text, len);
	return (url->host != NULL && url->text != NULL) || settings_bad(error, "url", "out of memory");
}

static bool
add_url(void *to, const char *text, size_t len, OutboxError *error)
{
	JetConfig  *config = to;
	JetUrl	   *urls = realloc(config->urls, (config->nurls + 1) * sizeof(JetUrl));

	if (urls == NULL)
		return settings_bad(error, "url", "out of memory");
	config->urls = urls;
	memset(&urls[config->nurls], 0, sizeof(JetUrl));
	return parse_url(&urls[config->nurls++], text, len, error);
}

static bool
take(JetConfig *config, const OutboxOption *option, OutboxError *error)
{
	const SettingsText texts[] = {
		{"stream", &config->stream},
		{"subject_prefix", &config->prefix},
		{"user", &config->user},
		{"password", &config->password},
		{"token", &config->token},
		{"nkey_seed", &config->nkey_seed},
		{"credentials", &config->credentials},
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
	if (strcmp(option->name, "create_stream") == 0)
		config->create_stream = settings_is_true(option->value);
	else if (strcmp(option->name, "replicas") == 0)
		config->replicas = atoi(option->value);
	else if (strcmp(option->name, "tls_verify") == 0)
		config->tls_verify = strcasecmp(option->value, "none") != 0;
	else
		return settings_bad(error, option->name, "unknown to this version");
	return true;
}

/* Of zeroed memory; false with *error, and jet_config_free() in any case. */
bool
jet_config_parse(JetConfig *config, const char *client_id, const char *topics, int noptions,
				 const OutboxOption *options, OutboxError *error)
{
	config->replicas = 1;
	config->tls_verify = true;
	if (!settings_copy(&config->client_id, client_id) || !settings_copy(&config->prefix, "") ||
		!settings_copy(&config->topics, topics ? topics : ""))
		return settings_bad(error, "url", "out of memory");
	for (int i = 0; i < noptions; i++)
		if (!take(config, &options[i], error))
			return false;
	if (config->nurls == 0)
		return settings_bad(error, "url", "it is required");
	if (config->stream == NULL || config->stream[0] == '\0')
		return settings_bad(error, "stream", "it is required");
	if ((config->tls_key == NULL) != (config->tls_certificate == NULL))
		return settings_bad(error, "tls_certificate", "it needs \"tls_key\" beside it");
	if ((config->user != NULL) + (config->token != NULL) + (config->nkey_seed != NULL) +
		(config->credentials != NULL) > 1)
		return settings_bad(error, "user", "one of \"user\", \"token\", \"nkey_seed\" and \"credentials\" is enough");
	return true;
}

void
jet_config_free(JetConfig *config)
{
	for (int i = 0; i < config->nurls; i++)
	{
		free(config->urls[i].host);
		free(config->urls[i].text);
	}
	free(config->urls);
	free(config->client_id);
	free(config->stream);
	free(config->topics);
	free(config->prefix);
	free(config->user);
	free(config->password);
	free(config->token);
	free(config->nkey_seed);
	free(config->credentials);
	free(config->tls_ca);
	free(config->tls_certificate);
	free(config->tls_key);
	memset(config, 0, sizeof(*config));
}
