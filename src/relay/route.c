/*-------------------------------------------------------------------------
 *
 * route.c
 *	  Does this server get that message?
 *
 * A message is routed by the patterns in force when it is read.  A backlog of
 * millions has few topics, so a verdict is remembered by topic.  What a row
 * says of its own target (a redriven message) is for the caller to look at
 * first: it goes to that server whatever the patterns are.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "relay/route.h"
#include "topic_cache.h"

struct OutboxRouter
{
	const OutboxPatterns *patterns;
	OutboxTopicCache *cache;
};

OutboxRouter *
router_create(MemoryContext context)
{
	OutboxRouter *router = MemoryContextAllocZero(context, sizeof(OutboxRouter));

	router->cache = topic_cache_create(context);
	return router;
}

void
router_set_patterns(OutboxRouter *router, const OutboxPatterns *patterns)
{
	router->patterns = patterns;
	topic_cache_reset(router->cache);
}

bool
router_wants(OutboxRouter *router, const char *topic, size_t len)
{
	bool		verdict;
	uint32		slot;

	if (topic_cache_lookup(router->cache, topic, len, &verdict, &slot))
		return verdict;
	verdict = outbox_patterns_match(router->patterns, topic, len);
	topic_cache_store(router->cache, topic, len, verdict, slot);
	return verdict;
}
