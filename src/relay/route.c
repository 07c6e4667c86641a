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
	List	   *others;			/* patterns of the database's other servers, where
								 * it is for us to count what nobody wants */
	bool		counts;
	OutboxTopicCache *unrouted;
};

OutboxRouter *
router_create(MemoryContext context)
{
	OutboxRouter *router = MemoryContextAllocZero(context, sizeof(OutboxRouter));

	router->cache = topic_cache_create(context);
	router->unrouted = topic_cache_create(context);
	return router;
}

void
router_set_patterns(OutboxRouter *router, const OutboxServer *server,
					MemoryContext context)
{
	ListCell   *lc;

	router->patterns = server->core.patterns;
	router->others = NIL;
	router->counts = true;
	topic_cache_reset(router->cache);
	topic_cache_reset(router->unrouted);
	foreach(lc, registry_list_servers(CurrentMemoryContext))
	{
		OutboxServer *other;
		MemoryContext old;

		if (lfirst_oid(lc) == server->oid)
			continue;
		/* the oldest server's relay counts */
		if (lfirst_oid(lc) < server->oid)
			router->counts = false;
		other = registry_load_public(lfirst_oid(lc), context);
		old = MemoryContextSwitchTo(context);
		if (other != NULL)
			router->others = lappend(router->others, other->core.patterns);
		MemoryContextSwitchTo(old);
	}
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

bool
router_is_unrouted(OutboxRouter *router, const char *topic, size_t len)
{
	bool		verdict = true;
	uint32		slot;
	ListCell   *lc;

	if (!router->counts)
		return false;
	if (topic_cache_lookup(router->unrouted, topic, len, &verdict, &slot))
		return verdict;
	foreach(lc, router->others)
		if (outbox_patterns_match(lfirst(lc), topic, len))
			verdict = false;
	topic_cache_store(router->unrouted, topic, len, verdict, slot);
	return verdict;
}
