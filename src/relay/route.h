/*-------------------------------------------------------------------------
 *
 * route.h
 *	  Does this server get that message?
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROUTE_H
#define OUTBOX_ROUTE_H

#include "transport/patterns.h"

typedef struct OutboxRouter OutboxRouter;

extern OutboxRouter *router_create(MemoryContext context);

/* The patterns in force from now on; they must outlive their use. */
extern void router_set_patterns(OutboxRouter *router, const OutboxPatterns *patterns);

/* Topic in UTF-8; patterns are asked once a topic. */
extern bool router_wants(OutboxRouter *router, const char *topic, size_t len);

#endif							/* OUTBOX_ROUTE_H */
