/*-------------------------------------------------------------------------
 *
 * main.c
 *	  The model's scopes, its mutations, and its command line.
 *
 *	model list                what there is
 *	model all SCOPE           every state of a small scope
 *	model walks SCOPE         random walks in a scope
 *	model mutation RULE       with that rule off: walks, until it is noticed
 *	model trace SCOPE [RULE]  walks until there is a violation, and what led to it
 *
 * From the environment: MODEL_SEED (default 1), MODEL_SECONDS (60), MODEL_WALKS (no
 * limit).  A line "ok" or "not ok" is printed, and the exit status says the same.
 *
 *-------------------------------------------------------------------------
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

/* More than a walk can use up. */
#define OFTEN	20

/*
 * Small ones, gone through completely, each for a part of the algorithm; then those
 * for walks, which have all of it.
 */
static const Scope scopes[] = {
	{
		.name = "lanes", .lanes = 2, .segs = 2, .pubs = 2, .srvs = 1, .msgs = 3, .xids = 3,
		.xact_msgs = 2, .topics = 1, .piece = 1, .reserve = 8, .budget = {[PREPARES] = 1}
	},
	{
		.name = "crash", .lanes = 2, .segs = 2, .pubs = 2, .srvs = 1, .msgs = 2, .xids = 3,
		.xact_msgs = 2, .topics = 1, .piece = 1, .reserve = 2, .budget = {[CRASHES] = 1}
	},
	{
		.name = "kill", .lanes = 2, .segs = 2, .pubs = 2, .srvs = 1, .msgs = 2, .xids = 3,
		.xact_msgs = 2, .topics = 1, .piece = 1, .reserve = 2, .budget = {[KILLS] = 2}
	},
	{
		.name = "segments", .lanes = 1, .segs = 3, .pubs = 2, .srvs = 1, .msgs = 2, .xids = 3,
		.xact_msgs = 2, .topics = 1, .piece = 1, .reserve = 8, .frees = true, .ids_rounds = true,
		.split_list = true, .split_open = true, .budget = {[ROTATIONS] = 2}
	},
	{
		.name = "freeing", .lanes = 1, .segs = 2, .pubs = 2, .srvs = 1, .msgs = 2, .xids = 2,
		.xact_msgs = 1, .topics = 1, .piece = 1, .reserve = 8, .frees = true, .ids_rounds = true,
		.budget = {[ROTATIONS] = 1, [KILLS] = 1}
	},
	{
		.name = "lagging", .lanes = 1, .segs = 1, .pubs = 2, .srvs = 1, .msgs = 2, .xids = 2,
		.xact_msgs = 2, .topics = 2, .piece = 1, .reserve = 8,
		.budget = {[TROUBLES] = 1, [KILLS] = 1}
	},
	{
		.name = "exactly", .lanes = 1, .segs = 1, .pubs = 2, .srvs = 1, .msgs = 2, .xids = 2,
		.xact_msgs = 1, .topics = 1, .piece = 1, .reserve = 8, .exactly_once = 1,
		.budget = {[KILLS] = 1}
	},
	{
		.name = "prepared-deep", .lanes = 2, .segs = 2, .pubs = 2, .srvs = 1, .msgs = 3, .xids = 3,
		.xact_msgs = 2, .topics = 1, .piece = 1, .reserve = 8,
		.budget = {[PREPARES] = 1, [ABORTS] = 1, [SAVEPOINTS] = 1}
	},
	{
		.name = "servers-deep", .lanes = 1, .segs = 2, .pubs = 1, .srvs = 2, .msgs = 1, .xids = 1,
		.xact_msgs = 1, .topics = 1, .piece = 1, .reserve = 8, .frees = true, .ids_rounds = true,
		.budget = {[ROTATIONS] = 1, [CREATES] = 1}
	},
	{
		.name = "everything", .lanes = 3, .segs = 6, .pubs = 4, .srvs = 2, .msgs = 14, .xids = 12,
		.xact_msgs = 4, .topics = 2, .piece = 2, .reserve = 3, .frees = true, .ids_rounds = true,
		.split_list = true, .split_commit = true, .one_by_one = true, .split_open = true,
		.budget = {
			[CRASHES] = 2, [KILLS] = 2, [STOPS] = 2, [LOSSES] = 2, [TROUBLES] = 2, [STALLS] = 2,
			[ROTATIONS] = OFTEN, [PREPARES] = 2, [ABORTS] = 3, [SAVEPOINTS] = 3, [CREATES] = 1,
			[VACUUMS] = 2
		}
	},
	{
		.name = "exactly-once", .lanes = 2, .segs = 5, .pubs = 4, .srvs = 2, .msgs = 12, .xids = 12,
		.xact_msgs = 3, .topics = 2, .piece = 2, .reserve = 2, .exactly_once = 1,
		.frees = true, .ids_rounds = true, .split_open = true,
		.budget = {
			[CRASHES] = 2, [KILLS] = 2, [STOPS] = 2, [LOSSES] = 2, [TROUBLES] = 2, [STALLS] = 2,
			[ROTATIONS] = OFTEN, [PREPARES] = 1, [ABORTS] = 3
		}
	},
	{
		.name = "careful", .lanes = 1, .segs = 1, .pubs = 3, .srvs = 1, .msgs = 8, .xids = 8,
		.xact_msgs = 3, .topics = 3, .piece = 3, .reserve = 8, .exactly_once = 1, .careful = true,
		.budget = {[KILLS] = 1, [TROUBLES] = 1, [STALLS] = 1}
	},
	{
		.name = "ids", .lanes = 1, .segs = 1, .pubs = 4, .srvs = 1, .msgs = 8, .xids = 12,
		.xact_msgs = 1, .topics = 1, .piece = 2, .reserve = 2, .exactly_once = 1,
		.split_open = true, .budget = {[CRASHES] = 4}
	},
	{
		.name = "synchronous", .lanes = 2, .segs = 5, .pubs = 3, .srvs = 2, .msgs = 10, .xids = 12,
		.xact_msgs = 2, .topics = 2, .piece = 2, .reserve = 3, .exactly_once = 1,
		.standby = true, .synchronous = true, .frees = true, .ids_rounds = true, .split_open = true,
		.budget = {
			[CRASHES] = 2, [KILLS] = 1, [STOPS] = 1, [LOSSES] = 1, [TROUBLES] = 1, [STALLS] = 1,
			[ROTATIONS] = OFTEN, [PREPARES] = 1, [ABORTS] = 2, [PROMOTIONS] = 2
		}
	},
	{
		.name = "asynchronous", .lanes = 2, .segs = 5, .pubs = 3, .srvs = 2, .msgs = 10, .xids = 12,
		.xact_msgs = 2, .topics = 2, .piece = 2, .reserve = 3, .exactly_once = 1,
		.standby = true, .frees = true, .ids_rounds = true, .split_open = true,
		.budget = {
			[CRASHES] = 2, [KILLS] = 1, [STOPS] = 1, [LOSSES] = 1, [TROUBLES] = 1, [STALLS] = 1,
			[ROTATIONS] = OFTEN, [PREPARES] = 1, [ABORTS] = 2, [PROMOTIONS] = 2
		}
	},
	{
		.name = "set-back", .lanes = 2, .segs = 5, .pubs = 3, .srvs = 1, .msgs = 10, .xids = 10,
		.xact_msgs = 2, .topics = 1, .piece = 2, .reserve = 3, .frees = true, .ids_rounds = true,
		.split_open = true,
		.budget = {[CRASHES] = 2, [KILLS] = 1, [ROTATIONS] = OFTEN, [ABORTS] = 2, [SET_BACKS] = 2}
	},
};

#define NSCOPES ((int) (sizeof(scopes) / sizeof(scopes[0])))

static const char *const rule_names[NRULES] = {
#define X(rule, name, where) name,
	RULES
#undef X
};

/* The scope in which a rule's absence shows. */
static const char *const rule_scopes[NRULES] = {
#define X(rule, name, where) where,
	RULES
#undef X
};

static uint64_t
setting(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);

	return value != NULL && *value != '\0' ? strtoull(value, NULL, 10) : otherwise;
}

static void
choose_scope(const char *name)
{
	for (int i = 0; i < NSCOPES; i++)
		if (strcmp(scopes[i].name, name) == 0)
		{
			scope = scopes[i];
			return;
		}
	fprintf(stderr, "model: no scope \"%s\"\n", name);
	exit(2);
}

static void
choose_rule(const char *name)
{
	for (int i = 0; i < NRULES; i++)
		if (strcmp(rule_names[i], name) == 0)
		{
			rule_off = i;
			return;
		}
	fprintf(stderr, "model: no rule \"%s\"\n", name);
	exit(2);
}

static void
list(void)
{
	for (int i = 0; i < NSCOPES; i++)
		printf("scope %s\n", scopes[i].name);
	for (int i = 0; i < NRULES; i++)
		printf("rule %s, in scope %s\n", rule_names[i], rule_scopes[i]);
}

static void
run_walks(Result *result)
{
	explore_walks(setting("MODEL_SEED", 1), setting("MODEL_WALKS", UINT64_MAX),
				  (double) setting("MODEL_SECONDS", 60), result);
}

static void
show_trace(Result *result)
{
	explore_minimise(result);
	explore_print(&result->trace);
}

/* A violation where there must be none. */
static int
report_violation(const char *what, Result *result)
{
	printf("not ok - %s: %s: %s\n", what, property_names[result->property], result->text);
	show_trace(result);
	return 1;
}

static int
check_all(const char *name, Result *result)
{
	choose_scope(name);
	explore_all((double) setting("MODEL_SECONDS", 60), result);
	if (result->property != P_NONE)
		return report_violation(name, result);
	printf("%s - all of %s: %" PRIu64 " states, %" PRIu64 " ends, longest way %d%s\n",
		   result->complete ? "ok" : "not ok", name, result->states, result->runs,
		   result->depth, result->complete ? "" : ", and no time for more");
	return result->complete ? 0 : 1;
}

static int
check_walks(const char *name, Result *result)
{
	choose_scope(name);
	run_walks(result);
	if (result->property != P_NONE)
		return report_violation(name, result);
	printf("ok - walks in %s: %" PRIu64 " walks, %" PRIu64 " steps, longest %d\n",
		   name, result->runs, result->states, result->depth);
	return 0;
}

static int
check_mutation(const char *name, Result *result)
{
	choose_rule(name);
	choose_scope(rule_scopes[rule_off]);
	run_walks(result);
	if (result->property == P_NONE)
	{
		printf("not ok - without %s: nothing noticed in %" PRIu64 " walks\n", name, result->runs);
		return 1;
	}
	printf("ok - without %s: %s after %" PRIu64 " walks\n", name,
		   property_names[result->property], result->runs);
	return 0;
}

static int
trace(const char *scope_name, const char *rule, Result *result)
{
	choose_scope(scope_name);
	if (rule != NULL)
		choose_rule(rule);
	run_walks(result);
	if (result->property == P_NONE)
		printf("nothing noticed in %" PRIu64 " walks\n", result->runs);
	else
		show_trace(result);
	return result->property == P_NONE;
}

int
main(int argc, char **argv)
{
	static Result result;
	const char *command = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(command, "list") == 0)
		list();
	else if (argc == 3 && strcmp(command, "all") == 0)
		return check_all(argv[2], &result);
	else if (argc == 3 && strcmp(command, "walks") == 0)
		return check_walks(argv[2], &result);
	else if (argc == 3 && strcmp(command, "mutation") == 0)
		return check_mutation(argv[2], &result);
	else if (argc >= 3 && argc <= 4 && strcmp(command, "trace") == 0)
		return trace(argv[2], argc == 4 ? argv[3] : NULL, &result);
	else
	{
		fprintf(stderr, "usage: model list | all SCOPE | walks SCOPE | mutation RULE | trace SCOPE [RULE]\n");
		return 2;
	}
	return 0;
}
