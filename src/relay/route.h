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

#include "transport/registry.h"

typedef struct OutboxRouter OutboxRouter;

extern OutboxRouter *router_create(MemoryContext context);

/*
 * The patterns in force from now on, which must outlive their use.  Others'
 * are read too, into the context, to know what no server wants.  Needs a
 * transaction.
 */
extern void router_set_patterns(OutboxRouter *router, const OutboxServer *server,
								MemoryContext context);

/* Topic in UTF-8; patterns are asked once a topic. */
extern bool router_wants(OutboxRouter *router, const char *topic, size_t len);

/*
 * Of a topic that this server does not want: is it for us to say that nobody
 * does?  Of a database's relays one counts such messages.
 */
extern bool router_is_unrouted(OutboxRouter *router, const char *topic, size_t len);

#endif							/* OUTBOX_ROUTE_H */
