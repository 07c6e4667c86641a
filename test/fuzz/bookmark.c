/*
 * The record of a position: a byte that chooses, then the text as a broker has it, or
 * what one is made of.
 */
#include "fuzz.h"

#include "log/bookmark.h"
#include "log/position.h"
#include "log/snapshot.h"

static bool
same_position(const OutboxStoredPosition *a, const OutboxStoredPosition *b)
{
	return (a->topic == NULL) == (b->topic == NULL) &&
		(a->topic == NULL || strcmp(a->topic, b->topic) == 0) &&
		a->pos.cursor == b->pos.cursor && a->pos.low == b->pos.low &&
		outbox_snapshot_equal(a->pos.s1, b->pos.s1) &&
		outbox_snapshot_equal(a->pos.s2, b->pos.s2) &&
		a->nacked == b->nacked &&
		(a->nacked == 0 || memcmp(a->acked, b->acked, a->nacked * sizeof(int64)) == 0);
}

static bool
same(const OutboxBookmark *a, const OutboxBookmark *b)
{
	if (strcmp(a->log_uuid, b->log_uuid) != 0 || a->serverid != b->serverid || a->epoch != b->epoch ||
		a->n != b->n || a->timeline != b->timeline || a->lsn != b->lsn ||
		list_length(a->positions) != list_length(b->positions))
		return false;
	for (int i = 0; i < list_length(a->positions); i++)
		if (!same_position(list_nth(a->positions, i), list_nth(b->positions, i)))
			return false;
	return true;
}

/* What the relay rests on. */
static void
check_sound(const OutboxBookmark *b)
{
	REQUIRE(b->n > 0 && b->timeline > 0 && list_length(b->positions) > 0);
	for (int i = 0; i < list_length(b->positions); i++)
	{
		OutboxStoredPosition *p = list_nth(b->positions, i);

		REQUIRE((i == 0) == (p->topic == NULL));
		REQUIRE(p->pos.s1 != NULL && p->pos.s2 != NULL);
		REQUIRE(p->nacked % 2 == 0 && (i == 0 || p->nacked == 0));
		for (int j = 0; j < p->nacked; j++)
			REQUIRE(p->acked[j] > 0 && (j == 0 || (j % 2 ? p->acked[j] >= p->acked[j - 1] :
												   p->acked[j] > p->acked[j - 1])));
		for (int j = 1; j < i; j++)
			REQUIRE(strcmp(p->topic, ((OutboxStoredPosition *) list_nth(b->positions, j))->topic) != 0);
	}
}

static char *
make_word(Fuzz *in, int max)
{
	int			len = 1 + fuzz_byte(in) % max;
	char	   *word = palloc0(len + 1);

	for (int i = 0; i < len; i++)
		word[i] = '!' + fuzz_byte(in) % 94;
	return word;
}

static OutboxSnapshot *
make_snapshot(Fuzz *in)
{
	StringInfoData buf;
	uint64		xmin = fuzz_u64(in) >> 1 | 1;
	int			n = fuzz_byte(in) % 8;

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":", xmin, xmin + 256);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i ? "," : "", xmin + fuzz_byte(in));
	return outbox_snapshot_parse(buf.data);
}

static OutboxBookmark *
make_bookmark(Fuzz *in)
{
	OutboxBookmark *b = palloc0(sizeof(OutboxBookmark));
	int			n = 1 + fuzz_byte(in) % 4;

	b->log_uuid = make_word(in, 40);
	b->serverid = (Oid) fuzz_u64(in);
	b->epoch = fuzz_u64(in);
	b->n = (int64) (fuzz_u64(in) >> 1 | 1);
	b->timeline = (uint32) fuzz_u64(in) | 1;
	b->lsn = fuzz_u64(in);
	for (int i = 0; i < n; i++)
	{
		OutboxStoredPosition *p = palloc0(sizeof(OutboxStoredPosition));
		int64		id = 0;

		p->pos.cursor = fuzz_u64(in);
		p->pos.low = fuzz_u64(in);
		p->pos.s1 = make_snapshot(in);
		p->pos.s2 = make_snapshot(in);
		if (i == 0)
		{
			p->nacked = fuzz_byte(in) % 5 * 2;
			p->acked = palloc(p->nacked * sizeof(int64) + 1);
			for (int j = 0; j < p->nacked; j++)
				p->acked[j] = id += fuzz_byte(in) + (j % 2 ? 0 : 2);
		}
		else
			p->topic = psprintf("%s.%d", make_word(in, 60), i);
		b->positions = lappend(b->positions, p);
	}
	return b;
}

void
fuzz_one(Fuzz *in)
{
	static OutboxDb db = {.epoch = 7, .begun_lsn = UINT64CONST(0x400000000), .begun_xid = 1000};
	OutboxBookmark *b;
	char	   *text;

	if (fuzz_byte(in) == 'm')
	{
		OutboxBookmark *made = make_bookmark(in);

		b = outbox_bookmark_in(outbox_bookmark_out(made));
		REQUIRE(b != NULL && same(made, b));
	}
	else
		b = outbox_bookmark_in(fuzz_rest(in));
	if (b == NULL)
		return;
	check_sound(b);
	text = outbox_bookmark_out(b);
	REQUIRE(outbox_bookmark_in(text) != NULL && same(b, outbox_bookmark_in(text)));
	REQUIRE(strcmp(text, outbox_bookmark_out(outbox_bookmark_in(text))) == 0);
	/* cut off anywhere at a line's middle it is none */
	for (size_t i = 0; text[i] && i < 2000; i++)
		if (i > 0 && text[i - 1] != '\n')
			REQUIRE(outbox_bookmark_in(pnstrdup(text, i)) == NULL);
	/* of this history, announced, and from before a fork; or told why not */
	if (outbox_bookmark_problem(b, b->log_uuid, b->serverid, &db, 9) == NULL)
	{
		REQUIRE(b->timeline <= 3 && b->lsn <= UINT64CONST(0x500000000));
		REQUIRE(b->epoch == 9 && b->lsn <= db.begun_lsn);
	}
	REQUIRE(outbox_bookmark_problem(b, "another", b->serverid, &db, b->epoch) != NULL);
	REQUIRE(outbox_bookmark_problem(b, b->log_uuid, b->serverid + 1, &db, b->epoch) != NULL);
}
