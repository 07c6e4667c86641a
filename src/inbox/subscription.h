/*-------------------------------------------------------------------------
 *
 * subscription.h
 *	  What a subscription is, as inbox.subscription has it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_INBOX_SUBSCRIPTION_H
#define OUTBOX_INBOX_SUBSCRIPTION_H

#include "nodes/pg_list.h"
#include "utils/jsonpath.h"
#include "utils/timestamp.h"

/* What a message's id is taken from. */
typedef enum InboxDedup
{
	INBOX_DEDUP_MESSAGE_ID,		/* header message-id, else ce_id, else its place */
	INBOX_DEDUP_HEADER,
	INBOX_DEDUP_KEY,
	INBOX_DEDUP_JSON,
	INBOX_DEDUP_NONE
} InboxDedup;

typedef struct InboxSubscription
{
	char	   *name;
	char	   *server;
	int			ntopics;
	char	  **topics;			/* names and patterns, UTF-8 */
	char	   *topics_text;
	char	   *handler;		/* as regprocedure shows it */
	Oid			owner;
	char	   *start;			/* latest, earliest, or a time */
	bool		started;		/* places have been looked up once */
	bool		paused;
	int			batch_size;
	int			max_attempts;
	int64		backoff_ms;
	bool		block;			/* on_error */
	InboxDedup	dedup;
	char	   *dedup_name;		/* of the header; UTF-8 */
	JsonPath   *dedup_path;
	int64		dedup_ttl_us;
	char	   *group_id;
	bool		shared_group;	/* others consume in it too */
	bool		skip_gaps;		/* on_gap */
	int			timeout_ms;		/* of a handler; 0: none */
	int64		generation;		/* grows when places were changed by inbox.seek() */
	uint64		client_hash;	/* changes: the client must be opened anew */
} InboxSubscription;

/* In the given context; NULL when it is not there.  Needs a transaction. */
extern InboxSubscription *inbox_subscription_load(const char *name, MemoryContext context);

/* In the transaction of a retry, before it has a row; see unsubscribe(). */
extern void inbox_subscription_begin_retry(const char *name);

/* A subscription, and how many workers it wants. */
typedef struct InboxListed
{
	NameData	name;
	int			workers;
} InboxListed;

/* All of this database; in the current context.  Needs a transaction. */
extern List *inbox_subscription_list(void);

#endif							/* OUTBOX_INBOX_SUBSCRIPTION_H */
