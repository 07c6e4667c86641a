/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  Options into the fields of a worker transport, and what is wrong with
 *	  them.
 *
 * The wrapper's validator has checked them; what it would refuse is an error
 * here too, since options can be written past it, or by another version.
 * Nothing here knows the server.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SETTINGS_H
#define OUTBOX_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/transport.h"

/* An option whose text is kept as it is. */
typedef struct SettingsText
{
	const char *name;
	char	  **field;			/* malloc'd, or NULL */
} SettingsText;

/* One of a list, added to what has the others; false with *error. */
typedef bool (*SettingsAdd) (void *to, const char *text, size_t len, OutboxError *error);

#pragma GCC visibility push(hidden)

/* What is wrong with an option.  False. */
extern bool settings_bad(OutboxError *error, const char *name, const char *why);

/* In place of what the field had; false: out of memory. */
extern bool settings_copy(char **field, const char *value);

/* Where the text of that option is kept; NULL: it is none of these. */
extern char **settings_field(const SettingsText *texts, size_t n, const char *name);

extern bool settings_is_true(const char *value);

/* Each of a comma-separated list. */
extern bool settings_each(const char *value, SettingsAdd add, void *to, OutboxError *error);

#pragma GCC visibility pop

#endif							/* OUTBOX_SETTINGS_H */
