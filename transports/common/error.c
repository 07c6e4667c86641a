/*-------------------------------------------------------------------------
 *
 * error.c
 *	  What went wrong, as a value.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "common/error.h"

#include <stdio.h>
#include <string.h>

OutboxFailure
error_set(OutboxError *error, OutboxFailure failure, const char *name, const char *text,
		  const char *hint)
{
	memset(error, 0, sizeof(*error));
	error->failure = failure;
	snprintf(error->name, sizeof(error->name), "%s", name);
	snprintf(error->text, sizeof(error->text), "%s", text);
	snprintf(error->hint, sizeof(error->hint), "%s", hint ? hint : "");
	return failure;
}
