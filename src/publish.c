/*-------------------------------------------------------------------------
 *
 * publish.c
 *	  outbox.publish(), outbox.publish_batch(), and the commit after them.
 *
 * Arguments are checked, turned into wire bytes and appended to the log, in
 * the caller's transaction; no broker is ever spoken to here.  At commit (and
 * at PREPARE, so that a relay comes to know the prepared transaction) the
 * publish counter moves and the relays' latches are set.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fault.h"
#include "fmgr.h"
#include "guc.h"
#include "json_text.h"
#include "log/append.h"
#include "log/lane.h"
#include "mb/pg_wchar.h"
#include "message.h"
#include "miscadmin.h"
#include "publish.h"
#include "shmem.h"
#include "topic_check.h"
#include "trace.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(outbox_publish_jsonb);
PG_FUNCTION_INFO_V1(outbox_publish_json);
PG_FUNCTION_INFO_V1(outbox_publish_text);
PG_FUNCTION_INFO_V1(outbox_publish_bytea);
PG_FUNCTION_INFO_V1(outbox_publish_batch_jsonb);
PG_FUNCTION_INFO_V1(outbox_publish_batch_json);
PG_FUNCTION_INFO_V1(outbox_publish_batch_text);
PG_FUNCTION_INFO_V1(outbox_publish_batch_bytea);

/* Messages of a batch that are turned into wire bytes at a time. */
#define BATCH_CHUNK		256

/* Arguments of outbox.publish() */
#define ARG_TOPIC		0
#define ARG_PAYLOAD		1
#define ARG_KEY			2
#define ARG_HEADERS		3
#define ARG_MESSAGE_ID	4
#define ARG_PARTITION	5

static Oid	published_extension = InvalidOid;

/* The extension that a function of ours belongs to; remembered, as catalogs
 * are not to be read at every call. */
Oid
outbox_extension_of(Oid funcid)
{
	static Oid	last_funcid = InvalidOid;
	static Oid	last_extension = InvalidOid;

	if (funcid != last_funcid)
	{
		Oid			extension = getExtensionOfObject(ProcedureRelationId, funcid);

		if (!OidIsValid(extension))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("function is not a member of extension pg_outbox")));
		last_extension = extension;
		last_funcid = funcid;
	}
	return last_extension;
}

/* What every publishing function checks first. */
static Oid
begin_publish(FunctionCallInfo fcinfo, const char *name)
{
	Oid			extoid;
	OutboxDb   *db;

	outbox_require_preload();
	PreventCommandDuringRecovery(name);
	if (OUTBOX_RULE("refuse-read-only"))
		PreventCommandIfReadOnly(name);
	PreventCommandIfParallelMode(name);
	extoid = outbox_extension_of(fcinfo->flinfo->fn_oid);
	if (outbox_max_backlog > 0)
	{
		db = outbox_db_get(extoid);
		if (pg_atomic_read_u64(&db->backlog_bytes) / (1024 * 1024) >= (uint64) outbox_max_backlog)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("the backlog of pg_outbox has reached \"outbox.max_backlog\" (%d MB)",
							outbox_max_backlog),
					 errhint("See outbox.relay_status for the server that holds the log back.")));
	}
	return extoid;
}

/* Text to wire bytes. */
static const char *
to_wire(const char *data, int len, int *wire_len)
{
	char	   *wire = pg_server_to_any(data, len, PG_UTF8);

	*wire_len = wire == data ? len : (int) strlen(wire);
	return wire;
}

static const char *
text_to_wire(Datum datum, int *len)
{
	text	   *t = DatumGetTextPP(datum);

	return to_wire(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t), len);
}

/* A payload of any of the four types to wire bytes. */
static void
set_payload(OutboxNewMessage *m, Datum payload, Oid type)
{
	switch (type)
	{
		case JSONBOID:
			{
				StringInfoData text;

				initStringInfo(&text);
				outbox_json_text(&text, DatumGetJsonbP(payload));
				m->payload = to_wire(text.data, text.len, &m->payload_len);
				break;
			}
		case BYTEAOID:
			{
				bytea	   *b = DatumGetByteaPP(payload);

				m->payload = VARDATA_ANY(b);
				m->payload_len = VARSIZE_ANY_EXHDR(b);
				break;
			}
		default:
			m->payload = text_to_wire(payload, &m->payload_len);
			break;
	}
}

static char
payload_kind(Oid type)
{
	return type == BYTEAOID ? 'b' : type == TEXTOID ? 't' : 'j';
}

static void
set_topic(OutboxNewMessage *m, Datum topic, bool isnull)
{
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("topic must not be null")));
	m->topic = text_to_wire(topic, &m->topic_len);
	outbox_check_topic(m->topic, m->topic_len);
}

/*
 * Check the caller's headers by what the brokers of the topic allow; is there a
 * traceparent among them?
 */
static bool
check_headers(const OutboxNewMessage *m, const StringInfoData *headers)
{
	bool		trace = false;
	int			pos = 0;
	const char *name;
	const char *value;
	int			name_len;
	int			value_len;

	while (outbox_headers_next(headers->data, headers->len, &pos,
							   &name, &name_len, &value, &value_len))
	{
		outbox_check_header(m->topic, m->topic_len, name, name_len);
		if (pg_strcasecmp(name, "traceparent") == 0)
			trace = true;
	}
	return trace;
}

/* Trace context unless the caller brings its own, then the caller's headers. */
static void
set_headers(OutboxNewMessage *m, Datum headers, bool isnull)
{
	StringInfoData all;

	initStringInfo(&all);
	if (isnull)
		outbox_trace_append(&all);
	else
	{
		StringInfoData caller;

		initStringInfo(&caller);
		outbox_headers_from_jsonb(&caller, DatumGetJsonbP(headers));
		if (!check_headers(m, &caller))
			outbox_trace_append(&all);
		appendBinaryStringInfo(&all, caller.data, caller.len);
	}
	if (all.len > 0)
	{
		m->headers = all.data;
		m->headers_len = all.len;
	}
}

/* The whole message must be one that brokers are allowed to get. */
static void
check_size(const OutboxNewMessage *m)
{
	int64		size = (int64) m->topic_len + m->key_len + m->headers_len +
		m->payload_len + m->message_id_len;

	if (size > (int64) outbox_max_message_size * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message of %lld bytes exceeds \"outbox.max_message_size\" (%d kB)",
						(long long) size, outbox_max_message_size)));
}

static void
set_message_id(OutboxNewMessage *m, Datum message_id)
{
	m->message_id = text_to_wire(message_id, &m->message_id_len);
	if (m->message_id_len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message_id must not be empty"),
				 errhint("Leave it out, or pass null, to have one made.")));
	if (m->message_id_len > OUTBOX_MAX_MESSAGE_ID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message_id of %d bytes is too long", m->message_id_len),
				 errdetail("At most %d bytes are allowed.", OUTBOX_MAX_MESSAGE_ID)));
}

static Datum
publish_one(FunctionCallInfo fcinfo, Oid type)
{
	Oid			extoid = begin_publish(fcinfo, "outbox.publish()");
	OutboxNewMessage m = {0};
	uint64		id;

	m.partition = -1;
	m.kind = payload_kind(type);
	set_topic(&m, PG_GETARG_DATUM(ARG_TOPIC), PG_ARGISNULL(ARG_TOPIC));
	if (!PG_ARGISNULL(ARG_PAYLOAD))
		set_payload(&m, PG_GETARG_DATUM(ARG_PAYLOAD), type);
	if (!PG_ARGISNULL(ARG_KEY))
		m.key = text_to_wire(PG_GETARG_DATUM(ARG_KEY), &m.key_len);
	set_headers(&m, PG_GETARG_DATUM(ARG_HEADERS), PG_ARGISNULL(ARG_HEADERS));
	if (!PG_ARGISNULL(ARG_MESSAGE_ID))
		set_message_id(&m, PG_GETARG_DATUM(ARG_MESSAGE_ID));
	if (!PG_ARGISNULL(ARG_PARTITION))
	{
		m.partition = PG_GETARG_INT32(ARG_PARTITION);
		if (m.partition < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("partition %d is negative", m.partition),
					 errhint("Leave it out, or pass null, to have it chosen by key.")));
	}
	check_size(&m);
	id = outbox_append(extoid, &m, 1);
	outbox_xact_published(extoid);
	PG_RETURN_INT64((int64) id);
}

Datum
outbox_publish_jsonb(PG_FUNCTION_ARGS)
{
	return publish_one(fcinfo, JSONBOID);
}

Datum
outbox_publish_json(PG_FUNCTION_ARGS)
{
	return publish_one(fcinfo, JSONOID);
}

Datum
outbox_publish_text(PG_FUNCTION_ARGS)
{
	return publish_one(fcinfo, TEXTOID);
}

Datum
outbox_publish_bytea(PG_FUNCTION_ARGS)
{
	return publish_one(fcinfo, BYTEAOID);
}

/* The elements of an array argument; n is 0 and the result NULL for none. */
static Datum *
array_elements(ArrayType *array, const char *name, bool **nulls, int *n)
{
	Datum	   *elements;
	int16		len;
	bool		byval;
	char		align;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must be a one-dimensional array", name)));
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &len, &byval, &align);
	deconstruct_array(array, ARR_ELEMTYPE(array), len, byval, align,
					  &elements, nulls, n);
	return elements;
}

static Datum
publish_array(FunctionCallInfo fcinfo, Oid type)
{
	Oid			extoid = begin_publish(fcinfo, "outbox.publish_batch()");
	OutboxNewMessage common = {0};
	OutboxNewMessage *messages;
	Datum	   *payloads;
	Datum	   *keys = NULL;
	bool	   *payload_nulls;
	bool	   *key_nulls = NULL;
	int			n;
	int			nkeys = 0;
	MemoryContext chunk;
	MemoryContext old;

	if (PG_ARGISNULL(ARG_PAYLOAD))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payloads must not be null"),
				 errhint("A null element of the array is a tombstone.")));
	common.partition = -1;
	common.kind = payload_kind(type);
	set_topic(&common, PG_GETARG_DATUM(ARG_TOPIC), PG_ARGISNULL(ARG_TOPIC));
	set_headers(&common, PG_GETARG_DATUM(ARG_HEADERS), PG_ARGISNULL(ARG_HEADERS));
	payloads = array_elements(PG_GETARG_ARRAYTYPE_P(ARG_PAYLOAD), "payloads", &payload_nulls, &n);
	if (!PG_ARGISNULL(ARG_KEY))
	{
		keys = array_elements(PG_GETARG_ARRAYTYPE_P(ARG_KEY), "keys", &key_nulls, &nkeys);
		if (nkeys != n)
			ereport(ERROR,
					(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
					 errmsg("%d keys do not match %d payloads", nkeys, n)));
	}

	messages = palloc(BATCH_CHUNK * sizeof(OutboxNewMessage));
	chunk = AllocSetContextCreate(CurrentMemoryContext, "pg_outbox batch",
								  ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(chunk);
	for (int from = 0; from < n; from += BATCH_CHUNK)
	{
		int			count = Min(BATCH_CHUNK, n - from);

		for (int i = 0; i < count; i++)
		{
			OutboxNewMessage *m = &messages[i];

			*m = common;
			if (!payload_nulls[from + i])
				set_payload(m, payloads[from + i], type);
			if (keys != NULL && !key_nulls[from + i])
				m->key = text_to_wire(keys[from + i], &m->key_len);
			check_size(m);
		}
		(void) outbox_append(extoid, messages, count);
		outbox_xact_published(extoid);
		MemoryContextReset(chunk);
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(chunk);
	PG_RETURN_INT64(n);
}

Datum
outbox_publish_batch_jsonb(PG_FUNCTION_ARGS)
{
	return publish_array(fcinfo, JSONBOID);
}

Datum
outbox_publish_batch_json(PG_FUNCTION_ARGS)
{
	return publish_array(fcinfo, JSONOID);
}

Datum
outbox_publish_batch_text(PG_FUNCTION_ARGS)
{
	return publish_array(fcinfo, TEXTOID);
}

Datum
outbox_publish_batch_bytea(PG_FUNCTION_ARGS)
{
	return publish_array(fcinfo, BYTEAOID);
}

/* Note that this transaction has: at its commit, relays are woken. */
void
outbox_xact_published(Oid extoid)
{
	published_extension = extoid;
}

bool
outbox_xact_has_published(void)
{
	return OidIsValid(published_extension);
}

/*
 * After a commit (or PREPARE) that published: move the counter, wake relays.
 * The transaction is no longer running by the time this is called for a
 * commit, so a relay that is woken sees it.
 */
static void
publish_xact_callback(XactEvent event, void *arg)
{
	OutboxDb   *db;

	if (!OidIsValid(published_extension))
		return;
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
			db = outbox_db_find(MyDatabaseId, published_extension);
			if (db != NULL &&
				(event == XACT_EVENT_COMMIT || OUTBOX_RULE("count-at-prepare")))
				pg_atomic_fetch_add_u64(&db->publish_count, 1);
			else
				outbox_look_into(MyDatabaseId, 0);
			outbox_wake_relays(MyDatabaseId);
			published_extension = InvalidOid;
			break;
		case XACT_EVENT_ABORT:
			published_extension = InvalidOid;
			break;
		default:
			break;
	}
}

void
outbox_publish_init(void)
{
	RegisterXactCallback(publish_xact_callback, NULL);
	outbox_lane_init();
}
