/*-------------------------------------------------------------------------
 *
 * jet_topic.c
 *	  Which messages of a stream a subscription wants.
 *
 * A consumer of NATS has one subject to filter by.  A subscription may have
 * several topics and patterns, whose stars stand for any characters.  So the
 * server filters by what it can, the narrowest subject with all of them, and
 * the rest is dropped here.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet_source.h"

#include <stdio.h>
#include <string.h>

/* A star is any characters. */
static bool
glob_match(const char *glob, const char *text)
{
	const char *star = NULL;
	const char *from = NULL;

	while (*text)
	{
		if (*glob == '*')
		{
			star = glob++;
			from = text;
		}
		else if (*glob == *text)
		{
			glob++;
			text++;
		}
		else if (star != NULL)
		{
			glob = star + 1;
			text = ++from;
		}
		else
			return false;
	}
	while (*glob == '*')
		glob++;
	return *glob == '\0';
}

bool
jet_topic_wanted(const OutboxConsumer *consumer, const char *subject)
{
	size_t		prefix = strlen(consumer->config.prefix);

	if (strncmp(subject, consumer->config.prefix, prefix) != 0)
		return false;
	for (int i = 0; i < consumer->ntopics; i++)
		if (glob_match(consumer->topics[i], subject + prefix))
			return true;
	return false;
}

/* How much of a topic all that it matches begins with. */
static size_t
fixed_length(const char *topic)
{
	return strcspn(topic, "*");
}

/*
 * The subject that the server filters by; empty: it sends all.  True: what it sends
 * is just what is wanted.
 */
bool
jet_topic_filter(const OutboxConsumer *consumer, char *filter, size_t size)
{
	const char *first = consumer->topics[0];
	size_t		common = strlen(first);
	bool		exact = true;
	int			used;

	for (int i = 0; i < consumer->ntopics; i++)
	{
		const char *topic = consumer->topics[i];
		size_t		n = 0;

		while (n < common && topic[n] != '\0' && topic[n] != '*' && topic[n] == first[n])
			n++;
		if (fixed_length(first) < n)
			n = fixed_length(first);
		exact = exact && strcmp(topic, first) == 0 && strchr(topic, '*') == NULL;
		common = n;
	}
	used = snprintf(filter, size, "%s%.*s", consumer->config.prefix, (int) common, first);
	if (exact || used < 0 || (size_t) used >= size)
		return exact;
	/* one pattern whose star stands for whole tokens, and is its end */
	exact = consumer->ntopics == 1 && (used == 0 || filter[used - 1] == '.') &&
		strcmp(first + common, "*") == 0;
	/* whole tokens only */
	while (used > 0 && filter[used - 1] != '.')
		used--;
	filter[used] = '\0';
	if (used > 0 && (size_t) used + 2 < size)
		strcpy(filter + used, ">");
	return exact;
}
