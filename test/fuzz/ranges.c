/*
 * Ranges of ids: pairs of bytes, where a range begins and how long it is.
 */
#include "fuzz.h"

#include "log/merge.h"

#define SPAN	768

void
fuzz_one(Fuzz *in)
{
	bool		expected[SPAN] = {false};
	bool		got[SPAN] = {false};
	uint64		base = fuzz_byte(in) % 2 ? PG_UINT64_MAX - SPAN : 0;
	OutboxRanges r;

	r.n = Min(in->size / 2, 1000);
	r.ranges = palloc(r.n * sizeof(OutboxRange));
	for (int i = 0; i < r.n; i++)
	{
		int			from = 1 + fuzz_byte(in);
		int			to = from + fuzz_byte(in);

		r.ranges[i].from = base + from;
		r.ranges[i].to = base + to;
		for (int j = from; j <= to; j++)
			expected[j] = true;
	}
	outbox_ranges_sort(&r);
	for (int i = 0; i < r.n; i++)
	{
		REQUIRE(r.ranges[i].from <= r.ranges[i].to);
		/* apart: not even touching */
		REQUIRE(i == 0 || r.ranges[i].from > r.ranges[i - 1].to + 1);
		for (uint64 j = r.ranges[i].from; j <= r.ranges[i].to; j++)
			got[j - base] = true;
	}
	REQUIRE(memcmp(expected, got, sizeof(got)) == 0);
}
