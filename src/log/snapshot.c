/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  Snapshots as numbers: what a position is made of.
 *
 * Only top-level transactions count, 64 bits wide, so a snapshot can be kept
 * for as long as a broker is down.  Whether a subtransaction's row counts is
 * settled by a live snapshot when the row is read.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "lib/stringinfo.h"
#include "log/reader.h"
#include "log/snapshot.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"

static Size
snapshot_size(int nxip)
{
	return offsetof(OutboxSnapshot, xip) + nxip * sizeof(uint64);
}

static int
compare_xids(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return (x > y) - (x < y);
}

/* Had this transaction ended? */
bool
outbox_snapshot_contains(const OutboxSnapshot *s, uint64 xid)
{
	if (xid < s->xmin)
		return true;
	if (xid >= s->xmax)
		return false;
	return s->nxip == 0 ||
		bsearch(&xid, s->xip, s->nxip, sizeof(uint64), compare_xids) == NULL;
}

OutboxSnapshot *
outbox_snapshot_copy(const OutboxSnapshot *s)
{
	OutboxSnapshot *copy = palloc(snapshot_size(s->nxip));

	memcpy(copy, s, snapshot_size(s->nxip));
	return copy;
}

bool
outbox_snapshot_equal(const OutboxSnapshot *a, const OutboxSnapshot *b)
{
	return a->nxip == b->nxip &&
		memcmp(a, b, snapshot_size(a->nxip)) == 0;
}

/*
 * Which was taken earlier?  xmax never falls.  Between two snapshots with the
 * same xmax, transactions below it can only have ended: the later one lists
 * fewer, or they are the same.
 */
int
outbox_snapshot_compare(const OutboxSnapshot *a, const OutboxSnapshot *b)
{
	if (a->xmax != b->xmax)
		return a->xmax < b->xmax ? -1 : 1;
	return b->nxip - a->nxip;
}

/* Sort, and drop what occurs twice (a prepared transaction can, briefly). */
static void
normalize(OutboxSnapshot *s)
{
	int			n = 0;

	qsort(s->xip, s->nxip, sizeof(uint64), compare_xids);
	for (int i = 0; i < s->nxip; i++)
		if (n == 0 || s->xip[i] != s->xip[n - 1])
			s->xip[n++] = s->xip[i];
	s->nxip = n;
}

/* A 32-bit transaction id of a snapshot, which lies below the next one. */
static uint64
widen(TransactionId xid, FullTransactionId next)
{
	uint32		epoch = EpochFromFullTransactionId(next);

	if (!TransactionIdIsNormal(xid))
		return xid;
	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return ((uint64) epoch << 32) | xid;
}

/* A server's snapshot, taken outside recovery, as numbers. */
OutboxSnapshot *
outbox_snapshot_from(Snapshot snapshot)
{
	FullTransactionId next = ReadNextFullTransactionId();
	OutboxSnapshot *s = palloc(snapshot_size(snapshot->xcnt));

	Assert(!snapshot->takenDuringRecovery);
	memset(s, 0, offsetof(OutboxSnapshot, xip));
	s->xmin = widen(snapshot->xmin, next);
	s->xmax = widen(snapshot->xmax, next);
	s->nxip = snapshot->xcnt;
	for (int i = 0; i < s->nxip; i++)
		s->xip[i] = widen(snapshot->xip[i], next);
	normalize(s);
	return s;
}

/* Contains nothing: every transaction is after it. */
OutboxSnapshot *
outbox_snapshot_empty(void)
{
	OutboxSnapshot *s = palloc0(snapshot_size(0));

	s->xmin = s->xmax = FirstNormalTransactionId;
	return s;
}

/* In the form of the type pg_snapshot. */
char *
outbox_snapshot_out(const OutboxSnapshot *s)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, UINT64_FORMAT ":" UINT64_FORMAT ":", s->xmin, s->xmax);
	for (int i = 0; i < s->nxip; i++)
		appendStringInfo(&buf, "%s" UINT64_FORMAT, i > 0 ? "," : "", s->xip[i]);
	return buf.data;
}

/* From that form; NULL when it is not. */
OutboxSnapshot *
outbox_snapshot_parse(const char *text)
{
	int			commas = 1;
	OutboxSnapshot *s;
	char	   *end;

	for (const char *p = text; *p; p++)
	{
		if (strchr("0123456789:,", *p) == NULL)
			return NULL;
		commas += (*p == ',');
	}
	s = palloc0(snapshot_size(commas));
	errno = 0;					/* a number too large is none */
	s->xmin = strtou64(text, &end, 10);
	if (*end == ':')
		s->xmax = strtou64(end + 1, &end, 10);
	if (*end != ':' || s->xmin == 0 || s->xmax < s->xmin)
		return NULL;
	for (end++; *end != '\0'; end += (*end == ','))
	{
		uint64		xid = strtou64(end, &end, 10);

		if (xid < s->xmin || xid >= s->xmax || (*end != ',' && *end != '\0'))
			return NULL;
		s->xip[s->nxip++] = xid;
	}
	if (errno != 0)
		return NULL;
	normalize(s);
	return s;
}

OutboxSnapshot *
outbox_snapshot_in(const char *text)
{
	OutboxSnapshot *s = outbox_snapshot_parse(text);

	if (s == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("invalid snapshot \"%s\" in a position of pg_outbox", text)));
	return s;
}
