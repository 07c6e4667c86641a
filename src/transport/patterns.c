/*-------------------------------------------------------------------------
 *
 * patterns.c
 *	  Topic patterns: which messages a server gets.
 *
 * A list is comma-separated.  A star stands for any characters, dots
 * included; an exclamation mark before a pattern excludes, whatever the order;
 * case counts.  Bytes are compared, so list and topic have to be in the same
 * encoding.  White space around a pattern is ignored, inside one it is most
 * likely a forgotten comma and refused.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "transport/patterns.h"

#define IS_BLANK(c)		((c) == ' ' || (c) == '\t' || (c) == '\n' || (c) == '\r')
#define IS_CONTROL(c)	((unsigned char) (c) < 0x20 || (c) == 0x7f)

/* Why a trimmed pattern, without its exclamation mark, is none; or NULL. */
static char *
pattern_reason(const char *text, int len)
{
	if (len == 0)
		return pstrdup("a pattern is empty");
	if (len > OUTBOX_MAX_PATTERN)
		return psprintf("a pattern is longer than %d bytes", OUTBOX_MAX_PATTERN);
	if (text[0] == '!')
		return pstrdup("a pattern begins with more than one exclamation mark");

	for (int i = 0; i < len; i++)
	{
		if (IS_BLANK(text[i]))
			return psprintf("the pattern \"%.*s\" contains white space; patterns are separated by commas",
							len, text);
		if (IS_CONTROL(text[i]))
			return pstrdup("a pattern contains a control character");
	}
	return NULL;
}

/* Fill in one item; *store is where its text goes, moved behind it. */
static void
pattern_compile(OutboxPattern *item, const char *text, int len, char **store)
{
	char	   *star;
	char	   *to = *store;
	int			n = 0;

	/* a run of stars is one star */
	for (int i = 0; i < len; i++)
	{
		if (text[i] == '*' && n > 0 && to[n - 1] == '*')
			continue;
		to[n++] = text[i];
	}
	to[n] = '\0';
	*store = to + n + 1;

	item->text = to;
	item->len = n;
	star = strchr(to, '*');
	if (star == NULL)
		item->kind = OUTBOX_PATTERN_EXACT;
	else if (star == to + n - 1)
	{
		item->kind = OUTBOX_PATTERN_PREFIX;
		item->len = n - 1;
	}
	else
		item->kind = OUTBOX_PATTERN_GLOB;
}

OutboxPatterns *
outbox_patterns_parse(const char *list, char **reason)
{
	OutboxPatterns *patterns;
	char	   *store;
	const char *pos = list;
	int			nitems = 1;
	Size		size;

	for (const char *c = list; *c; c++)
		nitems += (*c == ',');
	size = offsetof(OutboxPatterns, items) + nitems * sizeof(OutboxPattern);
	patterns = palloc0(size + strlen(list) + nitems);
	patterns->all_but = true;
	store = (char *) patterns + size;

	for (int i = 0; i < nitems; i++)
	{
		OutboxPattern *item = &patterns->items[i];
		const char *end = pos + strcspn(pos, ",");
		const char *from = pos;
		const char *to = end;

		pos = end + 1;
		while (from < to && IS_BLANK(*from))
			from++;
		while (from < to && IS_BLANK(to[-1]))
			to--;
		if (from < to && *from == '!')
		{
			item->exclude = true;
			from++;
		}

		*reason = nitems == 1 && from == to && !item->exclude ?
			pstrdup("the list is empty") : pattern_reason(from, to - from);
		if (*reason)
		{
			pfree(patterns);
			return NULL;
		}

		pattern_compile(item, from, to - from, &store);
		if (!item->exclude)
			patterns->all_but = false;
	}
	patterns->n = nitems;
	return patterns;
}

/* The usual walk with one point to come back to: the last star seen. */
bool
outbox_glob_match(const char *glob, const char *text, size_t len)
{
	const char *p = glob;
	const char *t = text;
	const char *tend = text + len;
	const char *star = NULL;
	const char *resume = NULL;

	while (t < tend)
	{
		if (*p == '*')
		{
			star = ++p;
			resume = t;
		}
		else if (*p && *p == *t)
		{
			p++;
			t++;
		}
		else if (star)
		{
			p = star;
			t = ++resume;
		}
		else
			return false;
	}
	while (*p == '*')
		p++;
	return *p == '\0';
}

static bool
pattern_match(const OutboxPattern *item, const char *topic, size_t len)
{
	switch (item->kind)
	{
		case OUTBOX_PATTERN_EXACT:
			return len == (size_t) item->len && memcmp(topic, item->text, len) == 0;
		case OUTBOX_PATTERN_PREFIX:
			return len >= (size_t) item->len && memcmp(topic, item->text, item->len) == 0;
		case OUTBOX_PATTERN_GLOB:
			return outbox_glob_match(item->text, topic, len);
	}
	return false;
}

bool
outbox_patterns_match(const OutboxPatterns *patterns, const char *topic, size_t len)
{
	bool		matched = patterns->all_but;

	for (int i = 0; i < patterns->n; i++)
	{
		const OutboxPattern *item = &patterns->items[i];

		if (matched && !item->exclude)
			continue;
		if (!pattern_match(item, topic, len))
			continue;
		if (item->exclude)
			return false;
		matched = true;
	}
	return matched;
}

char *
outbox_patterns_included(const OutboxPatterns *patterns)
{
	size_t		size = sizeof("*");
	char	   *list;
	char	   *end;

	for (int i = 0; i < patterns->n; i++)
		size += strlen(patterns->items[i].text) + 2;
	end = list = palloc(size);
	if (patterns->all_but)
		*end++ = '*';
	for (int i = 0; i < patterns->n; i++)
	{
		const OutboxPattern *pattern = &patterns->items[i];
		size_t		len = strlen(pattern->text);

		if (pattern->exclude)
			continue;
		if (end > list)
			*end++ = ',';
		memcpy(end, pattern->text, len);
		end += len;
	}
	*end = '\0';
	return list;
}
