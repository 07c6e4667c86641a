/*-------------------------------------------------------------------------
 *
 * source.h
 *	  What a subscription asks of a message broker's client library.
 *
 * The way in of a transport (see transport.h, whose rules of threads, locks
 * and blocking hold here too).  A consumer belongs to a group, and the broker
 * gives it partitions of the topics that it asked for, and takes them away.
 * Both are events: the library stands still until they are answered, so that
 * the subscription can first look up, or write down, the place in the
 * database.  What the broker remembers of the group's places is only read by
 * find().
 *
 *	ASSIGN			answered by seek(), which may come in several calls: a
 *					partition gives no message before its first one, and is
 *					not paused.  Of no partitions (the group has more
 *					members): nothing to answer
 *	REVOKE, LOST	answered by give_up(); commit() before, after REVOKE only
 *
 * The next one may be under way before a call: seek() then says FENCED, and
 * receive() why.
 *
 * No message of a partition comes after its REVOKE or LOST, and none of
 * before a seek() after it.  The messages of one receive(), with all that they
 * point to, are the transport's, and valid until the next receive() or
 * close(); so are the places of an event.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SOURCE_H
#define OUTBOX_SOURCE_H

#include "transport/transport.h"

#define OUTBOX_INCARNATION	64	/* bytes, with the NUL */

/* A place in a topic. */
typedef struct OutboxPlace
{
	const char *topic;
	int32_t		partition;
	int64_t		offset;			/* of the next message to receive; -1: none */
	const char *incarnation;	/* for seek(): of the topic that is meant, see
								 * incarnation(); NULL: of any */
} OutboxPlace;

/*
 * A message.  Its place is what positions are kept by; where messages of several
 * topics lie in one place (a stream, a queue), subject says what it was sent to.
 */
typedef struct OutboxIncoming
{
	const char *topic;
	int32_t		partition;
	int64_t		offset;
	const char *subject;		/* NULL: the topic */
	const char *message_id;		/* that the broker knows it by, for messages
								 * without such a header; NULL: none */
	int64_t		timestamp_ms;	/* since 1970-01-01 UTC; -1: none */
	const char *key;			/* NULL: none */
	size_t		key_len;
	const char *payload;		/* NULL: a tombstone */
	size_t		payload_len;
	int			nheaders;
	const OutboxHeader *headers;	/* in their order, names may repeat; value
									 * NULL: none */
} OutboxIncoming;

typedef enum OutboxSourceEvent
{
	OUTBOX_SOURCE_NOTHING,		/* for now: wait for the eventfd */
	OUTBOX_SOURCE_MESSAGES,		/* some have come */
	OUTBOX_SOURCE_ASSIGN,		/* partitions are ours from now on: seek() */
	OUTBOX_SOURCE_REVOKE,		/* all are to be given up: commit(), then
								 * give_up() */
	OUTBOX_SOURCE_GAP,			/* what follows one place is gone at the
								 * broker, or was never there; the partition
								 * stands still until seek() */
	OUTBOX_SOURCE_SAME,			/* a topic is the one that seek() meant, though
								 * its incarnation() is another: to be written
								 * down; it stands still until seek() */
	OUTBOX_SOURCE_PASSED,		/* there is nothing for us before these places,
								 * and all that was has been handed out */
	OUTBOX_SOURCE_LOST			/* like REVOKE, but another one may have them
								 * already: commit() is of no use */
} OutboxSourceEvent;

/* Where to begin in a partition. */
typedef enum OutboxFrom
{
	OUTBOX_FROM_EARLIEST,		/* with the first message that is there */
	OUTBOX_FROM_LATEST,			/* behind the last one */
	OUTBOX_FROM_TIME,			/* with the first one that is not older; behind
								 * the last one when all are */
	OUTBOX_FROM_GROUP			/* where the group is, as the broker remembers:
								 * -1 when it does not */
} OutboxFrom;

typedef struct OutboxSourceConfig
{
	const char *server_name;
	const char *client_id;		/* default for the library's client name */
	int			noptions;		/* as those of OutboxTransportConfig */
	const OutboxOption *options;
	const char *group_id;
	int			ntopics;
	const char *const *topics;	/* names, or patterns: a star stands for any
								 * characters, as in patterns.h */
	size_t		max_bytes;		/* bound of what is received ahead */
	int			member;			/* which of the subscription's workers, from 0 */
} OutboxSourceConfig;

typedef struct OutboxConsumer OutboxConsumer;	/* the transport's own */

struct OutboxSource
{
	/*
	 * Connecting and joining the group go on in the background.  NULL and
	 * *error set when it can't be opened.
	 */
	OutboxConsumer *(*open) (const OutboxSourceConfig *config,
							 OutboxError *error);

	/* readable when receive() may have something; owned by the consumer */
	int			(*event_fd) (OutboxConsumer *consumer);

	/*
	 * The next event, without waiting.  Drains the eventfd first.  MESSAGES:
	 * *messages and *n, up to max, of several partitions, in the order of each.
	 * ASSIGN, REVOKE, LOST: *places and *n, at least one but for ASSIGN, which
	 * knows no offsets; the others have those behind the last message handed
	 * out.  GAP, SAME: one place, the one asked for.  PASSED: where we are now.
	 */
	OutboxSourceEvent (*receive) (OutboxConsumer *consumer, int max,
								  const OutboxIncoming **messages,
								  const OutboxPlace **places, int *n);

	/*
	 * Go on from these places: to answer ASSIGN or GAP, or at any time.  OK,
	 * RETRY (the partitions stand still: once more), or FENCED: one of them is
	 * not ours, nothing was done.
	 */
	OutboxFailure (*seek) (OutboxConsumer *consumer, const OutboxPlace *places,
						   int n, OutboxError *error);

	/*
	 * Give no messages of these partitions, or give them again, from behind
	 * the last one handed out or from their last seek().  Offsets don't
	 * matter; those that are not ours are passed over.  OK, or RETRY: some
	 * that were to go on are still paused.
	 */
	OutboxFailure (*pause) (OutboxConsumer *consumer, const OutboxPlace *places,
							int n, bool paused, OutboxError *error);

	/*
	 * Tell the broker how far the group is, for its tools.  With wait_ms 0 it
	 * goes on in the background and OK says nothing; status() has an error.
	 * Else OK, RETRY (not known in time), TOPIC, CONFIG, or FENCED: the
	 * partitions are not ours any more.
	 */
	OutboxFailure (*commit) (OutboxConsumer *consumer, const OutboxPlace *places,
							 int n, int wait_ms, OutboxError *error);

	/* Answer REVOKE or LOST. */
	void		(*give_up) (OutboxConsumer *consumer);

	/*
	 * Where to begin in any partition, ours or not; time_ms is for TIME.
	 * Starts to ask when it does not know.  RETRY (with *error, name empty when
	 * nothing has failed): ask again when the eventfd was readable.  Else OK,
	 * TOPIC or CONFIG.
	 */
	OutboxFailure (*find) (OutboxConsumer *consumer, const char *topic,
						   int32_t partition, OutboxFrom from, int64_t time_ms,
						   int64_t *offset, OutboxError *error);

	/*
	 * All partitions of the topics that are there, whoever has them.  Answers
	 * once, as find(): RETRY until then.  What *places points to lives until
	 * the next call, or close().
	 */
	OutboxFailure (*list) (OutboxConsumer *consumer, const OutboxPlace **places,
						   int *n, OutboxError *error);

	/*
	 * Where a partition ends, from what the library knows without asking; -1:
	 * not known.
	 */
	int64_t		(*known_end) (OutboxConsumer *consumer, const char *topic,
							  int32_t partition);

	/*
	 * As a client's.  A topic that is missing or forbidden is such an error,
	 * TOPIC; it is taken up when it appears.  An error OK says that what the
	 * last one told is over.
	 */
	void		(*status) (OutboxConsumer *consumer,
						   OutboxTransportStatus *status);

	/*
	 * Leave the group and destroy, within about timeout_ms, whatever is
	 * unanswered.  False: it could not be stopped in time, and the process
	 * must exit.
	 */
	bool		(*close) (OutboxConsumer *consumer, int timeout_ms);

	/*
	 * What tells a topic from another one of its name that is made later, into
	 * "text" of OUTBOX_INCARNATION bytes; empty: nothing.  Known from ASSIGN on.
	 * To seek() in another one is a GAP.  NULL: nothing tells.  The broker may
	 * tell otherwise of the same one later: SAME.
	 */
	void		(*incarnation) (OutboxConsumer *consumer, char *text);

	/*
	 * Does the broker forget what commit() says is done (it is a queue)?  Then it
	 * is told only what can't be lost here.  Known from ASSIGN on; NULL: no.
	 */
	bool		(*forgets) (OutboxConsumer *consumer);

	/*
	 * The broker has no places: offsets are numbers that the consumer gives to
	 * what comes, going on from seek().  They are of no use for beginning
	 * anywhere, for going back to what was committed, or for knowing a message
	 * again: after the connection was lost what had come and was not
	 * committed comes under other numbers.
	 */
	bool		own_numbers;

	/* A place is not a topic, but where messages of several lie: a stream. */
	bool		places_are_streams;
};

#endif							/* OUTBOX_SOURCE_H */
