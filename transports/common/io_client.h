/*-------------------------------------------------------------------------
 *
 * io_client.h
 *	  The way out to a broker, as far as it does not depend on which: topics,
 *	  records, and how two threads hand them to each other.
 *
 * An IoClient is the first member of a transport's OutboxClient, and has the two
 * threads of io_thread.h.  A record is main's until it is handed over ("incoming"),
 * io's until io hands it back ("reports"), and main's again.  So no record is ever
 * touched by both, and no list but for these two, whose lock is held while they are.
 *
 * A topic is shared.  Main finds it by its name, counts what of it is pending and
 * reads its state; io changes the state, and main only when nothing of the topic
 * is pending: then io has no record to change it for.
 *
 * A topic that failed takes nothing until the relay has all of its records back
 * (send() and the io thread see to that), so that none overtakes another; then
 * probe_topic() has it tried again.
 *
 * What a record is on the wire, and which one may go, is each transport's.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_IO_CLIENT_H
#define OUTBOX_IO_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/io_thread.h"
#include "common/key_order.h"
#include "transport/transport.h"

#pragma GCC visibility push(hidden)

#define LIST_PREFIX io_list
#define LIST_TYPE IoList
#define LIST_ITEM IoRecord
#define LIST_DECLARE
#include "common/list.h"

/* A topic that this client has used; lives as long as the client. */
typedef enum IoTopicState
{
	IO_TOPIC_TRYING,			/* not known, or it has to wait: one record
								 * goes ahead */
	IO_TOPIC_FINE,
	IO_TOPIC_FAILED				/* nobody takes it, or it is forbidden */
} IoTopicState;

typedef struct IoTopic
{
	struct IoTopic *next;		/* in its hash bucket; main only */
	int			pending;		/* sent and not reported; main only */
	atomic_int	state;			/* io sets it, main only when nothing is
								 * pending */
	OutboxError error;			/* when FAILED; guarded by the client's lock */
	uint64_t	given_back_known;	/* records refused or given back; main only */
	uint64_t	given_back;		/* the same, io only: main may not know of all */
	struct IoRecord *trial;		/* the one that goes ahead; io only */
	IoList		waiting;		/* for that one; io only */
	char		name[];
} IoTopic;

/*
 * A record that main has handed over: io's until it is reported.  The first
 * member of a transport's own.
 */
typedef struct IoRecord
{
	struct IoRecord *next;		/* in the list where it is */
	IoTopic    *topic;
	OutboxRecord data;			/* what it points to is borrowed; headers: the
								 * transport's, or none */
	size_t		bytes;			/* ... so many of them, about */
	uint64_t	given_back_known;	/* of its topic, when it was sent */

	/* io only */
	uint64_t	hash;			/* of the key, see key_order.h */
	struct IoRecord *hash_next;
	IoList		followers;		/* of the same key */
	bool		holds_key;
	int			refusals;		/* for now */
	int64_t		due;			/* ms, of its next try */

	/* the report */
	OutboxFailure failure;
	char	   *answer;			/* malloc'd: the error's name, NUL, its text; or
								 * NULL */

	int			size;			/* room for entries, see IoKind */
} IoRecord;

#define IO_USUAL_ENTRIES	8	/* records of these are kept for the next */

typedef struct IoClient IoClient;

/* What the records of a transport are like. */
typedef struct IoKind
{
	size_t		record_size;	/* of its struct, which begins with an IoRecord ... */
	size_t		entry_size;		/* ... and ends in an array of these: headers */

	/* main: free what a record of the transport has; NULL: nothing */
	void		(*forget) (IoRecord *record);

	/* io: a record is given back by a purge; NULL: that is all */
	void		(*purged) (IoClient *client, IoRecord *record);
} IoKind;

#define IO_TOPIC_BUCKETS	256

struct IoClient
{
	IoThread	thread;

	/* set before the thread starts */
	const IoKind *kind;
	size_t		max_bytes;

	/* main only */
	IoTopic    *topics[IO_TOPIC_BUCKETS];
	IoTopic    *last_topic;
	size_t		bytes;			/* accepted, not reported */
	uint64_t	accepted;		/* not reported */
	IoList		handed_out;		/* by the last poll(), with their texts */
	IoRecord   *spare;			/* freed ones */

	/* between the threads, guarded by thread.lock */
	IoList		incoming;
	IoList		reports;
	bool		io_sleeps;
	bool		purge_queued;
	bool		purge_all;

	/* io only */
	IoKeys		keys;			/* that have a record on its way */
	IoList		again;			/* refused for now, until due */
	IoList		done;			/* to be reported */
};

/* --- main ------------------------------------------------------------------------ */

/* What begins with an IoClient, of so many bytes, all else zero; NULL with *error. */
extern void *io_client_new(size_t size, const IoKind *kind, size_t max_bytes,
						   OutboxError *error);

/* With all records that are in its lists; the thread is no more. */
extern void io_client_free(IoClient *client);

/* The topic of that name, which takes records; NULL with *error. */
extern IoTopic *io_topic_get(IoClient *client, const char *name, OutboxError *error);

/* Is there room for so many bytes?  False with *error. */
extern bool io_has_room(const IoClient *client, size_t bytes, OutboxError *error);

/* A record with room for so many entries, without headers; NULL with *error. */
extern IoRecord *io_record_new(IoClient *client, IoTopic *topic, const OutboxRecord *data,
							   int nentries, OutboxError *error);
extern void io_record_free(IoClient *client, IoRecord *record);

/* To the io thread. */
extern void io_hand_over(IoClient *client, IoRecord *record);

/* For the tables of what begins with an IoClient, see transport.h. */
extern int	io_poll(OutboxClient *client, OutboxReport *reports, int max);
extern OutboxFailure io_probe_topic(OutboxClient *client, const char *name, OutboxError *error);
extern void io_flush(OutboxClient *client);
extern void io_purge(OutboxClient *client, bool in_flight);

/* --- io -------------------------------------------------------------------------- */

/* What main wants, with new records behind those in a list; false: that we end. */
extern bool io_take_orders(IoClient *client, IoList *to, bool *purge, bool *all);

/* Has main nothing for us?  It wakes us then when it has. */
extern bool io_may_sleep(IoClient *client);

/* All that is done to main. */
extern void io_hand_back(IoClient *client);

/* A record is done. */
extern void io_report(IoClient *client, IoRecord *record, OutboxFailure failure,
					  const OutboxError *error);

/* Give back a record whose topic has failed, with all that follow it. */
extern void io_give_back(IoClient *client, IoRecord *record);

/* Refused for now: again after a while, longer each time. */
extern void io_refused(IoClient *client, IoRecord *record);

/* Those whose time has come, behind those in a list; when the next one's comes, 0: none. */
extern int64_t io_take_due(IoClient *client, int64_t now, IoList *to);

/* Nothing of a topic is sent any more, until it is tried again. */
extern void io_topic_failed(IoClient *client, IoTopic *topic, const OutboxError *error);

/* Take the records of a topic out of a list, and give them back. */
extern void io_sweep(IoClient *client, IoList *list, const IoTopic *topic);

/* Give back all of a list, and what waits for it, unsent. */
extern void io_purge_list(IoClient *client, IoList *list);

#pragma GCC visibility pop

#endif							/* OUTBOX_IO_CLIENT_H */
