/*-------------------------------------------------------------------------
 *
 * reader.h
 *	  Reading the log by snapshot difference; see the banner of reader.c.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_READER_H
#define OUTBOX_READER_H

#include "access/xlogdefs.h"
#include "shmem.h"
#include "utils/timestamp.h"

/*
 * A snapshot as numbers: top-level transactions only, 64 bits wide, sorted,
 * without duplicates.  "In" a snapshot is a transaction that had ended.
 */
typedef struct OutboxSnapshot
{
	uint64		xmin;
	uint64		xmax;
	int			nxip;
	uint64		xip[FLEXIBLE_ARRAY_MEMBER];
} OutboxSnapshot;

extern bool outbox_snapshot_contains(const OutboxSnapshot *s, uint64 xid);
extern OutboxSnapshot *outbox_snapshot_copy(const OutboxSnapshot *s);
extern char *outbox_snapshot_out(const OutboxSnapshot *s);	/* as pg_snapshot */
extern OutboxSnapshot *outbox_snapshot_in(const char *text);
extern OutboxSnapshot *outbox_snapshot_empty(void); /* contains nothing */

/*
 * Where a stream of messages stands: all in s1 is done; of what is in s2 and
 * not in s1, ids up to the cursor are done.  No row with an id below low is
 * wanted any more.
 */
typedef struct OutboxPosition
{
	OutboxSnapshot *s1;
	OutboxSnapshot *s2;
	uint64		cursor;
	uint64		low;
	XLogRecPtr	lsn;			/* WAL that must be safe before this is stored;
								 * 0: it is */
} OutboxPosition;

/*
 * A batch: what is in s2 and was not in s1.  Counted: one reference by the
 * reader while it reads the batch, one by every message of it that lives.
 */
typedef struct OutboxBatch
{
	int			refcount;
	OutboxSnapshot *s1;
	OutboxSnapshot *s2;
	uint64		undecided;		/* lowest id seen that s2 does not decide */
	XLogRecPtr	lsn;			/* WAL that must be safe before any of this
								 * is sent */
	uint64		publish_count;	/* the counter as read before s2 */
	uint64		s1_count;		/* the same of s1; 0: not known */
	uint64		s1_low;			/* low of a position at s1; 0: not known */
	XLogRecPtr	s1_lsn;			/* lsn of such a position */
} OutboxBatch;

/*
 * A message: one palloc'd chunk with everything in it, and before it the room
 * that its reader asked for.
 */
typedef struct OutboxMessage
{
	uint64		id;
	uint64		xid;
	uint64		epoch;
	TimestampTz published;
	OutboxBatch *batch;
	int32		partition;		/* -1: none given */
	int16		version;		/* of the row format */
	bool		damaged;		/* rows of it are missing */
	char		kind;			/* 'j' json, 't' text, 'b' binary */
	int			topic_len;
	int			key_len;
	int			headers_len;
	int			payload_len;
	char	   *topic;			/* NUL-terminated, UTF-8 */
	char	   *key;			/* NULL: no key */
	char	   *headers;		/* wire form of message.h, NULL: none */
	char	   *payload;		/* NULL: tombstone */
	char	   *message_id;		/* NUL-terminated, NULL: derived from epoch
								 * and id */
	char	   *target;			/* server's name (redrive), NULL: all */
	Size		bytes;			/* of the chunk */
	Size		room;			/* of that, before this struct */
} OutboxMessage;

typedef struct OutboxReader OutboxReader;

/* Does the caller want this message?  Decides before anything is copied. */
typedef bool (*OutboxWanted) (void *arg, const char *topic, int topic_len,
							  const char *target, uint64 id);

/*
 * A reader that goes on from a position.  It keeps nothing open between
 * calls: every call below runs a short transaction of its own.
 */
extern OutboxReader *outbox_reader_create(MemoryContext parent, Oid extoid,
										  const OutboxPosition *start);
extern void outbox_reader_free(OutboxReader *reader);

/*
 * The position when everything fetched so far is done (copied into the
 * current context).
 */
extern void outbox_reader_position(OutboxReader *reader, OutboxPosition *pos);

/* The position with everything before this message done, it and later not. */
extern void outbox_position_before(const OutboxMessage *message,
								   OutboxPosition *pos);

/* The position before all of a batch; false when it is not known. */
extern bool outbox_position_before_batch(const OutboxBatch *batch,
										 OutboxPosition *pos);

/* A second reader that stands just where this one stands (batch shared). */
extern OutboxReader *outbox_reader_clone(MemoryContext parent,
										 OutboxReader *reader);

/*
 * Begin a round: the next batch, up to a snapshot taken now.  False when
 * nothing can have changed since the last one.  Must be called between
 * batches.  Flushes WAL; whether standbys have it too is for the caller to ask
 * (outbox_lsn_replicated(batch->lsn)) before it sends or stores a position.
 */
extern bool outbox_reader_begin(OutboxReader *reader);

/*
 * Begin a round up to the last snapshot whose batch another reader has
 * finished.  False when this reader is there already.
 */
extern bool outbox_reader_follow(OutboxReader *reader, const OutboxReader *leader);

/* The lowest id that it reads next, but for what long transactions left. */
extern uint64 outbox_reader_next_id(const OutboxReader *reader);

/* The batch being read, NULL between batches; the last s2. */
extern OutboxBatch *outbox_reader_batch(OutboxReader *reader);
extern const OutboxSnapshot *outbox_reader_last(OutboxReader *reader);

/* The publish counter whose messages are all read, and those of the current
 * batch are none of them; 0: not known. */
extern uint64 outbox_reader_confirmed(const OutboxReader *reader);
#ifdef OUTBOX_FAULT_POINTS
extern int	outbox_reader_open_count(OutboxReader *reader); /* for tests */
#endif

/*
 * Fetch up to max messages and about max_bytes of the current batch, in id
 * order, allocated in mcxt with this room before each, and each with a
 * reference to its batch.  *n counts
 * them; should this raise, they are the caller's to free and will be read
 * again.  At the batch's end the reader is between batches.  There may be none
 * without that (a long stretch without wanted messages).
 */
extern void outbox_reader_fetch(OutboxReader *reader, MemoryContext mcxt,
								Size room, OutboxMessage **messages, int *n, int max,
								Size max_bytes, OutboxWanted wanted, void *arg);
extern void outbox_message_free(OutboxMessage *message);

/* Read one message, all of its rows, out of a pass (row.c); NULL: unwanted. */
struct OutboxMerge;
struct OutboxRow;
struct HeapTupleData;
extern OutboxMessage *outbox_message_read(struct OutboxMerge *merge,
										  struct HeapTupleData *tuple,
										  struct OutboxRow *row,
										  MemoryContext mcxt, Size room,
										  OutboxWanted wanted, void *arg);
extern void outbox_batch_release(OutboxBatch *batch);

/* Have synchronous standbys (if any are named) flushed up to here? */
extern bool outbox_lsn_replicated(XLogRecPtr lsn);

#endif							/* OUTBOX_READER_H */
