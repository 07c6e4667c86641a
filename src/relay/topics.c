/*-------------------------------------------------------------------------
 *
 * topics.c
 *	  What a relay knows of each topic that it has messages of.
 *
 * A state is kept as long as something depends on it: entries in a window, a
 * reader of its own, trouble.  Others stay too, as a topic that was used will
 * be used again, until there are too many.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "relay/topics.h"
#include "utils/memutils.h"

#define IDLE_TOPICS		4096	/* more than these are looked through */

struct OutboxTopics
{
	MemoryContext context;
	OutboxTopic **slots;		/* open addressing, a power of two */
	int			nslots;
	int			n;
	OutboxTopic *last;			/* found last: often the next one too */
};

OutboxTopics *
topics_create(MemoryContext parent)
{
	OutboxTopics *topics = MemoryContextAllocZero(parent, sizeof(OutboxTopics));

	topics->context = AllocSetContextCreate(parent, "pg_outbox topics",
											ALLOCSET_DEFAULT_SIZES);
	topics->nslots = 64;
	topics->slots = MemoryContextAllocZero(topics->context,
										   topics->nslots * sizeof(OutboxTopic *));
	return topics;
}

static inline bool
is_named(const OutboxTopic *topic, const char *name, int len)
{
	return topic->name_len == len && memcmp(topic->name, name, len) == 0;
}

/* Where a name is, or where it would go. */
static int
find_slot(const OutboxTopics *topics, const char *name, int len)
{
	int			slot = hash_bytes((const unsigned char *) name, len) & (topics->nslots - 1);

	while (topics->slots[slot] != NULL && !is_named(topics->slots[slot], name, len))
		slot = (slot + 1) & (topics->nslots - 1);
	return slot;
}

static bool
is_idle(const OutboxTopic *topic)
{
	return topic->entries == 0 && topic->stream == NULL &&
		topic->state == OUTBOX_TOPIC_FINE;
}

/* Make the table of a size for those that are needed, idle ones if asked. */
static void
rebuild(OutboxTopics *topics, int nslots, bool keep_idle)
{
	OutboxTopic **old = topics->slots;
	int			old_nslots = topics->nslots;

	topics->slots = MemoryContextAllocZero(topics->context, nslots * sizeof(OutboxTopic *));
	topics->nslots = nslots;
	topics->n = 0;
	topics->last = NULL;
	for (int i = 0; i < old_nslots; i++)
	{
		if (old[i] == NULL)
			continue;
		if (!keep_idle && is_idle(old[i]))
		{
			pfree(old[i]->name);
			pfree(old[i]);
			continue;
		}
		topics->slots[find_slot(topics, old[i]->name, old[i]->name_len)] = old[i];
		topics->n++;
	}
	pfree(old);
}

OutboxTopic *
topics_find(OutboxTopics *topics, const char *name, int len)
{
	if (topics->last == NULL || !is_named(topics->last, name, len))
		topics->last = topics->slots[find_slot(topics, name, len)];
	return topics->last;
}

OutboxTopic *
topics_get(OutboxTopics *topics, const char *name, int len)
{
	OutboxTopic *topic = topics_find(topics, name, len);

	if (topic != NULL)
		return topic;
	if (topics->n >= IDLE_TOPICS && (topics->n & (topics->n - 1)) == 0)
		rebuild(topics, topics->nslots, false);
	if (topics->n * 2 >= topics->nslots)
		rebuild(topics, topics->nslots * 2, true);
	topic = MemoryContextAllocZero(topics->context, sizeof(OutboxTopic));
	topic->name = MemoryContextAlloc(topics->context, len + 1);
	memcpy(topic->name, name, len);
	topic->name[len] = '\0';
	topic->name_len = len;
	topics->slots[find_slot(topics, name, len)] = topic;
	topics->n++;
	return topic;
}

OutboxTopic *
topics_next(OutboxTopics *topics, int *pos)
{
	while (*pos < topics->nslots)
	{
		OutboxTopic *topic = topics->slots[(*pos)++];

		if (topic != NULL)
			return topic;
	}
	return NULL;
}
