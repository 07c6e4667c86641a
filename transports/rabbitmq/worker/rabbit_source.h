/*-------------------------------------------------------------------------
 *
 * rabbit_source.h
 *	  What the parts of the way in share.
 *
 * The io thread (rabbit_consume.c) owns the connection: it looks whether the
 * queues are there, consumes them, makes deliveries of frames and sends acks.
 * The main thread (rabbit_source.c) numbers the deliveries and keeps them until
 * they are committed, so that seek() can go back without the broker.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RABBIT_SOURCE_H
#define OUTBOX_RABBIT_SOURCE_H

#include "rabbit.h"

/* A message that the broker has delivered: one malloc'd chunk for all but its body. */
typedef struct RabbitDelivery
{
	struct RabbitDelivery *next;
	int			queue;
	uint64_t	tag;
	size_t		bytes;
	char	   *body;
	char	   *chunk;			/* what "incoming" points to */
	OutboxIncoming incoming;
} RabbitDelivery;

#define LIST_PREFIX rabbit_deliveries
#define LIST_TYPE RabbitDeliveries
#define LIST_ITEM RabbitDelivery
#define LIST_DECLARE
#include "common/list.h"

typedef enum RabbitQueueState
{
	RABBIT_QUEUE_CLOSED,		/* its channel */
	RABBIT_QUEUE_OPENING,
	RABBIT_QUEUE_ASKED,			/* is it there? */
	RABBIT_QUEUE_THERE,
	RABBIT_QUEUE_CONSUMED
} RabbitQueueState;

/* A queue that is consumed. */
typedef struct RabbitQueue
{
	char	   *name;

	/* io only */
	RabbitQueueState state;
	int64_t		look_due;		/* ms, when it was missing */
	uint64_t	acked;			/* delivery tag */
	RabbitDelivery *coming;		/* its frames are coming in */
	size_t		body_left;
	bool		has_header;

	/* guarded by the consumer's io.lock */
	bool		there;			/* the broker has it, in this generation */
	bool		wanted;			/* main has said where its numbers begin */
	uint64_t	ack;			/* up to this tag */

	/* main only */
	bool		assigned;
	bool		placed;
	bool		paused;
	int64_t		base;			/* number of the first one that is kept */
	int64_t		next;			/* number of the next one to hand out */
	RabbitDeliveries kept;		/* in order */
	RabbitDelivery *cursor;		/* the next one to hand out, NULL: none */
} RabbitQueue;

struct OutboxConsumer
{
	IoThread	io;
	RabbitConfig config;
	size_t		max_bytes;
	int			nqueues;
	RabbitQueue *queues;

	/* main only */
	uint64_t	generation;		/* that what is assigned is of */
	bool		any_assigned;
	bool		losing;			/* LOST waits for give_up() */
	RabbitDeliveries done;		/* to be freed by the next receive() */
	OutboxIncoming *out;
	int			out_size;
	OutboxPlace *places;

	/* guarded by io.lock */
	bool		io_sleeps;
	bool		listed;			/* all queues were looked for once */
	uint64_t	up;				/* grows with each connection */
	bool		connected;
	RabbitDeliveries arrived;

	atomic_size_t held;			/* bytes that are received and not freed */

	/* io only */
	RabbitConnection connection;
	int64_t		heartbeat_due;
};

/* rabbit_source.c */
extern void rabbit_delivery_free(RabbitDelivery *delivery);
extern void rabbit_deliveries_append(RabbitDeliveries *list, RabbitDelivery *delivery);

/* rabbit_consume.c */
extern void *rabbit_consume_main(void *arg);

/* rabbit_incoming.c */
extern bool rabbit_incoming_read(RabbitDelivery *delivery,
								 const amqp_basic_properties_t *properties);
extern RabbitDelivery *rabbit_delivery_begin(const RabbitQueue *queue, int number,
											 const amqp_basic_deliver_t *deliver);

#endif							/* OUTBOX_RABBIT_SOURCE_H */
