/*-------------------------------------------------------------------------
 *
 * view.c
 *	  outbox.messages(): the retained log, as the caller's snapshot sees it.
 *
 * Read page by page as the relay does, without predicate locks, so that a
 * serializable transaction that looks never conflicts with those that publish.
 * Each segment's lock is released when it has been read.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "compat.h"
#include "fmgr.h"
#include "funcapi.h"
#include "log/merge.h"
#include "log/reader.h"
#include "mb/pg_wchar.h"
#include "message.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(outbox_messages);

#define MESSAGES_NCOLUMNS	11

static OutboxVerdict
take_visible(void *arg, int lane, const OutboxRow *row)
{
	return row->visible ? OUTBOX_TAKE : OUTBOX_SKIP;
}

/* Wire bytes as text of the database. */
static Datum
wire_text(const char *data, int len)
{
	char	   *local = pg_any_to_server(data, len, PG_UTF8);

	return PointerGetDatum(cstring_to_text_with_len(local, local == data ? len : (int) strlen(local)));
}

static void
put_message(ReturnSetInfo *rsinfo, const OutboxMessage *m)
{
	Datum		values[MESSAGES_NCOLUMNS];
	bool		nulls[MESSAGES_NCOLUMNS] = {0};
	char		uuid[37];

	values[0] = Int64GetDatum((int64) m->id);
	values[1] = TimestampTzGetDatum(m->published);
	values[2] = wire_text(m->topic, m->topic_len);
	nulls[3] = m->key == NULL;
	if (m->key != NULL)
		values[3] = wire_text(m->key, m->key_len);
	nulls[4] = m->partition < 0;
	values[4] = Int32GetDatum(m->partition);
	nulls[5] = m->headers == NULL;
	if (m->headers != NULL)
		values[5] = JsonbPGetDatum(outbox_headers_to_jsonb(m->headers, m->headers_len));
	nulls[6] = m->payload == NULL;
	if (m->payload != NULL)
	{
		bytea	   *b = palloc(m->payload_len + VARHDRSZ);

		SET_VARSIZE(b, m->payload_len + VARHDRSZ);
		memcpy(VARDATA(b), m->payload, m->payload_len);
		values[6] = PointerGetDatum(b);
	}
	values[7] = CharGetDatum(m->kind);
	outbox_message_uuid(m->epoch, m->id, uuid);
	values[8] = m->message_id != NULL ?
		wire_text(m->message_id, strlen(m->message_id)) : CStringGetTextDatum(uuid);
	nulls[9] = m->target == NULL;
	if (m->target != NULL)
		values[9] = wire_text(m->target, strlen(m->target));
	values[10] = UInt64GetDatum(m->xid);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

Datum
outbox_messages(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxRange all = {1, PG_UINT64_MAX - 1};
	OutboxRanges ranges[OUTBOX_LANES];
	Snapshot	snapshot;
	uint64		from = 1;
	MemoryContext pass = AllocSetContextCreate(CurrentMemoryContext,
											   "pg_outbox messages",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	HTAB	   *known;

	InitMaterializedSRF(fcinfo, 0);
	known = outbox_merge_known(CurrentMemoryContext);
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		ranges[lane].ranges = &all;
		ranges[lane].n = 1;
	}
	snapshot = RegisterSnapshot(GetActiveSnapshot());
	old = MemoryContextSwitchTo(pass);
	while (from != PG_UINT64_MAX)
	{
		OutboxMerge *merge = outbox_merge_begin(ranges, from, snapshot, known,
												take_visible, NULL);
		HeapTupleData tuple;
		OutboxRow	row;

		for (int n = 0; n < 1000 && outbox_merge_next(merge, &tuple, &row); n++)
		{
			OutboxMessage *m = outbox_message_read(merge, &tuple, &row, pass, 0, NULL, NULL);

			CHECK_FOR_INTERRUPTS();
			put_message(rsinfo, m);
		}
		from = outbox_merge_resume(merge);
		outbox_merge_end(merge);
		MemoryContextReset(pass);
	}
	MemoryContextSwitchTo(old);
	UnregisterSnapshot(snapshot);
	hash_destroy(known);
	MemoryContextDelete(pass);
	return (Datum) 0;
}
