/*-------------------------------------------------------------------------
 *
 * mark_many.c
 *	  Sets the marks of many messages.
 *
 * In the order of their bytes, so that of two who set the same marks none waits for
 * the other while that waits for him.  And some at a time: so many that their
 * subtransaction costs little, and so few that little is done in vain when one of
 * them is known.  The subtransactions of a call should be few in any case, since a
 * snapshot has room for 64 of each transaction.
 *
 * Ids that are made in one place begin alike, often with more than half of their
 * bytes.  So they are sorted by the eight bytes that follow, as a number, and are
 * looked at only where these are the same.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "inbox/mark.h"
#include "port/pg_bswap.h"

#define MIN_AT_ONCE		128
#define MAX_AT_ONCE		1024
#define SUBTRANSACTIONS	16

typedef struct Candidate
{
	uint64		prefix;			/* behind what all have in common */
	const text *id;
	int			place;			/* in the caller's order */
} Candidate;

static int
compare_bytes(const text *a, const text *b)
{
	int			a_length = VARSIZE_ANY_EXHDR(a);
	int			b_length = VARSIZE_ANY_EXHDR(b);
	int			order = memcmp(VARDATA_ANY(a), VARDATA_ANY(b), Min(a_length, b_length));

	return order != 0 ? order : a_length - b_length;
}

/* By id; the same id in the order in which it was given. */
static int
compare(const Candidate *a, const Candidate *b)
{
	int			order;

	if (a->prefix != b->prefix)
		return a->prefix < b->prefix ? -1 : 1;
	order = compare_bytes(a->id, b->id);
	return order != 0 ? order : a->place - b->place;
}

#define ST_SORT			sort_candidates
#define ST_ELEMENT_TYPE Candidate
#define ST_COMPARE(a, b) compare(a, b)
#define ST_SCOPE		static
#define ST_DEFINE
#include "lib/sort_template.h"

/* How many bytes do all begin with? */
static int
common_length(const Candidate *candidates, int n)
{
	const char *first = VARDATA_ANY(candidates[0].id);
	int			length = VARSIZE_ANY_EXHDR(candidates[0].id);

	for (int i = 1; i < n && length > 0; i++)
	{
		const char *other = VARDATA_ANY(candidates[i].id);
		int			same = 0;

		length = Min(length, VARSIZE_ANY_EXHDR(candidates[i].id));
		if (memcmp(first, other, length) == 0)
			continue;
		while (first[same] == other[same])
			same++;
		length = same;
	}
	return length;
}

/* Eight bytes behind so many, as a number; zeros where there are less. */
static uint64
get_prefix(const text *id, int skip)
{
	uint64		bytes = 0;

	memcpy(&bytes, VARDATA_ANY(id) + skip, Min(sizeof(bytes), VARSIZE_ANY_EXHDR(id) - skip));
	return pg_ntoh64(bytes);
}

void
inbox_marks_set(InboxMarks *marks, Datum consumer, const Datum *ids, int n, bool *set)
{
	Candidate  *candidates;
	Datum	   *ordered;
	bool	   *results;
	int			skip;
	int			count = 0;
	int			at_once;

	if (n <= 0)
		return;
	candidates = palloc(n * sizeof(Candidate));
	ordered = palloc(n * sizeof(Datum));
	results = palloc(n * sizeof(bool));
	for (int i = 0; i < n; i++)
	{
		candidates[i].id = (const text *) DatumGetPointer(ids[i]);
		candidates[i].place = i;
		set[i] = false;
	}
	skip = common_length(candidates, n);
	for (int i = 0; i < n; i++)
		candidates[i].prefix = get_prefix(candidates[i].id, skip);
	sort_candidates(candidates, n);
	for (int i = 0; i < n; i++)
	{
		if (i > 0 && candidates[i].prefix == candidates[i - 1].prefix &&
			compare_bytes(candidates[i].id, candidates[i - 1].id) == 0)
			continue;
		candidates[count] = candidates[i];
		ordered[count++] = PointerGetDatum(candidates[i].id);
	}
	at_once = Min(Max(MIN_AT_ONCE, count / SUBTRANSACTIONS), MAX_AT_ONCE);
	for (int i = 0; i < count; i += at_once)
		inbox_marks_set_ordered(marks, consumer, ordered + i, Min(at_once, count - i), results + i);
	for (int i = 0; i < count; i++)
		set[candidates[i].place] = results[i];
	pfree(candidates);
	pfree(ordered);
	pfree(results);
}
