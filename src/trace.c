/*-------------------------------------------------------------------------
 *
 * trace.c
 *	  W3C trace context of what is published.
 *
 * Taken from the settings outbox.traceparent and outbox.tracestate, else from
 * a sqlcommenter comment at the end of the client's statement.  The W3C text
 * asks that what is not valid be ignored: a trace must never make a business
 * transaction fail.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "guc.h"
#include "message.h"
#include "tcop/tcopprot.h"
#include "trace.h"

#define VERSION_00_LEN	55		/* 2 + 1 + 32 + 1 + 16 + 1 + 2 */
#define MAX_TRACEPARENT	256		/* of later versions, which may be longer */
#define MAX_TRACESTATE	512		/* what the W3C text asks to carry at least */
#define MAX_MEMBERS		32
#define MAX_MEMBER		256		/* of a key, and of a value */
#define MAX_COMMENT		2048

/* n lower-case hex digits; *zero says that all are 0. */
static bool
is_hex(const char *s, int n, bool *zero)
{
	*zero = true;
	for (int i = 0; i < n; i++)
	{
		if (!((s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'f')))
			return false;
		if (s[i] != '0')
			*zero = false;
	}
	return true;
}

/* version "-" trace-id "-" parent-id "-" flags, and "-" more of later ones */
static bool
traceparent_is_valid(const char *s, int len)
{
	bool		zero;
	bool		no_trace;
	bool		no_parent;

	if (len < VERSION_00_LEN || len > MAX_TRACEPARENT ||
		s[2] != '-' || s[35] != '-' || s[52] != '-')
		return false;
	if (!is_hex(s, 2, &zero) || !is_hex(s + 3, 32, &no_trace) ||
		!is_hex(s + 36, 16, &no_parent) || !is_hex(s + 53, 2, &(bool)
												   {
													   false
												   }))
		return false;
	if (no_trace || no_parent || strncmp(s, "ff", 2) == 0)
		return false;
	if (len > VERSION_00_LEN && (zero || s[VERSION_00_LEN] != '-'))
		return false;
	for (int i = VERSION_00_LEN; i < len; i++)
		if (s[i] <= ' ' || s[i] > '~')
			return false;
	return true;
}

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* A vendor's name for itself. */
static bool
is_key(const char *s, int len)
{
	if (len < 1 || len > MAX_MEMBER)
		return false;
	for (int i = 0; i < len; i++)
	{
		bool		first = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= '0' && s[i] <= '9');

		if (!first && (i == 0 || s[i] == '\0' || strchr("_-*/@", s[i]) == NULL))
			return false;
	}
	return true;
}

/* One key=value, without what is blank around it. */
static bool
is_member(const char *s, int len, int *key_len)
{
	const char *equals = memchr(s, '=', len);

	if (equals == NULL || !is_key(s, equals - s))
		return false;
	*key_len = equals - s;
	s = equals + 1;
	len -= *key_len + 1;
	if (len < 1 || len > MAX_MEMBER)
		return false;
	for (int i = 0; i < len; i++)
		if (s[i] < ' ' || s[i] > '~' || s[i] == '=')
			return false;
	return true;
}

/* A list of key=value; between commas there may be nothing. */
static bool
tracestate_is_valid(const char *s, int len)
{
	struct
	{
		const char *s;
		int			len;
	}			keys[MAX_MEMBERS];
	const char *end = s + len;
	int			nkeys = 0;

	if (len > MAX_TRACESTATE)
		return false;
	for (const char *next; s != NULL; s = next < end ? next + 1 : NULL)
	{
		const char *to;
		int			key_len;

		next = memchr(s, ',', end - s);
		if (next == NULL)
			next = end;
		for (to = next; to > s && is_blank(to[-1]); to--)
			;
		while (s < to && is_blank(*s))
			s++;
		if (s == to)
			continue;
		if (nkeys == MAX_MEMBERS || !is_member(s, to - s, &key_len))
			return false;
		for (int i = 0; i < nkeys; i++)
			if (keys[i].len == key_len && memcmp(keys[i].s, s, key_len) == 0)
				return false;
		keys[nkeys].s = s;
		keys[nkeys++].len = key_len;
	}
	return nkeys > 0;
}

static void
append(StringInfo headers, const char *name, const char *value, int len)
{
	outbox_headers_append(headers, name, strlen(name), value, len);
}

/* The comment that a statement ends with, without its marks; NULL: none. */
static const char *
comment_at_end(const char *query, int *len)
{
	int			n = strlen(query);
	int			from;

	while (n > 0 && strchr("; \t\r\n", query[n - 1]) != NULL)
		n--;
	if (n < 4 || strncmp(query + n - 2, "*/", 2) != 0)
		return NULL;
	for (from = n - 4; from >= 0 && n - from <= MAX_COMMENT; from--)
	{
		if (strncmp(query + from, "/*", 2) == 0)
		{
			*len = n - from - 4;
			return query + from + 2;
		}
	}
	return NULL;
}

static int
hex_digit(char c)
{
	const char *digits = "0123456789abcdef";
	const char *at = c == '\0' ? NULL : strchr(digits, pg_ascii_tolower((unsigned char) c));

	return at == NULL ? -1 : at - digits;
}

/*
 * A value of a sqlcommenter comment, up to its closing quote: it is
 * percent-encoded, and a backslash may stand before a quote.  Where the text
 * goes on, NULL when it is broken; *value is -1 long when what stands there
 * can't be trace context.
 */
static const char *
decode_value(const char *s, const char *end, char *value, int *value_len)
{
	int			n = 0;

	for (; s < end && *s != '\''; s++)
	{
		char		c = *s;

		if (c == '\\' && ++s < end)
			c = *s;
		else if (c == '%')
		{
			if (end - s < 3 || hex_digit(s[1]) < 0 || hex_digit(s[2]) < 0)
				return NULL;
			c = (char) (hex_digit(s[1]) * 16 + hex_digit(s[2]));
			s += 2;
		}
		if (n < MAX_TRACESTATE)
			value[n] = c;
		n++;
	}
	*value_len = n <= MAX_TRACESTATE ? n : -1;
	return s < end ? s + 1 : NULL;
}

/* name='value',name='value': as sqlcommenter writes it. */
static void
append_from_comment(StringInfo headers)
{
	const char *s;
	const char *end;
	int			len;
	char		parent[MAX_TRACESTATE];
	char		state[MAX_TRACESTATE];
	int			parent_len = -1;
	int			state_len = -1;

	if (debug_query_string == NULL ||
		(s = comment_at_end(debug_query_string, &len)) == NULL)
		return;
	for (end = s + len; s < end; s++)
	{
		char		value[MAX_TRACESTATE];
		int			value_len;
		const char *name;
		int			name_len;

		while (s < end && is_blank(*s))
			s++;
		for (name = s; s < end && *s != '=' && !is_blank(*s); s++)
			;
		name_len = s - name;
		if (end - s < 2 || s[0] != '=' || s[1] != '\'' ||
			(s = decode_value(s + 2, end, value, &value_len)) == NULL)
			return;
		if (value_len > 0 && name_len == 11 && memcmp(name, "traceparent", 11) == 0)
			memcpy(parent, value, parent_len = value_len);
		if (value_len > 0 && name_len == 10 && memcmp(name, "tracestate", 10) == 0)
			memcpy(state, value, state_len = value_len);
		while (s < end && is_blank(*s))
			s++;
		if (s < end && *s != ',')
			return;
	}
	if (parent_len < 0 || !traceparent_is_valid(parent, parent_len))
		return;
	append(headers, "traceparent", parent, parent_len);
	if (state_len >= 0 && tracestate_is_valid(state, state_len))
		append(headers, "tracestate", state, state_len);
}

/* Append traceparent and tracestate in force here as headers, if valid. */
void
outbox_trace_append(StringInfo headers)
{
	const char *parent = outbox_traceparent;
	const char *state = outbox_tracestate;

	if (parent == NULL || parent[0] == '\0')
	{
		append_from_comment(headers);
		return;
	}
	if (!traceparent_is_valid(parent, strlen(parent)))
		return;
	append(headers, "traceparent", parent, strlen(parent));
	if (state != NULL && tracestate_is_valid(state, strlen(state)))
		append(headers, "tracestate", state, strlen(state));
}
