/*-------------------------------------------------------------------------
 *
 * bookmark.c
 *	  Where a server stands, as its broker keeps it.
 *
 * With exactly-once delivery the position is written in the same transaction,
 * at the broker, as the messages that it tells of.  So it is the broker's word
 * that counts, and the database's own position is a moment older: but only
 * where both belong to one history.
 *
 * A database may have been set back (a restore to a point in time, a promoted
 * standby that lacked the end).  Transactions that the bookmark counts as done
 * are then gone, and their ids will be given to others, which would count as
 * done too: lost.  Hence the WAL position and the timeline in the bookmark.  If
 * it lies beyond the point where our history left that timeline, or beyond our
 * WAL, or names transactions that have not happened here, the bookmark is not
 * believed, and the database's own position, which went back with it, is used.
 *
 * That alone does not tell a history that forked without a new timeline, or to
 * one of the same number: a copy of the disk that runs beside the original or
 * takes its place, two restores of one backup.  Hence the epoch, which is drawn
 * anew when a server starts.  Before a start of the server writes its first
 * bookmark, it stores its position with its epoch, and flushes that.  So where
 * a bookmark is newer than the position in the database and has another epoch
 * than that, another history wrote it.  Where it has the same, it may still be
 * the original's, which goes on, and we the copy: then it rests on WAL or names
 * transactions from after we started.  (Undetected, if a copy that delivers
 * nothing publishes, is started once more, and only then delivers.)
 *
 * Nor is it when the server is another one of the same name.  After pg_upgrade,
 * which gives servers new oids, that is so too; the clean stop that it needs has
 * left the position in the database.
 *
 * The form is text, a line each, so that a person can read it with any tool:
 *
 *	pg_outbox position 1
 *	log 5d3c...
 *	server 16500
 *	epoch 1234567890
 *	n 17
 *	wal 1 0/3000060
 *	main CURSOR LOW S1 S2
 *	acked FROM-TO,FROM-TO
 *	topic CURSOR LOW S1 S2 NAME
 *
 * with "acked" only where ids beyond the main cursor are done, and a line
 * "topic" for each that lags.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/timeline.h"
#include "access/transam.h"
#include "access/xlog.h"
#include "compat.h"
#include "fault.h"
#include "lib/stringinfo.h"
#include "log/bookmark.h"
#include "log/position.h"
#include "log/snapshot.h"
#include "utils/memutils.h"

#define FIRST_LINE		"pg_outbox position 1"

static void
put_position(StringInfo buf, const char *kind, const OutboxPosition *pos)
{
	appendStringInfo(buf, "%s " UINT64_FORMAT " " UINT64_FORMAT " %s %s", kind,
					 pos->cursor, pos->low,
					 outbox_snapshot_out(pos->s1), outbox_snapshot_out(pos->s2));
}

char *
outbox_bookmark_out(const OutboxBookmark *bookmark)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfo(&buf, FIRST_LINE "\nlog %s\nserver %u\nepoch " UINT64_FORMAT
					 "\nn " INT64_FORMAT "\nwal %u %X/%X\n",
					 bookmark->log_uuid, bookmark->serverid, bookmark->epoch, bookmark->n, bookmark->timeline,
					 LSN_FORMAT_ARGS(bookmark->lsn));
	foreach(lc, bookmark->positions)
	{
		const OutboxStoredPosition *position = lfirst(lc);

		put_position(&buf, position->topic ? "topic" : "main", &position->pos);
		if (position->topic)
			appendStringInfo(&buf, " %s", position->topic);
		appendStringInfoChar(&buf, '\n');
		for (int i = 0; i < position->nacked; i += 2)
			appendStringInfo(&buf, "%s" UINT64_FORMAT "-" UINT64_FORMAT "%s",
							 i == 0 ? "acked " : ",",
							 (uint64) position->acked[i], (uint64) position->acked[i + 1],
							 i + 2 == position->nacked ? "\n" : "");
	}
	return buf.data;
}

/* The next word of a line, cut off in place; NULL at its end. */
static char *
next_word(char **p)
{
	char	   *word = *p;
	char	   *end;

	if (word == NULL || *word == '\0')
		return NULL;
	end = strchr(word, ' ');
	*p = end == NULL ? NULL : end + 1;
	if (end != NULL)
		*end = '\0';
	return word;
}

/* A number, and nothing else. */
static bool
parse_u64(const char *word, uint64 *value)
{
	char	   *end;

	if (word == NULL || *word < '0' || *word > '9')
		return false;
	errno = 0;
	*value = strtou64(word, &end, 10);
	return errno == 0 && *end == '\0';
}

static bool
parse_snapshot(const char *word, OutboxSnapshot **snapshot)
{
	if (word == NULL)
		return false;
	*snapshot = outbox_snapshot_parse(word);
	return *snapshot != NULL;
}

static bool
has_topic(const OutboxBookmark *bookmark, const char *topic)
{
	ListCell   *lc;

	for_each_from(lc, bookmark->positions, 1)
		if (strcmp(((OutboxStoredPosition *) lfirst(lc))->topic, topic) == 0)
			return true;
	return false;
}

/* The rest of a line "main" or "topic". */
static bool
parse_position(char *rest, bool is_topic, OutboxBookmark *bookmark)
{
	OutboxStoredPosition *position = palloc0(sizeof(OutboxStoredPosition));

	if (is_topic != (bookmark->positions != NIL) ||
		!parse_u64(next_word(&rest), &position->pos.cursor) ||
		!parse_u64(next_word(&rest), &position->pos.low) ||
		!parse_snapshot(next_word(&rest), &position->pos.s1) ||
		!parse_snapshot(next_word(&rest), &position->pos.s2))
		return false;
	if (is_topic && (rest == NULL || *rest == '\0' || has_topic(bookmark, rest)))
		return false;
	if (!is_topic && rest != NULL)
		return false;
	if (is_topic)
		position->topic = pstrdup(rest);
	bookmark->positions = lappend(bookmark->positions, position);
	return true;
}

/* The rest of a line "acked". */
static bool
parse_acked(char *rest, OutboxBookmark *bookmark)
{
	OutboxStoredPosition *main_position;
	uint64		last = 0;
	int			n = 1;

	if (list_length(bookmark->positions) != 1)
		return false;
	main_position = linitial(bookmark->positions);
	if (main_position->acked != NULL)
		return false;
	for (const char *c = rest; *c; c++)
		n += *c == ',';
	main_position->acked = MemoryContextAllocHuge(CurrentMemoryContext, n * 2 * sizeof(int64));
	for (char *range = strtok_r(rest, ",", &rest); range; range = strtok_r(NULL, ",", &rest))
	{
		char	   *dash = strchr(range, '-');
		uint64		from;
		uint64		to;

		if (dash == NULL)
			return false;
		*dash = '\0';
		if (!parse_u64(range, &from) || !parse_u64(dash + 1, &to) ||
			from <= last || to < from || to > PG_INT64_MAX)
			return false;
		last = to;
		main_position->acked[main_position->nacked++] = (int64) from;
		main_position->acked[main_position->nacked++] = (int64) to;
	}
	return main_position->nacked > 0;
}

static bool
parse_wal(char *rest, OutboxBookmark *bookmark)
{
	uint64		timeline;
	unsigned int hi;
	unsigned int lo;
	int			used = 0;

	if (!parse_u64(next_word(&rest), &timeline) || timeline == 0 || timeline > PG_UINT32_MAX ||
		rest == NULL || strlen(rest) > 17 || strspn(rest, "0123456789ABCDEF/") != strlen(rest) ||
		sscanf(rest, "%8X/%8X%n", &hi, &lo, &used) != 2 || rest[used] != '\0')
		return false;
	bookmark->timeline = (uint32) timeline;
	bookmark->lsn = ((uint64) hi << 32) | lo;
	return true;
}

static bool
parse_line(char *line, OutboxBookmark *bookmark)
{
	char	   *word = next_word(&line);
	uint64		n;

	if (word == NULL || line == NULL)
		return false;
	if (strcmp(word, "main") == 0)
		return parse_position(line, false, bookmark);
	if (strcmp(word, "topic") == 0)
		return parse_position(line, true, bookmark);
	if (strcmp(word, "acked") == 0)
		return parse_acked(line, bookmark);
	if (strcmp(word, "wal") == 0)
		return parse_wal(line, bookmark);
	if (strcmp(word, "log") == 0)
	{
		bookmark->log_uuid = pstrdup(line);
		return true;
	}
	if (strcmp(word, "server") == 0)
	{
		if (!parse_u64(line, &n) || n > OID_MAX)
			return false;
		bookmark->serverid = (Oid) n;
		return true;
	}
	if (strcmp(word, "epoch") == 0)
		return parse_u64(line, &bookmark->epoch);
	if (strcmp(word, "n") == 0)
	{
		if (!parse_u64(line, &n) || n > PG_INT64_MAX)
			return false;
		bookmark->n = (int64) n;
		return true;
	}
	return false;
}

OutboxBookmark *
outbox_bookmark_in(const char *text)
{
	OutboxBookmark *bookmark = palloc0(sizeof(OutboxBookmark));
	char	   *copy = pstrdup(text);
	char	   *next = copy;
	bool		first = true;

	while (next != NULL && *next != '\0')
	{
		char	   *line = next;
		char	   *end = strchr(line, '\n');

		/* a line without an end was cut off */
		if (end == NULL)
			return NULL;
		*end = '\0';
		next = end + 1;
		if (first ? strcmp(line, FIRST_LINE) != 0 : !parse_line(line, bookmark))
			return NULL;
		first = false;
	}
	if (bookmark->log_uuid == NULL || bookmark->n == 0 || bookmark->timeline == 0 ||
		bookmark->positions == NIL)
		return NULL;
	pfree(copy);
	return bookmark;
}

/* The highest transaction that it can name, plus 1. */
static uint64
end_of_xids(const OutboxBookmark *bookmark)
{
	uint64		end = 0;
	ListCell   *lc;

	foreach(lc, bookmark->positions)
		end = Max(end, ((OutboxStoredPosition *) lfirst(lc))->pos.s2->xmax);
	return end;
}

/* Does our history hold that WAL? */
static bool
in_our_history(uint32 timeline, XLogRecPtr lsn)
{
	TimeLineID	ours = GetWALInsertionTimeLine();

	if (timeline == ours)
		return lsn <= GetXLogInsertRecPtr();
	if (timeline > ours)
		return false;
	else
	{
		List	   *history = readTimeLineHistory(ours);
		ListCell   *lc;

		foreach(lc, history)
		{
			TimeLineHistoryEntry *entry = lfirst(lc);

			if (entry->tli == timeline)
				return lsn <= entry->end;
		}
		return false;
	}
}

const char *
outbox_bookmark_problem(const OutboxBookmark *bookmark, const char *log_uuid,
						Oid serverid, const OutboxDb *db, uint64 position_epoch)
{
	uint64		next_xid = U64FromFullTransactionId(ReadNextFullTransactionId());

	if (strcmp(bookmark->log_uuid, log_uuid) != 0)
		return "it belongs to another log";
	if (bookmark->serverid != serverid)
		return "it belongs to another server, or to this one before an upgrade";
	if (OUTBOX_RULE("bookmark-history"))
	{
		if (!in_our_history(bookmark->timeline, bookmark->lsn))
			return "it rests on WAL that this database does not have";
		if (end_of_xids(bookmark) > next_xid)
			return "it names transactions that have not happened here";
	}
	if (OUTBOX_RULE("bookmark-epoch") && bookmark->epoch != position_epoch)
		return "it was written by a copy of this database, or before it was set back";
	if (bookmark->epoch != db->epoch &&
		(bookmark->lsn > db->begun_lsn || end_of_xids(bookmark) > db->begun_xid))
		return "it was written by the original of this copy of a database";
	return NULL;
}
