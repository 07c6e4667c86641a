/*-------------------------------------------------------------------------
 *
 * chunk.c
 *	  Exactly-once delivery: src/relay/chunk.c and src/log/bookmark.c.
 *
 * The broker keeps what is in an open transaction apart; its commit brings messages
 * and bookmark at once.  Its outcome reaches the relay in a step of its own.
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "model.h"

bool
is_exactly_once(int s)
{
	return HAS(scope.exactly_once, s);
}

bool
chunk_may_read(const Relay *r, int s)
{
	return !is_exactly_once(s) || r->loaded;
}

bool
chunk_may_store(const Relay *r, int s)
{
	return r->chunk != CHUNK_MARKED && r->chunk != CHUNK_COMMIT && !r->uncertain &&
		chunk_may_read(r, s);
}

bool
chunk_may_send(const Relay *r, int s)
{
	return !is_exactly_once(s) || r->chunk == CHUNK_READY || r->chunk == CHUNK_OPEN;
}

/* Everything of the transaction is to be sent again. */
static void
requeue(Relay *r)
{
	for (int stream = 0; stream < 2; stream++)
		for (int i = 0; i < r->stream[stream].n; i++)
			if (r->stream[stream].entry[i].state != ENTRY_DONE)
				r->stream[stream].entry[i].state = ENTRY_QUEUED;
}

static void
take_held(Relay *r)
{
	for (int stream = 0; stream < 2; stream++)
		for (int i = 0; i < r->stream[stream].n; i++)
			if (r->stream[stream].entry[i].state == ENTRY_HELD)
				r->stream[stream].entry[i].state = ENTRY_DONE;
}

/* The client is lost: a commit under way has an open outcome. */
void
chunk_lose_client(Relay *r)
{
	if (r->chunk == CHUNK_COMMIT)
		r->uncertain = 1;
	if (!r->uncertain)
		requeue(r);
	r->chunk = CHUNK_INIT;
	r->must_abort = 0;
}

/* A message is appended in the open transaction. */
void
chunk_append(Broker *broker, int msg)
{
	broker->pending[broker->n++] = (uint8_t) (msg + 1);
}

static void
forget_pending(Broker *broker)
{
	memset(broker->pending, 0, sizeof(broker->pending));
	broker->n = 0;
	memset(&broker->marked, 0, sizeof(broker->marked));
}

/* The broker commits. */
static void
commit(State *st, int s)
{
	Broker	   *broker = &st->broker[s];

	for (int i = 0; i < broker->n; i++)
		judge_append(st, s, broker->pending[i] - 1);
	broker->bookmark = broker->marked;
	forget_pending(broker);
	st->relay[s].decided = 1;
}

/* Does our history hold that WAL? */
static bool
in_our_history(const State *st, const Bookmark *bookmark)
{
	if (bookmark->timeline == st->shared.timeline)
		return bookmark->lsn <= st->disk.lsn;
	return bookmark->lsn <= st->shared.fork[bookmark->timeline];
}

/* Can this database have written it? */
static bool
is_ours(const State *st, const Relay *r, const Bookmark *bookmark)
{
	if (!ON(BOOKMARK_HISTORY))
		return true;
	if (!in_our_history(st, bookmark))
		return false;
	for (int stream = 0; stream < 2; stream++)
		if (bookmark->pos[stream].s2 & ~((unsigned) BIT(st->shared.next_xid) - 1))
			return false;
	return bookmark->epoch == r->position_epoch;
}

static void
choose_position(State *st, int s)
{
	Relay	   *r = &st->relay[s];
	const Bookmark *bookmark = &st->broker[s].bookmark;

	if (bookmark->n <= r->position_n || !is_ours(st, r, bookmark) || !ON(POSITION_AT_BROKER))
		return;
	r->rejoined = r->lagging;
	memset(r->stream, 0, sizeof(r->stream));
	memset(r->batch, 0, sizeof(r->batch));
	reader_create(r, 0, &bookmark->pos[0]);
	r->lagging = bookmark->pos[1].low > 0;
	if (r->lagging)
		reader_create(r, 1, &bookmark->pos[1]);
	r->acked = bookmark->pos[0].acked;
	r->main_stored = r->lag_stored = 0;
	r->position_n = bookmark->n;
	r->base_lsn = bookmark->lsn;
}

/* The bookmark is there. */
static void
take_bookmark(State *st, int s)
{
	Relay	   *r = &st->relay[s];

	if (!r->uncertain)
		choose_position(st, s);
	else if (st->broker[s].bookmark.n == r->chunk_n &&
			 st->broker[s].bookmark.epoch == r->announced)
		take_held(r);
	else
		requeue(r);
	r->uncertain = 0;
	r->loaded = 1;
	r->chunk = CHUNK_CLAIM;
}

/* Bookmarks to come are announced in the database, and that is flushed. */
static void
claim(State *st, int s)
{
	Relay	   *r = &st->relay[s];

	if (r->announced != st->shared.epoch && ON(BOOKMARK_ANNOUNCED))
	{
		if (r->position_epoch != st->shared.epoch && !positions_store(st, s, false))
			return;
		database_flush(st);
		r->base_lsn = st->disk.lsn;
	}
	r->announced = st->shared.epoch;
	r->chunk = CHUNK_READY;
}

/* All of the chunk is sent: its bookmark follows. */
static void
mark(State *st, int s)
{
	Relay	   *r = &st->relay[s];
	Bookmark   *bookmark = &st->broker[s].marked;

	(void) positions_behind_chunk(st, s, bookmark->pos, &bookmark->lsn);
	bookmark->timeline = st->shared.timeline;
	bookmark->n = r->chunk_n = ++r->position_n;
	bookmark->epoch = r->announced;
	r->chunk = CHUNK_MARKED;
}

/* Has the standby what a bookmark would rest on? */
static bool
may_mark(const State *st, int s)
{
	Position	pos[2];
	uint16_t	lsn;

	return positions_behind_chunk((State *) st, s, pos, &lsn);
}

/* Would the announcement be stored? */
static bool
may_claim(const State *st, int s)
{
	State		copy;

	if (!scope.synchronous)
		return true;
	copy = *st;
	return positions_store(&copy, s, false);
}

void
chunk_actions(const State *st, int s, bool in_flight, Actions *out)
{
	const Relay *r = &st->relay[s];

	switch (r->chunk)
	{
		case CHUNK_INIT:
			add_action(out, A_TXN_INIT, s, 0, 0);
			break;
		case CHUNK_LOAD:
			add_action(out, A_TXN_LOAD, s, 0, 0);
			break;
		case CHUNK_CLAIM:
			if (may_claim(st, s))
				add_action(out, A_CLAIM, s, 0, 0);
			break;
		case CHUNK_OPEN:
			if (!r->must_abort && may_mark(st, s))
				add_action(out, A_MARK, s, 0, 0);
			/* FALLTHROUGH */
		case CHUNK_MARKED:
			if (r->must_abort)
				add_action(out, A_TXN_ABORT, s, 0, 0);
			else if (r->chunk == CHUNK_MARKED && (!in_flight || !ON(COMMIT_ANSWERED)))
				add_action(out, A_ASK_COMMIT, s, 0, 0);
			break;
		case CHUNK_COMMIT:
			if (r->decided)
				add_action(out, A_COMMITTED, s, 0, 0);
			break;
		default:
			break;
	}
}

/* The broker's part may come when the relay is in the middle of something. */
void
broker_actions(const State *st, int s, Actions *out)
{
	const Relay *r = &st->relay[s];

	if (r->chunk == CHUNK_COMMIT && !r->decided)
		add_action(out, A_TXN_COMMIT, s, 0, 0);
}

void
chunk_step(State *st, const Action *action)
{
	int			s = action->a;
	Relay	   *r = &st->relay[s];

	switch (action->kind)
	{
		case A_TXN_INIT:
			forget_pending(&st->broker[s]);
			r->decided = 0;
			r->chunk = r->loaded && !r->uncertain ? CHUNK_CLAIM : CHUNK_LOAD;
			break;
		case A_TXN_LOAD:
			take_bookmark(st, s);
			break;
		case A_CLAIM:
			claim(st, s);
			break;
		case A_MARK:
			mark(st, s);
			break;
		case A_ASK_COMMIT:
			r->chunk = CHUNK_COMMIT;
			break;
		case A_TXN_COMMIT:
			commit(st, s);
			break;
		case A_COMMITTED:
			take_held(r);
			r->decided = 0;
			r->chunk = CHUNK_READY;
			break;
		default:
			forget_pending(&st->broker[s]);
			requeue(r);
			r->must_abort = 0;
			r->chunk = CHUNK_READY;
			break;
	}
	windows_pop(r);
}
