/*-------------------------------------------------------------------------
 *
 * explore.c
 *	  Going through the states: all of a small scope, or at random.
 *
 * All: depth first.  Of states that were seen a hash of 64 bits is kept, so two
 * states could be taken for one: with the numbers of states here, less likely than one
 * in ten thousand for a whole run.  Every step uses something up (ids, rounds, what may
 * still go wrong), so there are no cycles.
 *
 * Orders that make no difference are left out there.  A flush, the kill of a relay and a
 * crash only matter by what was written, stored, delivered or made safe just before, so
 * they follow such steps at once ("then") or never: all that came in between would be
 * forgotten, or is the same without it.  Steps that nothing interferes with come before
 * all others (relay_is_alone).
 *
 * At random: each walk draws its own liking for each kind of step, so that some hardly
 * ever store a position and others hardly ever do anything else; then it takes steps
 * until nothing is left to be done.  A walk is told by its number: seed + n.
 *
 * Ends.  Where nothing happens any more without a fault or a new publication, all must
 * be delivered and freed (judge_end).
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model.h"

#define FIRST_SEEN	(1u << 16)
#define MAX_SEEN	100000000u

typedef struct Seen
{
	uint64_t   *hash;
	uint64_t	size;			/* a power of two */
	uint64_t	n;
} Seen;

typedef struct Frame
{
	State		state;
	Actions		actions;
	int			next;
	int			then;			/* of that action, to be tried next */
} Frame;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

static uint64_t
mix(uint64_t x)
{
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93u;
	x ^= x >> 32;
	x *= 0xd6e8feb86659fd93u;
	return x ^ (x >> 32);
}

static uint64_t
hash_state(const State *st)
{
	const char *p = (const char *) st;
	uint64_t	hash = 0x9e3779b97f4a7c15u;
	size_t		left = offsetof(State, relay) + scope.srvs * sizeof(Relay);

	for (; left > 0;)
	{
		uint64_t	word = 0;
		size_t		n = left < sizeof(word) ? left : sizeof(word);

		memcpy(&word, p, n);
		hash = (hash ^ word) * 0xff51afd7ed558ccdu;
		hash ^= hash >> 29;
		p += n;
		left -= n;
	}
	hash = mix(hash);
	return hash != 0 ? hash : 1;
}

static void *
allocate(size_t n, size_t size)
{
	void	   *p = calloc(n, size);

	if (p == NULL)
	{
		fprintf(stderr, "model: out of memory\n");
		exit(2);
	}
	return p;
}

static void
put(Seen *seen, uint64_t hash)
{
	uint64_t	i = hash & (seen->size - 1);

	while (seen->hash[i] != 0)
		i = (i + 1) & (seen->size - 1);
	seen->hash[i] = hash;
	seen->n++;
}

/* Add a state; false when it was there. */
static bool
add_seen(Seen *seen, uint64_t hash)
{
	for (uint64_t i = hash & (seen->size - 1); seen->hash[i] != 0; i = (i + 1) & (seen->size - 1))
		if (seen->hash[i] == hash)
			return false;
	if (seen->n * 4 >= seen->size * 3)
	{
		Seen		larger = {allocate(seen->size * 2, sizeof(uint64_t)), seen->size * 2, 0};

		for (uint64_t i = 0; i < seen->size; i++)
			if (seen->hash[i] != 0)
				put(&larger, seen->hash[i]);
		free(seen->hash);
		*seen = larger;
	}
	put(seen, hash);
	return true;
}

/* Judge a state that was just reached; does it end here? */
static bool
judge(const State *st, const Actions *actions)
{
	judge_state(st);
	if (violated != P_NONE)
		return true;
	for (int i = 0; i < actions->n; i++)
		if (is_normal(&actions->action[i]))
			return false;
	judge_end(st);
	return true;
}

static void
note_violation(Result *result)
{
	result->property = violated;
	snprintf(result->text, sizeof(result->text), "%s", violation);
}

static void
enter(Frame *frame, Result *result)
{
	frame->next = frame->then = 0;
	model_actions(&frame->state, &frame->actions);
	result->states++;
	if (judge(&frame->state, &frame->actions))
		result->runs++;
}

/* The next action to try in a state; false: that was all. */
static bool
next_action(Frame *frame, Action *action)
{
	const State *st = &frame->state;

	if (frame->next == frame->actions.n)
		return false;
	*action = frame->actions.action[frame->next];
	action->then = (uint8_t) frame->then;
	do
		frame->then++;
	while ((frame->then & THEN_KILL &&
			(st->budget[KILLS] == 0 || frame->then != THEN_KILL ||
			 action->kind < A_START || action->kind > A_TXN_ABORT)) ||
		   (frame->then & (THEN_FLUSH | THEN_CRASH) && st->budget[CRASHES] == 0 &&
			frame->then <= (THEN_FLUSH | THEN_CRASH)));
	if (frame->then > (THEN_FLUSH | THEN_CRASH))
	{
		frame->then = 0;
		frame->next++;
	}
	return true;
}

/* All states of the scope, or until there is a violation or no time. */
void
explore_all(double seconds, Result *result)
{
	Seen		seen = {allocate(FIRST_SEEN, sizeof(uint64_t)), FIRST_SEEN, 0};
	Frame	   *stack = allocate(MAX_TRACE, sizeof(Frame));
	double		end = now() + seconds;
	int			depth = 0;

	memset(result, 0, sizeof(*result));
	violated = P_NONE;
	reduce = true;
	model_init(&stack[0].state);
	canonicalise(&stack[0].state);
	(void) add_seen(&seen, hash_state(&stack[0].state));
	enter(&stack[0], result);
	while (depth >= 0 && violated == P_NONE)
	{
		Frame	   *frame = &stack[depth];
		Frame	   *child = &stack[depth + 1];

		if (!next_action(frame, &result->trace.action[depth]))
		{
			depth--;
			continue;
		}
		result->trace.n = depth + 1;
		child->state = frame->state;
		if (!model_step(&child->state, &result->trace.action[depth]))
			continue;
		if (violated != P_NONE)
			break;
		if (!add_seen(&seen, hash_state(&child->state)))
			continue;
		if (++depth > result->depth)
			result->depth = depth;
		if (depth + 1 == MAX_TRACE || seen.n >= MAX_SEEN ||
			(result->states % 4096 == 0 && now() > end))
			break;
		enter(child, result);
	}
	result->complete = depth < 0;
	note_violation(result);
	free(seen.hash);
	free(stack);
}

/* --- at random -------------------------------------------------------------------------- */

static uint64_t random_state;

static uint64_t
next_random(void)
{
	random_state += 0x9e3779b97f4a7c15u;
	return mix(random_state);
}

/* A walk's liking for each kind of step. */
static void
draw_weights(uint32_t *weights)
{
	for (int kind = 0; kind < NKINDS; kind++)
		weights[kind] = (uint32_t) kind_weight((Kind) kind) << (next_random() % 8);
}

static const Action *
choose(const Actions *actions, const uint32_t *weights, bool only_normal)
{
	uint64_t	total = 0;
	uint64_t	at;

	for (int i = 0; i < actions->n; i++)
		if (!only_normal || is_normal(&actions->action[i]))
			total += weights[actions->action[i].kind];
	at = next_random() % total;
	for (int i = 0;; i++)
	{
		if (only_normal && !is_normal(&actions->action[i]))
			continue;
		if (at < weights[actions->action[i].kind])
			return &actions->action[i];
		at -= weights[actions->action[i].kind];
	}
}

static void
walk(uint64_t seed, Result *result)
{
	uint32_t	weights[NKINDS];
	State		st;
	Actions		actions;
	int			free_steps;

	random_state = mix(seed);
	draw_weights(weights);
	free_steps = 50 + (int) (next_random() % 400);
	model_init(&st);
	canonicalise(&st);
	result->trace.n = 0;
	for (;;)
	{
		Trace	   *trace = &result->trace;

		model_actions(&st, &actions);
		if (judge(&st, &actions) && (violated != P_NONE || trace->n >= free_steps || actions.n == 0))
			break;
		if (trace->n == MAX_TRACE)
		{
			violate(P_STUCK, "no end after %d steps", MAX_TRACE);
			break;
		}
		trace->action[trace->n] = *choose(&actions, weights, trace->n >= free_steps);
		(void) model_step(&st, &trace->action[trace->n++]);
		if (violated != P_NONE)
			break;
	}
	result->states += (uint64_t) result->trace.n;
	if (result->trace.n > result->depth)
		result->depth = result->trace.n;
}

void
explore_walks(uint64_t seed, uint64_t walks, double seconds, Result *result)
{
	double		end = now() + seconds;

	memset(result, 0, sizeof(*result));
	violated = P_NONE;
	reduce = false;
	while (result->runs < walks && violated == P_NONE)
	{
		if (result->runs % 64 == 0 && now() > end)
			break;
		walk(seed + result->runs++, result);
	}
	result->complete = true;
	note_violation(result);
}

/* --- traces -------------------------------------------------------------------------------- */

static bool
is_enabled(const State *st, const Action *action)
{
	Actions		actions;

	model_actions(st, &actions);
	for (int i = 0; i < actions.n; i++)
		if (memcmp(&actions.action[i], action, offsetof(Action, then)) == 0)
			return !(action->then & THEN_KILL && st->budget[KILLS] == 0) &&
				!(action->then & THEN_CRASH && st->budget[CRASHES] == 0);
	return false;
}

/*
 * Do what of a trace is possible, then what happens by itself.  True when the
 * property is violated; the trace is then what was done.
 */
static bool
replay(const Trace *trace, Property property, Trace *done, FILE *out)
{
	State		st;
	Actions		actions;
	int			i = 0;

	violated = P_NONE;
	model_init(&st);
	canonicalise(&st);
	done->n = 0;
	while (done->n < MAX_TRACE)
	{
		State		before = st;
		const Action *action = NULL;

		model_actions(&st, &actions);
		if (judge(&st, &actions) && (violated != P_NONE || i == trace->n))
			break;
		while (i < trace->n && action == NULL)
		{
			if (is_enabled(&st, &trace->action[i]))
				action = &trace->action[i];
			i++;
		}
		for (int j = 0; j < actions.n && action == NULL; j++)
			if (is_normal(&actions.action[j]))
				action = &actions.action[j];
		if (action == NULL)
			break;
		if (!model_step(&st, action))
		{
			st = before;
			continue;
		}
		done->action[done->n++] = *action;
		if (out != NULL)
		{
			fprintf(out, "%4d  ", done->n);
			model_describe(&before, action, &st, out);
		}
		if (violated != P_NONE)
			break;
	}
	return violated == property;
}

static void
cut(const Trace *from, int at, int n, Trace *to)
{
	to->n = 0;
	for (int i = 0; i < from->n; i++)
		if (i < at || i >= at + n)
			to->action[to->n++] = from->action[i];
}

/* Leave out what is not needed for the violation. */
void
explore_minimise(Result *result)
{
	Trace	   *best = &result->trace;
	Trace	   *shorter = allocate(1, sizeof(Trace));
	Trace	   *done = allocate(1, sizeof(Trace));
	bool		again = true;

	while (again)
	{
		again = false;
		for (int n = best->n / 2; n > 0; n = n > 8 ? n / 2 : n - 1)
			for (int at = 0; at + n <= best->n;)
			{
				cut(best, at, n, shorter);
				if (replay(shorter, result->property, done, NULL) && done->n < best->n)
				{
					*best = *done;
					again = true;
				}
				else
					at += n > 8 ? n / 2 : 1;
			}
	}
	if (replay(best, result->property, done, NULL))
		note_violation(result);
	free(shorter);
	free(done);
}

void
explore_print(const Trace *trace)
{
	Trace	   *done = allocate(1, sizeof(Trace));

	(void) replay(trace, P_NONE, done, stdout);
	if (violated != P_NONE)
		printf("      %s: %s\n", property_names[violated], violation);
	free(done);
}
