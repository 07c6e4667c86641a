/*-------------------------------------------------------------------------
 *
 * topics.h
 *	  What a relay knows of each topic that it has messages of.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TOPICS_H
#define OUTBOX_TOPICS_H

#include "portability/instr_time.h"
#include "transport/transport.h"

struct OutboxStream;

typedef enum OutboxTopicState
{
	OUTBOX_TOPIC_FINE,
	OUTBOX_TOPIC_MISSING,		/* or forbidden: probed until it is there */
	OUTBOX_TOPIC_BLOCKED		/* by a refused record, with on_error 'block' */
} OutboxTopicState;

typedef struct OutboxTopic
{
	char	   *name;			/* NUL-terminated UTF-8 */
	int			name_len;
	int			entries;		/* in windows */
	Size		bytes;			/* of those */
	int			in_flight;		/* of those */
	int			suspects;		/* of those, refused together with others */
	uint64		later;			/* pass in which the client took no more of it */
	struct OutboxStream *stream;	/* its own when it lags, else NULL */
	instr_time	moved;			/* last answer, or since when it waits */

	/* trouble */
	OutboxTopicState state;
	bool		given_up;		/* waited for topic_timeout */
	bool		on_trial;		/* resumed, and nothing delivered since */
	OutboxError error;
	instr_time	since;
	instr_time	tried;
	long		retry_ms;		/* when blocked: until the next try */
} OutboxTopic;

typedef struct OutboxTopics OutboxTopics;

extern OutboxTopics *topics_create(MemoryContext parent);

/* A topic's state, made when it is new. */
extern OutboxTopic *topics_get(OutboxTopics *topics, const char *name, int len);

/* The same, NULL when there is none. */
extern OutboxTopic *topics_find(OutboxTopics *topics, const char *name, int len);

/* One after the other, in no order: start with *pos = 0; NULL at the end. */
extern OutboxTopic *topics_next(OutboxTopics *topics, int *pos);

#endif							/* OUTBOX_TOPICS_H */
