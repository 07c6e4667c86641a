/*-------------------------------------------------------------------------
 *
 * jet_source.h
 *	  What the parts of the NATS way in share.
 *
 * A consumer reads one stream, the server's.  That is its one place: (stream,
 * partition 0, sequence).  Main is the subscription's worker; io is a thread as
 * that of the way out (jet.h), which hands messages over as they came from the
 * library.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_JET_SOURCE_H
#define OUTBOX_JET_SOURCE_H

#include "jet.h"

#define JET_CREATED	OUTBOX_INCARNATION	/* "2026-11-29T08:14:03.123456789Z" */

#define JET_LOOK_AGAIN_MS	1000

/* The last message of a stream that we know of, which tells it from another one. */
typedef struct JetWitness
{
	int64_t		sequence;		/* 0: none */
	uint64_t	ns;				/* when it was stored; or 0, and in this text */
	char		time[JET_CREATED];
} JetWitness;

/* A message that has come. */
typedef struct JetArrival
{
	struct JetArrival *next;
	natsMsg    *msg;
	uint64_t	sequence;
	size_t		bytes;
	int64_t		stored_ms;		/* when the stream took it */
} JetArrival;

#define LIST_PREFIX jet_arrivals
#define LIST_TYPE JetArrivals
#define LIST_ITEM JetArrival
#define LIST_DECLARE
#include "common/list.h"

/* What has to be acknowledged once it is committed; io only. */
typedef struct JetDue
{
	struct JetDue *next;
	uint64_t	sequence;
	char		subject[];		/* of the acknowledgement */
} JetDue;

/* An answer that main waits for. */
typedef enum JetQuestion
{
	JET_ASK_NOTHING,
	JET_ASK_TIME,				/* where a time begins */
	JET_ASK_DONE
} JetQuestion;

/* What io is at. */
typedef enum JetReading
{
	JET_READ_LOOK,				/* the stream is to be asked for */
	JET_READ_LOOKING,
	JET_READ_READY,				/* it is there; main is to say where to begin */
	JET_READ_STARTING,			/* the server is asked to send */
	JET_READ_RUN,
	JET_READ_CHECKING,			/* is it the stream that we mean? */
	JET_READ_GAP,				/* main is told, and seeks */
	JET_READ_ASKING				/* where a time begins */
} JetReading;

struct OutboxConsumer
{
	IoThread	io;
	JetConfig	config;
	int			ntopics;
	char	  **topics;
	bool		exact;			/* they are just what the server filters by */
	bool		member;			/* the one that has the place */
	size_t		max_bytes;

	/* main only */
	bool		assigned;
	bool		paused;
	int64_t		handed;			/* sequence behind the last one handed out */
	JetArrivals out;			/* given out by the last receive() */
	OutboxIncoming *messages;
	OutboxHeader *headers;
	size_t		messages_size;
	size_t		headers_size;
	OutboxPlace place;

	/* between the threads, guarded by io.lock */
	JetArrivals arrived;
	size_t		held;			/* bytes of arrived and out */
	bool		seen;			/* the stream is known */
	bool		work_queue;		/* ... and forgets what is acknowledged; io
								 * sets it, and may look without the lock */
	uint64_t	first_sequence;
	uint64_t	last_sequence;
	char		created[JET_CREATED];	/* when the stream was made */
	int64_t		wanted;			/* where main wants to begin; -1: nowhere */
	char		wanted_created[JET_CREATED];	/* ... in the stream that was made
												 * then; empty: in any */
	uint64_t	generation;		/* of that */
	bool		gap;
	bool		gap_same;		/* but none: it is the stream that is meant */
	int64_t		gap_at;
	int64_t		passed;			/* there is nothing of ours below that */
	uint64_t	committed;		/* what is below is done */
	JetQuestion question;
	int64_t		question_ms;
	int64_t		answer;

	/* io only */
	JetConnection connection;
	natsSubscription *deliveries;
	char		deliver[sizeof(((JetConnection *) 0)->inbox) + 24];
	uint64_t	ndeliver;
	JetReading	reading;
	int64_t		look_due;
	int64_t		asked_at;
	uint64_t	request;
	uint64_t	next_request;
	bool		none_there;		/* the stream has none of the subjects */
	bool		one_missing;	/* ... or not all of them */
	uint64_t	following;		/* generation that is read */
	uint64_t	next;			/* sequence from which on we read */
	JetWitness	witness;		/* of the stream that we read */
	JetWitness	looked;			/* ... and of the one that was looked at */
	bool		has_older;		/* messages older than it says to be itself */
	uint64_t	delivered;		/* the server's count of what it has sent us */
	int64_t		heard;			/* ms, when a message or a heartbeat came */
	int64_t		pass_asked;		/* ms, when the stream's last sequence was */
	uint64_t	pass_to;		/* behind that */
	int			pass_beats;		/* heartbeats since */
	char	   *flow;			/* to be answered when there is room, or NULL */
	JetDue	   *due;
	JetDue	   *last_due;
};

/* jet_incoming.c: main */
extern int	jet_incoming_fill(OutboxConsumer *consumer);

/* jet_reader.c: io */
extern void *jet_reader_main(void *arg);
extern void jet_look_again(OutboxConsumer *consumer, int after_ms);

/* jet_witness.c: io */
extern void jet_witness_note(JetWitness *witness, const char *info);
extern bool jet_witness_is(JetWitness *witness, const char *text);
extern bool jet_is_older(const char *info, const char *created);

/* jet_deliveries.c: io */
extern void jet_acknowledge_committed(OutboxConsumer *consumer);
extern void jet_stop_deliveries(OutboxConsumer *consumer);
extern void jet_take_deliveries(OutboxConsumer *consumer);
extern void jet_pass(OutboxConsumer *consumer, const char *text);

/* jet_topic.c */
extern bool jet_topic_wanted(const OutboxConsumer *consumer, const char *subject);
extern bool jet_topic_filter(const OutboxConsumer *consumer, char *filter, size_t size);
extern const char *jet_topic_missing(const OutboxConsumer *consumer, const char *info);

/* jet_source.c */
extern void jet_arrivals_append(JetArrivals *list, JetArrival *arrival);
extern void jet_arrival_free(JetArrival *arrival);

#endif							/* OUTBOX_JET_SOURCE_H */
