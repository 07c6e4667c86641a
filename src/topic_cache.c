/*-------------------------------------------------------------------------
 *
 * topic_cache.c
 *	  A small, bounded memory of verdicts by topic.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "topic_cache.h"
#include "utils/memutils.h"

#define NUM_SLOTS		1024	/* a power of two */

typedef struct Slot
{
	char	   *topic;			/* NULL: empty */
	uint32		len;
	uint32		size;			/* of the allocation, which is used again */
	bool		verdict;
} Slot;

struct OutboxTopicCache
{
	MemoryContext context;		/* of the topics */
	uint32		last;			/* slot of the last hit: often the next one too */
	Slot		slots[NUM_SLOTS];
};

OutboxTopicCache *
topic_cache_create(MemoryContext parent)
{
	OutboxTopicCache *cache = MemoryContextAllocZero(parent, sizeof(OutboxTopicCache));

	cache->context = AllocSetContextCreate(parent, "outbox topic cache",
										   ALLOCSET_DEFAULT_SIZES);
	return cache;
}

void
topic_cache_reset(OutboxTopicCache *cache)
{
	memset(cache->slots, 0, sizeof(cache->slots));
	MemoryContextReset(cache->context);
}

static inline bool
is_topic(const Slot *slot, const char *topic, size_t len)
{
	return slot->topic != NULL && slot->len == len &&
		memcmp(slot->topic, topic, len) == 0;
}

bool
topic_cache_lookup(OutboxTopicCache *cache, const char *topic, size_t len,
				   bool *verdict, uint32 *slot)
{
	*slot = cache->last;
	if (!is_topic(&cache->slots[*slot], topic, len))
		*slot = hash_bytes((const unsigned char *) topic, len) & (NUM_SLOTS - 1);
	if (!is_topic(&cache->slots[*slot], topic, len))
		return false;
	cache->last = *slot;
	*verdict = cache->slots[*slot].verdict;
	return true;
}

void
topic_cache_store(OutboxTopicCache *cache, const char *topic, size_t len,
				  bool verdict, uint32 slot)
{
	Slot	   *to = &cache->slots[slot];

	if (to->topic == NULL || to->size < len)
	{
		char	   *room = MemoryContextAlloc(cache->context, len + 1);

		if (to->topic)
			pfree(to->topic);
		to->topic = room;
		to->size = len;
	}
	memcpy(to->topic, topic, len);
	to->len = len;
	to->verdict = verdict;
}
