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
#define MAX_TRACESTATE	512
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

/* Printable, short enough, and made of key=value members. */
static bool
tracestate_is_valid(const char *s, int len)
{
	int			members = 1;
	bool		equals = false;

	if (len == 0 || len > MAX_TRACESTATE)
		return false;
	for (int i = 0; i < len; i++)
	{
		if ((s[i] < ' ' && s[i] != '\t') || s[i] > '~')
			return false;
		if (s[i] == ',')
			members++;
		if (s[i] == '=')
			equals = true;
	}
	return equals && members <= 32;
}

static void
append(StringInfo headers, const char *name, const char *value, int len)
{
	outbox_headers_append(headers, name, strlen(name), value, len);
}

/* The value of name='...' in a comment; length 0 when it is not there. */
static const char *
comment_value(const char *comment, const char *name, int *len)
{
	const char *start = strstr(comment, name);
	const char *end;

	*len = 0;
	if (start == NULL)
		return NULL;
	start += strlen(name);
	if (strncmp(start, "='", 2) != 0)
		return NULL;
	start += 2;
	end = strchr(start, '\'');
	if (end == NULL)
		return NULL;
	*len = end - start;
	return start;
}

/* Look for a sqlcommenter comment at the statement's end. */
static void
append_from_comment(StringInfo headers)
{
	const char *query = debug_query_string;
	const char *comment;
	const char *value;
	int			len;
	int			n;

	if (query == NULL)
		return;
	n = strlen(query);
	while (n > 0 && (query[n - 1] == ';' || query[n - 1] == ' ' || query[n - 1] == '\n'))
		n--;
	if (n < 4 || strncmp(query + n - 2, "*/", 2) != 0)
		return;
	comment = query + Max(0, n - MAX_COMMENT);
	value = comment_value(comment, "traceparent", &len);
	if (value == NULL || !traceparent_is_valid(value, len))
		return;
	append(headers, "traceparent", value, len);
	/* percent-encoded by sqlcommenter: only a plain one can be taken over */
	value = comment_value(comment, "tracestate", &len);
	if (value != NULL && memchr(value, '%', len) == NULL &&
		tracestate_is_valid(value, len))
		append(headers, "tracestate", value, len);
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
