/*-------------------------------------------------------------------------
 *
 * jet_deliveries.c
 *	  What the server sends to a consumer, and what it is told of it.  The io
 *	  thread's of the way in.
 *
 * What is not ours is not sent, or dropped here.  The place would stay where the
 * last message of ours was, and be before the stream's first one some time: a gap,
 * though nothing of ours is gone.  So the place passes over what is not ours.  The stream is asked now and then for its last sequence; when the
 * consumer has then been idle for two heartbeats, which the server sends when it
 * has nothing left to send, all that is ours up to there has come.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet_source.h"

#include <stdlib.h>
#include <string.h>

#define MESSAGE_OVERHEAD	256
#define BEATS_TO_PASS		2

/* --- acknowledgements --------------------------------------------------------------------- */

static bool
acknowledge(OutboxConsumer *consumer, const char *subject)
{
	return natsConnection_PublishString(consumer->connection.nc, subject, "+ACK") == NATS_OK;
}

static void
keep_due(OutboxConsumer *consumer, uint64_t sequence, const char *subject)
{
	size_t		size = strlen(subject) + 1;
	JetDue	   *due = malloc(sizeof(JetDue) + size);

	if (due == NULL)
		return;					/* it comes again */
	due->next = NULL;
	due->sequence = sequence;
	memcpy(due->subject, subject, size);
	if (consumer->due == NULL)
		consumer->due = due;
	else
		consumer->last_due->next = due;
	consumer->last_due = due;
}

static void
free_due(OutboxConsumer *consumer)
{
	JetDue	   *due;

	while ((due = consumer->due) != NULL)
	{
		consumer->due = due->next;
		free(due);
	}
}

/* Acknowledge what is committed. */
void
jet_acknowledge_committed(OutboxConsumer *consumer)
{
	uint64_t	committed;
	JetDue	   *due;

	pthread_mutex_lock(&consumer->io.lock);
	committed = consumer->committed;
	pthread_mutex_unlock(&consumer->io.lock);
	while ((due = consumer->due) != NULL && due->sequence < committed &&
		   acknowledge(consumer, due->subject))
	{
		consumer->due = due->next;
		free(due);
	}
}

void
jet_stop_deliveries(OutboxConsumer *consumer)
{
	natsSubscription_Destroy(consumer->deliveries);
	consumer->deliveries = NULL;
	free(consumer->flow);
	consumer->flow = NULL;
	free_due(consumer);
}

/* --- messages ---------------------------------------------------------------------------------- */

/* A number in the subject of an acknowledgement, counted from its end. */
static uint64_t
from_end(const char *subject, int back)
{
	const char *c = subject + strlen(subject);

	for (;;)
	{
		while (c > subject && c[-1] != '.')
			c--;
		if (back-- == 0 || c == subject)
			return strtoull(c, NULL, 10);
		c--;
	}
}

/*
 * $JS.ACK.stream.consumer.tries.sequence.number.time.pending; later servers put a
 * domain and an account behind ACK, and a token at the end.
 */
static bool
parse_reply(const char *reply, uint64_t *sequence, uint64_t *number, uint64_t *ns, uint64_t *pending)
{
	int			dots = 0;
	int			skip;

	if (reply == NULL || strncmp(reply, "$JS.ACK.", 8) != 0)
		return false;
	for (const char *c = reply; *c; c++)
		dots += *c == '.';
	skip = dots >= 11 ? 1 : 0;
	*pending = from_end(reply, skip);
	*ns = from_end(reply, skip + 1);
	*number = from_end(reply, skip + 2);
	*sequence = from_end(reply, skip + 3);
	return dots >= 8;
}

static void
hand_over(OutboxConsumer *consumer, natsMsg *msg, uint64_t sequence, uint64_t ns, uint64_t end)
{
	JetArrival *arrival = calloc(1, sizeof(JetArrival));
	bool		ours;

	if (arrival == NULL)
	{
		natsMsg_Destroy(msg);
		consumer->next = sequence;	/* it comes again */
		jet_look_again(consumer, JET_LOOK_AGAIN_MS);
		return;
	}
	arrival->msg = msg;
	arrival->sequence = sequence;
	arrival->stored_ms = (int64_t) (ns / 1000000);
	arrival->bytes = natsMsg_GetDataLength(msg) + MESSAGE_OVERHEAD;
	pthread_mutex_lock(&consumer->io.lock);
	ours = consumer->following == consumer->generation;
	if (ours)
	{
		jet_arrivals_append(&consumer->arrived, arrival);
		consumer->held += arrival->bytes;
	}
	if (end > consumer->last_sequence)
		consumer->last_sequence = end;
	pthread_mutex_unlock(&consumer->io.lock);
	if (!ours)
		jet_arrival_free(arrival);
	else
		thread_wake(consumer->io.fd);
}

static void
take_message(OutboxConsumer *consumer, natsMsg *msg)
{
	const char *reply = natsMsg_GetReply(msg);
	uint64_t	sequence;
	uint64_t	number;
	uint64_t	ns;
	uint64_t	pending;

	if (!parse_reply(reply, &sequence, &number, &ns, &pending) || number != consumer->delivered + 1)
	{
		/* one is missing: once more, from behind the last one */
		natsMsg_Destroy(msg);
		jet_look_again(consumer, 0);
		return;
	}
	consumer->delivered = number;
	consumer->witness = (JetWitness) {(int64_t) sequence, ns};
	if (sequence < consumer->next)
	{
		/* a work queue's, that is done with, or has come */
		if (consumer->work_queue)
			keep_due(consumer, sequence, reply);
		natsMsg_Destroy(msg);
		return;
	}
	consumer->next = sequence + 1;
	if (!jet_topic_wanted(consumer, natsMsg_GetSubject(msg)))
	{
		natsMsg_Destroy(msg);
		return;
	}
	if (consumer->work_queue)
		keep_due(consumer, sequence, reply);
	hand_over(consumer, msg, sequence, ns, sequence + pending);
}

/* Is there room for what the server would send next? */
static bool
has_room(OutboxConsumer *consumer)
{
	bool		room;

	pthread_mutex_lock(&consumer->io.lock);
	room = consumer->held <= consumer->max_bytes / 2;
	pthread_mutex_unlock(&consumer->io.lock);
	return room;
}

static void
answer_flow(OutboxConsumer *consumer)
{
	if (consumer->flow == NULL || !has_room(consumer))
		return;
	(void) natsConnection_PublishString(consumer->connection.nc, consumer->flow, "");
	free(consumer->flow);
	consumer->flow = NULL;
}

/* The stream's last sequence, which is asked for now and then. */
void
jet_pass(OutboxConsumer *consumer, const char *text)
{
	int64_t		last;

	if (!jet_json_number(text, "state.last_seq", &last))
		return;
	pthread_mutex_lock(&consumer->io.lock);
	if ((uint64_t) last > consumer->last_sequence)
		consumer->last_sequence = (uint64_t) last;
	pthread_mutex_unlock(&consumer->io.lock);
	consumer->pass_to = (uint64_t) last + 1;
	consumer->pass_beats = 0;
}

/* The server has nothing left to send. */
static void
idle(OutboxConsumer *consumer)
{
	if (consumer->pass_to == 0 || ++consumer->pass_beats < BEATS_TO_PASS)
		return;
	if (consumer->next < consumer->pass_to)
		consumer->next = consumer->pass_to;
	consumer->pass_to = 0;
	pthread_mutex_lock(&consumer->io.lock);
	if (consumer->following == consumer->generation)
		consumer->passed = (int64_t) consumer->next;
	pthread_mutex_unlock(&consumer->io.lock);
	thread_wake(consumer->io.fd);
}

/* A heartbeat, or the question whether there is room. */
static void
take_control(OutboxConsumer *consumer, natsMsg *msg)
{
	const char *last;
	const char *flow = natsMsg_GetReply(msg);

	if (flow == NULL && natsMsgHeader_Get(msg, "Nats-Consumer-Stalled", &flow) != NATS_OK)
		flow = NULL;
	if (flow != NULL)
	{
		free(consumer->flow);
		consumer->flow = strdup(flow);
	}
	if (natsMsgHeader_Get(msg, "Nats-Last-Consumer", &last) == NATS_OK)
	{
		if (strtoull(last, NULL, 10) > consumer->delivered)
			jet_look_again(consumer, 0);
		else if (consumer->flow == NULL)
			idle(consumer);
	}
	natsMsg_Destroy(msg);
}

/* Take what has come. */
void
jet_take_deliveries(OutboxConsumer *consumer)
{
	natsMsg    *msg;

	while (consumer->deliveries != NULL && consumer->reading == JET_READ_RUN &&
		   natsSubscription_NextMsg(&msg, consumer->deliveries, 0) == NATS_OK)
	{
		const char *status;

		consumer->heard = thread_now_ms();
		if (natsMsg_GetDataLength(msg) == 0 &&
			natsMsgHeader_Get(msg, "Status", &status) == NATS_OK && strcmp(status, "100") == 0)
			take_control(consumer, msg);
		else
			take_message(consumer, msg);
	}
	answer_flow(consumer);
}
