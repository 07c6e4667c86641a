/*-------------------------------------------------------------------------
 *
 * row.c
 *	  From rows of the log back to a message.
 *
 * A message is copied into one chunk of memory, so that the relay can keep it
 * until its broker has answered and free it in one step.  Whether it is
 * wanted is asked before anything is copied.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "compat.h"
#include "log/merge.h"
#include "log/reader.h"
#include "message.h"
#include "utils/memutils.h"

/* A column's bytes where they stand, len -1: NULL. */
typedef struct Field
{
	const char *data;
	int			len;
} Field;

static Field
field(const Datum *values, const bool *nulls, OutboxColumn column)
{
	Field		f = {NULL, -1};

	if (!nulls[column - 1])
	{
		struct varlena *v = (struct varlena *) DatumGetPointer(values[column - 1]);

		f.data = VARDATA_ANY(v);
		f.len = VARSIZE_ANY_EXHDR(v);
	}
	return f;
}

/* Copy a field into the chunk, with a NUL behind it. */
static char *
put(char **p, Field f)
{
	char	   *start = *p;

	if (f.len < 0)
		return NULL;
	memcpy(start, f.data, f.len);
	start[f.len] = '\0';
	*p += f.len + 1;
	return start;
}

/* Make the chunk. */
static OutboxMessage *
build_message(MemoryContext mcxt, Size room, const Datum *values, const bool *nulls,
			  uint64 id, uint64 xid, Field key, Field headers, Field payload)
{
	Field		topic = field(values, nulls, OUTBOX_COL_TOPIC);
	Field		message_id = field(values, nulls, OUTBOX_COL_MESSAGE_ID);
	Field		target = field(values, nulls, OUTBOX_COL_TARGET);
	Size		bytes = room + sizeof(OutboxMessage) +
		(topic.len + 1) + (key.len + 1) + (headers.len + 1) + (payload.len + 1) +
		(message_id.len + 1) + (target.len + 1);
	OutboxMessage *m = (OutboxMessage *) ((char *) MemoryContextAllocHuge(mcxt, bytes) + room);
	char	   *p = (char *) (m + 1);

	m->id = id;
	m->xid = xid;
	m->epoch = (uint64) DatumGetInt64(values[OUTBOX_COL_EPOCH - 1]);
	m->published = DatumGetTimestampTz(values[OUTBOX_COL_PUBLISHED - 1]);
	m->batch = NULL;
	m->partition = nulls[OUTBOX_COL_PARTITION - 1] ? -1 :
		DatumGetInt32(values[OUTBOX_COL_PARTITION - 1]);
	m->version = DatumGetInt16(values[OUTBOX_COL_VERSION - 1]);
	m->kind = DatumGetChar(values[OUTBOX_COL_KIND - 1]);
	m->topic = put(&p, topic);
	m->topic_len = topic.len;
	m->key = put(&p, key);
	m->key_len = Max(key.len, 0);
	m->headers = put(&p, headers);
	m->headers_len = Max(headers.len, 0);
	m->payload = put(&p, payload);
	m->payload_len = Max(payload.len, 0);
	m->message_id = put(&p, message_id);
	m->target = put(&p, target);
	m->bytes = bytes;
	m->room = room;
	return m;
}

/* Add a row's piece of a field. */
static void
add_piece(StringInfo buf, bool *present, Field f)
{
	if (f.len < 0)
		return;
	*present = true;
	enlargeStringInfo(buf, f.len);
	appendBinaryStringInfo(buf, f.data, f.len);
}

static Field
whole(const StringInfoData *buf, bool present)
{
	Field		f = {buf->data, present ? buf->len : -1};

	return f;
}

/* A message of several rows: gather the pieces, then make the chunk. */
static OutboxMessage *
read_parts(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row,
		   MemoryContext mcxt, Size room, Datum *values, bool *nulls)
{
	static const OutboxColumn columns[3] = {
		OUTBOX_COL_KEY, OUTBOX_COL_HEADERS, OUTBOX_COL_PAYLOAD
	};
	StringInfoData bufs[3];
	bool		present[3] = {false, false, false};
	HeapTuple	first = heap_copytuple(tuple);
	int			parts = DatumGetInt32(values[OUTBOX_COL_PARTS - 1]);
	int			seen = 1;
	OutboxMessage *m;

	for (int i = 0; i < 3; i++)
	{
		initStringInfo(&bufs[i]);
		add_piece(&bufs[i], &present[i], field(values, nulls, columns[i]));
	}
	while (outbox_merge_next_part(merge, tuple, row))
	{
		heap_deform_tuple(tuple, outbox_segment_desc(), values, nulls);
		for (int i = 0; i < 3; i++)
			add_piece(&bufs[i], &present[i], field(values, nulls, columns[i]));
		seen++;
	}
	heap_deform_tuple(first, outbox_segment_desc(), values, nulls);
	m = build_message(mcxt, room, values, nulls, row->id, row->xid,
					  whole(&bufs[0], present[0]), whole(&bufs[1], present[1]),
					  whole(&bufs[2], present[2]));
	m->damaged = seen != parts;
	for (int i = 0; i < 3; i++)
		pfree(bufs[i].data);
	heap_freetuple(first);
	return m;
}

/* Read one message, all of its rows, out of a pass; NULL: unwanted. */
OutboxMessage *
outbox_message_read(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row,
					MemoryContext mcxt, Size room,
					OutboxWanted wanted, void *arg)
{
	Datum		values[OUTBOX_NCOLUMNS];
	bool		nulls[OUTBOX_NCOLUMNS];
	OutboxMessage *m;

	heap_deform_tuple(tuple, outbox_segment_desc(), values, nulls);
	if (wanted != NULL)
	{
		Field		topic = field(values, nulls, OUTBOX_COL_TOPIC);
		Field		target = field(values, nulls, OUTBOX_COL_TARGET);
		char		name[NAMEDATALEN];

		if (target.len >= 0)
		{
			int			len = Min(target.len, NAMEDATALEN - 1);

			memcpy(name, target.data, len);
			name[len] = '\0';
		}
		if (!wanted(arg, topic.data, topic.len, target.len >= 0 ? name : NULL, row->id))
			return NULL;
	}
	if (!nulls[OUTBOX_COL_PARTS - 1])
		return read_parts(merge, tuple, row, mcxt, room, values, nulls);
	m = build_message(mcxt, room, values, nulls, row->id, row->xid,
					  field(values, nulls, OUTBOX_COL_KEY),
					  field(values, nulls, OUTBOX_COL_HEADERS),
					  field(values, nulls, OUTBOX_COL_PAYLOAD));
	m->damaged = false;
	return m;
}

/* Free a message, and with its batch's last one the batch. */
void
outbox_message_free(OutboxMessage *message)
{
	if (message->batch != NULL)
		outbox_batch_release(message->batch);
	pfree((char *) message - message->room);
}
