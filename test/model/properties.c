/*-------------------------------------------------------------------------
 *
 * properties.c
 *	  What must hold.
 *
 *	LOST		what committed is delivered when all is quiet
 *	PHANTOM		nothing is sent that is not committed, and safe
 *	ORDER		of one key, what was published before is delivered before
 *	STALE		the last one delivered of a key is the last one
 *	REPEATED	twice only after a crash, and only what no position called done
 *	FREED		no segment goes while a row in it is wanted
 *	POSITION	what a position calls done stays done; it names nothing from the future
 *	LANE		a lane's ids increase
 *	IDS			a message id is given once; a safe message's id is not given again
 *	STUCK		it comes to an end: all read, all freed, no lane held for ever
 *
 *-------------------------------------------------------------------------
 */
#include <stdarg.h>
#include <string.h>

#include "model.h"

const char *const property_names[NPROPERTIES] = {
	"none", "LOST", "PHANTOM", "ORDER", "STALE", "REPEATED", "FREED", "POSITION", "LANE",
	"IDS", "STUCK"
};

Property	violated = P_NONE;
char		violation[200];

void
violate(Property property, const char *format,...)
{
	va_list		args;

	if (violated != P_NONE)
		return;
	violated = property;
	va_start(args, format);
	vsnprintf(violation, sizeof(violation), format, args);
	va_end(args);
}

/* Is it in the log for good: committed, and seen to be? */
bool
is_message(const State *st, int i)
{
	const Message *m = &st->spec.msg[i];

	return !HAS(st->spec.lost, i) && st->disk.xact[m->xid] == XACT_COMMITTED &&
		!HAS(st->shared.running, m->xid) && !HAS(st->disk.rolled_back, i);
}

static Set
messages_of(const State *st, int s)
{
	Set			set = 0;

	for (int i = 0; i < st->spec.nmsgs; i++)
		if (is_message(st, i) && !HAS(st->spec.skip[s], i))
			set |= BIT(i);
	return set;
}

/* Of this topic: what a publisher could have seen, and its own. */
Set
predecessors(const State *st, int topic, int xid)
{
	Set			set = 0;

	for (int i = 0; i < st->spec.nmsgs; i++)
	{
		const Message *m = &st->spec.msg[i];

		if (!HAS(st->spec.lost, i) && m->topic == topic &&
			(is_message(st, i) || (m->xid == xid && !HAS(st->disk.rolled_back, i))))
			set |= BIT(i);
	}
	return set;
}

/* Does a position say that a row is done?  Without what it lists beyond its cursor. */
bool
done_by(const State *st, const Position *pos, int i)
{
	const Message *m = &st->spec.msg[i];

	return HAS(pos->s1, m->xid) || (HAS(pos->s2, m->xid) && m->id <= pos->cursor);
}

/* The position that speaks for a topic. */
const Position *
position_of(const Disk *disk, int s, int topic)
{
	return &disk->pos[s][topic == LAGGER && disk->pos[s][1].low > 0];
}

static Set
all_done_by(const State *st, const Disk *disk, int s)
{
	Set			set = 0;

	for (int i = 0; i < st->spec.nmsgs; i++)
		if (!HAS(st->spec.lost, i) &&
			done_by(st, position_of(disk, s, st->spec.msg[i].topic), i))
			set |= BIT(i);
	return set;
}

/* A row was added. */
void
judge_insert(State *st, int i)
{
	const Message *m = &st->spec.msg[i];
	const Segment *segment = &st->disk.seg[st->disk.place[i]];

	for (int j = 0; j < i; j++)
	{
		const Message *other = &st->spec.msg[j];
		const Segment *its = st->disk.place[j] == NONE ? NULL : &st->disk.seg[st->disk.place[j]];

		if (other->id == m->id && other->epoch == m->epoch)
			violate(P_IDS, "messages %d and %d have one message id", j, i);
		if (other->id == m->id && !HAS(st->spec.lost, j) && !st->spec.set_back)
			violate(P_IDS, "id %d of message %d is given again", m->id, j);
		if (its == NULL || its->lane != segment->lane)
			continue;
		if (its->generation <= segment->generation ? other->id > m->id : other->id < m->id)
			violate(P_LANE, "id %d is put behind id %d in lane %d",
					its->generation <= segment->generation ? m->id : other->id,
					its->generation <= segment->generation ? other->id : m->id, segment->lane);
	}
}

/* The relay hands a message to its client. */
void
judge_send(const State *st, int s, int i)
{
	const Message *m = &st->spec.msg[i];

	if (!is_message(st, i))
		violate(P_PHANTOM, "message %d is sent, and not committed", i);
	else if (st->flushed.xact[m->xid] != XACT_COMMITTED || HAS(st->flushed.rolled_back, i))
		violate(P_PHANTOM, "message %d is sent, and a crash could still take it", i);
	else if (scope.synchronous && (st->standby.xact[m->xid] != XACT_COMMITTED ||
								   HAS(st->standby.rolled_back, i)))
		violate(P_PHANTOM, "message %d is sent, and the standby does not have it", i);
	else if (HAS(st->spec.skip[s], i))
		violate(P_PHANTOM, "message %d is sent to server %d, which is younger", i, s);
}

/* The broker appends a message. */
void
judge_append(State *st, int s, int i)
{
	Spec	   *spec = &st->spec;
	const Message *m = &spec->msg[i];
	Set			missing = m->before & messages_of(st, s) & (Set) ~spec->delivered[s];

	if (HAS(spec->delivered[s], i))
	{
		if (!HAS(spec->may_repeat[s], i))
			violate(P_REPEATED, "message %d is delivered twice", i);
		spec->may_repeat[s] &= (Set) ~BIT(i);
	}
	else if (missing != 0)
		violate(P_ORDER, "message %d is delivered before message %d", i, __builtin_ctz(missing));
	spec->delivered[s] |= BIT(i);
	spec->last[s][m->topic] = (uint8_t) (i + 1);
}

/* Positions were stored: all that was done is done. */
void
judge_store(const State *st, int s, const Disk *before)
{
	Set			undone = all_done_by(st, before, s) & (Set) ~all_done_by(st, &st->disk, s);
	Set			early = all_done_by(st, &st->disk, s) & messages_of(st, s) &
		(Set) ~st->spec.delivered[s];

	if (undone != 0)
		violate(P_POSITION, "by the new position of server %d message %d is not done any more",
				s, __builtin_ctz(undone));
	if (early != 0)
		violate(P_POSITION, "by the position of server %d message %d is done, and was not delivered",
				s, __builtin_ctz(early));
}

/* A row is gone for ever. */
void
judge_free(const State *st, int i)
{
	const Message *m = &st->spec.msg[i];

	if (HAS(st->disk.rolled_back, i) || st->disk.xact[m->xid] == XACT_ABORTED)
		return;
	if (HAS(st->shared.running, m->xid))
		violate(P_FREED, "message %d is freed, and its transaction is open", i);
	for (int s = 0; s < scope.srvs; s++)
		if (HAS(st->disk.servers, s) && !HAS(st->spec.skip[s], i) &&
			(!HAS(st->spec.delivered[s], i) ||
			 !done_by(st, position_of(&st->flushed, s, m->topic), i)))
			violate(P_FREED, "message %d is freed, and server %d does not have it for sure", i, s);
}

/* Its memory is gone; what it did since its position may happen again. */
void
relay_went_down(State *st, int s, bool promoted)
{
	memset(&st->relay[s], 0, sizeof(Relay));
	/* nothing ever may; but with what a standby lacked the bookmark goes, too */
	if (is_exactly_once(s) && (!promoted || scope.synchronous))
		return;
	st->spec.may_repeat[s] |= st->spec.delivered[s] & (Set) ~all_done_by(st, &st->disk, s);
}

/* Of each key the last one delivered must have no successor that was, too. */
static void
judge_last(const State *st, int s)
{
	const Spec *spec = &st->spec;

	for (int topic = 0; topic < scope.topics; topic++)
		for (int i = 0; i < spec->nmsgs; i++)
			if (spec->last[s][topic] > 0 && HAS(spec->delivered[s], i) &&
				HAS(spec->msg[i].before, spec->last[s][topic] - 1))
				violate(P_STALE, "server %d was sent message %d last, and message %d before",
						s, spec->last[s][topic] - 1, i);
}

/* In every state. */
void
judge_state(const State *st)
{
	for (int p = 0; p < scope.pubs; p++)
		if (st->pub[p].step == PUB_ENDED)
			return;				/* the relays are about to hear of it */
	for (int s = 0; s < scope.srvs; s++)
	{
		Set			missing;

		if (!HAS(st->disk.servers, s) || !relay_is_idle(st, s))
			continue;
		missing = messages_of(st, s) & (Set) ~st->spec.delivered[s];
		if (missing != 0)
			violate(P_LOST, "server %d is idle, and message %d was not delivered",
					s, __builtin_ctz(missing));
		judge_last(st, s);
	}
}

/* In a state after which nothing happens without a fault. */
void
judge_end(const State *st)
{
	for (int p = 0; p < scope.pubs; p++)
		if (st->pub[p].step != PUB_IDLE && st->pub[p].step != PUB_XACT)
			violate(P_STUCK, "publisher %d waits for ever", p);
	for (int s = 0; s < scope.srvs; s++)
	{
		Set			missing = messages_of(st, s) & (Set) ~st->spec.delivered[s];

		if (!HAS(st->disk.servers, s))
			continue;
		if (missing != 0)
			violate(P_LOST, "server %d never gets message %d", s, __builtin_ctz(missing));
		judge_last(st, s);
		if (!relay_is_idle(st, s))
			violate(P_STUCK, "the relay of server %d waits for ever", s);
		if (st->relay[s].lagging)
			violate(P_STUCK, "the topic of server %d lags for ever", s);
	}
	if (scope.frees && closed_segments(st) != 0 && st->shared.running == 0)
		violate(P_STUCK, "a closed segment is never freed");
}
