/*-------------------------------------------------------------------------
 *
 * backlog.h
 *	  What a server has not been sent yet, counted exactly.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_BACKLOG_H
#define OUTBOX_BACKLOG_H

#include "transport/registry.h"

typedef struct OutboxBacklog
{
	uint64		messages;
	uint64		bytes;
	bool		more;			/* there are more than were counted */
} OutboxBacklog;

/*
 * Count what is committed, routed to a server, and not known to be delivered
 * by its stored position.  With redriven_only, only what was redriven to it.
 * Needs a transaction.
 */
extern void outbox_backlog_count(const OutboxServer *server, bool redriven_only,
								 OutboxBacklog *backlog);

#endif							/* OUTBOX_BACKLOG_H */
