/*
 * The core's options of a server: a first line with the name, then the value.
 */
#include "fuzz.h"

#include <ctype.h>

#include "transport/options.h"
#include "transport/patterns.h"
#include "utils/builtins.h"

#define YEAR_MS		(365 * INT64CONST(86400000))

/* extra a second time: a machine of states over characters. */
static bool
read_extra(const char *value, int *n, char **names, char **values)
{
	enum
	{
		BETWEEN, NAME, START, PLAIN, QUOTED, AFTER
	}			state = BETWEEN;
	StringInfoData word;

	*n = 0;
	initStringInfo(&word);
	for (const char *c = value;; c++)
	{
		bool		space = isspace((unsigned char) *c) != 0;
		bool		end = *c == '\0';

		switch (state)
		{
			case BETWEEN:
			case AFTER:
				if (end)
					return true;
				if (space)
					state = BETWEEN;
				else if (state == AFTER || *c == '=' || *c == '\'')
					return false;
				else
				{
					resetStringInfo(&word);
					appendStringInfoChar(&word, *c);
					state = NAME;
				}
				break;
			case NAME:
				if (end || space || *c == '\'')
					return false;
				if (*c == '=')
				{
					names[*n] = pstrdup(word.data);
					resetStringInfo(&word);
					state = START;
				}
				else
					appendStringInfoChar(&word, *c);
				break;
			case START:
				if (*c == '\'')
				{
					state = QUOTED;
					break;
				}
				state = PLAIN;
				/* FALLTHROUGH */
			case PLAIN:
			case QUOTED:
				if (state == QUOTED ? *c == '\'' : end || space)
				{
					values[(*n)++] = pstrdup(word.data);
					if (end)
						return true;
					state = state == QUOTED ? AFTER : BETWEEN;
				}
				else if (end)
					return false;
				else if (*c == '\\' && c[1] != '\0')
					appendStringInfoChar(&word, *++c);
				else
					appendStringInfoChar(&word, *c);
				break;
		}
	}
}

static void
check_extra(const OutboxCoreOptions *core, const char *value, bool taken, const OutboxOptionError *error)
{
	char	  **names = palloc((strlen(value) + 1) * sizeof(char *));
	char	  **values = palloc((strlen(value) + 1) * sizeof(char *));
	int			n;
	bool		good = read_extra(value, &n, names, values);

	REQUIRE(good == taken);
	REQUIRE(core->nextra == (good ? n : 0));
	for (int i = 0; good && i < n; i++)
	{
		REQUIRE(strcmp(core->extra[i].name, names[i]) == 0);
		REQUIRE(strcmp(core->extra[i].value, values[i]) == 0);
	}
	/* it may hold a secret */
	if (!taken)
		REQUIRE(strcmp(error->message, "invalid value for option \"extra\"") == 0 &&
				strcmp(error->detail, "It is not a list of pairs.") == 0);
}

static void
check_timeout(const OutboxCoreOptions *core, const char *value, bool taken)
{
	if (!taken)
		return;
	if (strcmp(value, "-1") == 0)
		REQUIRE(core->topic_timeout == OUTBOX_FOR_EVER);
	else if (strcmp(value, "0") == 0)
		REQUIRE(core->topic_timeout == 0);
	else
	{
		REQUIRE(core->topic_timeout >= 0 && core->topic_timeout <= YEAR_MS);
		REQUIRE(core->topic_timeout == shim_interval_ms);
	}
}

static void
check_home(const OutboxCoreOptions *core, const char *value, bool taken)
{
	bool		good = strlen(value) == 36;

	for (int i = 0; good && i < 36; i++)
		good = i == 8 || i == 13 || i == 18 || i == 23 ? value[i] == '-' :
			strchr("0123456789abcdefABCDEF", value[i]) != NULL;
	REQUIRE(taken == good);
	if (good)
		REQUIRE(pg_strcasecmp(core->home, value) == 0 && strpbrk(core->home, "ABCDEF") == NULL);
}

void
fuzz_one(Fuzz *in)
{
	char	   *name = fuzz_line(in);
	char	   *value = fuzz_rest(in);
	OutboxCoreOptions core;
	OutboxOptionError error = {0};
	OutboxOptionResult result;
	bool		known = false;
	bool		taken;
	char	   *reason;
	bool		flag = false;

	for (int i = 0; outbox_core_option_names[i]; i++)
		known = known || strcmp(outbox_core_option_names[i], name) == 0;

	outbox_core_options_init(&core);
	result = outbox_core_option_take(&core, name, value, &error);
	taken = result == OUTBOX_OPTION_TAKEN;
	REQUIRE((result != OUTBOX_OPTION_FOREIGN) == known);
	REQUIRE((result == OUTBOX_OPTION_BAD) == (error.message != NULL));
	if (error.message != NULL)
		REQUIRE(strstr(error.message, name) != NULL && error.sqlerrcode != 0);

	if (strcmp(name, "extra") == 0)
		check_extra(&core, value, taken, &error);
	else if (strcmp(name, "topic_timeout") == 0)
		check_timeout(&core, value, taken);
	else if (strcmp(name, "home") == 0)
		check_home(&core, value, taken);
	else if (strcmp(name, "topics") == 0)
		REQUIRE(taken == (outbox_patterns_parse(value, &reason) != NULL));
	else if (strcmp(name, "paused") == 0)
		REQUIRE(taken == parse_bool(value, &flag) && (!taken || core.paused == flag));
	else if (strcmp(name, "exactly_once") == 0)
		REQUIRE(taken == parse_bool(value, &flag) && (!taken || core.exactly_once == flag));
	else if (strcmp(name, "position_topic") == 0)
		REQUIRE(taken == (value[0] != '\0') && (!taken || strcmp(core.position_topic, value) == 0));
}
