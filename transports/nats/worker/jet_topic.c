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
 * A topic that the stream has no subject for is told of, since nothing would
 * come and nobody say why.  Not of patterns, which are for what may come, nor
 * where the stream gets its messages from others.
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

/* Is all that a subject, maybe with wildcards, stands for within another? */
bool
jet_subject_covers(const char *wide, const char *subject)
{
	for (;;)
	{
		size_t		n = strcspn(wide, ".");
		size_t		len = strcspn(subject, ".");

		if (len > 0 && strcmp(wide, ">") == 0)
			return true;
		if (len == 0 || ((n != 1 || *wide != '*') && (n != len || memcmp(wide, subject, n) != 0)))
			return false;
		wide += n;
		subject += len;
		if (*wide == '\0' || *subject == '\0')
			return *wide == *subject;
		wide++;
		subject++;
	}
}

/* Does a stream, as the API tells of it, take a topic? */
static bool
takes(const OutboxConsumer *consumer, const char *info, const char *topic)
{
	char		subject[JET_MAX_SUBJECT];
	char		of_stream[JET_MAX_SUBJECT];

	snprintf(subject, sizeof(subject), "%s%s", consumer->config.prefix, topic);
	for (int i = 0; jet_json_element(info, "config.subjects", i, of_stream, sizeof(of_stream)); i++)
		if (jet_subject_covers(of_stream, subject))
			return true;
	return false;
}

/* The first topic that the stream does not take, NULL: none. */
const char *
jet_topic_missing(const OutboxConsumer *consumer, const char *info)
{
	const char *value;
	size_t		len;

	if ((jet_json_find(info, "config.mirror", &value, &len) && *value == '{') ||
		(jet_json_find(info, "config.sources", &value, &len) && *value == '['))
		return NULL;
	for (int i = 0; i < consumer->ntopics; i++)
		if (strchr(consumer->topics[i], '*') == NULL && !takes(consumer, info, consumer->topics[i]))
			return consumer->topics[i];
	return NULL;
}
