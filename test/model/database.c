/*-------------------------------------------------------------------------
 *
 * database.c
 *	  Transactions, snapshots and WAL, and what is built after a start.
 *
 * Stands for PostgreSQL itself, and for src/log/lane.c (outbox_db_get).
 *
 *-------------------------------------------------------------------------
 */
#include <string.h>

#include "model.h"

/*
 * What has ended.  As in the code, a transaction counts as contained when it is
 * below xmax and not listed; those between the last one that ended and the next
 * one are all running, so the set says the same.
 */
Set
snapshot(const State *st)
{
	return (Set) (BIT(st->shared.next_xid) - 1) & ~st->shared.running;
}

static int
xmax(Set s)
{
	return s == 0 ? 0 : 32 - __builtin_clz(s);
}

/* outbox_snapshot_compare(): by xmax, then by how many are listed. */
bool
snapshot_before(Set a, Set b)
{
	if (xmax(a) != xmax(b))
		return xmax(a) < xmax(b);
	return popcount(a) < popcount(b);
}

/* A record of a transaction goes into WAL. */
void
xact_record(State *st, int xid, XactState state)
{
	st->disk.xact[xid] = (uint8_t) state;
	if (st->disk.next_xid <= xid)
		st->disk.next_xid = (uint8_t) (xid + 1);
}

/* It is not running any more, and its locks are gone. */
void
xact_end(State *st, int xid)
{
	st->shared.running &= (Set) ~BIT(xid);
	st->shared.locks[xid] = 0;
}

void
database_flush(State *st)
{
	memcpy(&st->flushed, &st->disk, sizeof(Disk));
	st->spec.safe = (Set) (BIT(st->spec.nmsgs) - 1) & ~st->spec.lost;
}

/* Has the synchronous standby, if there is one, flushed up to here? */
bool
is_replicated(const State *st, uint16_t lsn)
{
	return !scope.synchronous || st->standby.lsn >= lsn;
}

/* May a step write WAL? */
bool
writes_wal(Kind kind)
{
	return kind == A_INSERT || kind == A_REFILL || kind == A_ROLLBACK_TO || kind == A_COMMIT ||
		kind == A_ABORT || kind == A_PREPARE || kind == A_COMMIT_PREPARED ||
		kind == A_ABORT_PREPARED || kind == A_STORE || kind == A_STOP || kind == A_CLAIM ||
		kind == A_LIST_SEGMENT || kind == A_FREE || kind == A_CREATE || kind == A_VACUUM ||
		kind == A_SET_BACK;
}

/* In the order in which they lie there. */
int
rows_of_segment(const State *st, int seg, uint8_t *rows)
{
	int			n = 0;

	for (int i = 0; i < st->spec.nmsgs; i++)
		if (st->disk.place[i] == seg)
			rows[n++] = (uint8_t) i;
	return n;
}

/* The segment of a lane that takes appends: see lane.c, choose_current(). */
static int
choose_current(const State *st, int lane, uint8_t *highest)
{
	int			best = NONE;
	bool		best_filled = false;

	for (int seg = 0; seg < scope.segs; seg++)
	{
		uint8_t		rows[MAX_MSGS];
		int			n = rows_of_segment(st, seg, rows);
		bool		filled = n > 0 && ON(CURRENT_HIGHEST);
		int			generation = st->disk.seg[seg].generation;

		if (st->disk.seg[seg].lane != lane)
			continue;
		if (best == NONE || filled > best_filled ||
			(filled == best_filled && filled && generation > st->disk.seg[best].generation) ||
			(filled == best_filled && !filled && generation < st->disk.seg[best].generation))
		{
			best = seg;
			best_filled = filled;
		}
		if (n > 0 && st->spec.msg[rows[n - 1]].id > *highest)
			*highest = st->spec.msg[rows[n - 1]].id;
	}
	return best;
}

/* The shared entry, as whoever needs it first builds it. */
void
database_build(State *st)
{
	uint8_t		in_lanes = 0;
	uint8_t		highest = st->disk.sequence;

	for (int lane = 0; lane < scope.lanes; lane++)
		st->shared.current[lane] = (uint8_t) choose_current(st, lane, &in_lanes);
	if (ON(IDS_ABOVE_LANES) && in_lanes > highest)
		highest = in_lanes;
	for (int s = 0; s < MAX_SRVS && ON(IDS_ABOVE_POSITIONS); s++)
		for (int stream = 0; stream < 2; stream++)
			if (st->disk.pos[s][stream].low > highest)
				highest = st->disk.pos[s][stream].low;
	st->shared.next_id = st->shared.limit_id = (uint8_t) (highest + 1);
	st->shared.count = 0;
	if (ON(NEW_EPOCH))
		st->shared.epoch++;
}

/* What the crash took, the judge forgets too. */
static void
forget_lost(State *st)
{
	Spec	   *spec = &st->spec;

	for (int i = 0; i < spec->nmsgs; i++)
	{
		Message    *m = &spec->msg[i];

		if (HAS(spec->safe, i) || HAS(spec->lost, i))
			continue;
		spec->lost |= BIT(i);
		m->before = 0;
		m->xid = m->topic = m->savepoint = 0;
	}
	for (int i = 0; i < spec->nmsgs; i++)
		spec->msg[i].before &= (Set) ~spec->lost;
	for (int s = 0; s < MAX_SRVS; s++)
		spec->may_repeat[s] &= (Set) ~spec->lost;
}

/* Delivered, and not there any more: only a standby that lags may do that. */
static void
forget_delivered(State *st, int s, bool promoted)
{
	Spec	   *spec = &st->spec;

	for (int i = 0; i < spec->nmsgs; i++)
	{
		uint8_t    *last = &spec->last[s][spec->msg[i].topic];

		if (!HAS(spec->delivered[s], i) || is_message(st, i))
			continue;
		if (!promoted || scope.synchronous)
			violate(P_PHANTOM, "message %d was delivered, and is gone", i);
		spec->delivered[s] &= (Set) ~BIT(i);
		if (*last == i + 1)
			*last = 0;
	}
}

/* The server crashes, and starts again. */
void
database_crash(State *st, bool promoted)
{
	Set			open = 0;

	memcpy(&st->disk, &st->flushed, sizeof(Disk));
	memset(st->pub, 0, sizeof(st->pub));
	memset(&st->shared.locks, 0, sizeof(st->shared.locks));
	memset(&st->shared.holder, 0, sizeof(st->shared.holder));
	st->shared.looked = st->shared.to_free = 0;
	for (int xid = 0; xid < MAX_XIDS; xid++)
	{
		if (st->disk.xact[xid] == XACT_OPEN)
			st->disk.xact[xid] = XACT_ABORTED;
		if (st->disk.xact[xid] == XACT_PREPARED)
			open |= BIT(xid);
	}
	memcpy(&st->flushed, &st->disk, sizeof(Disk));
	st->shared.running = open;
	st->shared.next_xid = st->disk.next_xid;
	for (int s = 0; s < scope.srvs; s++)
		forget_delivered(st, s, promoted);
	forget_lost(st);
	for (int i = 0; i < st->spec.nmsgs; i++)
		if (st->disk.place[i] != NONE)
			st->spec.emptied &= (Set) ~BIT(i);
	/* a prepared transaction has its locks again */
	for (int i = 0; i < st->spec.nmsgs; i++)
		if (st->disk.place[i] != NONE && HAS(open, st->spec.msg[i].xid))
			st->shared.locks[st->spec.msg[i].xid] |= (uint8_t) BIT(st->disk.place[i]);
	for (int s = 0; s < scope.srvs; s++)
		relay_went_down(st, s, promoted);
	database_build(st);
}

/* The standby takes over.  What it does not have never was. */
static void
promote(State *st)
{
	st->shared.fork[st->shared.timeline++] = st->standby.lsn;
	st->spec.safe &= st->spec.replicated;
	memcpy(&st->flushed, &st->standby, sizeof(Disk));
	database_crash(st, true);
	memcpy(&st->standby, &st->flushed, sizeof(Disk));
}

int
find_prepared(const State *st, int from)
{
	while (from < st->shared.next_xid &&
		   !(HAS(st->shared.running, from) && st->disk.xact[from] == XACT_PREPARED))
		from++;
	return from < st->shared.next_xid ? from : -1;
}

/* CREATE SERVER ... OPTIONS (start 'earliest' or 'now'). */
static void
create_server(State *st, int s, bool earliest)
{
	Position   *pos = &st->disk.pos[s][0];

	pos->s1 = pos->s2 = earliest ? 0 : snapshot(st);
	pos->cursor = 0;
	pos->low = 1;
	for (int i = 0; i < st->spec.nmsgs; i++)
		if (earliest ? HAS(st->spec.emptied, i) : HAS(pos->s1, st->spec.msg[i].xid))
			st->spec.skip[s] |= BIT(i);
	st->disk.servers |= (uint8_t) BIT(s);
	database_flush(st);
}

/* Rows that VACUUM would remove: of what was rolled back. */
static Set
dead_rows(const State *st, int seg)
{
	Set			dead = 0;

	for (int i = 0; i < st->spec.nmsgs; i++)
		if (st->disk.place[i] == seg &&
			(HAS(st->disk.rolled_back, i) ||
			 st->disk.xact[st->spec.msg[i].xid] == XACT_ABORTED))
			dead |= BIT(i);
	return dead;
}

void
database_actions(const State *st, Actions *out)
{
	if (st->budget[CRASHES] > 0 && !reduce)
	{
		add_action(out, A_CRASH, 0, 0, 0);
		if (memcmp(&st->disk, &st->flushed, sizeof(Disk)) != 0)
			add_action(out, A_FLUSH, 0, 0, 0);
	}
	if (scope.standby && st->standby.lsn != st->flushed.lsn)
		add_action(out, A_REPLICATE, 0, 0, 0);
	if (st->budget[PROMOTIONS] > 0)
		add_action(out, A_PROMOTE, 0, 0, 0);
	if (scope.standby && st->budget[CRASHES] == 0 && st->flushed.lsn != st->disk.lsn)
		add_action(out, A_FLUSH, 0, 0, 0);
	if (st->budget[SET_BACKS] > 0 && st->disk.sequence > 0)
		add_action(out, A_SET_BACK, 0, 0, 0);
	if (st->budget[VACUUMS] > 0)
		for (int seg = 0; seg < scope.segs; seg++)
			if (dead_rows(st, seg) != 0)
				add_action(out, A_VACUUM, seg, 0, 0);
	for (int xid = find_prepared(st, 0); xid >= 0; xid = find_prepared(st, xid + 1))
	{
		add_action(out, A_COMMIT_PREPARED, xid, 0, 0);
		if (st->budget[ABORTS] > 0)
			add_action(out, A_ABORT_PREPARED, xid, 0, 0);
	}
	/* waits for the keeper's turn to be over */
	if (st->budget[CREATES] > 0 && (!st->shared.looked || !ON(FREEING_LOCK)))
		for (int s = 0; s < scope.srvs; s++)
			if (!HAS(st->disk.servers, s))
			{
				add_action(out, A_CREATE, s, 0, 0);
				add_action(out, A_CREATE, s, 1, 0);
			}
}

void
database_step(State *st, const Action *action)
{
	switch (action->kind)
	{
		case A_CRASH:
			st->budget[CRASHES]--;
			database_crash(st, false);
			break;
		case A_FLUSH:
			database_flush(st);
			break;
		case A_REPLICATE:
			memcpy(&st->standby, &st->flushed, sizeof(Disk));
			st->spec.replicated = st->spec.safe;
			break;
		case A_PROMOTE:
			st->budget[PROMOTIONS]--;
			promote(st);
			break;
		case A_SET_BACK:
			st->budget[SET_BACKS]--;
			st->disk.sequence = 0;
			st->spec.set_back = 1;
			break;
		case A_VACUUM:
			st->budget[VACUUMS]--;
			for (int i = 0; i < st->spec.nmsgs; i++)
				if (HAS(dead_rows(st, action->a), i))
				{
					st->disk.place[i] = NONE;
					st->spec.emptied |= BIT(i);
				}
			break;
		case A_COMMIT_PREPARED:
			xact_record(st, action->a, XACT_COMMITTED);
			xact_end(st, action->a);
			break;
		case A_ABORT_PREPARED:
			st->budget[ABORTS]--;
			xact_record(st, action->a, XACT_ABORTED);
			xact_end(st, action->a);
			break;
		default:
			st->budget[CREATES]--;
			create_server(st, action->a, action->b);
			break;
	}
}
