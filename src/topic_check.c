/*-------------------------------------------------------------------------
 *
 * topic_check.c
 *	  Refuses, when publishing, names that a broker would refuse for ever.
 *
 * A name that the transport of a server forbids would only become a dead
 * letter, so the publisher is told at once; but only if that server gets the
 * topic by its patterns.  Each backend remembers the servers' patterns and the
 * topics that were found fine, until a server or a wrapper changes: a publish
 * to a known topic reads no catalog.
 *
 * Whatever is wrong with a server itself (its library is missing, its options
 * are unusable) is for its relay to show and never fails a publisher.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "message.h"
#include "miscadmin.h"
#include "topic_cache.h"
#include "topic_check.h"
#include "transport/registry.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/* A server whose transport has rules. */
typedef struct ServerRules
{
	char	   *name;			/* in the database's encoding */
	OutboxPatterns *patterns;
	const OutboxTransportDdl *ddl;
} ServerRules;

static MemoryContext rules_context = NULL;
static List *rules = NIL;		/* of ServerRules */
static bool any_header_rule = false;
static OutboxTopicCache *fine = NULL;

/* Each change makes what was read before it stale. */
static uint64 changes = 1;
static uint64 changes_read = 0;

static void
note_change(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
}

static void
init_once(void)
{
	if (fine)
		return;
	rules_context = AllocSetContextCreate(TopMemoryContext, "outbox topic rules",
										  ALLOCSET_SMALL_SIZES);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, note_change, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, note_change, (Datum) 0);
	fine = topic_cache_create(TopMemoryContext);
}

/*
 * A transport's rules, NULL when its library can't be loaded.  Loading holds
 * nothing that only the end of a transaction would release, so catching the
 * error needs no subtransaction; cancel and the like go through.
 */
static const OutboxTransportDdl *
load_ddl(const char *library)
{
	MemoryContext context = CurrentMemoryContext;
	const OutboxTransportDdl *volatile ddl = NULL;

	PG_TRY();
	{
		ddl = registry_load_ddl(library);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		ereport(DEBUG1, (errmsg_internal("topics are not checked: %s", error->message)));
		FreeErrorData(error);
	}
	PG_END_TRY();
	return ddl;
}

/* Read the servers' patterns; the scratch context is the caller's. */
static void
read_rules(MemoryContext scratch)
{
	ListCell   *lc;

	rules = NIL;
	any_header_rule = false;
	MemoryContextReset(rules_context);
	foreach(lc, registry_list_servers(scratch))
	{
		OutboxServer *server = registry_load_public(lfirst_oid(lc), rules_context);
		const OutboxTransportDdl *ddl;
		MemoryContext old;
		ServerRules *rule;

		if (server == NULL || server->library == NULL)
			continue;
		ddl = load_ddl(server->library);
		if (ddl == NULL)
			continue;

		old = MemoryContextSwitchTo(rules_context);
		rule = palloc(sizeof(ServerRules));
		rule->name = server->name_local;
		rule->patterns = server->core.patterns;
		rule->ddl = ddl;
		rules = lappend(rules, rule);
		if (ddl->check_header)
			any_header_rule = true;
		MemoryContextSwitchTo(old);
	}
}

/* Make sure that rules and the topics found fine are of today. */
static void
refresh(void)
{
	MemoryContext scratch;
	MemoryContext old;
	uint64		started;

	if (changes_read == changes)
		return;
	init_once();
	changes_read = 0;			/* an error leaves it to the next call */
	topic_cache_reset(fine);

	scratch = AllocSetContextCreate(CurrentMemoryContext, "outbox topic rules scratch",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(scratch);
	started = changes;
	read_rules(scratch);
	changes_read = started;		/* what changed meanwhile is read next time */
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
}

/* A name as it can stand in an error. */
static char *
shown(const char *name, size_t len)
{
	char	   *copy = pnstrdup(name, len);

	return pg_any_to_server(copy, strlen(copy), PG_UTF8);
}

/* What no transport could carry. */
static void
check_any_topic(const char *topic, size_t len)
{
	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("topic must not be empty")));
	if (len > OUTBOX_MAX_TOPIC)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("topic is too long"),
				 errdetail("It has %zu bytes; the limit is %d.", len, OUTBOX_MAX_TOPIC)));
	for (size_t i = 0; i < len; i++)
	{
		if ((unsigned char) topic[i] < 0x20 || topic[i] == 0x7f)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("topic must not contain control characters")));
	}
}

void
outbox_check_topic(const char *topic, size_t len)
{
	ListCell   *lc;
	bool		verdict;
	uint32		slot;

	refresh();
	if (topic_cache_lookup(fine, topic, len, &verdict, &slot))
		return;

	check_any_topic(topic, len);
	foreach(lc, rules)
	{
		const ServerRules *rule = lfirst(lc);
		const char *reason;

		if (rule->ddl->check_topic == NULL ||
			!outbox_patterns_match(rule->patterns, topic, len))
			continue;
		reason = rule->ddl->check_topic(topic, len);
		if (reason)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("topic \"%s\" is not allowed by server \"%s\"",
							shown(topic, len), rule->name),
					 errdetail_internal("%s.", reason),
					 errhint("Use another name, or exclude it by the server's option \"topics\".")));
	}
	topic_cache_store(fine, topic, len, true, slot);
}

void
outbox_check_header(const char *topic, size_t topic_len, const char *name, size_t len)
{
	ListCell   *lc;

	refresh();
	if (!any_header_rule)
		return;
	foreach(lc, rules)
	{
		const ServerRules *rule = lfirst(lc);
		const char *reason;

		if (rule->ddl->check_header == NULL ||
			!outbox_patterns_match(rule->patterns, topic, topic_len))
			continue;
		reason = rule->ddl->check_header(name, len);
		if (reason)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("header \"%s\" is not allowed by server \"%s\"",
							shown(name, len), rule->name),
					 errdetail_internal("%s.", reason)));
	}
}
