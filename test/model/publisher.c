/*-------------------------------------------------------------------------
 *
 * publisher.c
 *	  Publishers: src/log/append.c, and the end of transactions in src/publish.c.
 *
 * Three steps a message: form the row and open the lane's segment; take the lane,
 * look whether the segment is still its current one, take an id; insert, release.
 *
 *-------------------------------------------------------------------------
 */
#include "model.h"

/* With the lane in hand: the segment, and an id.  False: try again. */
static bool
take_id(State *st, Pub *pub)
{
	uint8_t		id = st->shared.next_id++;

	if (id >= st->shared.limit_id)
	{
		pub->step = PUB_IDS;
		return false;
	}
	pub->id = id;
	pub->step = PUB_ID;
	return true;
}

/* Is the opened segment still current?  If not, the current one is opened. */
static bool
recheck(State *st, Pub *pub)
{
	if (st->shared.current[pub->lane] == pub->seg || !ON(APPEND_RECHECK))
		return true;
	pub->seg = st->shared.current[pub->lane];
	st->shared.locks[pub->xid] |= (uint8_t) BIT(pub->seg);
	return false;
}

static void
take_lane(State *st, int p)
{
	Pub		   *pub = &st->pub[p];

	if (!ON(IDS_UNDER_LOCK))
	{
		(void) take_id(st, pub);
		return;
	}
	if (recheck(st, pub) && take_id(st, pub) && ON(LANE_LOCK))
		st->shared.holder[pub->lane] = (uint8_t) (p + 1);
}

/* Form a row, with a transaction to put it in, and open a lane's segment. */
static void
open_segment(State *st, int p, int lane, int topic, bool savepoint)
{
	Pub		   *pub = &st->pub[p];

	if (pub->step == PUB_IDLE)
	{
		pub->xid = st->shared.next_xid++;
		st->shared.running |= BIT(pub->xid);
		pub->n = 0;
	}
	if (savepoint)
		st->budget[SAVEPOINTS]--;
	pub->step = PUB_OPEN;
	pub->lane = (uint8_t) lane;
	pub->seg = st->shared.current[lane];
	pub->topic = (uint8_t) topic;
	pub->savepoint = savepoint;
	pub->before = predecessors(st, topic, pub->xid);
	st->shared.locks[pub->xid] |= (uint8_t) BIT(pub->seg);
	if (!scope.split_open)
		take_lane(st, p);
}

/* Reserve ids: the sequence first, then the limit. */
static void
refill(State *st, Pub *pub)
{
	Shared	   *shared = &st->shared;

	if (shared->next_id >= shared->limit_id)
	{
		if (shared->next_id > shared->limit_id)
			shared->limit_id = shared->next_id;
		shared->limit_id += scope.reserve;
		if (ON(SEQUENCE_BEFORE_LIMIT))
			st->disk.sequence = shared->limit_id;
	}
	pub->step = PUB_OPEN;
}

static void
insert(State *st, int p)
{
	Pub		   *pub = &st->pub[p];
	int			i = st->spec.nmsgs;
	Message    *m = &st->spec.msg[i];

	if (!ON(IDS_UNDER_LOCK) && !recheck(st, pub))
		return;
	st->spec.nmsgs++;
	m->before = pub->before;
	m->id = pub->id;
	m->xid = pub->xid;
	m->epoch = st->shared.epoch;
	m->topic = pub->topic;
	m->savepoint = pub->savepoint;
	st->disk.place[i] = pub->seg;
	xact_record(st, pub->xid, XACT_OPEN);
	if (st->shared.holder[pub->lane] == p + 1)
		st->shared.holder[pub->lane] = 0;
	judge_insert(st, i);
	pub->step = PUB_XACT;
	pub->n++;
	pub->before = 0;
	pub->lane = pub->seg = pub->id = pub->topic = pub->savepoint = 0;
}

static Set
rows_behind_savepoint(const State *st, int xid)
{
	Set			rows = 0;

	for (int i = 0; i < st->spec.nmsgs; i++)
		if (!HAS(st->spec.lost, i) && st->spec.msg[i].xid == xid &&
			st->spec.msg[i].savepoint && !HAS(st->disk.rolled_back, i))
			rows |= BIT(i);
	return rows;
}

static void
forget(Pub *pub)
{
	*pub = (Pub) {0};
}

static void
open_actions(const State *st, int p, Actions *out)
{
	const Pub  *pub = &st->pub[p];
	int			under_way = 0;

	for (int i = 0; i < scope.pubs; i++)
		if (st->pub[i].step >= PUB_OPEN && st->pub[i].step <= PUB_ID)
			under_way++;
	if (st->spec.nmsgs + under_way >= scope.msgs)
		return;
	if (pub->step == PUB_IDLE ? st->shared.next_xid >= scope.xids : pub->n >= scope.xact_msgs)
		return;
	for (int lane = 0; lane < scope.lanes; lane++)
	{
		if (!scope.split_open && st->shared.holder[lane] > 0)
			continue;
		for (int topic = 0; topic < scope.topics; topic++)
		{
			add_action(out, A_OPEN, p, lane, topic);
			if (st->budget[SAVEPOINTS] > 0 && pub->step == PUB_XACT)
				add_action(out, A_OPEN, p, lane, topic | 2);
		}
	}
}

static void
end_actions(const State *st, int p, Actions *out)
{
	const Pub  *pub = &st->pub[p];

	if (pub->step == PUB_XACT)
	{
		add_action(out, A_COMMIT, p, 0, 0);
		if (st->budget[PREPARES] > 0)
			add_action(out, A_PREPARE, p, 0, 0);
		if (rows_behind_savepoint(st, pub->xid) != 0)
			add_action(out, A_ROLLBACK_TO, p, 0, 0);
	}
	if (st->budget[ABORTS] > 0)
		add_action(out, A_ABORT, p, 0, 0);
}

void
publisher_actions(const State *st, int p, Actions *out)
{
	const Pub  *pub = &st->pub[p];
	bool		lane_is_free = st->shared.holder[pub->lane] == 0;

	switch (pub->step)
	{
		case PUB_IDLE:
			open_actions(st, p, out);
			break;
		case PUB_XACT:
			open_actions(st, p, out);
			end_actions(st, p, out);
			break;
		case PUB_OPEN:
			if (lane_is_free || !ON(LANE_LOCK) || !ON(IDS_UNDER_LOCK))
				add_action(out, A_TAKE, p, 0, 0);
			break;
		case PUB_IDS:
			add_action(out, A_REFILL, p, 0, 0);
			end_actions(st, p, out);
			break;
		case PUB_ID:
			add_action(out, A_INSERT, p, 0, 0);
			break;
		case PUB_RECORD:
			add_action(out, A_SEEN, p, 0, 0);
			break;
		default:
			add_action(out, A_COUNT, p, 0, 0);
			break;
	}
}

/* The end of a transaction. */
static void
end_step(State *st, Kind kind, Pub *pub)
{
	switch (kind)
	{
		case A_COMMIT:
			xact_record(st, pub->xid, XACT_COMMITTED);
			pub->step = PUB_RECORD;
			if (scope.split_commit)
				break;
			/* FALLTHROUGH */
		case A_SEEN:
			xact_end(st, pub->xid);
			forget(pub);
			pub->step = PUB_ENDED;
			break;
		case A_ABORT:
			st->budget[ABORTS]--;
			xact_record(st, pub->xid, XACT_ABORTED);
			xact_end(st, pub->xid);
			forget(pub);
			break;
		case A_PREPARE:
			st->budget[PREPARES]--;
			xact_record(st, pub->xid, XACT_PREPARED);
			forget(pub);
			pub->step = ON(COUNT_AT_PREPARE) ? PUB_ENDED : PUB_IDLE;
			break;
		default:
			st->shared.count++;
			forget(pub);
			break;
	}
}

void
publisher_step(State *st, const Action *action)
{
	int			p = action->a;
	Pub		   *pub = &st->pub[p];

	switch (action->kind)
	{
		case A_OPEN:
			open_segment(st, p, action->b, action->c & 1, action->c & 2);
			break;
		case A_TAKE:
			take_lane(st, p);
			break;
		case A_REFILL:
			refill(st, pub);
			break;
		case A_INSERT:
			insert(st, p);
			break;
		case A_ROLLBACK_TO:
			st->disk.rolled_back |= rows_behind_savepoint(st, pub->xid);
			break;
		default:
			end_step(st, (Kind) action->kind, pub);
			break;
	}
}
