/*-------------------------------------------------------------------------
 *
 * make_option_table.c
 *	  Writes option_table.h: librdkafka's properties, as it documents them.
 *
 * A program of the build, never installed: it is linked with librdkafka so
 * that kafka_fdw.c need not be, for no broker library may be mapped into a
 * client backend.  rd_kafka_conf_properties_show() is the only complete list
 * that the library gives; it is a table in Markdown, one property a line:
 *
 *	  name | C/P | range | default | importance | description <br>*Type: type*
 *
 * Where a name is both a global and a topic property the global one comes
 * first and is the one that rd_kafka_conf_set() sets.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <librdkafka/rdkafka.h>

#define MAX_LINE		16384
#define MAX_PROPERTIES	1000
#define MIN_PROPERTIES	50		/* fewer: the format has changed */

#define TYPE_MARK		"*Type: "
#define ALIAS_MARK		"Alias for `"

static char *seen[MAX_PROPERTIES];
static int	nseen = 0;

static void
fail(const char *what, const char *line)
{
	fprintf(stderr, "make_option_table: %s: %s\n", what, line);
	exit(1);
}

/* Cut off white space at both ends. */
static char *
trim(char *text)
{
	char	   *end = text + strlen(text);

	while (end > text && (end[-1] == ' ' || end[-1] == '\n'))
		*--end = '\0';
	return text + strspn(text, " ");
}

/* The next field of the row, or NULL. */
static char *
next_field(char **pos)
{
	char	   *field = *pos;
	char	   *bar = field ? strstr(field, "| ") : NULL;

	if (field == NULL)
		return NULL;
	*pos = bar ? bar + 2 : NULL;
	if (bar)
		*bar = '\0';
	return trim(field);
}

static bool
seen_before(const char *name)
{
	for (int i = 0; i < nseen; i++)
	{
		if (strcmp(seen[i], name) == 0)
			return true;
	}
	if (nseen == MAX_PROPERTIES)
		fail("too many properties", name);
	seen[nseen] = strdup(name);
	if (seen[nseen++] == NULL)
		fail("out of memory", name);
	return false;
}

/* For the table's values: properties that the library takes as strings. */
static const char *
type_symbol(const char *type)
{
	static const char *const symbols[][2] = {
		{"string", "STRING"},
		{"pattern list", "STRING"},
		{"integer", "INTEGER"},
		{"float", "FLOAT"},
		{"boolean", "BOOLEAN"},
		{"enum value", "ENUM"},
		{"CSV flags", "FLAGS"},
		{"see dedicated API", "API"}
	};

	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++)
	{
		if (strncmp(type, symbols[i][0], strlen(symbols[i][0])) == 0 &&
			type[strlen(symbols[i][0])] == '*')
			return symbols[i][1];
	}
	fail("unknown type", type);
	return NULL;
}

static const char *
scope_symbol(const char *scope)
{
	if (strcmp(scope, "*") == 0)
		return "OUTBOX_FOR_PRODUCER | OUTBOX_FOR_CONSUMER";
	if (strcmp(scope, "P") == 0)
		return "OUTBOX_FOR_PRODUCER";
	if (strcmp(scope, "C") == 0)
		return "OUTBOX_FOR_CONSUMER";
	fail("unknown scope", scope);
	return NULL;
}

static void
write_string(FILE *out, const char *text)
{
	if (text == NULL || *text == '\0')
	{
		fputs("NULL", out);
		return;
	}
	fputc('"', out);
	for (; *text; text++)
	{
		if (*text == '"' || *text == '\\')
			fputc('\\', out);
		fputc(*text, out);
	}
	fputc('"', out);
}

/* One row of the table; lines that are none are passed over. */
static void
write_property(FILE *out, char *line)
{
	char	   *pos = line;
	char	   *name = next_field(&pos);
	char	   *scope = next_field(&pos);
	char	   *range = next_field(&pos);
	char	   *type = pos ? strstr(pos, TYPE_MARK) : NULL;
	char	   *alias = pos ? strstr(pos, ALIAS_MARK) : NULL;
	const char *symbol;
	double		min = 0;
	double		max = 0;

	if (type == NULL)
		return;
	symbol = type_symbol(type + strlen(TYPE_MARK));
	if (alias && alias < type)
	{
		alias += strlen(ALIAS_MARK);
		alias[strcspn(alias, "`")] = '\0';
	}
	else
		alias = NULL;

	if (strcmp(symbol, "INTEGER") == 0 || strcmp(symbol, "FLOAT") == 0)
	{
		if (sscanf(range, "%lf .. %lf", &min, &max) != 2)
			fail("no range", name);
		range = NULL;
	}
	else if (strcmp(symbol, "ENUM") == 0 && *range == '\0')
		fail("no values", name);
	else if (strcmp(symbol, "FLAGS") == 0 && *range == '\0')
		symbol = "STRING";

	if (seen_before(name))
		return;
	fprintf(out, "\t{\"%s\", OUTBOX_PROPERTY_%s, %s, %.0f, %.0f, ",
			name, symbol, scope_symbol(scope), min, max);
	write_string(out, strcmp(symbol, "ENUM") == 0 || strcmp(symbol, "FLAGS") == 0 ? range : NULL);
	fputs(", ", out);
	write_string(out, alias);
	fputs("},\n", out);
}

int
main(int argc, char **argv)
{
	FILE	   *show = tmpfile();
	FILE	   *out = argc > 1 ? fopen(argv[1], "w") : stdout;
	static char line[MAX_LINE];

	if (show == NULL || out == NULL)
		fail("could not open file", argc > 1 ? argv[1] : "");
	rd_kafka_conf_properties_show(show);
	rewind(show);

	fprintf(out, "/* made by make_option_table from librdkafka %s, do not edit */\n",
			rd_kafka_version_str());
	fprintf(out, "static const OutboxProperty kafka_properties[] = {\n");
	while (fgets(line, sizeof(line), show))
	{
		if (strchr(line, '\n') == NULL)
			fail("line too long", line);
		write_property(out, line);
	}
	fprintf(out, "};\n");
	if (nseen < MIN_PROPERTIES)
		fail("too few properties found", rd_kafka_version_str());

	if (fflush(out) != 0 || ferror(out) || fclose(out) != 0)
		fail("could not write", argc > 1 ? argv[1] : "stdout");
	fclose(show);
	return 0;
}
