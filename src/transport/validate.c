/*-------------------------------------------------------------------------
 *
 * validate.c
 *	  The validators of our foreign-data wrappers, driven by tables.
 *
 * The server calls a validator with all options that an object has after the
 * statement, and with the catalog that says what kind of object it is.  It
 * does not tell which ones are new: hence whoever alters a server must be
 * allowed to set all of its options, and a server that has an option for
 * superusers is altered by superusers only, as in postgres_fdw.
 *
 * Statements may carry secrets: errors hide the statement (and the context,
 * which quotes it when a function ran it) from the log, and never contain a
 * secret's value.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "transport/validate.h"
#include "utils/varlena.h"

#define MAX_TYPO_DISTANCE	4
#define MAX_NAMED			40		/* properties: more are not listed in a hint */

static void
raise_error(const OutboxOptionError *error)
{
	ereport(ERROR,
			(errcode(error->sqlerrcode),
			 errmsg_internal("%s", error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0,
			 errhidestmt(true),
			 errhidecontext(true)));
}

const char *
outbox_option_find(int noptions, const OutboxOption *options, const char *name)
{
	for (int i = 0; i < noptions; i++)
	{
		if (strcmp(options[i].name, name) == 0)
			return options[i].value;
	}
	return NULL;
}

static const OutboxProperty *
property_find(const OutboxValidator *validator, const char *name)
{
	for (int i = 0; i < validator->nproperties; i++)
	{
		if (strcmp(validator->properties[i].name, name) == 0)
			return &validator->properties[i];
	}
	return NULL;
}

static const OutboxRule *
rule_find(const OutboxValidator *validator, OutboxRuleKind kind, const char *name)
{
	for (int i = 0; i < validator->nrules; i++)
	{
		const OutboxRule *rule = &validator->rules[i];

		if (rule->kind == kind && outbox_glob_match(rule->pattern, name, strlen(name)))
			return rule;
	}
	return NULL;
}

/* May an option of this name stand in a user mapping? */
static bool
is_for_mapping(const OutboxValidator *validator, const char *name)
{
	return rule_find(validator, OUTBOX_RULE_SECRET, name) ||
		rule_find(validator, OUTBOX_RULE_CREDENTIAL, name);
}

/* May this property be an option of that kind of object? */
static bool
is_valid_here(const OutboxValidator *validator, const OutboxProperty *property,
			  bool mapping)
{
	if (property->type == OUTBOX_PROPERTY_API ||
		!(property->scope & OUTBOX_FOR_PRODUCER) ||
		rule_find(validator, OUTBOX_RULE_REFUSED, property->name))
		return false;
	return mapping ? is_for_mapping(validator, property->name) :
		!rule_find(validator, OUTBOX_RULE_SECRET, property->name);
}

/* Keep the candidate if it is nearer to what was written. */
static void
consider(const char *name, const char *candidate, const char **best, int *distance)
{
	int			d = varstr_levenshtein_less_equal(name, strlen(name),
												  candidate, strlen(candidate),
												  1, 1, 1, *distance, true);

	if (d < *distance)
	{
		*best = candidate;
		*distance = d;
	}
}

/* A name that may be meant, or NULL. */
static const char *
closest_option(const OutboxValidator *validator, const char *name, bool mapping)
{
	const char *best = NULL;
	int			distance = Min(MAX_TYPO_DISTANCE, (int) strlen(name) / 2) + 1;

	for (int i = 0; !mapping && outbox_core_option_names[i]; i++)
		consider(name, outbox_core_option_names[i], &best, &distance);
	for (int i = 0; i < validator->nproperties; i++)
	{
		if (is_valid_here(validator, &validator->properties[i], mapping))
			consider(name, validator->properties[i].name, &best, &distance);
	}
	return best;
}

/* The names of a server's own options, where they are few. */
static void
append_names(StringInfo buf, const OutboxValidator *validator)
{
	const char *separator = "";

	for (int i = 0; i < validator->nproperties; i++)
	{
		if (!is_valid_here(validator, &validator->properties[i], false))
			continue;
		appendStringInfo(buf, "%s%s", separator, validator->properties[i].name);
		separator = ", ";
	}
	appendStringInfoChar(buf, '.');
}

static char *
unknown_hint(const OutboxValidator *validator, const char *name, bool mapping)
{
	const char *closest = closest_option(validator, name, mapping);
	const char *separator = "";
	StringInfoData buf;

	if (closest)
		return psprintf("Perhaps you meant the option \"%s\".", closest);

	initStringInfo(&buf);
	if (!mapping)
	{
		appendStringInfoString(&buf, "Valid options are ");
		for (int i = 0; outbox_core_option_names[i]; i++)
			appendStringInfo(&buf, "%s, ", outbox_core_option_names[i]);
		if (validator->nproperties > MAX_NAMED)
			appendStringInfo(&buf, "and the producer's properties of %s under their own names.",
							 validator->library);
		else
			append_names(&buf, validator);
		return buf.data;
	}
	appendStringInfo(&buf, "Valid options of a user mapping are the credentials of %s, such as ",
					 validator->library);
	for (int i = 0; i < validator->nrules; i++)
	{
		const OutboxRule *rule = &validator->rules[i];

		/* names, not patterns: the same for any version of the library */
		if ((rule->kind == OUTBOX_RULE_SECRET || rule->kind == OUTBOX_RULE_CREDENTIAL) &&
			strchr(rule->pattern, '*') == NULL)
		{
			appendStringInfo(&buf, "%s%s", separator, rule->pattern);
			separator = ", ";
		}
	}
	appendStringInfoChar(&buf, '.');
	return buf.data;
}

/* Nobody may set it, or not this user. */
static bool
check_power(const OutboxValidator *validator, const char *name, OutboxOptionError *error)
{
	const OutboxProperty *property = property_find(validator, name);
	const OutboxRule *rule;

	rule = rule_find(validator, OUTBOX_RULE_REFUSED, name);
	if (rule)
		return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
								   psprintf("option \"%s\" cannot be set", name),
								   rule->reason, rule->hint);
	if (property && property->type == OUTBOX_PROPERTY_API)
		return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
								   psprintf("option \"%s\" cannot be set", name),
								   psprintf("It is a part of %s's C interface, not a value.",
											validator->library),
								   NULL);
	if (property && !(property->scope & OUTBOX_FOR_PRODUCER))
		return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
								   psprintf("option \"%s\" cannot be set", name),
								   "It is not a producer property: it belongs to consumers.",
								   NULL);

	rule = rule_find(validator, OUTBOX_RULE_SUPERUSER, name);
	if (rule && !superuser())
		return outbox_option_error(error, ERRCODE_INSUFFICIENT_PRIVILEGE,
								   psprintf("only a superuser may set option \"%s\", or alter what has it set",
											name),
								   rule->reason, rule->hint);
	return true;
}

static bool
check_place(const OutboxValidator *validator, const char *name, bool mapping,
			OutboxOptionError *error)
{
	if (!mapping && rule_find(validator, OUTBOX_RULE_SECRET, name))
		return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
								   psprintf("option \"%s\" is a secret and cannot be set on a server", name),
								   "Every user of the database can read a server's options.",
								   psprintf("Put it into a user mapping: CREATE USER MAPPING FOR PUBLIC SERVER ... OPTIONS (\"%s\" '...').",
											name));
	if (mapping && !is_for_mapping(validator, name))
		return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
								   psprintf("option \"%s\" cannot be set in a user mapping", name),
								   "User mappings hold credentials only.",
								   "Set it on the server.");
	return true;
}

static bool
check_property(const OutboxValidator *validator, const char *name, const char *value,
			   bool mapping, OutboxOptionError *error)
{
	const OutboxProperty *property = property_find(validator, name);
	const OutboxRule *check = rule_find(validator, OUTBOX_RULE_CHECK, name);

	if (!check_power(validator, name, error))
		return false;
	if (mapping)
	{
		for (int i = 0; outbox_core_option_names[i]; i++)
		{
			if (strcmp(outbox_core_option_names[i], name) == 0)
				return check_place(validator, name, mapping, error);
		}
	}
	if (property == NULL)
		return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
								   psprintf("invalid option \"%s\"", name), NULL,
								   unknown_hint(validator, name, mapping));
	return check_place(validator, name, mapping, error) &&
		outbox_check_type(property, value, error) &&
		(check == NULL || check->check(name, value, error));
}

/*
 * Pairs of extra go to the library unchecked, which is what it is for; but it
 * opens no way around a refusal, and is no place for secrets.
 */
static bool
check_extra(const OutboxValidator *validator, const OutboxCoreOptions *core,
			OutboxOptionError *error)
{
	if (!superuser())
		return outbox_option_error(error, ERRCODE_INSUFFICIENT_PRIVILEGE,
								   "only a superuser may set option \"extra\", or alter what has it set",
								   psprintf("Its pairs go to %s unchecked.", validator->library),
								   NULL);

	for (int i = 0; i < core->nextra; i++)
	{
		const char *name = core->extra[i].name;

		for (int j = 0; outbox_core_option_names[j]; j++)
		{
			if (strcmp(outbox_core_option_names[j], name) == 0)
				return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
										   psprintf("option \"%s\" cannot be set in \"extra\"", name),
										   NULL,
										   "Set it as an option of its own.");
		}
		if (!check_power(validator, name, error) ||
			!check_place(validator, name, false, error))
			return false;
	}
	return true;
}

static const char *
canonical_name(const OutboxValidator *validator, const char *name)
{
	const OutboxProperty *property = property_find(validator, name);

	return property && property->alias_of ? property->alias_of : name;
}

/* A property twice, under two names or in extra too: which would count? */
static bool
check_twice(const OutboxValidator *validator, int noptions,
			const OutboxOption *options, OutboxOptionError *error)
{
	for (int i = 0; i < noptions; i++)
	{
		for (int j = 0; j < i; j++)
		{
			if (strcmp(canonical_name(validator, options[i].name),
					   canonical_name(validator, options[j].name)) == 0)
				return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
										   strcmp(options[i].name, options[j].name) == 0 ?
										   psprintf("option \"%s\" is set twice", options[i].name) :
										   psprintf("options \"%s\" and \"%s\" set the same property",
													options[j].name, options[i].name),
										   NULL, "Leave out one of them.");
		}
	}
	return true;
}

/* The relay hands values over in UTF-8. */
static bool
check_encoding(const char *name, const char *value, OutboxOptionError *error)
{
	if (GetDatabaseEncoding() != PG_SQL_ASCII ||
		pg_verify_mbstr(PG_UTF8, value, strlen(value), true))
		return true;
	return outbox_option_error(error, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
							   psprintf("invalid value for option \"%s\"", name),
							   "It is not valid UTF-8.", NULL);
}

/*
 * Only a preloaded pg_outbox runs relays.  It leaves a pointer under this name
 * in the postmaster; pg_upgrade restores servers without it.
 */
static void
require_preload(void)
{
	if (IsBinaryUpgrade || *find_rendezvous_variable("pg_outbox") != NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("pg_outbox must be loaded by the server to create or alter its servers"),
			 errhint("Add this line to postgresql.conf and restart: shared_preload_libraries = 'pg_outbox'"),
			 errhidestmt(true),
			 errhidecontext(true)));
}

static bool
validate_wrapper(List *options, OutboxOptionError *error)
{
	ListCell   *lc;
	bool		found = false;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		char	   *value = defGetString(def);

		if (strcmp(def->defname, "library") != 0)
			return outbox_option_error(error, ERRCODE_FDW_INVALID_OPTION_NAME,
									   psprintf("invalid option \"%s\"", def->defname), NULL,
									   "The only option of the wrapper is \"library\".");
		if (*value == '\0' ||
			value[strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] != '\0')
			return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
									   psprintf("invalid value for option \"library\": \"%s\"", value), NULL,
									   "Allowed is the name of a library in the server's library directory: letters, digits and underscores.");
		found = true;
	}
	return found ||
		outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
							"option \"library\" is required", NULL, NULL);
}

/* Could the broker have a topic of that name? */
static bool
check_position_topic(const OutboxValidator *validator, const char *value,
					 OutboxOptionError *error)
{
	const char *reason = validator->ddl.check_topic(value, strlen(value));

	if (reason == NULL)
		return true;
	return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
							   psprintf("invalid value for option \"position_topic\": \"%s\"", value),
							   psprintf("%s.", reason), NULL);
}

static bool
check_required(const OutboxValidator *validator, int noptions, const OutboxOption *options,
			   OutboxOptionError *error)
{
	for (int i = 0; i < validator->nrules; i++)
	{
		const OutboxRule *rule = &validator->rules[i];

		if (rule->kind == OUTBOX_RULE_REQUIRED &&
			outbox_option_find(noptions, options, rule->pattern) == NULL)
			return outbox_option_error(error, ERRCODE_FDW_DYNAMIC_PARAMETER_VALUE_NEEDED,
									   psprintf("option \"%s\" is required", rule->pattern),
									   rule->reason, rule->hint);
	}
	return true;
}

static bool
validate_server(const OutboxValidator *validator, List *options, OutboxOptionError *error)
{
	OutboxCoreOptions core;
	OutboxOption *all;
	int			n = 0;
	ListCell   *lc;

	outbox_core_options_init(&core);
	all = palloc0((list_length(options) + 1) * sizeof(OutboxOption));
	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		char	   *value = defGetString(def);

		if (!check_encoding(def->defname, value, error))
			return false;
		switch (outbox_core_option_take(&core, def->defname, value, error))
		{
			case OUTBOX_OPTION_BAD:
				return false;
			case OUTBOX_OPTION_TAKEN:
				if (strcmp(def->defname, "extra") == 0 &&
					!check_extra(validator, &core, error))
					return false;
				if (strcmp(def->defname, "position_topic") == 0 &&
					!check_position_topic(validator, value, error))
					return false;
				break;
			case OUTBOX_OPTION_FOREIGN:
				if (!check_property(validator, def->defname, value, false, error))
					return false;
				all[n].name = def->defname;
				all[n++].value = value;
				break;
		}
	}

	all = repalloc(all, (n + core.nextra + 1) * sizeof(OutboxOption));
	for (int i = 0; i < core.nextra; i++)
		all[n++] = core.extra[i];
	return check_twice(validator, n, all, error) &&
		check_required(validator, n, all, error) &&
		(validator->check_server == NULL || validator->check_server(n, all, error));
}

static bool
validate_mapping(const OutboxValidator *validator, List *options, OutboxOptionError *error)
{
	OutboxOption *all = palloc0((list_length(options) + 1) * sizeof(OutboxOption));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		char	   *value = defGetString(def);

		if (!check_encoding(def->defname, value, error) ||
			!check_property(validator, def->defname, value, true, error))
			return false;
		all[n].name = def->defname;
		all[n++].value = value;
	}
	return check_twice(validator, n, all, error);
}

void
outbox_validate(const OutboxValidator *validator, Datum options, Oid catalog)
{
	List	   *list = untransformRelOptions(options);
	OutboxOptionError error;
	bool		good = true;

	if (catalog == ForeignDataWrapperRelationId)
		good = validate_wrapper(list, &error);
	else if (catalog == ForeignServerRelationId)
	{
		require_preload();
		good = validate_server(validator, list, &error);
	}
	else if (catalog == UserMappingRelationId)
		good = validate_mapping(validator, list, &error);
	else if (list != NIL)
		good = outbox_option_error(&error, ERRCODE_FDW_INVALID_OPTION_NAME,
								   psprintf("invalid option \"%s\"",
											linitial_node(DefElem, list)->defname),
								   NULL,
								   "There are no valid options in this context.");
	if (!good)
		raise_error(&error);
}
