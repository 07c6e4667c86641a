/*-------------------------------------------------------------------------
 *
 * checks.c
 *	  Checks of single values, of which transports make their tables.
 *
 * Each knows no broker: type and range as a property has them, lists,
 * addresses, PEM text.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/validate.h"

#define MAX_PORT		65535
#define MAX_PORT_LEN	5

bool
outbox_bad_value(const char *name, const char *value, const char *detail, const char *hint,
				 OutboxOptionError *error)
{
	return outbox_option_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
							   value == NULL ? psprintf("invalid value for option \"%s\"", name) :
							   psprintf("invalid value for option \"%s\": \"%s\"", name, value),
							   detail, hint);
}

/* --- type and range ---------------------------------------------------------------- */

static bool
check_integer(const OutboxProperty *property, const char *value, OutboxOptionError *error)
{
	const char *digits = value + (*value == '-');
	size_t		ndigits = strspn(digits, "0123456789");
	double		number = strtod(value, NULL);

	/* the library would take 010 for octal, and 10x for 10 */
	if (ndigits > 0 && digits[ndigits] == '\0' &&
		(ndigits == 1 || digits[0] != '0') &&
		number >= property->min && number <= property->max)
		return true;
	return outbox_bad_value(property->name, value, NULL,
							psprintf("Allowed is an integer from %.0f to %.0f.",
									 property->min, property->max), error);
}

static bool
check_float(const OutboxProperty *property, const char *value, OutboxOptionError *error)
{
	char	   *end;
	double		number = strtod(value, &end);

	if (end != value && *end == '\0' &&
		value[strspn(value, "0123456789.+-eE")] == '\0' &&
		number >= property->min && number <= property->max)
		return true;
	return outbox_bad_value(property->name, value, NULL,
							psprintf("Allowed is a number from %.0f to %.0f.",
									 property->min, property->max), error);
}

/* Is this word (of len bytes) in a comma-separated list? */
static bool
in_values(const char *values, const char *word, int len)
{
	while (len > 0 && *values)
	{
		int			n;

		values += strspn(values, ", ");
		n = strcspn(values, ",");
		if (n == len && pg_strncasecmp(values, word, len) == 0)
			return true;
		values += n;
	}
	return false;
}

/* The next of a comma-separated list, without the blanks around it; NULL: there is none. */
static const char *
next_word(const char *pos, const char **word, const char **end)
{
	*word = pos + strspn(pos, " ");
	pos += strcspn(pos, ",");
	for (*end = pos; *end > *word && (*end)[-1] == ' '; (*end)--)
		;
	return *pos == '\0' ? NULL : pos + 1;
}

static bool
check_flags(const OutboxProperty *property, const char *value, OutboxOptionError *error)
{
	const char *pos = value;

	while (pos != NULL)
	{
		const char *word;
		const char *end;

		pos = next_word(pos, &word, &end);
		if (!in_values(property->values, word, end - word))
			return outbox_bad_value(property->name, value, NULL,
									psprintf("Allowed is a comma-separated list of: %s.",
											 property->values), error);
	}
	return true;
}

/* Is the value of the property's type and range? */
bool
outbox_check_type(const OutboxProperty *property, const char *value, OutboxOptionError *error)
{
	switch (property->type)
	{
		case OUTBOX_PROPERTY_INTEGER:
			return check_integer(property, value, error);
		case OUTBOX_PROPERTY_FLOAT:
			return check_float(property, value, error);
		case OUTBOX_PROPERTY_BOOLEAN:
			if (in_values("true,false,t,f,1,0", value, strlen(value)))
				return true;
			return outbox_bad_value(property->name, value, NULL,
									"Allowed are \"true\" and \"false\".", error);
		case OUTBOX_PROPERTY_ENUM:
			if (in_values(property->values, value, strlen(value)))
				return true;
			return outbox_bad_value(property->name, value, NULL,
									psprintf("Allowed are: %s.", property->values), error);
		case OUTBOX_PROPERTY_FLAGS:
			return check_flags(property, value, error);
		case OUTBOX_PROPERTY_STRING:
		case OUTBOX_PROPERTY_API:
			break;
	}
	return true;
}

/* --- addresses ----------------------------------------------------------------------- */

/* Is each of a comma-separated list one of those? */
bool
outbox_check_list(const char *name, const char *value, OutboxWordCheck is_one, const char *hint,
				  OutboxOptionError *error)
{
	const char *pos = value;

	while (pos != NULL)
	{
		const char *word;
		const char *end;

		pos = next_word(pos, &word, &end);
		if (!is_one(word, end))
			return outbox_bad_value(name, value, NULL, hint, error);
	}
	return true;
}

/* Pass over what a text begins with, if it does. */
bool
outbox_skip(const char **text, const char *end, const char *beginning)
{
	size_t		len = strlen(beginning);

	if ((size_t) (end - *text) < len || memcmp(*text, beginning, len) != 0)
		return false;
	*text += len;
	return true;
}

/* host, or host:port; an IPv6 address in brackets. */
bool
outbox_is_address(const char *text, const char *end)
{
	const char *colon;
	size_t		ndigits;

	for (const char *c = text; c < end; c++)
		if ((unsigned char) *c <= ' ' || strchr("/?#", *c) != NULL)
			return false;
	if (text < end && *text == '[')
	{
		const char *bracket = memchr(text, ']', end - text);

		if (bracket == NULL || bracket < text + 3)
			return false;
		colon = bracket + 1;
	}
	else
	{
		colon = memchr(text, ':', end - text);
		if (colon == NULL)
			colon = end;
		if (colon == text)
			return false;
	}
	if (colon == end)
		return true;
	ndigits = end - (colon + 1);
	return *colon == ':' && ndigits >= 1 && ndigits <= MAX_PORT_LEN &&
		strspn(colon + 1, "0123456789") >= ndigits &&
		atoi(colon + 1) >= 1 && atoi(colon + 1) <= MAX_PORT;
}

/* --- secrets --------------------------------------------------------------------------- */

/* It may be a key: not in the error. */
bool
outbox_check_pem(const char *name, const char *value, OutboxOptionError *error)
{
	return strstr(value, "-----BEGIN ") != NULL ||
		outbox_bad_value(name, NULL, "It is not PEM text: there is no \"-----BEGIN\" line.",
						 NULL, error);
}
