/*-------------------------------------------------------------------------
 *
 * segment.c
 *	  Segments: their list, and reading their pages.
 *
 * A segment is a plain heap table whose rows increase in id from page to page
 * (append.c).  Inside a page they need not: VACUUM may have given a line
 * pointer back, and the next row takes it.  So a page is sorted when it is
 * read, and found by binary search over pages.  Empty pages (vacuumed, or
 * added by a transaction that a crash took away) are stepped over.
 *
 * Pages are read by ourselves, not by a table scan: no synchronized scan may
 * start in the middle, no predicate lock may make serializable publishers
 * conflict, and no page is pruned on our account.  A page is copied under the
 * buffer's share lock, 8 kB at a time, so that no pin is ever held while rows
 * are handed on.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "compat.h"
#include "log/segment.h"
#include "message.h"
#include "storage/bufmgr.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

/* Columns of outbox.segments */
#define SEGMENTS_RELID		1
#define SEGMENTS_LANE		2
#define SEGMENTS_GENERATION	3
#define SEGMENTS_NCOLUMNS	3

/* The types of a segment's columns, in their order. */
static const struct
{
	const char *name;
	Oid			type;
}			segment_columns[OUTBOX_NCOLUMNS] = {
	{"id", INT8OID},
	{"xid", XID8OID},
	{"epoch", INT8OID},
	{"published", TIMESTAMPTZOID},
	{"due", TIMESTAMPTZOID},
	{"expires", TIMESTAMPTZOID},
	{"part", INT4OID},
	{"parts", INT4OID},
	{"partition", INT4OID},
	{"version", INT2OID},
	{"kind", CHAROID},
	{"topic", BYTEAOID},
	{"key", BYTEAOID},
	{"headers", BYTEAOID},
	{"payload", BYTEAOID},
	{"message_id", BYTEAOID},
	{"target", BYTEAOID}
};

/* The row format, the same for all segments; lives as long as the process. */
TupleDesc
outbox_segment_desc(void)
{
	static TupleDesc desc = NULL;

	if (desc == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		TupleDesc	new_desc = CreateTemplateTupleDesc(OUTBOX_NCOLUMNS);

		for (int i = 0; i < OUTBOX_NCOLUMNS; i++)
		{
			TupleDescInitEntry(new_desc, i + 1, segment_columns[i].name,
							   segment_columns[i].type, -1, 0);
			TupleDescAttr(new_desc, i)->attstorage = TYPSTORAGE_PLAIN;
			outbox_attribute_changed(new_desc, i);
		}
		desc = new_desc;
		MemoryContextSwitchTo(old);
	}
	return desc;
}

/* All segments, by a snapshot taken now. */
List *
outbox_segment_list(void)
{
	Oid			nspid = get_namespace_oid("outbox", true);
	Oid			relid = OidIsValid(nspid) ? get_relname_relid("segments", nspid) : InvalidOid;
	Relation	rel = OidIsValid(relid) ? try_table_open(relid, AccessShareLock) : NULL;
	Snapshot	snapshot;
	TableScanDesc scan;
	HeapTuple	tuple;
	List	   *result = NIL;

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension pg_outbox was dropped")));
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Datum		values[SEGMENTS_NCOLUMNS];
		bool		nulls[SEGMENTS_NCOLUMNS];
		OutboxSegment *segment = palloc(sizeof(OutboxSegment));

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		segment->relid = DatumGetObjectId(values[SEGMENTS_RELID - 1]);
		segment->lane = nulls[SEGMENTS_LANE - 1] ? -1 :
			DatumGetInt32(values[SEGMENTS_LANE - 1]);
		segment->generation = nulls[SEGMENTS_GENERATION - 1] ? 0 :
			(uint64) DatumGetInt64(values[SEGMENTS_GENERATION - 1]);
		result = lappend(result, segment);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * Is this table a segment of the log?  By its name, and as a member of the
 * extension: schema outbox of another database may be somebody else's.
 */
bool
outbox_is_segment(Oid relid)
{
	char	   *name = get_rel_name(relid);
	bool		named;
	Oid			extension;

	if (name == NULL)
		return false;
	named = strncmp(name, "segment_", 8) == 0 &&
		get_rel_namespace(relid) == get_namespace_oid("outbox", true) &&
		strspn(name + 8, "0123456789") == strlen(name + 8);
	pfree(name);
	if (!named)
		return false;
	extension = getExtensionOfObject(RelationRelationId, relid);
	return OidIsValid(extension) && extension == get_extension_oid("pg_outbox", true);
}

/* Read what of a row stands at fixed places. */
void
outbox_row_read(HeapTuple tuple, OutboxRow *row)
{
	const char *data = (char *) tuple->t_data + tuple->t_data->t_hoff;

	/* id and xid are never null and come first */
	memcpy(&row->id, data, sizeof(uint64));
	memcpy(&row->xid, data + sizeof(uint64), sizeof(uint64));
	row->part = 0;
	if (!heap_attisnull(tuple, OUTBOX_COL_PART, outbox_segment_desc()))
	{
		bool		isnull;

		row->part = DatumGetInt32(heap_getattr(tuple, OUTBOX_COL_PART,
											   outbox_segment_desc(), &isnull));
	}
}

static inline bool
row_before(const OutboxRow *a, const OutboxRow *b)
{
	return a->id < b->id || (a->id == b->id && a->part < b->part);
}

/* Nearly always sorted already. */
static void
sort_rows(OutboxPage *page)
{
	for (int i = 1; i < page->nrows; i++)
	{
		OutboxRow	row = page->rows[i];
		int			j = i;

		while (j > 0 && row_before(&row, &page->rows[j - 1]))
		{
			page->rows[j] = page->rows[j - 1];
			j--;
		}
		page->rows[j] = row;
	}
}

/* A row of a copied page as a tuple that points into the copy. */
void
outbox_page_row(OutboxPage *page, int row, HeapTuple tuple)
{
	Page		copy = (Page) page->copy.data;
	ItemId		item = PageGetItemId(copy, page->rows[row].offset);

	tuple->t_data = (HeapTupleHeader) PageGetItem(copy, item);
	tuple->t_len = ItemIdGetLength(item);
	tuple->t_tableOid = InvalidOid;
	ItemPointerSetInvalid(&tuple->t_self);
}

#ifdef OUTBOX_FAULT_POINTS
uint64		outbox_pages_read = 0;
#endif

/* Copy a page, see segment.h. */
bool
outbox_page_read(Relation rel, BlockNumber blkno, Snapshot snapshot,
				 OutboxPage *page)
{
	Buffer		buffer = ReadBuffer(rel, blkno);
	Page		source;
	OffsetNumber last;

#ifdef OUTBOX_FAULT_POINTS
	outbox_pages_read++;
#endif
	page->nrows = 0;
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	source = BufferGetPage(buffer);
	last = PageIsNew(source) ? 0 : PageGetMaxOffsetNumber(source);
	/* first of all, as that loads it into the processor's cache in one sweep */
	if (last > 0)
		memcpy(page->copy.data, source, BLCKSZ);
	for (OffsetNumber off = FirstOffsetNumber; off <= last; off++)
	{
		ItemId		item = PageGetItemId(source, off);
		OutboxRow  *row = &page->rows[page->nrows];
		HeapTupleData tuple;

		if (!ItemIdIsNormal(item))
			continue;
		tuple.t_data = (HeapTupleHeader) PageGetItem(source, item);
		tuple.t_len = ItemIdGetLength(item);
		tuple.t_tableOid = RelationGetRelid(rel);
		ItemPointerSet(&tuple.t_self, blkno, off);
		outbox_row_read(&tuple, row);
		row->offset = off;
		row->visible = snapshot != NULL &&
			HeapTupleSatisfiesVisibility(&tuple, snapshot, buffer);
		page->nrows++;
	}
	UnlockReleaseBuffer(buffer);
	sort_rows(page);
	return page->nrows > 0;
}

/* The first page from blkno on that holds rows, or end. */
static BlockNumber
next_filled_page(Relation rel, BlockNumber blkno, BlockNumber end,
				 OutboxPage *page)
{
	while (blkno < end && !outbox_page_read(rel, blkno, NULL, page))
		blkno++;
	return blkno;
}

/* Does what is sought begin on this page, or behind it? */
static bool
begins_from_here(const OutboxPage *page, uint64 id)
{
	/* a message that begins on the page before goes on here */
	return page->rows[0].id < id ||
		(page->rows[0].id == id && page->rows[0].part == 0);
}

/*
 * The first page whose highest id is at least id, or nblocks.  First in growing
 * steps from the end, where a relay that keeps up begins (and far from what
 * VACUUM may have emptied before), then by halves.  A page that is guessed, for
 * a backlog, is looked at before: it only narrows where is looked then, so that
 * a wrong guess costs time, and nothing else.
 */
BlockNumber
outbox_segment_search(Relation rel, BlockNumber nblocks, BlockNumber guess,
					  uint64 id)
{
	OutboxPage *page = palloc(sizeof(OutboxPage));
	BlockNumber lo = 0;
	BlockNumber hi = nblocks;
	BlockNumber found = nblocks;

	/* it, or else the next page */
	for (int i = 0; i < 2 && guess < nblocks && lo <= guess && guess < hi; i++)
	{
		BlockNumber filled = next_filled_page(rel, guess, hi, page);

		if (filled < hi && page->rows[page->nrows - 1].id < id)
			lo = guess = filled + 1;
		else
		{
			if (filled < hi)
				found = filled;
			hi = guess;
		}
	}

	for (BlockNumber step = 1; lo < hi; step *= 2)
	{
		BlockNumber from = hi - lo > step ? hi - step : lo;
		BlockNumber filled = next_filled_page(rel, from, hi, page);

		if (filled < hi && begins_from_here(page, id))
		{
			if (page->rows[page->nrows - 1].id >= id)
				lo = hi = found = filled;
			else
				lo = filled + 1;
			break;
		}
		if (filled < hi)
			found = filled;
		hi = from;
	}
	while (lo < hi)
	{
		BlockNumber mid = lo + (hi - lo) / 2;
		BlockNumber filled = next_filled_page(rel, mid, hi, page);

		if (filled < hi && page->rows[page->nrows - 1].id < id)
			lo = filled + 1;
		else
		{
			if (filled < hi)
				found = filled;
			hi = mid;
		}
	}
	pfree(page);
	return found;
}

/* The lowest id that a segment physically holds. */
bool
outbox_segment_first_id(Relation rel, uint64 *id)
{
	OutboxPage *page = palloc(sizeof(OutboxPage));
	BlockNumber nblocks = RelationGetNumberOfBlocks(rel);
	bool		found = next_filled_page(rel, 0, nblocks, page) < nblocks;

	if (found)
		*id = page->rows[0].id;
	pfree(page);
	return found;
}

/* The highest id that a segment physically holds, and its publish time. */
bool
outbox_segment_last_id(Oid relid, uint64 *id, TimestampTz *published)
{
	Relation	rel = table_open(relid, AccessShareLock);
	OutboxPage *page = palloc(sizeof(OutboxPage));
	bool		found = false;

	for (BlockNumber blkno = RelationGetNumberOfBlocks(rel); blkno > 0 && !found; blkno--)
		found = outbox_page_read(rel, blkno - 1, NULL, page);
	if (found)
	{
		*id = page->rows[page->nrows - 1].id;
		if (published != NULL)
		{
			HeapTupleData tuple;
			bool		isnull;

			outbox_page_row(page, page->nrows - 1, &tuple);
			*published = DatumGetTimestampTz(heap_getattr(&tuple, OUTBOX_COL_PUBLISHED,
														  outbox_segment_desc(), &isnull));
		}
	}
	pfree(page);
	table_close(rel, AccessShareLock);
	return found;
}
