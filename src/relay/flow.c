/*-------------------------------------------------------------------------
 *
 * flow.c
 *	  How much of a backlog is under way at a time.
 *
 * What is handed over and not answered should be enough to keep client and broker
 * busy, and no more.  More only waits in the client's queues: it costs memory; a crash
 * makes duplicates of it; and with several partitions its answers come in another
 * order than it was sent, so that each of them touches memory that the processor's
 * caches have long lost.
 *
 * So while messages are answered fast, MIN_FLOW of them at least in each period, the
 * limit is, or by and by becomes, MIN_FLOW.  But it must not let what is slow or stuck
 * hold up what is not: a slow topic, or the partitions of a broker that is away, beside
 * others that would go on; and it must not hold up a far broker either.  All of these
 * show in that the limit is reached, and fewer answers come, period after period: then
 * it is doubled.  So after five such periods the relay's memory is the limit, as it
 * would be without this file, and lagging.c has its say.  One alone tells nothing: the
 * broker makes a new file, or collects garbage.
 *
 * Streams of lagging topics are not limited: they are small, and would otherwise find
 * the room taken by the main stream each time.  Nor is what belongs to one of the
 * broker's transactions, which is bounded by that: chunk.c would take what is held back
 * for its end.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "elapsed.h"
#include "relay/relay.h"

#define MIN_FLOW		8192	/* messages */
#define SLOW_PERIODS	2		/* in a row, before the limit is doubled */

/* How many of the main stream are under way? */
static uint64
main_in_flight(const Relay *relay)
{
	uint64		n = relay->windows->in_flight;
	ListCell   *lc;

	foreach(lc, relay->lagging)
		n -= ((OutboxStream *) lfirst(lc))->topic->in_flight;
	return n;
}

/* A period is over: what does it tell? */
static void
adapt(OutboxFlow *flow, bool connected)
{
	bool		slow = flow->was_held_back && flow->answered < MIN_FLOW;

	flow->slow_periods = slow && connected ? flow->slow_periods + 1 : 0;
	if (flow->slow_periods >= SLOW_PERIODS)
		flow->limit = Min(flow->limit * 2, RELAY_MAX_ENTRIES);
	else if (flow->slow_periods == 0)
		flow->limit = Max(flow->limit - flow->limit / 8, MIN_FLOW);
	flow->was_held_back = false;
	flow->answered = 0;
	INSTR_TIME_SET_CURRENT(flow->since);
}

/* How many more of the main stream may be handed over now? */
uint64
relay_flow_room(Relay *relay)
{
	OutboxFlow *flow = &relay->flow;
	uint64		in_flight;

	flow->was_held_back = flow->was_held_back || flow->held_back;
	flow->held_back = false;
	if (relay->chunk.state != OUTBOX_CHUNK_NONE)
		return PG_UINT64_MAX;
	if (flow->limit == 0 || outbox_ms_since(flow->since) >= RELAY_FLOW_MS)
		adapt(flow, relay->connected);
	in_flight = main_in_flight(relay);
	return flow->limit > in_flight ? flow->limit - in_flight : 0;
}
