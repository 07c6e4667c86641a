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

#include "fmgr.h"
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
	OUTBOX_RULE_CREDENTIAL,		/* in a user mapping or a server */
	OUTBOX_RULE_REQUIRED,		/* each server has it */
	OUTBOX_RULE_CHECK			/* its values, beyond type and range */
} OutboxRuleKind;

/* *error says what is wrong with a value, and never contains a secret. */
typedef bool (*OutboxCheck) (const char *name, const char *value, OutboxOptionError *error);

/* One of a list's words. */
typedef bool (*OutboxWordCheck) (const char *text, const char *end);

/* What we say of it; the first rule of a kind that matches counts. */
typedef struct OutboxRule
{
	OutboxRuleKind kind;
	const char *pattern;		/* of names; a star is any characters */
	const char *reason;			/* a sentence, or NULL */
	const char *hint;			/* a sentence, or NULL */
	OutboxCheck check;			/* of CHECK */
} OutboxRule;

typedef struct OutboxValidator
{
	OutboxTransportDdl ddl;
	const char *library;		/* of the client, for messages */
	int			nproperties;
	const OutboxProperty *properties;
	int			nrules;
	const OutboxRule *rules;

	/*
	 * Checks of a server's options together, or NULL; may raise a WARNING
	 * itself.
	 */
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

/* checks.c, for tables.  A NULL value may be a secret, and is not in the error; false. */
extern bool outbox_bad_value(const char *name, const char *value, const char *detail,
							 const char *hint, OutboxOptionError *error);

extern bool outbox_check_type(const OutboxProperty *property, const char *value,
							  OutboxOptionError *error);
extern bool outbox_check_list(const char *name, const char *value, OutboxWordCheck is_one,
							  const char *hint, OutboxOptionError *error);
extern bool outbox_check_pem(const char *name, const char *value, OutboxOptionError *error);
extern bool outbox_skip(const char **text, const char *end, const char *beginning);
extern bool outbox_is_address(const char *text, const char *end);

#pragma GCC visibility pop

/*
 * What a DDL library exports: the wrapper's validator function, and what the
 * core looks for.
 */
#define OUTBOX_DDL_LIBRARY(function, validator) \
	PG_FUNCTION_INFO_V1(function); \
	Datum \
	function(PG_FUNCTION_ARGS) \
	{ \
		outbox_validate(&(validator), PG_GETARG_DATUM(0), PG_GETARG_OID(1)); \
		PG_RETURN_VOID(); \
	} \
	extern PGDLLEXPORT const OutboxTransportDdl *outbox_transport_ddl(void); \
	const OutboxTransportDdl * \
	outbox_transport_ddl(void) \
	{ \
		return &(validator).ddl; \
	} \
	extern PGDLLEXPORT const OutboxTransportDdl *outbox_transport_ddl(void)

#endif							/* OUTBOX_VALIDATE_H */
