/*-------------------------------------------------------------------------
 *
 * message.h
 *	  A message's columns in the log, its wire forms and its id.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_MESSAGE_H
#define OUTBOX_MESSAGE_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* Columns of a segment.  Fixed-width ones first; settled for good. */
typedef enum OutboxColumn
{
	OUTBOX_COL_ID = 1,			/* bigint */
	OUTBOX_COL_XID,				/* xid8: the top-level transaction */
	OUTBOX_COL_EPOCH,			/* bigint */
	OUTBOX_COL_PUBLISHED,		/* timestamptz */
	OUTBOX_COL_DUE,				/* timestamptz, NULL */
	OUTBOX_COL_EXPIRES,			/* timestamptz, NULL */
	OUTBOX_COL_PART,			/* int: 0 .. parts - 1 */
	OUTBOX_COL_PARTS,			/* int */
	OUTBOX_COL_PARTITION,		/* int, NULL */
	OUTBOX_COL_VERSION,			/* smallint: of this format */
	OUTBOX_COL_KIND,			/* "char": j, t, b */
	OUTBOX_COL_TOPIC,			/* bytea, UTF-8; parts > 0: NULL */
	OUTBOX_COL_KEY,				/* bytea, UTF-8, NULL: none; a piece of it */
	OUTBOX_COL_HEADERS,			/* bytea, wire form, NULL; a piece of it */
	OUTBOX_COL_PAYLOAD,			/* bytea, NULL: tombstone; a piece of it */
	OUTBOX_COL_MESSAGE_ID,		/* bytea, UTF-8, NULL: derived */
	OUTBOX_COL_TARGET,			/* bytea, server's name, NULL: all */
	OUTBOX_NCOLUMNS = OUTBOX_COL_TARGET
} OutboxColumn;

#define OUTBOX_FORMAT_VERSION	1
#define OUTBOX_MAX_TOPIC		1024	/* bytes */
#define OUTBOX_MAX_MESSAGE_ID	1024	/* bytes */

/*
 * Headers on the wire, and in the log: for each header, in order, a uint32
 * (native byte order, unaligned) length and the name with a closing NUL that
 * the length does not count, then a uint32 length and the value, also with a
 * closing NUL.
 */
extern void outbox_headers_append(StringInfo buf, const char *name, int name_len,
								  const char *value, int value_len);

/*
 * Step through: returns false at the end.  *pos starts at 0.  Names and values
 * point into the buffer and are NUL-terminated.
 */
extern bool outbox_headers_next(const char *headers, int len, int *pos,
								const char **name, int *name_len,
								const char **value, int *value_len);

/* Callers' jsonb headers into wire form (validated, UTF-8). */
extern void outbox_headers_from_jsonb(StringInfo buf, Jsonb *headers);

/* And back, for views: an array of pairs or an object. */
extern Jsonb *outbox_headers_to_jsonb(const char *headers, int len);

/* The derived message id, a UUID version 8; buf holds 37 bytes. */
extern void outbox_message_uuid(uint64 epoch, uint64 id, char *buf);

#endif							/* OUTBOX_MESSAGE_H */
