/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  Reads subscriptions from inbox.subscription.
 *
 * What is written there was checked by inbox.subscribe() and the table's own
 * constraints; what may go wrong later (a handler or a server that is dropped) is
 * for the worker to show.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "inbox/subscription.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "transport/registry.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(inbox_has_own_numbers);
PG_FUNCTION_INFO_V1(inbox_stop_retries);

#define HEADER_PREFIX	"header:"
#define JSON_PREFIX		"json:"
#define RETRY_LOCK_CLASS	0x4F43	/* among advisory locks: none of SQL's */

/* A column of the row that was read last, as text in the current context. */
static char *
column(int n)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n);

	return value;
}

static char *
to_utf8(const char *text)
{
	return pstrdup(pg_server_to_any(text, strlen(text), PG_UTF8));
}

/* Split a comma-separated list of topics. */
static void
set_topics(InboxSubscription *s)
{
	char	   *list = to_utf8(s->topics_text);
	char	   *next;

	s->topics = palloc((strlen(list) / 2 + 1) * sizeof(char *));
	for (char *topic = list; topic != NULL; topic = next)
	{
		char	   *end;

		next = strchr(topic, ',');
		if (next != NULL)
			*next++ = '\0';
		while (*topic == ' ')
			topic++;
		end = topic + strlen(topic);
		while (end > topic && end[-1] == ' ')
			*--end = '\0';
		if (*topic != '\0')
			s->topics[s->ntopics++] = topic;
	}
}

static void
set_dedup(InboxSubscription *s, const char *by)
{
	if (strcmp(by, "none") == 0)
		s->dedup = INBOX_DEDUP_NONE;
	else if (strcmp(by, "key") == 0)
		s->dedup = INBOX_DEDUP_KEY;
	else if (strncmp(by, HEADER_PREFIX, strlen(HEADER_PREFIX)) == 0)
	{
		s->dedup = INBOX_DEDUP_HEADER;
		s->dedup_name = to_utf8(by + strlen(HEADER_PREFIX));
	}
	else if (strncmp(by, JSON_PREFIX, strlen(JSON_PREFIX)) == 0)
	{
		s->dedup = INBOX_DEDUP_JSON;
		s->dedup_path = DatumGetJsonPathP(DirectFunctionCall1(jsonpath_in,
															  CStringGetDatum(by + strlen(JSON_PREFIX))));
	}
	else
		s->dedup = INBOX_DEDUP_MESSAGE_ID;
}

/* The row that was read last. */
static InboxSubscription *
from_row(void)
{
	InboxSubscription *s = palloc0(sizeof(InboxSubscription));
	char	   *hashed;

	s->name = column(1);
	s->server = column(2);
	s->topics_text = column(3);
	set_topics(s);
	s->handler = column(4);
	s->owner = (Oid) strtoul(column(5), NULL, 10);
	s->start = column(6);
	s->started = strcmp(column(7), "t") == 0;
	s->paused = strcmp(column(8), "t") == 0;
	s->batch_size = atoi(column(9));
	s->max_attempts = atoi(column(10));
	s->backoff_ms = atoll(column(11));
	s->block = strcmp(column(12), "block") == 0;
	set_dedup(s, column(13));
	s->dedup_ttl_us = atoll(column(14));
	s->group_id = to_utf8(column(15));
	s->skip_gaps = strcmp(column(16), "skip") == 0;
	s->timeout_ms = atoi(column(17));
	s->generation = atoll(column(18));
	s->shared_group = strcmp(column(19), "t") == 0;
	hashed = psprintf("%s\n%s\n%s", s->server, s->topics_text, s->group_id);
	s->client_hash = hash_bytes_extended((unsigned char *) hashed, strlen(hashed), 0);
	return s;
}

InboxSubscription *
inbox_subscription_load(const char *name, MemoryContext context)
{
	Oid			types[] = {NAMEOID};
	Datum		values[] = {DirectFunctionCall1(namein, CStringGetDatum(name))};
	InboxSubscription *s = NULL;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute_with_args("SELECT name, server, topics, handler, owner::oid, start, started, paused, batch_size,"
							  " max_attempts, (extract(epoch FROM backoff) * 1000)::bigint, on_error, dedup_by,"
							  " (extract(epoch FROM dedup_ttl) * 1000000)::bigint,"
							  " coalesce(group_id, (SELECT 'pg_outbox.' || log_uuid || '.' || name FROM outbox.log_identity)),"
							  " on_gap, (extract(epoch FROM timeout) * 1000)::int, generation, shared_group"
							  " FROM inbox.subscription WHERE name = $1",
							  1, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.subscription");
	if (SPI_processed == 1)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		s = from_row();
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	PopActiveSnapshot();
	return s;
}

List *
inbox_subscription_list(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *list = NIL;

	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	if (SPI_execute("SELECT name, workers FROM inbox.subscription", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read inbox.subscription");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		MemoryContext spi = MemoryContextSwitchTo(caller);
		InboxListed *listed = palloc(sizeof(InboxListed));
		bool		isnull;

		namestrcpy(&listed->name, SPI_getvalue(row, SPI_tuptable->tupdesc, 1));
		listed->workers = DatumGetInt32(SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull));
		list = lappend(list, listed);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	PopActiveSnapshot();
	return list;
}

/*
 * A retry has the row of a message that waits, and then changes that of another;
 * unsubscribe() deletes them all, in an order of its own.  So the one waits for the
 * other before it has any.  A lock in memory: retries are looked for all the time.
 */
static void
lock_retries(const char *name, LOCKMODE mode)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, DatumGetUInt32(hash_any((const unsigned char *) name,
																	   (int) strlen(name))),
						 RETRY_LOCK_CLASS);
	(void) LockAcquire(&tag, mode, false, false);
}

void
inbox_subscription_begin_retry(const char *name)
{
	lock_retries(name, ShareLock);
}

/* inbox.stop_retries(name) */
Datum
inbox_stop_retries(PG_FUNCTION_ARGS)
{
	lock_retries(NameStr(*PG_GETARG_NAME(0)), ExclusiveLock);
	PG_RETURN_VOID();
}

/* inbox.has_own_numbers(server): false of one that is not there */
Datum
inbox_has_own_numbers(PG_FUNCTION_ARGS)
{
	Oid			serverid = registry_find_server(NameStr(*PG_GETARG_NAME(0)));
	OutboxServer *server = OidIsValid(serverid) ?
		registry_load_public(serverid, CurrentMemoryContext) : NULL;

	PG_RETURN_BOOL(server != NULL && server->library != NULL &&
				   registry_load_ddl(server->library)->own_numbers);
}
