/*-------------------------------------------------------------------------
 *
 * dead_letter.c
 *	  Messages that a broker refused for good.
 *
 * A dead letter is committed, and flushed, before the position passes its
 * message and before a successor of its key is sent.  After a crash in between
 * the message is sent and refused once more: its row is there already.
 *
 * A letter carries its server's name, and follows when that is changed: so the
 * name is kept from changing until the letter is committed.  A relay is not kept
 * waiting by somebody's open transaction: it tries again later.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "executor/spi.h"
#include "fault.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "message.h"
#include "relay/dead_letter.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#define NARGS	13

static Datum
wire_text(const char *data, int len)
{
	char	   *local = pg_any_to_server(data, len, PG_UTF8);

	return PointerGetDatum(cstring_to_text_with_len(local, local == data ? len : (int) strlen(local)));
}

static MemoryContext outer_context;
static char server_name[NAMEDATALEN];

bool
outbox_dead_letters_begin(const OutboxServer *server)
{
	ForeignServer *now;

	outer_context = CurrentMemoryContext;
	StartTransactionCommand();
	if (!registry_try_keep_name(server->oid))
	{
		CommitTransactionCommand();
		MemoryContextSwitchTo(outer_context);
		return false;
	}
	/* dropped: its letters stay, under the name that it had */
	now = GetForeignServerExtended(server->oid, FSV_MISSING_OK);
	strlcpy(server_name, now != NULL ? now->servername : server->name_local, NAMEDATALEN);
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	return true;
}

void
outbox_dead_letters_add(const OutboxMessage *m, const char *error, const char *reason,
						int attempts)
{
	Oid			types[NARGS] = {
		TEXTOID, INT8OID, TEXTOID, TEXTOID, TEXTOID, INT4OID, JSONBOID,
		BYTEAOID, CHAROID, TIMESTAMPTZOID, TEXTOID, TEXTOID, INT4OID
	};
	Datum		args[NARGS];
	char		nulls[NARGS + 1] = "             ";

	args[0] = CStringGetTextDatum(server_name);
	args[1] = Int64GetDatum((int64) m->id);
	args[2] = wire_text(m->message_id, strlen(m->message_id));
	args[3] = wire_text(m->topic, m->topic_len);
	if (m->key != NULL)
		args[4] = wire_text(m->key, m->key_len);
	else
		nulls[4] = 'n';
	args[5] = Int32GetDatum(m->partition);
	if (m->partition < 0)
		nulls[5] = 'n';
	if (m->headers != NULL)
		args[6] = JsonbPGetDatum(outbox_headers_to_jsonb(m->headers, m->headers_len));
	else
		nulls[6] = 'n';
	if (m->payload != NULL)
		args[7] = PointerGetDatum(cstring_to_text_with_len(m->payload, m->payload_len));
	else
		nulls[7] = 'n';
	args[8] = CharGetDatum(m->kind);
	args[9] = TimestampTzGetDatum(m->published);
	args[10] = CStringGetTextDatum(error);
	args[11] = CStringGetTextDatum(reason);
	args[12] = Int32GetDatum(attempts);
	if (SPI_execute_with_args("INSERT INTO outbox.dead_letter (server, id, message_id, topic, key,"
							  " partition, headers, payload, kind, published, error, reason, attempts)"
							  " VALUES ($1::name, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
							  " ON CONFLICT (server, id) DO NOTHING",
							  NARGS, types, args, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not insert a dead letter");
}

void
outbox_dead_letters_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	ForceSyncCommit();
	CommitTransactionCommand();
	MemoryContextSwitchTo(outer_context);
	OUTBOX_FAULT("dead-letter-committed");
}
