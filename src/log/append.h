/*-------------------------------------------------------------------------
 *
 * append.h
 *	  Appending messages to the log.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_APPEND_H
#define OUTBOX_APPEND_H

#include "shmem.h"

/* A message to append: bytes as they go on the wire. */
typedef struct OutboxNewMessage
{
	const char *topic;
	int			topic_len;
	const char *key;			/* NULL: no key */
	int			key_len;
	const char *headers;		/* wire form, NULL: none */
	int			headers_len;
	const char *payload;		/* NULL: tombstone */
	int			payload_len;
	const char *message_id;		/* NULL: derived */
	int			message_id_len;
	const char *target;			/* NULL: every server that wants it */
	int			target_len;
	int32		partition;		/* -1: none given */
	char		kind;			/* j, t, b */
	TimestampTz published;		/* 0: now */
} OutboxNewMessage;

/*
 * Append messages to the log of an extension in this database, in order, as
 * part of the current transaction.  Returns the last one's id.
 */
extern uint64 outbox_append(Oid extoid, const OutboxNewMessage *messages, int n);

#endif							/* OUTBOX_APPEND_H */
