/*-------------------------------------------------------------------------
 *
 * topic_cache.h
 *	  A small, bounded memory of verdicts by topic.
 *
 * Direct-mapped: two topics that share a slot displace each other, which
 * bounds size and cost without any bookkeeping.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TOPIC_CACHE_H
#define OUTBOX_TOPIC_CACHE_H

typedef struct OutboxTopicCache OutboxTopicCache;

/* What it holds is allocated in a child of the context. */
extern OutboxTopicCache *topic_cache_create(MemoryContext parent);
extern void topic_cache_reset(OutboxTopicCache *cache);

/*
 * True and *verdict when the topic is known.  *slot is for the store that
 * follows a miss.
 */
extern bool topic_cache_lookup(OutboxTopicCache *cache, const char *topic,
							   size_t len, bool *verdict, uint32 *slot);
extern void topic_cache_store(OutboxTopicCache *cache, const char *topic,
							  size_t len, bool verdict, uint32 slot);

#endif							/* OUTBOX_TOPIC_CACHE_H */
