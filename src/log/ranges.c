/*-------------------------------------------------------------------------
 *
 * ranges.c
 *	  Ranges of ids, in the form that a pass over the lanes wants.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "log/merge.h"

static int
compare_ranges(const void *a, const void *b)
{
	uint64		x = ((const OutboxRange *) a)->from;
	uint64		y = ((const OutboxRange *) b)->from;

	return (x > y) - (x < y);
}

/* Sort ranges by where they begin, and join those that touch. */
void
outbox_ranges_sort(OutboxRanges *r)
{
	int			n = 0;

	if (r->n < 2)
		return;
	qsort(r->ranges, r->n, sizeof(OutboxRange), compare_ranges);
	for (int i = 1; i < r->n; i++)
	{
		if (r->ranges[i].from <= r->ranges[n].to + 1)
			r->ranges[n].to = Max(r->ranges[n].to, r->ranges[i].to);
		else
			r->ranges[++n] = r->ranges[i];
	}
	r->n = n + 1;
}
