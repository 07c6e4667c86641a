/*
 * Snapshots as text, as positions have them: a line each, two of them, and a number.
 */
#include "fuzz.h"

#include "log/snapshot.h"

/* A number at *p that fits into 64 bits. */
static bool
number(const char **p, uint64 *value)
{
	const char *start = *p;
	unsigned __int128 n = 0;

	for (; **p >= '0' && **p <= '9'; (*p)++)
	{
		n = n * 10 + (**p - '0');
		if (n > PG_UINT64_MAX)
			return false;
	}
	*value = (uint64) n;
	return *p > start;
}

/* xmin:xmax:xip,xip; how many. */
static bool
read_snapshot(const char *p, uint64 *xmin, uint64 *xmax, int *n, uint64 *xip)
{
	*n = 0;
	if (!number(&p, xmin) || *p++ != ':' || !number(&p, xmax) || *p++ != ':' ||
		*xmin == 0 || *xmax < *xmin)
		return false;
	while (*p != '\0')
	{
		if (!number(&p, &xip[*n]) || xip[*n] < *xmin || xip[*n] >= *xmax)
			return false;
		(*n)++;
		/* as pg_snapshot, which bears a comma at the end */
		if (*p == ',')
			p++;
		else if (*p != '\0')
			return false;
	}
	return true;
}

static OutboxSnapshot *
check(const char *text, uint64 probe)
{
	OutboxSnapshot *s = outbox_snapshot_parse(text);
	uint64	   *xip = palloc((strlen(text) + 1) * sizeof(uint64));
	uint64		xmin;
	uint64		xmax;
	int			n;
	bool		running = false;
	OutboxSnapshot *again;

	REQUIRE((s != NULL) == read_snapshot(text, &xmin, &xmax, &n, xip));
	if (s == NULL)
		return NULL;
	REQUIRE(s->xmin == xmin && s->xmax == xmax && s->nxip <= n);
	for (int i = 1; i < s->nxip; i++)
		REQUIRE(s->xip[i - 1] < s->xip[i]);
	for (int i = 0; i < n; i++)
	{
		REQUIRE(!outbox_snapshot_contains(s, xip[i]));
		running = running || xip[i] == probe;
	}
	REQUIRE(outbox_snapshot_contains(s, probe) == (probe < xmax && !running));

	again = outbox_snapshot_parse(outbox_snapshot_out(s));
	REQUIRE(again != NULL && outbox_snapshot_equal(s, again) && outbox_snapshot_compare(s, again) == 0);
	REQUIRE(outbox_snapshot_equal(s, outbox_snapshot_copy(s)));
	return s;
}

void
fuzz_one(Fuzz *in)
{
	char	   *a_text = fuzz_line(in);
	char	   *b_text = fuzz_line(in);
	uint64		probe = strtou64(fuzz_rest(in), NULL, 10);
	OutboxSnapshot *a = check(a_text, probe);
	OutboxSnapshot *b = check(b_text, probe);

	if (a != NULL && b != NULL)
	{
		REQUIRE(outbox_snapshot_compare(a, b) == -outbox_snapshot_compare(b, a) ||
				(outbox_snapshot_compare(a, b) < 0) == (outbox_snapshot_compare(b, a) > 0));
		if (outbox_snapshot_equal(a, b))
			REQUIRE(outbox_snapshot_compare(a, b) == 0);
	}
}
