/*-------------------------------------------------------------------------
 *
 * bookmark.h
 *	  Where a server stands, as its broker keeps it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_BOOKMARK_H
#define OUTBOX_BOOKMARK_H

#include "access/xlogdefs.h"
#include "nodes/pg_list.h"
#include "shmem.h"

/* All positions of a server, as of one transaction at the broker. */
typedef struct OutboxBookmark
{
	char	   *log_uuid;		/* of the log that they belong to */
	Oid			serverid;		/* a name may be given again */
	uint64		epoch;			/* of the log, when it was written */
	int64		n;				/* numbers them, together with those stored in
								 * the database */
	uint32		timeline;
	XLogRecPtr	lsn;			/* WAL that what they name rests on */
	List	   *positions;		/* of OutboxStoredPosition, the main one first */
} OutboxBookmark;

extern char *outbox_bookmark_out(const OutboxBookmark *bookmark);

/* NULL when it is none of ours, or damaged.  Allocates in the current context. */
extern OutboxBookmark *outbox_bookmark_in(const char *text);

/*
 * Can this database have written it, in the history that it has?  NULL when so,
 * else why not.  Position_epoch: that of the last position that it has stored.
 */
extern const char *outbox_bookmark_problem(const OutboxBookmark *bookmark,
										   const char *log_uuid, Oid serverid,
										   const OutboxDb *db, uint64 position_epoch);

#endif							/* OUTBOX_BOOKMARK_H */
