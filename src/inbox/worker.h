/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The parts of a subscription's worker, for each other.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_INBOX_WORKER_H
#define OUTBOX_INBOX_WORKER_H

#include "executor/spi.h"
#include "fmgr.h"
#include "inbox/slot.h"
#include "inbox/subscription.h"
#include "portability/instr_time.h"
#include "subtransaction.h"
#include "transport/registry.h"
#include "transport/source.h"
#include "utils/hsearch.h"

/* A partition that is ours. */
typedef struct InboxPartition
{
	char	   *topic;			/* UTF-8 */
	char	   *topic_local;	/* in the database's encoding */
	int32		partition;
	int64		next;			/* offset of the next message, as stored */
	int64		epoch;			/* of the row, since we took it */
	char		incarnation[OUTBOX_INCARNATION];	/* of the topic, as stored; or
													 * empty */
	int64		earliest;		/* what the broker told; -1: not asked */
	int64		group_next;		/* ... of the group's place; -1: nowhere */
	bool		group_asked;
	bool		placed;			/* we have looked it up, and told the client */
	bool		stopped;		/* at a gap: for a person to decide */
	bool		skips;			/* ... that is to be passed over */
	bool		renews;			/* what is stored as its incarnation is out of date */
} InboxPartition;

/* The subscription's handler, looked up for a batch. */
typedef struct InboxHandler
{
	FmgrInfo	function;
	bool		takes_array;
	Oid			message_type;
	TupleDesc	message_desc;
} InboxHandler;

/* A message that is to be handled. */
typedef struct InboxMessage
{
	InboxPartition *partition;
	int64		offset;
	Datum		subject;		/* text: what it was sent to */
	bool		no_subject;		/* ... the topic of its partition */
	bool		anonymous;		/* nothing tells it from others */
	Datum		id;				/* text: its own, else its place */
	Datum		key;			/* text */
	bool		no_key;
	Datum		headers;		/* jsonb */
	Datum		payload;		/* bytea */
	bool		no_payload;
	TimestampTz timestamp;
	bool		no_timestamp;
	int			attempt;		/* 1: the first */
	TimestampTz due;			/* of one that waited */
} InboxMessage;

typedef struct InboxStart InboxStart;	/* see start.c */

/* Why a handler raised. */
typedef struct InboxFailure
{
	char		sqlstate[6];
	const char *message;
	const char *context;
	bool		rejected;		/* inbox.reject() */
	int64		again_ms;		/* inbox.retry_later(); -1: by the backoff */
} InboxFailure;

typedef struct InboxWorker
{
	MemoryContext context;		/* lives as long as the worker */
	MemoryContext scratch;		/* for a batch; reset between them */
	MemoryContext definition;	/* of subscription and server */
	InboxSlot  *slot;
	InboxSubscription *subscription;
	OutboxServer *server;
	const OutboxTransport *transport;
	const OutboxSource *source;
	OutboxConsumer *client;
	uint64		server_hash;	/* of the options that the client has */
	WaitEventSet *wait_set;
	uint64		errors_seen;
	bool		joined;			/* the group has said what is ours */
	bool		topics_checked; /* since it runs */
	bool		topic_missing;	/* is the error that is shown */
	List	   *partitions;		/* of InboxPartition */
	List	   *adopted;		/* ... that nobody has, see waiting.c */
	InboxStart *start;
	bool		reload;			/* the subscription is to be read anew */
	bool		lost;			/* partitions were taken from us ... */
	instr_time	lost_at;
	HTAB	   *waiting_keys;	/* that have messages in inbox.waiting */
	bool		stale;			/* an abort may have left them untrue */
	bool		in_handler;		/* an error is the handler's */
	instr_time	retried;		/* when inbox.waiting was looked at */
	instr_time	lag_shown;
	uint64		handled_then;
	int			back_off_ms;
	instr_time	failed_at;
	bool		failing;		/* what raised an error has not been seen to go
								 * well since */
} InboxWorker;

/* client.c */
#define INBOX_CLOSE_MS		5000	/* the client library has to end */

extern void inbox_client_set_durability(InboxWorker *worker);
extern bool inbox_client_ensure(InboxWorker *worker);
extern void inbox_client_close(InboxWorker *worker);
extern void inbox_client_check(InboxWorker *worker);
extern void inbox_client_show_figures(InboxWorker *worker);
extern void inbox_back_off(InboxWorker *worker);

/* places.c */
extern void inbox_partitions_assigned(InboxWorker *worker, const OutboxPlace *places, int n);
extern void inbox_partitions_gone(InboxWorker *worker);
extern InboxPartition *inbox_partition_find(InboxWorker *worker, const char *topic,
											int32 partition);
extern bool inbox_partitions_place(InboxWorker *worker);
extern void inbox_partitions_unplace(InboxWorker *worker);
extern void inbox_begin(void);
extern void inbox_end(InboxWorker *worker);
extern bool inbox_subscription_lock(InboxWorker *worker, bool exclusive);
extern void inbox_show_failure(InboxWorker *worker, OutboxFailure failure, const OutboxError *error);
extern void inbox_places_lost(InboxWorker *worker);
extern bool inbox_places_advance(InboxWorker *worker, const int64 *next);
extern void inbox_places_tell(InboxWorker *worker, int wait_ms);
extern void inbox_place_gap(InboxWorker *worker, const OutboxPlace *place);
extern void inbox_place_same(InboxWorker *worker, const OutboxPlace *place);
extern void inbox_place_passed(InboxWorker *worker, const OutboxPlace *place);

/* statement.c: as SPI_execute_with_args(), without nulls; *plan is kept */
extern int	inbox_execute(SPIPlanPtr *plan, const char *sql, int n, Oid *types, Datum *values);

/* start.c */
extern bool inbox_start(InboxWorker *worker);
extern void inbox_check_topics(InboxWorker *worker);
extern void inbox_start_forget(InboxWorker *worker);

/* incoming.c */
extern void inbox_message_read(InboxWorker *worker, const OutboxIncoming *incoming,
							   InboxPartition *partition, InboxMessage *message);
extern Datum inbox_message_datum(const InboxHandler *handler, const InboxMessage *message);

/* handle.c */
extern void inbox_handler_find(InboxWorker *worker, InboxHandler *handler);
extern void inbox_handler_call(InboxWorker *worker, InboxHandler *handler,
							   InboxMessage **messages, int n);
extern bool inbox_handler_try(InboxWorker *worker, OutboxAttempt attempt, void *arg,
							  InboxFailure *failure);
extern bool inbox_commit_as_owner(InboxWorker *worker, InboxFailure *failure);
extern void inbox_handle_batch(InboxWorker *worker, const OutboxIncoming *incoming, int n);

/* waiting.c */
extern void inbox_waiting_load(InboxWorker *worker);
extern bool inbox_waiting_has(InboxWorker *worker, const InboxMessage *message);
extern void inbox_waiting_add(InboxWorker *worker, const InboxMessage *message,
							  const InboxFailure *failure);
extern bool inbox_waiting_retry(InboxWorker *worker);
extern void inbox_failure_take(InboxFailure *failure, const ErrorData *edata);
extern void inbox_dead_letter(InboxWorker *worker, const InboxMessage *message,
							  const InboxFailure *failure);

#endif							/* OUTBOX_INBOX_WORKER_H */
