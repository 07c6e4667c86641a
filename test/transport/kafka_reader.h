/*-------------------------------------------------------------------------
 *
 * kafka_reader.h
 *	  A consumer of the Kafka transport, and all that it has said.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef KAFKA_READER_H
#define KAFKA_READER_H

#include "kafka_driver.h"
#include "transport/source.h"

#define S (*kafka_transport.source)

#define PATIENCE	60			/* s */
#define MAX_SEEN	20000
#define MAX_SHARE	8
#define BATCH		500

typedef struct Reader
{
	OutboxConsumer *consumer;
	bool		answers;		/* assignments, from "at"; revocations */
	int64_t		at[MAX_SHARE];	/* by partition */
	OutboxPlace share[MAX_SHARE];	/* of the last ASSIGN */
	char		names[MAX_SHARE][128];
	int			nshare;			/* 0: nothing is ours */
	int			count[OUTBOX_SOURCE_LOST + 1];	/* of events */
	OutboxPlace gap;
	int			nseen;
	int			foreign;		/* messages of no partition of ours */
	struct
	{
		int32_t		partition;
		int64_t		offset;
		char		text[16];
	}			seen[MAX_SEEN];
	void		(*each) (const OutboxIncoming *message, void *arg);
	void	   *arg;
} Reader;

extern Reader *reader_open_of(const char *group, int ntopics,
							  const char *const *topics);
extern Reader *reader_open(const char *group, const char *topic);
extern bool reader_close(Reader *reader);
extern bool is_ours(const Reader *reader, const char *topic, int32_t partition);
extern bool pause_it(Reader *reader, const OutboxPlace *place, bool paused);
extern bool seek_to(Reader *reader, const OutboxPlace *places, int n);
extern void take_event(Reader *reader, OutboxSourceEvent event,
					   const OutboxPlace *places, int n, int ms);
extern OutboxSourceEvent step(Reader *reader, int ms);
extern bool wait_event(Reader *reader, OutboxSourceEvent event, int count);
extern bool wait_seen(Reader *reader, int n);
extern bool stays_silent(Reader *reader, double seconds);
extern bool wait_error(Reader *reader, OutboxFailure failure,
					   OutboxTransportStatus *status);
extern OutboxFailure find_place(Reader *reader, const char *topic,
								int32_t partition, OutboxFrom from, int64_t time_ms, int64_t *offset);
extern bool lists(Reader *reader, const char *topic, int expected);
extern rd_kafka_t *producer_new(const char *transactional_id);
extern void producer_end(rd_kafka_t *rk);
extern void put(rd_kafka_t *rk, const char *topic, int partition,
				const char *text, int64_t time_ms);
extern bool are_numbers(const Reader *reader, int first, int32_t partition,
						int from, int n);
extern int64_t committed_offset(const char *group, const char *topic, int partition);

#endif							/* KAFKA_READER_H */
