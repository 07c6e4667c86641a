/*-------------------------------------------------------------------------
 *
 * validate.h
 *	  The validators of our foreign-data wrappers, driven by tables.
 *
 * A transport's DDL library describes its client library's properties and the
 * rules for them; this checks a statement's options against both.  Compiled
 * into DDL libraries only.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_VALIDATE_H
#define OUTBOX_VALIDATE_H

#include "transport/options.h"

typedef enum OutboxPropertyType
{
	OUTBOX_PROPERTY_STRING,
	OUTBOX_PROPERTY_INTEGER,
	OUTBOX_PROPERTY_FLOAT,
	OUTBOX_PROPERTY_BOOLEAN,
	OUTBOX_PROPERTY_ENUM,		/* one of values */
	OUTBOX_PROPERTY_FLAGS,		/* some of values, comma-separated */
	OUTBOX_PROPERTY_API			/* can't be given as text */
} OutboxPropertyType;

#define OUTBOX_FOR_PRODUCER		0x01
#define OUTBOX_FOR_CONSUMER		0x02

/* What the client library says of a property. */
typedef struct OutboxProperty
{
	const char *name;
	OutboxPropertyType type;
	int			scope;
	double		min;
	double		max;
	const char *values;			/* comma-separated, or NULL */
	const char *alias_of;		/* or NULL */
} OutboxProperty;

typedef enum OutboxRuleKind
{
	OUTBOX_RULE_REFUSED,		/* nobody may set it */
	OUTBOX_RULE_SUPERUSER,
	OUTBOX_RULE_SECRET,			/* in a user mapping only */
	OUTBOX_RULE_CREDENTIAL		/* in a user mapping or a server */
} OutboxRuleKind;

/* What we say of it; the first rule of a kind that matches counts. */
typedef struct OutboxRule
{
	OutboxRuleKind kind;
	const char *pattern;		/* of names; a star is any characters */
	const char *reason;			/* a sentence, or NULL */
	const char *hint;			/* a sentence, or NULL */
} OutboxRule;

typedef struct OutboxValidator
{
	const char *library;		/* of the client, for messages */
	int			nproperties;
	const OutboxProperty *properties;
	int			nrules;
	const OutboxRule *rules;

	/* NULL when the name of a topic is fine, else why not. */
	const char *(*check_topic) (const char *topic, size_t len);

	/* Checks beyond type and range; *error says what is wrong. */
	bool		(*check_value) (const char *name, const char *value,
								OutboxOptionError *error);

	/* Checks of a server's options together; may raise a WARNING itself. */
	bool		(*check_server) (int noptions, const OutboxOption *options,
								 OutboxOptionError *error);
} OutboxValidator;

#pragma GCC visibility push(hidden)

/* The whole of a validator function: raises, or returns. */
extern void outbox_validate(const OutboxValidator *validator,
							Datum options, Oid catalog);

/* An option's value, NULL when it is not there. */
extern const char *outbox_option_find(int noptions, const OutboxOption *options,
									  const char *name);

#pragma GCC visibility pop

#endif							/* OUTBOX_VALIDATE_H */
