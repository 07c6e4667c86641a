/*-------------------------------------------------------------------------
 *
 * jet_json.c
 *	  The little JSON that JetStream's API speaks: values by their path, and
 *	  base64.
 *
 * Answers come from the server, are at most some megabytes and well-formed;
 * whatever they are, nothing is read beyond their end, and what can't be found
 * is not there.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *
skip_blank(const char *c)
{
	while (*c == ' ' || *c == '\t' || *c == '\r' || *c == '\n')
		c++;
	return c;
}

/* Behind a string that begins here; NULL: it does not end. */
static const char *
skip_string(const char *c)
{
	for (c++; *c != '"'; c++)
	{
		if (*c == '\\')
			c++;
		if (*c == '\0')
			return NULL;
	}
	return c + 1;
}

/* Behind a value of any kind. */
static const char *
skip_value(const char *c)
{
	int			depth = 0;

	do
	{
		c = skip_blank(c);
		if (*c == '"')
		{
			if ((c = skip_string(c)) == NULL)
				return NULL;
		}
		else if (*c == '{' || *c == '[')
			depth++, c++;
		else if (*c == '}' || *c == ']')
			depth--, c++;
		else if (*c == ',' || *c == ':')
			c++;
		else
		{
			size_t		len = strcspn(c, ",:{}[]\" \t\r\n");

			if (len == 0)
				return NULL;
			c += len;
		}
	} while (depth > 0);
	return c;
}

/* The value of one name in an object. */
static const char *
member(const char *c, const char *name, size_t len)
{
	c = skip_blank(c);
	if (*c++ != '{')
		return NULL;
	for (;;)
	{
		const char *key;
		const char *end;

		c = skip_blank(c);
		if (*c == ',')
			c = skip_blank(c + 1);
		if (*c != '"' || (end = skip_string(c)) == NULL)
			return NULL;
		key = c + 1;
		c = skip_blank(end);
		if (*c++ != ':')
			return NULL;
		c = skip_blank(c);
		if ((size_t) (end - 1 - key) == len && memcmp(key, name, len) == 0)
			return c;
		if ((c = skip_value(c)) == NULL)
			return NULL;
	}
}

/* The value at a path of names with dots between them, as it stands there. */
bool
jet_json_find(const char *text, const char *path, const char **value, size_t *len)
{
	const char *c = text;
	const char *end;

	/* of an answer to a record most of what may be there is not */
	if (memmem(text, strlen(text), path, strcspn(path, ".")) == NULL)
		return false;
	for (;;)
	{
		size_t		name_len = strcspn(path, ".");

		if ((c = member(c, path, name_len)) == NULL)
			return false;
		path += name_len;
		if (*path++ == '\0')
			break;
	}
	if ((end = skip_value(c)) == NULL)
		return false;
	*value = c;
	*len = end - c;
	return true;
}

bool
jet_json_number(const char *text, const char *path, int64_t *number)
{
	const char *value;
	size_t		len;
	char	   *end;

	if (!jet_json_find(text, path, &value, &len))
		return false;
	errno = 0;
	*number = strtoll(value, &end, 10);
	return errno == 0 && end != value;
}

/*
 * A string, with simple escapes resolved; what is not ASCII in it comes as
 * UTF-8 from the server, or as \u, of which only ASCII's matter.
 */
static bool
copy_string(const char *value, size_t len, char *to, size_t size)
{
	size_t		n = 0;

	if (*value != '"')
		return false;
	for (const char *c = value + 1; c < value + len - 1 && n + 1 < size; c++)
	{
		if (*c != '\\')
		{
			to[n++] = *c;
			continue;
		}
		c++;
		if (*c == 'u' && value + len - c > 5)
		{
			char		hex[5] = {c[1], c[2], c[3], c[4], '\0'};
			long		code = strtol(hex, NULL, 16);

			to[n++] = code > 0 && code < 0x80 ? (char) code : '?';
			c += 4;
		}
		else
			to[n++] = *c == 'n' ? '\n' : *c == 'r' ? '\r' : *c == 't' ? '\t' : *c;
	}
	to[n] = '\0';
	return true;
}

bool
jet_json_string(const char *text, const char *path, char *to, size_t size)
{
	const char *value;
	size_t		len;

	return jet_json_find(text, path, &value, &len) && copy_string(value, len, to, size);
}

/* The n-th string, from 0, of an array of strings. */
bool
jet_json_element(const char *text, const char *path, int n, char *to, size_t size)
{
	const char *c;
	const char *end;
	size_t		len;

	if (!jet_json_find(text, path, &c, &len) || *c++ != '[')
		return false;
	for (;;)
	{
		c = skip_blank(c);
		if (*c == ',')
			c = skip_blank(c + 1);
		if (*c != '"' || (end = skip_string(c)) == NULL)
			return false;
		if (n-- == 0)
			return copy_string(c, end - c, to, size);
		c = end;
	}
}

/* A JSON string of a text, with its quotes; cut off where there is no room. */
void
jet_json_quote(char *to, size_t size, const char *text)
{
	size_t		n = 0;

	to[n++] = '"';
	for (; *text && n + 8 < size; text++)
	{
		if (*text == '"' || *text == '\\')
			to[n++] = '\\';
		if ((unsigned char) *text < 0x20)
			n += snprintf(to + n, size - n, "\\u%04x", (unsigned char) *text);
		else
			to[n++] = *text;
	}
	to[n++] = '"';
	to[n] = '\0';
}

/* Decoded, NUL-terminated and malloc'd; NULL: out of memory, or it is none. */
char *
jet_base64(const char *text, size_t len, size_t *decoded)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char	   *result = malloc(len / 4 * 3 + 4);
	size_t		n = 0;
	uint32_t	bits = 0;
	int			nbits = 0;

	for (size_t i = 0; result != NULL && i < len && text[i] != '='; i++)
	{
		const char *at = text[i] == '\0' ? NULL : strchr(alphabet, text[i]);

		if (at == NULL)
		{
			free(result);
			return NULL;
		}
		bits = bits << 6 | (uint32_t) (at - alphabet);
		nbits += 6;
		if (nbits >= 8)
		{
			nbits -= 8;
			result[n++] = (char) (bits >> nbits);
		}
	}
	if (result != NULL)
	{
		result[n] = '\0';
		*decoded = n;
	}
	return result;
}
