/*-------------------------------------------------------------------------
 *
 * relay.c
 *	  A relay and its broker: windows, answers, a topic that lags.
 *
 * Stands for src/relay/relay.c, read.c, window.c, client.c and lagging.c.  The
 * relay is one process, so while it is in the middle of a round or of a piece it does
 * nothing else; the broker may append what it was sent at any time.  A broker appends
 * a topic's messages in the order in which they were sent (a topic is one partition
 * here, and one key).
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "model.h"

#define ANY		0xff			/* topic */

/* --- windows --------------------------------------------------------------------- */

void
window_add(Relay *r, int stream, int msg, int batch)
{
	Stream	   *w = &r->stream[stream];
	bool		done = HAS(r->acked, msg);

	if (w->n == MAX_MSGS)
	{
		violate(P_REPEATED, "message %d is read again and again", msg);
		return;
	}
	r->acked &= (Set) ~BIT(msg);
	w->entry[w->n++] = (Entry) {(uint8_t) msg, done ? ENTRY_DONE : ENTRY_QUEUED, (uint8_t) batch};
}

/* Forget what is done, oldest first. */
static void
window_pop(Stream *w)
{
	int			done = 0;

	while (done < w->n && w->entry[done].state == ENTRY_DONE)
		done++;
	memmove(w->entry, w->entry + done, (size_t) (w->n - done) * sizeof(Entry));
	memset(w->entry + w->n - done, 0, (size_t) done * sizeof(Entry));
	w->n = (uint8_t) (w->n - done);
}

void
windows_pop(Relay *r)
{
	window_pop(&r->stream[0]);
	window_pop(&r->stream[1]);
}

/* The first entry of a topic in that state; NULL: none. */
static Entry *
first_entry(const State *st, Relay *r, int topic, EntryState state)
{
	for (int s = 0; s < 2; s++)
		for (int i = 0; i < r->stream[s].n; i++)
		{
			Entry	   *entry = &r->stream[s].entry[i];

			if (st->spec.msg[entry->msg].topic == topic && entry->state == state)
				return entry;
		}
	return NULL;
}

/* Is there one that the broker may append?  Not of a topic that is missing. */
static bool
may_append(const State *st, const Relay *r, int topic)
{
	return first_entry(st, (Relay *) r, topic, ENTRY_SENT) != NULL &&
		!(topic == LAGGER && r->trouble);
}

/* Has the client nothing of this topic? */
static bool
none_in_flight(const State *st, const Relay *r, int topic)
{
	return first_entry(st, (Relay *) r, topic, ENTRY_SENT) == NULL &&
		first_entry(st, (Relay *) r, topic, ENTRY_APPENDED) == NULL;
}

/* What a stream may send next, of a topic or (ANY) of all; NULL: nothing. */
static Entry *
next_queued(const State *st, Relay *r, int stream, int topic)
{
	Stream	   *w = &r->stream[stream];

	if (stream == 1 && r->trouble)
		return NULL;
	for (int i = 0; i < w->n; i++)
		if (w->entry[i].state == ENTRY_QUEUED &&
			(topic == ANY || st->spec.msg[w->entry[i].msg].topic == topic))
			return is_replicated(st, r->batch[w->entry[i].batch].lsn) ||
				!ON(REPLICATED_BEFORE_SEND) ? &w->entry[i] : NULL;
	return NULL;
}

/* With care one of a topic, while others wait: what is done is no prefix then. */
static void
send_queued(State *st, int s, int stream, int topic)
{
	Relay	   *r = &st->relay[s];
	Entry	   *entry;

	if (r->chunk == CHUNK_READY)
		r->chunk = CHUNK_OPEN;
	while ((entry = next_queued(st, r, stream, topic)) != NULL)
	{
		judge_send(st, s, entry->msg);
		entry->state = ENTRY_SENT;
		if (scope.one_by_one || topic != ANY)
			break;
	}
}

/* The client is given up: what it had no answer for is sent again. */
static void
lose_client(State *st, int s)
{
	Relay	   *r = &st->relay[s];

	if (is_exactly_once(s))
	{
		chunk_lose_client(r);
		return;
	}
	for (int stream = 0; stream < 2; stream++)
		for (int i = 0; i < r->stream[stream].n; i++)
		{
			Entry	   *entry = &r->stream[stream].entry[i];

			if (entry->state == ENTRY_APPENDED)
				st->spec.may_repeat[s] |= BIT(entry->msg);
			if (entry->state == ENTRY_APPENDED || entry->state == ENTRY_SENT)
				entry->state = ENTRY_QUEUED;
		}
}

/* --- a topic that lags -------------------------------------------------------------- */

/* Drop what was not sent from the window's end, and put the reader before it. */
static void
trim(State *st, Relay *r)
{
	Stream	   *w = &r->stream[1];
	Position	pos;
	int			from = w->n;

	while (from > 0 && w->entry[from - 1].state == ENTRY_QUEUED)
		from--;
	if (from == w->n)
		return;
	position_before(st, r, &w->entry[from], &pos);
	memset(w->entry + from, 0, (size_t) (w->n - from) * sizeof(Entry));
	w->n = (uint8_t) from;
	reader_create(r, 1, &pos);
}

/* The topic leaves the main stream. */
static void
leave(State *st, Relay *r)
{
	Stream	   *from = &r->stream[0];
	Stream	   *to = &r->stream[1];
	int			kept = 0;

	r->lagging = 1;
	r->lag_stored = 0;
	reader_clone(r);
	to->n = 0;
	for (int i = 0; i < from->n; i++)
	{
		if (st->spec.msg[from->entry[i].msg].topic != LAGGER)
			from->entry[kept++] = from->entry[i];
		else if (ON(LEAVE_IN_FLIGHT))
			to->entry[to->n++] = from->entry[i];
	}
	memset(from->entry + kept, 0, (size_t) (from->n - kept) * sizeof(Entry));
	from->n = (uint8_t) kept;
	window_pop(from);
	trim(st, r);
}

/* A message comes back: its topic is missing. */
static void
topic_missing(State *st, Relay *r)
{
	Entry	   *entry = first_entry(st, r, LAGGER, ENTRY_SENT);

	entry->state = ENTRY_QUEUED;
	r->must_abort = r->chunk != CHUNK_NONE;
	r->trouble = 1;
	if (!r->lagging)
		leave(st, r);
	else
		trim(st, r);
}

static bool
may_rejoin(Relay *r)
{
	Stream	   *w = &r->stream[1];

	if (!r->lagging || r->trouble || r->stream[0].n > 0 || r->stream[0].reader.batch > 0)
		return false;
	if (ON(REJOIN_ANSWERED) && w->n > 0)
		return false;
	return w->reader.batch == 0 &&
		(w->reader.last == r->stream[0].reader.last || !ON(REJOIN_EQUAL));
}

static void
rejoin(Relay *r)
{
	memset(&r->stream[1], 0, sizeof(Stream));
	r->lagging = r->lag_stored = 0;
	r->rejoined = 1;
}

/* --- the loop ------------------------------------------------------------------------ */

static bool
may_fetch(const Relay *r, int stream)
{
	return r->stream[stream].reader.batch > 0 && (stream == 0 || (r->lagging && !r->trouble));
}

static bool
in_flight(const State *st, const Relay *r)
{
	for (int topic = 0; topic < scope.topics; topic++)
		if (!none_in_flight(st, r, topic))
			return true;
	return false;
}

/* Nothing is left to do but to wait for the next commit. */
bool
relay_is_idle(const State *st, int s)
{
	const Relay *r = &st->relay[s];

	return r->up && r->round == 0 && r->fetching == 0 &&
		(r->chunk == CHUNK_NONE || r->chunk == CHUNK_READY) &&
		r->stream[0].n == 0 && r->stream[0].reader.batch == 0 && nothing_new(st, r) &&
		(!r->lagging || (!r->trouble && r->stream[1].n == 0 && r->stream[1].reader.batch == 0 &&
						 !snapshot_before(r->stream[1].reader.last, r->stream[0].reader.last)));
}

static void
fault_actions(const State *st, int s, Actions *out)
{
	const Relay *r = &st->relay[s];
	bool		sent = first_entry(st, (Relay *) r, LAGGER, ENTRY_SENT) != NULL;

	if (st->budget[LOSSES] > 0 && (in_flight(st, r) || r->chunk > CHUNK_READY))
		add_action(out, A_LOSE_CLIENT, s, 0, 0);
	if (st->budget[STOPS] > 0 && !in_flight(st, r) && positions_storable(st, s) &&
		(r->chunk == CHUNK_NONE || r->chunk == CHUNK_READY))
		add_action(out, A_STOP, s, 0, 0);
	if (st->budget[STALLS] > 0 && !r->lagging && sent)
		add_action(out, A_STALL, s, 0, 0);
	if (st->budget[TROUBLES] > 0 && sent && !r->trouble)
		add_action(out, A_MISSING, s, 0, 0);
	if (r->trouble && sent)
		add_action(out, A_RETURNED, s, 0, 0);
}

static void
send_actions(const State *st, int s, int stream, Actions *out)
{
	Relay	   *r = (Relay *) &st->relay[s];

	if (!scope.careful && next_queued(st, r, stream, ANY) != NULL)
		add_action(out, A_SEND, s, stream, ANY);
	for (int topic = 0; scope.careful && topic < scope.topics; topic++)
		if (next_queued(st, r, stream, topic) != NULL)
			add_action(out, A_SEND, s, stream, topic);
}

static void
reading_actions(const State *st, int s, Actions *out)
{
	const Relay *r = &st->relay[s];
	const Reader *reader = &r->stream[0].reader;

	if (!chunk_may_read(r, s))
		return;
	if (reader->batch == 0 && !nothing_new(st, r))
		add_action(out, A_ROUND, s, 0, 0);
	else if (reader->batch == 0 && reader->from != end_of_ids(st) && scope.ids_rounds)
		add_action(out, A_IDS_ROUND, s, 0, 0);
	for (int stream = 0; stream < 2; stream++)
	{
		if (may_fetch(r, stream))
			add_action(out, scope.split_list ? A_LIST : A_FETCH, s, stream, 0);
		if (chunk_may_send(r, s))
			send_actions(st, s, stream, out);
	}
	if (r->lagging && !r->trouble && r->stream[1].reader.batch == 0 &&
		snapshot_before(r->stream[1].reader.last, reader->last))
		add_action(out, A_FOLLOW, s, 0, 0);
	if (r->trouble && (none_in_flight(st, r, LAGGER) || !ON(RESUME_ANSWERED)))
		add_action(out, A_RESUME, s, 0, 0);
	if (r->trouble && r->stream[1].n > 0 &&
		r->stream[1].entry[r->stream[1].n - 1].state == ENTRY_QUEUED)
		add_action(out, A_TRIM, s, 0, 0);
	if (may_rejoin((Relay *) r))
		add_action(out, A_REJOIN, s, 0, 0);
}

/* May what happens to the answer still matter? */
static bool
answers_matter(const State *st)
{
	return st->budget[CRASHES] > 0 || st->budget[KILLS] > 0 || st->budget[LOSSES] > 0;
}

/* May a position still matter? */
static bool
positions_matter(const State *st)
{
	return answers_matter(st) || st->budget[STOPS] > 0 || scope.frees;
}

/*
 * A step of a relay that nothing else can interfere with, so that it may come before
 * all others: to start, to touch a lane that is free; and where neither faults nor
 * freeing are to come, all that follows from a snapshot.
 */
bool
relay_is_alone(const State *st, const Action *action)
{
	switch (action->kind)
	{
		case A_START:
		case A_TOUCH:
			return true;
		case A_FETCH:
		case A_SEND:
		case A_ACK:
			return !positions_matter(st) && st->budget[TROUBLES] == 0 &&
				st->budget[STALLS] == 0 && scope.budget[ROTATIONS] == 0 &&
				scope.budget[VACUUMS] == 0;
		default:
			return false;
	}
}

void
relay_actions(const State *st, int s, Actions *out)
{
	const Relay *r = &st->relay[s];

	if (!HAS(st->disk.servers, s))
		return;
	if (!r->up)
	{
		add_action(out, A_START, s, 0, 0);
		return;
	}
	if (st->budget[KILLS] > 0 && !reduce)
		add_action(out, A_KILL, s, 0, 0);
	for (int topic = 0; topic < scope.topics; topic++)
		if (may_append(st, r, topic) &&
			(answers_matter(st) || r->round > 0 || r->fetching > 0))
			add_action(out, A_APPEND, s, topic, 0);
	broker_actions(st, s, out);
	if (r->half_stored)
		add_action(out, A_STORE_REST, s, 0, 0);
	else if (r->round > scope.lanes)
		add_action(out, A_SNAPSHOT, s, 0, 0);
	else if (r->round > 0 && st->shared.holder[r->round - 1] == 0)
		add_action(out, A_TOUCH, s, 0, 0);
	else if (r->fetching > 0)
		add_action(out, A_FETCH, s, r->fetching - 1, 0);
	if (r->half_stored || r->round > 0 || r->fetching > 0)
		return;
	for (int topic = 0; topic < scope.topics; topic++)
		/* the answer to a message that was appended, or both in one step */
		if (first_entry(st, (Relay *) r, topic, ENTRY_APPENDED) != NULL ||
			may_append(st, r, topic))
			add_action(out, A_ACK, s, topic, 0);
	fault_actions(st, s, out);
	chunk_actions(st, s, in_flight(st, r), out);
	reading_actions(st, s, out);
	if (positions_matter(st) && r->chunk != CHUNK_CLAIM && positions_moved(st, s) &&
		(chunk_may_store(r, s) || !ON(STORE_UNLESS_OPEN)))
		add_action(out, A_STORE, s, 0, 0);
}

/* The broker appends a message; in a transaction it counts when that commits. */
static void
append_message(State *st, int s, int msg)
{
	if (is_exactly_once(s))
		chunk_append(&st->broker[s], msg);
	else
		judge_append(st, s, msg);
}

static void
answer(State *st, int s, int topic)
{
	Relay	   *r = &st->relay[s];
	Entry	   *entry = first_entry(st, r, topic, ENTRY_APPENDED);

	if (entry == NULL)
	{
		entry = first_entry(st, r, topic, ENTRY_SENT);
		append_message(st, s, entry->msg);
	}
	entry->state = is_exactly_once(s) ? ENTRY_HELD : ENTRY_DONE;
	windows_pop(r);
}

static void
begin_round(State *st, Relay *r)
{
	r->c = end_of_ids(st);
	r->count = st->shared.count;
	r->round = (uint8_t) (ON(TOUCH_LANES) ? 1 : scope.lanes + 1);
}

static void
client_step(State *st, const Action *action)
{
	int			s = action->a;
	Relay	   *r = &st->relay[s];
	Entry	   *entry;

	switch (action->kind)
	{
		case A_SEND:
			send_queued(st, s, action->b, action->c);
			break;
		case A_APPEND:
			entry = first_entry(st, r, action->b, ENTRY_SENT);
			append_message(st, s, entry->msg);
			entry->state = ENTRY_APPENDED;
			break;
		case A_ACK:
			answer(st, s, action->b);
			break;
		case A_LOSE_CLIENT:
			st->budget[LOSSES]--;
			lose_client(st, s);
			break;
		case A_STALL:
			st->budget[STALLS]--;
			leave(st, r);
			break;
		case A_MISSING:
			st->budget[TROUBLES]--;
			/* FALLTHROUGH */
		case A_RETURNED:
			topic_missing(st, r);
			break;
		case A_RESUME:
			r->trouble = 0;
			break;
		case A_TRIM:
			trim(st, r);
			break;
		default:
			rejoin(r);
			break;
	}
}

void
relay_step(State *st, const Action *action)
{
	int			s = action->a;
	Relay	   *r = &st->relay[s];

	switch (action->kind)
	{
		case A_START:
			stored_start(st, s);
			break;
		case A_KILL:
			st->budget[KILLS]--;
			relay_went_down(st, s, false);
			break;
		case A_STOP:
			st->budget[STOPS]--;
			(void) positions_store(st, s, true);
			memset(r, 0, sizeof(*r));
			break;
		case A_ROUND:
		case A_IDS_ROUND:
			begin_round(st, r);
			break;
		case A_TOUCH:
			r->round++;
			break;
		case A_SNAPSHOT:
			reader_snapshot(st, r);
			break;
		case A_LIST:
			memcpy(r->list, st->disk.seg, sizeof(r->list));
			r->fetching = (uint8_t) (action->b + 1);
			break;
		case A_FETCH:
			if (!scope.split_list)
				memcpy(r->list, st->disk.seg, sizeof(r->list));
			reader_fetch(st, r, action->b);
			window_pop(&r->stream[action->b]);
			break;
		case A_FOLLOW:
			(void) reader_follow(st, r);
			break;
		case A_STORE:
			(void) positions_store(st, s, false);
			break;
		case A_STORE_REST:
			positions_store_rest(st, s);
			break;
		default:
			if (action->kind >= A_TXN_INIT)
				chunk_step(st, action);
			else
				client_step(st, action);
			break;
	}
}
