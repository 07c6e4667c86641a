/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  Options into the fields of a worker transport, and what is wrong with
 *	  them.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "common/settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/error.h"

bool
settings_bad(OutboxError *error, const char *name, const char *why)
{
	char		text[256];

	snprintf(text, sizeof(text), "option \"%s\": %s", name, why);
	error_set(error, OUTBOX_CONFIG, "INVALID_OPTION", text, "See ALTER SERVER.");
	return false;
}

bool
settings_copy(char **field, const char *value)
{
	free(*field);
	*field = strdup(value);
	return *field != NULL;
}

char **
settings_field(const SettingsText *texts, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(texts[i].name, name) == 0)
			return texts[i].field;
	return NULL;
}

bool
settings_is_true(const char *value)
{
	return strcasecmp(value, "true") == 0 || strcasecmp(value, "t") == 0 ||
		strcmp(value, "1") == 0;
}

bool
settings_each(const char *value, SettingsAdd add, void *to, OutboxError *error)
{
	for (;;)
	{
		size_t		len;

		value += strspn(value, " ");
		len = strcspn(value, ", ");
		if (!add(to, value, len, error))
			return false;
		value += len;
		value += strspn(value, " ");
		if (*value++ != ',')
			return true;
	}
}
