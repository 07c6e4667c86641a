/*-------------------------------------------------------------------------
 *
 * steps.c
 *	  All that may happen next, and doing it.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

Scope		scope;
int			rule_off = -1;
bool		reduce = false;

static const char *const kind_names[NKINDS] = {
#define X(kind, weight) #kind,
	ACTIONS
#undef X
};

/* How likely a walk takes such a step, before it draws its own mood. */
int
kind_weight(Kind kind)
{
	static const uint8_t weights[NKINDS] = {
#define X(kind, weight) weight,
		ACTIONS
#undef X
	};

	return weights[kind];
}

void
model_init(State *st)
{
	memset(st, 0, sizeof(*st));
	memcpy(st->budget, scope.budget, sizeof(st->budget));
	memset(st->disk.place, NONE, sizeof(st->disk.place));
	for (int seg = 0; seg < MAX_SEGS; seg++)
	{
		bool		used = seg < scope.lanes;

		st->disk.seg[seg].lane = (uint8_t) (used ? seg : NONE);
		st->disk.seg[seg].generation = (uint8_t) (used ? seg + 1 : 0);
	}
	/* the first server is there from the beginning; others are if none can be made */
	for (int s = 0; s < scope.srvs; s++)
		if (s == 0 || scope.budget[CREATES] == 0)
		{
			st->disk.servers |= (uint8_t) BIT(s);
			st->disk.pos[s][0].low = 1;
		}
	database_flush(st);
	memcpy(&st->standby, &st->flushed, sizeof(Disk));
	database_build(st);
}

void
model_actions(const State *st, Actions *out)
{
	out->n = 0;
	for (int p = 0; p < scope.pubs; p++)
	{
		/* publishers are alike: of those that do nothing the first one begins */
		if (p > 0 && st->pub[p].step == PUB_IDLE && st->pub[p - 1].step == PUB_IDLE)
			break;
		publisher_actions(st, p, out);
	}
	for (int s = 0; s < scope.srvs; s++)
		relay_actions(st, s, out);
	keeper_actions(st, out);
	database_actions(st, out);
	if (out->n >= MAX_ACTIONS)
		abort();
	for (int i = 0; reduce && i < out->n; i++)
		if (relay_is_alone(st, &out->action[i]))
		{
			out->action[0] = out->action[i];
			out->n = 1;
		}
}

static void
base_step(State *st, const Action *action)
{
	Kind		kind = (Kind) action->kind;

	if (scope.standby && writes_wal(kind))
		st->disk.lsn++;
	if (kind <= A_PREPARE)
		publisher_step(st, action);
	else if (kind >= A_START && kind <= A_TXN_ABORT)
		relay_step(st, action);
	else if (kind >= A_LIST_SEGMENT && kind <= A_FREE)
		keeper_step(st, action);
	else
		database_step(st, action);
}

/* What follows a step at once; false where it makes no difference here. */
static bool
then_step(State *st, const Action *action, const State *before)
{
	bool		delivered = memcmp(st->spec.delivered, before->spec.delivered,
								   sizeof(st->spec.delivered)) != 0;
	bool		safe = memcmp(&st->flushed, &before->flushed, sizeof(Disk)) != 0;
	bool		written = memcmp(&st->disk, &before->disk, sizeof(Disk)) != 0;

	if (action->then & THEN_FLUSH)
	{
		if (!written || memcmp(&st->disk, &st->flushed, sizeof(Disk)) == 0)
			return false;
		database_flush(st);
	}
	if (action->then & THEN_KILL)
	{
		if (!delivered && action->kind != A_STORE)
			return false;
		st->budget[KILLS]--;
		relay_went_down(st, action->a, false);
	}
	if (action->then & THEN_CRASH)
	{
		if (!(action->then & THEN_FLUSH) && !delivered && !safe && action->kind != A_INSERT)
			return false;
		st->budget[CRASHES]--;
		database_crash(st, false);
	}
	return true;
}

/* One step; false: it is not needed, and st is of no use. */
bool
model_step(State *st, const Action *action)
{
	if (action->then == 0)
		base_step(st, action);
	else
	{
		State		before = *st;

		base_step(st, action);
		if (violated == P_NONE && !then_step(st, action, &before))
			return false;
	}
	canonicalise(st);
	return true;
}

/* Does it happen by itself sooner or later, with no more to publish? */
bool
is_normal(const Action *action)
{
	switch (action->kind)
	{
		case A_OPEN:
		case A_ROLLBACK_TO:
		case A_ABORT:
		case A_PREPARE:
		case A_ABORT_PREPARED:
		case A_KILL:
		case A_STOP:
		case A_LOSE_CLIENT:
		case A_STALL:
		case A_MISSING:
		case A_LIST_SEGMENT:
		case A_CREATE:
		case A_FLUSH:
		case A_CRASH:
		case A_SET_BACK:
		case A_VACUUM:
		case A_PROMOTE:
			return false;
		default:
			return true;
	}
}

static int
compare_pubs(const void *a, const void *b)
{
	/* those that do nothing come last */
	return -memcmp((const char *) a + sizeof(Set), (const char *) b + sizeof(Set),
				   sizeof(Pub) - sizeof(Set));
}

/* Publishers are alike: sort them. */
static void
sort_publishers(State *st)
{
	Pub			before[MAX_PUBS];

	memcpy(before, st->pub, sizeof(before));
	qsort(st->pub, scope.pubs, sizeof(Pub), compare_pubs);
	for (int lane = 0; lane < scope.lanes; lane++)
	{
		int			holder = st->shared.holder[lane];

		for (int p = 0; holder > 0 && p < scope.pubs; p++)
			if (memcmp(&st->pub[p], &before[holder - 1], sizeof(Pub)) == 0)
			{
				st->shared.holder[lane] = (uint8_t) (p + 1);
				break;
			}
	}
}

/* Only whether the publish counter has moved since a relay read it matters. */
static void
forget_count(State *st)
{
	bool		moved = false;

	for (int s = 0; s < scope.srvs; s++)
		if (st->relay[s].round > 0)
			return;
	for (int s = 0; s < scope.srvs; s++)
	{
		Reader	   *reader = &st->relay[s].stream[0].reader;

		if (reader->has_count && reader->count != st->shared.count)
			moved = true;
	}
	for (int s = 0; s < scope.srvs; s++)
	{
		Reader	   *reader = &st->relay[s].stream[0].reader;

		if (reader->has_count)
			reader->count = reader->count == st->shared.count ? moved : 0;
	}
	st->shared.count = moved;
}

/* Can any message still be delivered twice? */
static bool
repeats_possible(const State *st)
{
	for (int s = 0; s < scope.srvs; s++)
		if (st->spec.may_repeat[s] != 0)
			return true;
	return st->budget[CRASHES] > 0 || st->budget[KILLS] > 0 || st->budget[LOSSES] > 0 ||
		st->budget[STOPS] > 0 || st->budget[CREATES] > 0;
}

/* What the judge does not need any more. */
static void
forget_history(State *st)
{
	Set			delivered = (Set) ~0;

	if (repeats_possible(st))
		return;
	for (int s = 0; s < scope.srvs; s++)
		delivered &= st->spec.delivered[s];
	for (int i = 0; i < st->spec.nmsgs; i++)
		st->spec.msg[i].before &= HAS(delivered, i) ? 0 : (Set) ~delivered;
	for (int p = 0; p < scope.pubs; p++)
		st->pub[p].before &= (Set) ~delivered;
	memset(st->spec.last, 0, sizeof(st->spec.last));
}

/* States that differ in nothing that matters become the same. */
void
canonicalise(State *st)
{
	if (reduce)
	{
		if (st->budget[CRASHES] == 0)
			database_flush(st);
		forget_history(st);
		for (int s = 0; s < scope.srvs; s++)
			if (st->budget[TROUBLES] == 0 && st->budget[STALLS] == 0 && st->disk.pos[s][1].low == 0 &&
				!st->relay[s].lagging)
				st->relay[s].stream[0].reader.end = st->relay[s].stream[0].reader.next_end = 0;
	}
	sort_publishers(st);
	for (int s = 0; s < scope.srvs; s++)
		collect_batches(&st->relay[s]);
	forget_count(st);
}

/* --- for readers of a trace --------------------------------------------------------- */

static void
print_set(FILE *out, const char *name, Set set)
{
	bool		any = false;

	fprintf(out, " %s={", name);
	for (int i = 0; i < 16; i++)
		if (HAS(set, i))
		{
			fprintf(out, "%s%d", any ? "," : "", i);
			any = true;
		}
	fprintf(out, "}");
}

static void
print_position(FILE *out, const char *name, const Position *pos)
{
	fprintf(out, "  %s", name);
	print_set(out, "s1", pos->s1);
	print_set(out, "s2", pos->s2);
	fprintf(out, " cursor=%d low=%d", pos->cursor, pos->low);
	if (pos->acked)
		print_set(out, "acked", pos->acked);
}

static void
describe_publisher(const State *before, const Action *a, const State *after, FILE *out)
{
	const Pub  *pub = &before->pub[a->a];

	fprintf(out, " publisher of transaction %d",
			a->kind == A_OPEN && pub->step == PUB_IDLE ? before->shared.next_xid : pub->xid);
	if (a->kind == A_OPEN)
		fprintf(out, ": topic %d, lane %d, segment %d%s", a->c & 1, a->b,
				before->shared.current[a->b], a->c & 2 ? ", behind a savepoint" : "");
	else if (a->kind == A_TAKE)
		fprintf(out, ": lane %d, next id was %d, limit %d", pub->lane,
				before->shared.next_id, before->shared.limit_id);
	else if (a->kind == A_INSERT)
		fprintf(out, ": message %d, id %d, segment %d", before->spec.nmsgs, pub->id, pub->seg);
	else if (a->kind == A_REFILL)
		fprintf(out, ": limit %d", after->shared.limit_id);
}

static void
describe_reading(const Action *a, const State *after, FILE *out)
{
	const Relay *r = &after->relay[a->a];
	const Reader *reader = &r->stream[a->kind == A_FOLLOW ? 1 : a->b & 1].reader;

	if (reader->batch > 0)
	{
		print_set(out, "s1", r->batch[reader->batch - 1].s1);
		print_set(out, "s2", r->batch[reader->batch - 1].s2);
		fprintf(out, " next=%d end=%d", reader->next, reader->range_end);
	}
	else
	{
		print_set(out, "last", reader->last);
		fprintf(out, " from=%d", reader->from);
	}
	for (int s = 0; s < 2; s++)
	{
		fprintf(out, "%s", r->stream[s].n > 0 ? s ? "  lagging:" : "  window:" : "");
		for (int i = 0; i < r->stream[s].n; i++)
			fprintf(out, " %d%c", r->stream[s].entry[i].msg, "?qsahd"[r->stream[s].entry[i].state]);
	}
}

static void
describe_relay(const State *before, const Action *a, const State *after, FILE *out)
{
	fprintf(out, " server %d", a->a);
	if (a->kind == A_SNAPSHOT || a->kind == A_FETCH || a->kind == A_FOLLOW || a->kind == A_SEND ||
		a->kind == A_TRIM || a->kind == A_COMMITTED || a->kind == A_TXN_ABORT)
		describe_reading(a, after, out);
	else if (a->kind == A_ROUND || a->kind == A_IDS_ROUND)
		fprintf(out, ": C=%d", before->shared.next_id);
	else if (a->kind == A_TOUCH)
		fprintf(out, ": lane %d", before->relay[a->a].round - 1);
	else if (a->kind == A_APPEND || a->kind == A_ACK)
		fprintf(out, ": topic %d, last delivered message %d", a->b,
				after->spec.last[a->a][a->b] - 1);
	else if (a->kind == A_MARK || a->kind == A_TXN_LOAD)
	{
		const Bookmark *bookmark = a->kind == A_MARK ? &after->broker[a->a].marked :
			&after->broker[a->a].bookmark;

		fprintf(out, ": n=%d epoch=%d", bookmark->n, bookmark->epoch);
		print_position(out, "main", &bookmark->pos[0]);
		if (bookmark->pos[1].low > 0)
			print_position(out, "topic", &bookmark->pos[1]);
	}
	else if (a->kind == A_STORE || a->kind == A_STORE_REST || a->kind == A_CLAIM || a->kind == A_STOP || a->kind == A_START)
	{
		print_position(out, "main", &after->disk.pos[a->a][0]);
		if (after->disk.pos[a->a][1].low > 0)
			print_position(out, "topic", &after->disk.pos[a->a][1]);
	}
}

void
model_describe(const State *before, const Action *a, const State *after, FILE *out)
{
	fprintf(out, "%-15s", kind_names[a->kind]);
	if (a->kind <= A_PREPARE)
		describe_publisher(before, a, after, out);
	else if (a->kind >= A_START && a->kind <= A_TXN_ABORT)
		describe_relay(before, a, after, out);
	else if (a->kind == A_LIST_SEGMENT)
		fprintf(out, " for lane %d", a->a);
	else if (a->kind == A_SWITCH)
		fprintf(out, " lane %d to segment %d", a->a, a->b);
	else if (a->kind == A_LOOK || a->kind == A_FREE)
		print_set(out, "segments", after->shared.to_free | before->shared.to_free);
	else if (a->kind == A_CRASH || a->kind == A_PROMOTE)
	{
		print_set(out, "lost messages", after->spec.lost);
		fprintf(out, " next xid %d, next id %d", after->shared.next_xid, after->shared.next_id);
	}
	else if (a->kind == A_CREATE)
		fprintf(out, " server %d, start %s", a->a, a->b ? "earliest" : "now");
	else if (a->kind != A_FLUSH && a->kind != A_REPLICATE && a->kind != A_SET_BACK)
		fprintf(out, " %s %d", a->kind == A_VACUUM ? "segment" : "transaction", a->a);
	fprintf(out, "%s%s%s\n", a->then & THEN_FLUSH ? "  then FLUSH" : "",
			a->then & THEN_KILL ? "  then KILL" : "", a->then & THEN_CRASH ? "  then CRASH" : "");
}
