/*-------------------------------------------------------------------------
 *
 * incoming.c
 *	  Messages as they come, turned into what a handler gets.
 *
 * Keys and headers are bytes at the broker and text here.  What can't be text in
 * this database is shown as bytea is, \x and hexadecimal digits, and never stops a
 * message.
 *
 * The id by which a message is known again is the first of these that it has: what
 * dedup_by names (for message_id, the broker's own too), and its place,
 * topic/partition/offset.  Where the broker has no places, one without an id can't be
 * known again, and is not handled.  An id that is too long for a mark is represented by
 * its SHA-256.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "funcapi.h"
#include "inbox/mark.h"
#include "inbox/worker.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/jsonpath.h"

/* Columns of inbox.message */
#define MESSAGE_NCOLUMNS	9

/* As text of this database; NULL where that can't be. */
static text *
to_text(const char *data, size_t length)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	int			size = (int) length * MAX_CONVERSION_GROWTH + 1;
	unsigned char *converted;

	if (!pg_verify_mbstr(PG_UTF8, data, (int) length, true))
		return NULL;
	if (encoding == PG_UTF8)
		return cstring_to_text_with_len(data, (int) length);
	if (encoding == PG_SQL_ASCII)
		return cstring_to_text_with_len(data, (int) length);
	conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(conversion))
		return NULL;
	converted = palloc(size);
	if (pg_do_encoding_conversion_buf(conversion, PG_UTF8, encoding, (unsigned char *) data,
									  (int) length, converted, size, true) < (int) length)
		return NULL;
	return cstring_to_text((char *) converted);
}

static bytea *
to_bytea(const char *data, size_t length)
{
	bytea	   *result = palloc(length + VARHDRSZ);

	SET_VARSIZE(result, length + VARHDRSZ);
	memcpy(VARDATA(result), data, length);
	return result;
}

/* As text in any case. */
static text *
show_text(const char *data, size_t length)
{
	text	   *result = to_text(data, length);
	char	   *hex;

	if (result != NULL)
		return result;
	hex = palloc(length * 2 + 3);
	hex[0] = '\\';
	hex[1] = 'x';
	hex[2 + hex_encode(data, length, hex + 2)] = '\0';
	return cstring_to_text(hex);
}

/* --- headers -------------------------------------------------------------------- */

static void
set_string(JsonbValue *value, const char *data, size_t length)
{
	text	   *string = show_text(data, length);

	value->type = jbvString;
	value->val.string.val = VARDATA(string);
	value->val.string.len = VARSIZE(string) - VARHDRSZ;
}

static void
push_value(JsonbParseState **state, JsonbIteratorToken token, const OutboxHeader *header)
{
	JsonbValue	value;

	if (header->value == NULL)
		value.type = jbvNull;
	else
		set_string(&value, header->value, header->value_len);
	(void) pushJsonbValue(state, token, &value);
}

/* By name; of the same name in the order in which they came. */
static int
compare_headers(const void *a, const void *b)
{
	const OutboxHeader *x = *(const OutboxHeader *const *) a;
	const OutboxHeader *y = *(const OutboxHeader *const *) b;
	int			order = strcmp(x->name, y->name);

	return order != 0 ? order : x < y ? -1 : x > y;
}

/* An object; of a name that is repeated, an array of values. */
static Datum
headers_to_jsonb(const OutboxIncoming *incoming)
{
	int			n = incoming->nheaders;
	const OutboxHeader **headers = palloc(Max(n, 1) * sizeof(OutboxHeader *));
	JsonbParseState *state = NULL;
	JsonbValue *object;
	int			end;

	for (int i = 0; i < n; i++)
		headers[i] = &incoming->headers[i];
	qsort(headers, n, sizeof(OutboxHeader *), compare_headers);
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < n; i = end)
	{
		JsonbValue	name;

		for (end = i + 1; end < n && strcmp(headers[end]->name, headers[i]->name) == 0; end++)
			;
		set_string(&name, headers[i]->name, strlen(headers[i]->name));
		(void) pushJsonbValue(&state, WJB_KEY, &name);
		if (end == i + 1)
		{
			push_value(&state, WJB_VALUE, headers[i]);
			continue;
		}
		(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		for (int k = i; k < end; k++)
			push_value(&state, WJB_ELEM, headers[k]);
		(void) pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	}
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	return JsonbPGetDatum(JsonbValueToJsonb(object));
}

/* --- the id ----------------------------------------------------------------------- */

static text *
from_header(const OutboxIncoming *incoming, const char *name)
{
	for (int i = 0; i < incoming->nheaders; i++)
	{
		const OutboxHeader *header = &incoming->headers[i];

		if (strcmp(header->name, name) == 0 && header->value != NULL && header->value_len > 0)
			return show_text(header->value, header->value_len);
	}
	return NULL;
}

/* What a path finds in the payload; the payload need not be JSON. */
static text *
from_json(const InboxSubscription *subscription, const InboxMessage *message)
{
	MemoryContext caller = CurrentMemoryContext;
	text	   *volatile found = NULL;

	if (message->no_payload)
		return NULL;
	/* parsing takes nothing but memory, so an error needs no subtransaction */
	PG_TRY();
	{
		LOCAL_FCINFO(call, 4);
		bytea	   *payload = DatumGetByteaPP(message->payload);
		text	   *string = to_text(VARDATA_ANY(payload), VARSIZE_ANY_EXHDR(payload));

		if (string != NULL)
		{
			Datum		empty = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
			Datum		result;
			JsonbValue	value;

			InitFunctionCallInfoData(*call, NULL, 4, InvalidOid, NULL, NULL);
			call->args[0].value = DirectFunctionCall1(jsonb_in, CStringGetDatum(text_to_cstring(string)));
			call->args[1].value = PointerGetDatum(subscription->dedup_path);
			call->args[2].value = empty;
			call->args[3].value = BoolGetDatum(true);
			for (int i = 0; i < 4; i++)
				call->args[i].isnull = false;
			result = jsonb_path_query_first(call);
			if (!call->isnull && JsonbExtractScalar(&DatumGetJsonbP(result)->root, &value) &&
				value.type != jbvNull)
				found = value.type == jbvString ?
					cstring_to_text_with_len(value.val.string.val, value.val.string.len) :
					cstring_to_text(JsonbToCString(NULL, &DatumGetJsonbP(result)->root, 0));
		}
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		/* no JSON, none for this encoding, or one that is nested too deep */
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		FlushErrorState();
	}
	PG_END_TRY();
	return found;
}

static void
set_id(InboxWorker *worker, const OutboxIncoming *incoming, InboxMessage *message)
{
	const InboxSubscription *subscription = worker->subscription;
	text	   *id = NULL;

	switch (subscription->dedup)
	{
		case INBOX_DEDUP_HEADER:
			id = from_header(incoming, subscription->dedup_name);
			break;
		case INBOX_DEDUP_KEY:
			id = message->no_key ? NULL : DatumGetTextPP(message->key);
			break;
		case INBOX_DEDUP_JSON:
			id = from_json(subscription, message);
			break;
		case INBOX_DEDUP_MESSAGE_ID:
		case INBOX_DEDUP_NONE:
			id = from_header(incoming, "message-id");
			if (id == NULL)
				id = from_header(incoming, "ce_id");
			if (id == NULL && incoming->message_id != NULL)
				id = show_text(incoming->message_id, strlen(incoming->message_id));
			break;
	}
	if (id == NULL || VARSIZE_ANY_EXHDR(id) == 0)
	{
		message->anonymous = worker->source->own_numbers && subscription->dedup != INBOX_DEDUP_NONE;
		id = cstring_to_text(psprintf("%s/%d/%lld%s%s", message->partition->topic_local,
									  incoming->partition, (long long) incoming->offset,
									  message->partition->incarnation[0] ? "@" : "",
									  message->partition->incarnation));
	}
	else if (VARSIZE_ANY_EXHDR(id) > INBOX_MAX_MESSAGE_ID)
		id = DatumGetTextPP(DirectFunctionCall2(binary_encode,
												DirectFunctionCall1(sha256_bytea, PointerGetDatum(id)),
												CStringGetTextDatum("hex")));
	message->id = PointerGetDatum(id);
}

/* What has come, as Datums in the current context. */
void
inbox_message_read(InboxWorker *worker, const OutboxIncoming *incoming,
				   InboxPartition *partition, InboxMessage *message)
{
	message->partition = partition;
	message->offset = incoming->offset;
	message->attempt = 1;
	message->no_subject = incoming->subject == NULL;
	if (!message->no_subject)
		message->subject = PointerGetDatum(show_text(incoming->subject, strlen(incoming->subject)));
	message->no_key = incoming->key == NULL;
	if (!message->no_key)
		message->key = PointerGetDatum(show_text(incoming->key, incoming->key_len));
	message->no_payload = incoming->payload == NULL;
	if (!message->no_payload)
		message->payload = PointerGetDatum(to_bytea(incoming->payload, incoming->payload_len));
	message->headers = headers_to_jsonb(incoming);
	message->no_timestamp = incoming->timestamp_ms < 0;
	if (!message->no_timestamp)
		message->timestamp = (incoming->timestamp_ms -
							  (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000) * 1000;
	set_id(worker, incoming, message);
}

/* The composite value that a handler gets. */
Datum
inbox_message_datum(const InboxHandler *handler, const InboxMessage *message)
{
	Datum		values[MESSAGE_NCOLUMNS] = {
		message->id,
		message->no_subject ? CStringGetTextDatum(message->partition->topic_local) : message->subject,
		Int32GetDatum(message->partition->partition), Int64GetDatum(message->offset),
		message->key, message->headers, message->payload,
		TimestampTzGetDatum(message->timestamp), Int32GetDatum(message->attempt)
	};
	bool		nulls[MESSAGE_NCOLUMNS] = {
		false, false, false, false, message->no_key, false, message->no_payload,
		message->no_timestamp, false
	};

	return HeapTupleGetDatum(heap_form_tuple(handler->message_desc, values, nulls));
}
