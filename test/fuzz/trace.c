/*
 * Trace context: a line for outbox.traceparent, one for outbox.tracestate, then the
 * client's statement.
 *
 * A second reading by the W3C text must agree, byte for byte.
 */
#include "fuzz.h"

#include <regex.h>

#include "guc.h"
#include "message.h"
#include "tcop/tcopprot.h"
#include "trace.h"

static bool
like(const char *text, const char *expression)
{
	regex_t		re;
	bool		result;

	if (regcomp(&re, expression, REG_EXTENDED | REG_NOSUB) != 0)
		REQUIRE(!"compiles");
	result = regexec(&re, text, 0, NULL, 0) == 0;
	regfree(&re);
	return result;
}

static bool
parent_is_valid(const char *s)
{
	if (!like(s, "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?$"))
		return false;
	/* all zero, or a version that must not be; more only of later versions */
	return !like(s, "^..-0{32}-") && !like(s, "^..-.{32}-0{16}-") && !like(s, "^ff") &&
		(strlen(s) == 55 || (!like(s, "^00") && strlen(s) <= 256));
}

static bool
state_is_valid(const char *s)
{
	char	   *copy = pstrdup(s);
	char	   *keys[64];
	int			n = 0;
	int			members = 0;

	if (strlen(s) > 512)
		return false;
	for (char *member = copy; member != NULL;)
	{
		char	   *comma = strchr(member, ',');
		char	   *next = comma ? comma + 1 : NULL;

		if (comma)
			*comma = '\0';
		while (*member == ' ' || *member == '\t')
			member++;
		while (*member && strchr(" \t", member[strlen(member) - 1]))
			member[strlen(member) - 1] = '\0';
		if (*member)
		{
			if (++members > 32 ||
				!like(member, "^[a-z0-9][a-z0-9_*/@-]{0,255}=[ -<>-~]{1,256}$"))
				return false;
			keys[n++] = pnstrdup(member, strchr(member, '=') - member);
			for (int i = 0; i < n - 1; i++)
				if (strcmp(keys[i], keys[n - 1]) == 0)
					return false;
		}
		member = next;
	}
	return n > 0;
}

/* A value of the comment at the statement's end; NULL: none. */
static char *
comment_value(const char *query, const char *wanted)
{
	char	   *q = pstrdup(query);
	char	   *open = NULL;
	char	   *p;
	char	   *result = NULL;

	while (*q && strchr("; \t\r\n", q[strlen(q) - 1]))
		q[strlen(q) - 1] = '\0';
	if (!like(q, "\\*/$"))
		return NULL;
	q[strlen(q) - 2] = '\0';
	for (p = q; (p = strstr(p, "/*")) != NULL; p++)
		open = p;
	if (open == NULL || strlen(open) > 2046)
		return NULL;
	for (p = open + 2; *p;)
	{
		StringInfoData name;
		StringInfoData value;

		initStringInfo(&name);
		initStringInfo(&value);
		p += strspn(p, " \t");
		while (*p && *p != '=' && *p != ' ' && *p != '\t')
			appendStringInfoChar(&name, *p++);
		if (strncmp(p, "='", 2) != 0)
			return NULL;
		for (p += 2; *p && *p != '\''; p++)
		{
			unsigned int code;

			if (*p == '\\' && p[1])
				appendStringInfoChar(&value, *++p);
			else if (*p == '%')
			{
				if (!like(p, "^%[0-9a-fA-F]{2}") || sscanf(p + 1, "%2x", &code) != 1)
					return NULL;
				appendStringInfoChar(&value, code);
				p += 2;
			}
			else
				appendStringInfoChar(&value, *p);
		}
		if (*p++ != '\'')
			return NULL;
		if (strcmp(name.data, wanted) == 0 && value.len > 0 && value.len <= 512)
			result = strlen(value.data) == (size_t) value.len ? value.data : pstrdup("\x01");
		p += strspn(p, " \t");
		if (*p && *p++ != ',')
			return NULL;
	}
	return result;
}

void
fuzz_one(Fuzz *in)
{
	char	   *parent = fuzz_line(in);
	char	   *state = fuzz_line(in);
	char	   *query = fuzz_rest(in);
	StringInfoData expected;
	StringInfoData got;

	outbox_traceparent = parent[0] == '\1' ? NULL : parent;
	outbox_tracestate = parent[0] == '\1' ? NULL : state;
	debug_query_string = query;
	initStringInfo(&got);
	outbox_trace_append(&got);

	if (outbox_traceparent == NULL || parent[0] == '\0')
	{
		parent = comment_value(query, "traceparent");
		state = comment_value(query, "tracestate");
	}
	initStringInfo(&expected);
	if (parent != NULL && parent_is_valid(parent))
	{
		outbox_headers_append(&expected, "traceparent", 11, parent, strlen(parent));
		if (state != NULL && state_is_valid(state))
			outbox_headers_append(&expected, "tracestate", 10, state, strlen(state));
	}
	REQUIRE(expected.len == got.len && memcmp(expected.data, got.data, got.len) == 0);
}
