/*-------------------------------------------------------------------------
 *
 * monitor.c
 *	  What a DBA sees and does: outbox.relay_status, outbox.flush() and the
 *	  C parts of redriving.
 *
 * The functions behind the view run with the rights of the extension's owner
 * (see the install script), since what they read is nobody else's business.
 *
 * Why flush() tells the truth.  It adds one to the publish counter, as a commit
 * that published does, and wakes the relays.  A relay reads the counter, C,
 * before it takes a snapshot, and confirms C when all that this snapshot sees
 * is acknowledged or a dead letter.  So whoever confirms flush()'s number took
 * its snapshot after flush() began, and that snapshot sees every transaction
 * whose commit the caller could have seen.  The counter alone would not do: a
 * transaction is visible a moment before it counts.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "elapsed.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "guc.h"
#include "log/append.h"
#include "log/segment.h"
#include "mb/pg_wchar.h"
#include "message.h"
#include "miscadmin.h"
#include "monitor.h"
#include "publish.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "transport/registry.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(outbox_relay_status);
PG_FUNCTION_INFO_V1(outbox_flush);
PG_FUNCTION_INFO_V1(outbox_keep_server_name);
PG_FUNCTION_INFO_V1(outbox_require_server);
PG_FUNCTION_INFO_V1(outbox_republish);
PG_FUNCTION_INFO_V1(outbox_unrouted);

#define STATUS_NCOLUMNS		14
#define FLUSH_POLL_MS		5

/* What a server has still to do, as far as the log shows it. */
typedef struct Pending
{
	uint64		bytes;
	TimestampTz oldest;			/* 0: none */
} Pending;

/* A state as relay_status shows it. */
const char *
outbox_state_name(OutboxRelayState state)
{
	static const char *const names[] = {
		"starting", "running", "paused", "disabled", "retrying",
		"waiting_for_standby", "blocked", "error", "fenced", "no_worker"
	};

	StaticAssertStmt(lengthof(names) == OUTBOX_STATE_NO_WORKER + 1,
					 "a name for each state");
	return names[state];
}

/* A server's slot, NULL when no keeper has given it one. */
static OutboxRelaySlot *
find_slot(Oid serverid)
{
	for (int i = 0; outbox_shared != NULL && i < outbox_shared->max_relays; i++)
	{
		OutboxRelaySlot *slot = &outbox_shared->relays[i];

		if (slot->dboid == MyDatabaseId && slot->serverid == serverid)
			return slot;
	}
	return NULL;
}

/* Up to which id a server is done, by its stored position; 0: unknown. */
static uint64
stored_done_id(Oid serverid)
{
	Oid			types[1] = {OIDOID};
	Datum		args[1] = {ObjectIdGetDatum(serverid)};
	uint64		id = 0;
	bool		isnull;

	SPI_connect();
	if (SPI_execute_with_args("SELECT min(cursor) FROM (SELECT DISTINCT ON (topic) cursor"
							  " FROM outbox.position_log WHERE server = $1"
							  " ORDER BY topic, n DESC) latest", 1, types, args, NULL, true, 0) == SPI_OK_SELECT)
	{
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			id = (uint64) DatumGetInt64(value) + 1;
	}
	SPI_finish();
	return id;
}

/* The publish time of the first message from an id on, on its page. */
static void
look_at_page(Relation rel, BlockNumber blkno, uint64 from, Snapshot snapshot,
			 Pending *pending)
{
	OutboxPage *page = palloc(sizeof(OutboxPage));
	bool		isnull;

	(void) outbox_page_read(rel, blkno, snapshot, page);
	for (int i = 0; i < page->nrows; i++)
	{
		HeapTupleData tuple;
		TimestampTz published;

		if (page->rows[i].id < from || !page->rows[i].visible)
			continue;
		outbox_page_row(page, i, &tuple);
		published = DatumGetTimestampTz(heap_getattr(&tuple, OUTBOX_COL_PUBLISHED,
													 outbox_segment_desc(), &isnull));
		if (pending->oldest == 0 || published < pending->oldest)
			pending->oldest = published;
		break;
	}
	pfree(page);
}

/* How much of the log lies at or behind an id?  Segments in use by DDL are
 * left out. */
static void
measure_log(List *segments, uint64 from, Snapshot snapshot, Pending *pending)
{
	ListCell   *lc;

	foreach(lc, segments)
	{
		const OutboxSegment *segment = lfirst(lc);
		Relation	rel;
		BlockNumber nblocks;
		BlockNumber first;

		if (segment->lane < 0 ||
			!ConditionalLockRelationOid(segment->relid, AccessShareLock))
			continue;
		rel = RelationIdGetRelation(segment->relid);
		if (rel != NULL)
		{
			nblocks = RelationGetNumberOfBlocks(rel);
			first = outbox_segment_search(rel, nblocks, InvalidBlockNumber, from);
			pending->bytes += (uint64) (nblocks - first) * BLCKSZ;
			if (first < nblocks)
				look_at_page(rel, first, from, snapshot, pending);
			RelationClose(rel);
		}
		UnlockRelationOid(segment->relid, AccessShareLock);
	}
}

/* Are there more servers than there can be workers? */
static bool
all_slots_taken(void)
{
	for (int i = 0; i < outbox_shared->max_relays; i++)
		if (!OidIsValid(outbox_shared->relays[i].dboid))
			return false;
	return true;
}

/* The state to show: what the slot says is only good while a relay runs. */
static OutboxRelayState
shown_state(const OutboxRelaySlot *slot)
{
	if (!outbox_enabled)
		return OUTBOX_STATE_DISABLED;
	if (outbox_shared == NULL || (slot == NULL && RecoveryInProgress()))
		return OUTBOX_STATE_NO_WORKER;
	if (slot != NULL && (slot->pid != 0 || slot->state == OUTBOX_STATE_NO_WORKER))
		return slot->state;
	/* the keeper, which would start the relay, may have found no slot itself */
	return outbox_shared->no_worker || (slot == NULL && all_slots_taken()) ?
		OUTBOX_STATE_NO_WORKER : OUTBOX_STATE_STARTING;
}

static Datum
optional_text(const char *text, bool *isnull)
{
	*isnull = text[0] == '\0';
	return *isnull ? (Datum) 0 : CStringGetTextDatum(text);
}

/* The columns that come from a server's slot. */
static void
fill_from_slot(Datum *values, bool *nulls, OutboxRelaySlot *shared)
{
	OutboxRelaySlot slot;
	uint64		latency = pg_atomic_read_u64(&shared->latency_us);

	SpinLockAcquire(&shared->mutex);
	memcpy(&slot, shared, sizeof(slot));
	SpinLockRelease(&shared->mutex);

	nulls[1] = slot.pid == 0;
	values[1] = Int32GetDatum(slot.pid);
	values[3] = Int64GetDatum((int64) pg_atomic_read_u64(&shared->delivered));
	values[4] = Int64GetDatum((int64) pg_atomic_read_u64(&shared->dead));
	values[5] = Int64GetDatum((int64) pg_atomic_read_u64(&shared->in_flight));
	nulls[7] = slot.oldest_unacked == 0;
	values[7] = TimestampTzGetDatum(slot.oldest_unacked);
	values[8] = Int32GetDatum(slot.lagging);
	nulls[9] = latency == 0;
	if (latency > 0)
	{
		Interval   *interval = palloc0(sizeof(Interval));

		interval->time = (int64) latency;
		values[9] = IntervalPGetDatum(interval);
	}
	values[10] = optional_text(slot.last_error, &nulls[10]);
	values[11] = optional_text(slot.last_hint, &nulls[11]);
	nulls[12] = slot.last_error_at == 0;
	values[12] = TimestampTzGetDatum(slot.last_error_at);
	nulls[13] = slot.pid == 0 || slot.started == 0;
	values[13] = TimestampTzGetDatum(slot.started);
}

/* One row of relay_status. */
static void
put_status(ReturnSetInfo *rsinfo, Oid serverid, List *segments, Snapshot snapshot)
{
	Datum		values[STATUS_NCOLUMNS] = {0};
	bool		nulls[STATUS_NCOLUMNS];
	OutboxRelaySlot *slot = find_slot(serverid);
	ForeignServer *server = GetForeignServerExtended(serverid, FSV_MISSING_OK);
	Pending		pending = {0};
	uint64		from = 0;

	if (server == NULL)
		return;
	memset(nulls, true, sizeof(nulls));
	nulls[0] = nulls[2] = nulls[3] = nulls[4] = nulls[5] = nulls[6] = nulls[8] = false;
	values[0] = DirectFunctionCall1(namein, CStringGetDatum(server->servername));
	values[2] = CStringGetTextDatum(outbox_state_name(shown_state(slot)));
	if (shown_state(slot) == OUTBOX_STATE_NO_WORKER && outbox_shared != NULL)
	{
		nulls[10] = nulls[11] = false;
		values[10] = CStringGetTextDatum(OUTBOX_NO_WORKER_ERROR);
		values[11] = CStringGetTextDatum(OUTBOX_NO_WORKER_HINT);
	}
	if (slot != NULL)
	{
		fill_from_slot(values, nulls, slot);
		from = pg_atomic_read_u64(&slot->done_id);
	}
	if (from == 0)
		from = stored_done_id(serverid);
	if (from > 0)
		measure_log(segments, from, snapshot, &pending);
	values[6] = Int64GetDatum((int64) pending.bytes);
	if (nulls[7] && pending.oldest != 0)
	{
		nulls[7] = false;
		values[7] = TimestampTzGetDatum(pending.oldest);
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* outbox.relay_status: a row for each server of ours in this database. */
Datum
outbox_relay_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	List	   *servers;
	List	   *segments;
	Snapshot	snapshot;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	servers = registry_list_servers(CurrentMemoryContext);
	segments = servers != NIL ? outbox_segment_list() : NIL;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	foreach(lc, servers)
		put_status(rsinfo, lfirst_oid(lc), segments, snapshot);
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}

/* Messages that no server wanted, since the server started. */
Datum
outbox_unrouted(PG_FUNCTION_ARGS)
{
	OutboxDb   *db = outbox_shared == NULL ? NULL :
		outbox_db_find(MyDatabaseId, outbox_extension_of(fcinfo->flinfo->fn_oid));

	PG_RETURN_INT64(db == NULL ? 0 : (int64) pg_atomic_read_u64(&db->unrouted));
}

/* Is this server one that flush() has to wait for?  Own rights, no secrets. */
static bool
to_be_waited_for(Oid serverid, MemoryContext scratch)
{
	OutboxServer *server = registry_load_public(serverid, scratch);

	return server != NULL && !server->core.paused;
}

/* Have all servers of the list, but those that are paused or gone, confirmed? */
static bool
all_confirmed(List *servers, uint64 target, MemoryContext scratch)
{
	bool		confirmed = true;
	ListCell   *lc;

	foreach(lc, servers)
	{
		OutboxRelaySlot *slot = find_slot(lfirst_oid(lc));

		if ((slot == NULL || pg_atomic_read_u64(&slot->confirmed_count) < target) &&
			to_be_waited_for(lfirst_oid(lc), scratch))
			confirmed = false;
	}
	MemoryContextReset(scratch);
	return confirmed;
}

/* The number that relays have to confirm from now on, see the banner. */
static uint64
new_target(Oid extoid, uint64 *incarnation)
{
	OutboxDb   *db = outbox_db_get(extoid);
	uint64		target = pg_atomic_add_fetch_u64(&db->publish_count, 1);

	*incarnation = db->incarnation;
	outbox_wake_relays(MyDatabaseId);
	return target;
}

static int64
interval_us(const Interval *interval)
{
	return interval->time +
		((int64) interval->month * DAYS_PER_MONTH + interval->day) * USECS_PER_DAY;
}

/* outbox.flush(timeout) */
Datum
outbox_flush(PG_FUNCTION_ARGS)
{
	Oid			extoid = outbox_extension_of(fcinfo->flinfo->fn_oid);
	int64		timeout = interval_us(PG_GETARG_INTERVAL_P(0));
	int64		start = outbox_clock_ms();
	MemoryContext scratch;
	List	   *servers;
	uint64		incarnation;
	uint64		target;

	outbox_require_preload();
	PreventCommandDuringRecovery("outbox.flush()");
	if (timeout < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));
	if (outbox_xact_has_published())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("cannot flush what this transaction has published itself"),
				 errhint("Commit first.")));
	servers = registry_list_servers(CurrentMemoryContext);
	target = new_target(extoid, &incarnation);
	scratch = AllocSetContextCreate(CurrentMemoryContext, "pg_outbox flush",
									ALLOCSET_SMALL_SIZES);
	while (!all_confirmed(servers, target, scratch))
	{
		OutboxDb   *db = outbox_db_find(MyDatabaseId, extoid);

		if (outbox_elapsed(start, timeout / 1000))
			PG_RETURN_BOOL(false);
		if (db == NULL || db->incarnation != incarnation)
			target = new_target(extoid, &incarnation);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 FLUSH_POLL_MS, outbox_wait_event("OutboxFlush"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		AcceptInvalidationMessages();
	}
	PG_RETURN_BOOL(true);
}

/* For who writes, or takes away, what carries a server's name. */
Datum
outbox_keep_server_name(PG_FUNCTION_ARGS)
{
	(void) registry_lock_name(NameStr(*PG_GETARG_NAME(0)), false);
	PG_RETURN_VOID();
}

/* Raise unless there is a server of ours with that name. */
Datum
outbox_require_server(PG_FUNCTION_ARGS)
{
	char	   *name = NameStr(*PG_GETARG_NAME(0));

	if (!OidIsValid(registry_find_server(name)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no outbox server \"%s\"", name),
				 errhint("See outbox.relay_status for those that there are.")));
	PG_RETURN_VOID();
}

/* A text argument in UTF-8. */
static const char *
wire_argument(FunctionCallInfo fcinfo, int n, int *len)
{
	text	   *t = PG_GETARG_TEXT_PP(n);
	char	   *wire = pg_server_to_any(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t), PG_UTF8);

	*len = wire == VARDATA_ANY(t) ? VARSIZE_ANY_EXHDR(t) : (int) strlen(wire);
	return wire;
}

/*
 * A dead letter goes back into the log, for one server only, with the message
 * id, headers and publish time that it had.
 */
Datum
outbox_republish(PG_FUNCTION_ARGS)
{
	Oid			extoid = outbox_extension_of(fcinfo->flinfo->fn_oid);
	OutboxNewMessage m = {0};
	StringInfoData headers;
	char	   *server = pg_server_to_any(NameStr(*PG_GETARG_NAME(0)),
										  strlen(NameStr(*PG_GETARG_NAME(0))), PG_UTF8);

	outbox_require_preload();
	PreventCommandDuringRecovery("outbox.redrive()");
	PreventCommandIfReadOnly("outbox.redrive()");
	m.target = server;
	m.target_len = strlen(server);
	m.topic = wire_argument(fcinfo, 1, &m.topic_len);
	m.message_id = wire_argument(fcinfo, 2, &m.message_id_len);
	if (!PG_ARGISNULL(3))
		m.key = wire_argument(fcinfo, 3, &m.key_len);
	m.partition = PG_ARGISNULL(4) ? -1 : PG_GETARG_INT32(4);
	if (!PG_ARGISNULL(5))
	{
		initStringInfo(&headers);
		outbox_headers_from_jsonb(&headers, PG_GETARG_JSONB_P(5));
		m.headers = headers.data;
		m.headers_len = headers.len;
	}
	if (!PG_ARGISNULL(6))
	{
		bytea	   *payload = PG_GETARG_BYTEA_PP(6);

		m.payload = VARDATA_ANY(payload);
		m.payload_len = VARSIZE_ANY_EXHDR(payload);
	}
	m.kind = PG_GETARG_CHAR(7);
	m.published = PG_GETARG_TIMESTAMPTZ(8);
	outbox_xact_published(extoid);
	PG_RETURN_INT64((int64) outbox_append(extoid, &m, 1));
}
