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

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool
bad(OutboxError *error, const char *name, const char *why)
{
	char		text[256];

	snprintf(text, sizeof(text), "option \"%s\": %s", name, why);
	jet_error_set(error, OUTBOX_CONFIG, "INVALID_OPTION", text, "See ALTER SERVER.");
	return false;
}

static bool
copy(char **to, const char *from)
{
	free(*to);
	*to = strdup(from);
	return *to != NULL;
}

/* One URL, of len bytes: scheme, host and port only. */
static bool
parse_url(JetUrl *url, const char *text, size_t len, OutboxError *error)
{
	const char *host = memchr(text, '/', len);
	const char *end = text + len;
	const char *host_end;

	url->tls = strncmp(text, "tls://", 6) == 0;
	if ((!url->tls && strncmp(text, "nats://", 7) != 0) || memchr(text, '@', len) != NULL)
		return bad(error, "url", "it is not a list of NATS URLs");
	host += 2;
	if (*host == '[')
	{
		host++;
		host_end = memchr(host, ']', end - host);
		if (host_end == NULL)
			return bad(error, "url", "it is not a list of NATS URLs");
	}
	else
	{
		host_end = memchr(host, ':', end - host);
		if (host_end == NULL)
			host_end = end;
	}
	url->host = strndup(host, host_end - host);
	url->text = strndup(text, len);
	return (url->host != NULL && url->text != NULL) || bad(error, "url", "out of memory");
}

static bool
parse_urls(JetConfig *config, const char *value, OutboxError *error)
{
	int			n = 1;

	for (const char *c = value; *c; c++)
		n += *c == ',';
	config->urls = calloc(n, sizeof(JetUrl));
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
take(JetConfig *config, const OutboxOption *option, OutboxError *error)
{
	const struct
	{
		const char *name;
		char	  **field;
	}			texts[] = {
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

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (strcmp(option->name, texts[i].name) == 0)
			return copy(texts[i].field, option->value) || bad(error, option->name, "out of memory");
	if (strcmp(option->name, "url") == 0)
		return config->urls == NULL && parse_urls(config, option->value, error);
	if (strcmp(option->name, "create_stream") == 0)
		config->create_stream = is_true(option->value);
	else if (strcmp(option->name, "replicas") == 0)
		config->replicas = atoi(option->value);
	else if (strcmp(option->name, "tls_verify") == 0)
		config->tls_verify = strcasecmp(option->value, "none") != 0;
	else
		return bad(error, option->name, "unknown to this version");
	return true;
}

/* Of zeroed memory; false with *error, and jet_config_free() in any case. */
bool
jet_config_parse(JetConfig *config, const char *client_id, const char *topics, int noptions,
				 const OutboxOption *options, OutboxError *error)
{
	config->replicas = 1;
	config->tls_verify = true;
	if (!copy(&config->client_id, client_id) || !copy(&config->prefix, "") ||
		!copy(&config->topics, topics ? topics : ""))
		return bad(error, "url", "out of memory");
	for (int i = 0; i < noptions; i++)
		if (!take(config, &options[i], error))
			return false;
	if (config->nurls == 0)
		return bad(error, "url", "it is required");
	if (config->stream == NULL || config->stream[0] == '\0')
		return bad(error, "stream", "it is required");
	if ((config->tls_key == NULL) != (config->tls_certificate == NULL))
		return bad(error, "tls_certificate", "it needs \"tls_key\" beside it");
	if ((config->user != NULL) + (config->token != NULL) + (config->nkey_seed != NULL) +
		(config->credentials != NULL) > 1)
		return bad(error, "user", "one of \"user\", \"token\", \"nkey_seed\" and \"credentials\" is enough");
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
