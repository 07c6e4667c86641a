/*-------------------------------------------------------------------------
 *
 * options.c
 *	  The core's own options of a server, the same for every transport.
 *
 * A validator checks with these functions what a relay later reads with them,
 * so both always agree.  Nothing here raises: a relay that meets a bad option
 * (written by another version, say) must show it, not die of it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "datatype/timestamp.h"
#include "pgtime.h"
#include "transport/options.h"
#include "utils/builtins.h"
#include "utils/datetime.h"

#define DEFAULT_TOPIC_TIMEOUT	(5 * SECS_PER_MINUTE * INT64CONST(1000))
#define MAX_TOPIC_TIMEOUT_DAYS	365
#define MAX_TOPIC_TIMEOUT \
	(MAX_TOPIC_TIMEOUT_DAYS * (int64) SECS_PER_DAY * INT64CONST(1000))
#define UUID_LEN				36

const char *const outbox_core_option_names[] = {
	"topics", "format", "exactly_once", "position_topic", "start", "on_error", "topic_timeout",
	"paused", "home", "extra", NULL
};

typedef bool (*TakeFunction) (OutboxCoreOptions *core, const char *name,
							  const char *value, OutboxOptionError *error);

bool
outbox_option_error(OutboxOptionError *error, int sqlerrcode,
					const char *message, const char *detail, const char *hint)
{
	error->sqlerrcode = sqlerrcode;
	error->message = message;
	error->detail = detail;
	error->hint = hint;
	return false;
}

static bool
bad_value(OutboxOptionError *error, const char *name, const char *value,
		  const char *detail, const char *hint)
{
	return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
							   psprintf("invalid value for option \"%s\": \"%s\"", name, value),
							   detail, hint);
}

static bool
not_yet(OutboxOptionError *error, const char *name, const char *value, const char *hint)
{
	return outbox_option_error(error, ERRCODE_FEATURE_NOT_SUPPORTED,
							   psprintf("option \"%s\" does not support \"%s\" yet", name, value),
							   NULL, hint);
}

static bool
take_bool(bool *field, const char *name, const char *value, OutboxOptionError *error)
{
	if (parse_bool(value, field))
		return true;
	return bad_value(error, name, value, NULL,
					 "Allowed are \"true\" and \"false\".");
}

static bool
take_topics(OutboxCoreOptions *core, const char *name, const char *value,
			OutboxOptionError *error)
{
	char	   *reason;

	core->patterns = outbox_patterns_parse(value, &reason);
	if (core->patterns)
		return true;
	reason[0] = pg_toupper((unsigned char) reason[0]);
	return bad_value(error, name, value, psprintf("%s.", reason),
					 "Allowed is a comma-separated list of patterns such as 'orders.*, payments, !orders.test'.");
}

static bool
take_format(OutboxCoreOptions *core, const char *name, const char *value,
			OutboxOptionError *error)
{
	core->format = OUTBOX_FORMAT_PLAIN;
	if (strcmp(value, "plain") == 0)
		return true;
	if (strcmp(value, "cloudevents") == 0 ||
		strcmp(value, "cloudevents-structured") == 0)
		return not_yet(error, name, value, "Use \"plain\", the default.");
	return bad_value(error, name, value, NULL, "Allowed is \"plain\".");
}

static bool
take_exactly_once(OutboxCoreOptions *core, const char *name, const char *value,
				  OutboxOptionError *error)
{
	return take_bool(&core->exactly_once, name, value, error);
}

/* What it may be called is for the transport to know. */
static bool
take_position_topic(OutboxCoreOptions *core, const char *name, const char *value,
					OutboxOptionError *error)
{
	if (value[0] == '\0')
		return bad_value(error, name, value, NULL,
						 "Allowed is the name of a topic; leave it out for one named after the server.");
	core->position_topic = pstrdup(value);
	return true;
}

static bool
take_start(OutboxCoreOptions *core, const char *name, const char *value,
		   OutboxOptionError *error)
{
	if (strcmp(value, "now") == 0)
		core->start = OUTBOX_START_NOW;
	else if (strcmp(value, "earliest") == 0)
		core->start = OUTBOX_START_EARLIEST;
	else
		return bad_value(error, name, value, NULL,
						 "Allowed are \"now\" and \"earliest\".");
	return true;
}

static bool
take_on_error(OutboxCoreOptions *core, const char *name, const char *value,
			  OutboxOptionError *error)
{
	if (strcmp(value, "dead_letter") == 0)
		core->on_error = OUTBOX_ON_ERROR_DEAD_LETTER;
	else if (strcmp(value, "block") == 0)
		core->on_error = OUTBOX_ON_ERROR_BLOCK;
	else
		return bad_value(error, name, value, NULL,
						 "Allowed are \"dead_letter\" and \"block\".");
	return true;
}

/* An interval's milliseconds; interval_in would raise. */
static bool
interval_ms(const char *value, int64 *ms)
{
	char		work[MAXDATELEN + 1];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nfields;
	int			dtype;
	struct pg_itm_in itm;
	int64		days;

	if (ParseDateTime(value, work, sizeof(work), field, ftype, MAXDATEFIELDS, &nfields) != 0)
		return false;
	if (DecodeInterval(field, ftype, nfields, INTERVAL_FULL_RANGE, &dtype, &itm) != 0 ||
		dtype != DTK_DELTA)
		return false;

	days = itm.tm_mday +
		((int64) itm.tm_mon + (int64) itm.tm_year * MONTHS_PER_YEAR) * DAYS_PER_MONTH;
	/* far beyond any bound of ours, and its milliseconds still fit */
	if (days < -PG_INT32_MAX || days > PG_INT32_MAX)
		return false;
	*ms = itm.tm_usec / 1000 + days * SECS_PER_DAY * 1000;
	return true;
}

static bool
take_topic_timeout(OutboxCoreOptions *core, const char *name, const char *value,
				   OutboxOptionError *error)
{
	char	   *end;
	int64		ms;
	bool		plain_number;

	(void) strtod(value, &end);
	plain_number = end != value && end[strspn(end, " \t\n\r")] == '\0';

	/* a number alone would be seconds to some and milliseconds to others */
	if (strcmp(value, "-1") == 0)
		core->topic_timeout = OUTBOX_FOR_EVER;
	else if (strcmp(value, "0") == 0)
		core->topic_timeout = 0;
	else if (!plain_number && interval_ms(value, &ms) &&
			 ms >= 0 && ms <= MAX_TOPIC_TIMEOUT)
		core->topic_timeout = ms;
	else
		return bad_value(error, name, value, NULL,
						 psprintf("Allowed is an interval with its unit, such as \"5 min\", up to %d days, or -1 for ever.",
								  MAX_TOPIC_TIMEOUT_DAYS));
	return true;
}

static bool
take_paused(OutboxCoreOptions *core, const char *name, const char *value,
			OutboxOptionError *error)
{
	return take_bool(&core->paused, name, value, error);
}

/* Written by CREATE SERVER itself, and by the dump that restores it. */
static bool
take_home(OutboxCoreOptions *core, const char *name, const char *value,
		  OutboxOptionError *error)
{
	bool		good = strlen(value) == UUID_LEN;

	for (int i = 0; good && i < UUID_LEN; i++)
	{
		bool		dash = i == 8 || i == 13 || i == 18 || i == 23;

		good = dash ? value[i] == '-' : isxdigit((unsigned char) value[i]) != 0;
	}
	if (!good)
		return bad_value(error, name, value, NULL,
						 "Leave it out: it is written by CREATE SERVER.");
	core->home = pstrdup(value);
	for (char *c = core->home; *c; c++)
		*c = pg_tolower((unsigned char) *c);
	return true;
}

/* One word of extra, quotes and backslashes removed; NULL when broken. */
static char *
extra_value(const char **pos)
{
	const char *c = *pos;
	char	   *word = palloc(strlen(c) + 1);
	char	   *to = word;
	bool		quoted = *c == '\'';

	if (quoted)
		c++;
	while (*c && (quoted ? *c != '\'' : !isspace((unsigned char) *c)))
	{
		if (*c == '\\' && c[1])
			c++;
		*to++ = *c++;
	}
	*to = '\0';
	if (quoted)
	{
		if (*c != '\'' || (c[1] && !isspace((unsigned char) c[1])))
			return NULL;
		c++;
	}
	*pos = c;
	return word;
}

/*
 * Pairs name=value as in a connection string: white space between them, single
 * quotes around a value with white space, backslash before a quote or a
 * backslash.  The value is never part of the error, it may be a secret.
 */
static bool
take_extra(OutboxCoreOptions *core, const char *name, const char *value,
		   OutboxOptionError *error)
{
	const char *pos = value;

	/* each pair has a sign of its own: an upper bound */
	core->nextra = 0;
	core->extra = palloc0((strlen(value) / 2 + 1) * sizeof(OutboxOption));

	for (;;)
	{
		OutboxOption *option = &core->extra[core->nextra];
		const char *start;

		while (isspace((unsigned char) *pos))
			pos++;
		if (*pos == '\0')
			return true;

		start = pos;
		while (*pos && *pos != '=' && *pos != '\'' && !isspace((unsigned char) *pos))
			pos++;
		if (*pos != '=' || pos == start)
			break;
		option->name = pnstrdup(start, pos - start);
		pos++;
		option->value = extra_value(&pos);
		if (option->value == NULL)
			break;
		core->nextra++;
	}

	core->nextra = 0;
	return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
							   psprintf("invalid value for option \"%s\"", name),
							   "It is not a list of pairs.",
							   "Allowed are pairs name=value separated by white space; a value with white space is put in single quotes, with a backslash before a quote or a backslash.");
}

/* In the order of outbox_core_option_names. */
static const TakeFunction take_functions[] = {
	take_topics, take_format, take_exactly_once, take_position_topic, take_start, take_on_error,
	take_topic_timeout, take_paused, take_home, take_extra
};

StaticAssertDecl(lengthof(take_functions) == lengthof(outbox_core_option_names) - 1,
				 "a function for each option");

void
outbox_core_options_init(OutboxCoreOptions *core)
{
	char	   *reason;

	memset(core, 0, sizeof(*core));
	core->patterns = outbox_patterns_parse("*", &reason);
	core->topic_timeout = DEFAULT_TOPIC_TIMEOUT;
}

OutboxOptionResult
outbox_core_option_take(OutboxCoreOptions *core, const char *name, const char *value,
						OutboxOptionError *error)
{
	for (int i = 0; outbox_core_option_names[i]; i++)
	{
		if (strcmp(outbox_core_option_names[i], name) == 0)
			return take_functions[i] (core, name, value, error) ?
				OUTBOX_OPTION_TAKEN : OUTBOX_OPTION_BAD;
	}
	return OUTBOX_OPTION_FOREIGN;
}
