/*-------------------------------------------------------------------------
 *
 * lane.c
 *	  A database's lanes: building the shared entry, handing out ids.
 *
 * Whoever needs the entry builds it from the catalog and the segments, a
 * publisher as well as a worker, so that publishing works at once after a
 * start.  It is built in local memory under a heavyweight lock and installed
 * in one step.
 *
 * Which segment is current?  Segments are prepared (listed with a generation)
 * in a transaction and made current in shared memory afterwards; a crash
 * forgets the second step.  Rows can only be in a segment that had been made
 * current, and then none may go to an older one, or the lane would not be
 * sorted.  So current is the highest generation that physically holds a row;
 * if none does, the lowest.
 *
 * Ids.  next_id and limit_id only grow while the entry lives.  Ids below
 * limit_id are reserved: the sequence outbox.message_id_seq is set to the
 * limit, in WAL, before the limit is raised, hence before any row with such an
 * id is in WAL.  A rebuilt entry starts at the sequence's value, or behind the
 * highest id found in a lane or a position, whichever is greatest: somebody may
 * have set the sequence back while the lanes were empty, and no relay looks at
 * ids below its position.  setval() is used and not nextval(), which would
 * change the lastval() of the publishing session.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
#include "commands/sequence.h"
#include "fault.h"
#include "log/lane.h"
#include "log/position.h"
#include "log/segment.h"
#include "miscadmin.h"
#include "port.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#define ID_RESERVE	32768

/* An entry built while its extension was uncommitted by this transaction. */
static Oid	uncommitted_extension = InvalidOid;

static void
lock_tag(LOCKTAG *tag, Oid extoid, OutboxLockKind kind)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, ExtensionRelationId, extoid, kind);
}

/* Take one of our locks on the extension, to be released explicitly. */
bool
outbox_lock(Oid extoid, OutboxLockKind kind, bool wait)
{
	LOCKTAG		tag;

	lock_tag(&tag, extoid, kind);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

void
outbox_unlock(Oid extoid, OutboxLockKind kind)
{
	LOCKTAG		tag;

	lock_tag(&tag, extoid, kind);
	LockRelease(&tag, ExclusiveLock, false);
}

/* Is the entry still that of this database's extension? */
bool
outbox_db_is(const OutboxDb *db, Oid extoid, uint64 incarnation)
{
	const volatile OutboxDb *v = db;

	return v->dboid == MyDatabaseId && v->extoid == extoid &&
		v->incarnation == incarnation;
}

/*
 * The sequence's last value, 0 when never set.  Its functions check rights,
 * and a publisher has none: run as the bootstrap superuser.
 */
static Oid
id_sequence(void)
{
	Oid			nspid = get_namespace_oid("outbox", true);
	Oid			seqid = OidIsValid(nspid) ? get_relname_relid("message_id_seq", nspid) : InvalidOid;

	if (!OidIsValid(seqid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension pg_outbox was dropped")));
	return seqid;
}

static uint64
sequence_last_value(void)
{
	LOCAL_FCINFO(fcinfo, 1);
	Oid			userid;
	int			context;
	Datum		value;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = ObjectIdGetDatum(id_sequence());
	fcinfo->args[0].isnull = false;
	GetUserIdAndSecContext(&userid, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	value = pg_sequence_last_value(fcinfo);
	SetUserIdAndSecContext(userid, context);
	return fcinfo->isnull ? 0 : (uint64) DatumGetInt64(value);
}

static void
set_sequence(uint64 value)
{
	Oid			userid;
	int			context;

	GetUserIdAndSecContext(&userid, &context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, context | SECURITY_LOCAL_USERID_CHANGE);
	DirectFunctionCall2(setval_oid, ObjectIdGetDatum(id_sequence()),
						Int64GetDatum((int64) value));
	SetUserIdAndSecContext(userid, context);
}

/* Reserve ids, so that next_id < limit_id again. */
void
outbox_reserve_ids(OutboxDb *db, Oid extoid)
{
	uint64		limit;

	(void) outbox_lock(extoid, OUTBOX_LOCK_IDS, true);
	limit = pg_atomic_read_u64(&db->limit_id);
	if (pg_atomic_read_u64(&db->next_id) >= limit)
	{
		limit = Max(limit, pg_atomic_read_u64(&db->next_id)) + ID_RESERVE;
		if (!OUTBOX_RULE("sequence-before-limit"))
		{
			pg_atomic_write_u64(&db->limit_id, limit);
			outbox_unlock(extoid, OUTBOX_LOCK_IDS);
			return;
		}
		set_sequence(limit);
		OUTBOX_FAULT("ids-after-setval");
		pg_atomic_write_u64(&db->limit_id, limit);
	}
	outbox_unlock(extoid, OUTBOX_LOCK_IDS);
}

/*
 * What next_id has beyond the limit was thrown away, and is not reserved: after
 * a crash it may be given out.  A reader that took it for passed would never
 * look at it, and its position may be known where the rebuilt entry does not
 * look (at the broker).  The limit is read last: if it was raised meanwhile, the
 * sequence that it rests on is in WAL, and flushed with the round.
 */
uint64
outbox_end_of_ids(OutboxDb *db)
{
	uint64		next = outbox_atomic_read(&db->next_id);
	uint64		limit = outbox_atomic_read(&db->limit_id);

	return OUTBOX_RULE("ids-below-limit") ? Min(next, limit) : next;
}

/* Was this extension created by the current transaction? */
static bool
extension_is_uncommitted(Oid extoid)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		result = false;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extoid));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension pg_outbox was dropped")));
	result = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetRawXmin(tuple->t_data));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

void
outbox_extension_check(Oid extoid)
{
	(void) extension_is_uncommitted(extoid);
}

static int
newest_first(const ListCell *a, const ListCell *b)
{
	uint64		x = ((const OutboxSegment *) lfirst(a))->generation;
	uint64		y = ((const OutboxSegment *) lfirst(b))->generation;

	return (x < y) - (x > y);
}

/*
 * The segment that takes a lane's appends, see the banner; the list has the
 * newest first.  Its last id is also the lane's highest.
 */
static const OutboxSegment *
choose_current(List *segments, int lane, uint64 *highest)
{
	const OutboxSegment *lowest = NULL;
	ListCell   *lc;

	foreach(lc, segments)
	{
		const OutboxSegment *segment = lfirst(lc);
		uint64		last;

		if (segment->lane != lane)
			continue;
		lowest = segment;
		if (outbox_segment_last_id(segment->relid, &last, NULL))
		{
			*highest = Max(*highest, last);
			return segment;
		}
	}
	if (lowest == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("lane %d of pg_outbox has no segment", lane)));
	return lowest;
}

/* Put what was built into a free slot. */
static OutboxDb *
install_entry(Oid extoid, const OutboxSegment *const *current, uint64 first_id)
{
	OutboxDb   *db = NULL;
	uint64		epoch;
	XLogRecPtr	begun_lsn = GetXLogInsertRecPtr();
	uint64		begun_xid = U64FromFullTransactionId(ReadNextFullTransactionId());

	if (!pg_strong_random(&epoch, sizeof(epoch)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random epoch")));

	LWLockAcquire(&outbox_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_shared->max_databases && db == NULL; i++)
		if (!OidIsValid(outbox_shared->dbs[i].dboid))
			db = &outbox_shared->dbs[i];
	if (db == NULL)
	{
		LWLockRelease(&outbox_shared->lock);
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases use pg_outbox"),
				 errdetail("The setting \"outbox.max_databases\" allows %d.",
						   outbox_shared->max_databases),
				 errhint("Raise \"outbox.max_databases\" and restart the server.")));
	}
	for (int lane = 0; lane < OUTBOX_LANES; lane++)
	{
		LWLockAcquire(&db->lanes[lane].lane.lock, LW_EXCLUSIVE);
		db->lanes[lane].lane.relid = current[lane]->relid;
		db->lanes[lane].lane.generation = current[lane]->generation;
	}
	db->incarnation = pg_atomic_add_fetch_u64(&outbox_shared->incarnations, 1);
	db->epoch = epoch;
	db->begun_lsn = begun_lsn;
	db->begun_xid = begun_xid;
	pg_atomic_write_u64(&db->next_id, first_id);
	pg_atomic_write_u64(&db->limit_id, first_id);
	pg_atomic_write_u64(&db->publish_count, 0);
	pg_atomic_write_u64(&db->backlog_bytes, 0);
	pg_atomic_write_u64(&db->unrouted, 0);
	db->uncommitted = extoid == uncommitted_extension;
	db->keeper_pid = 0;
	db->keeper_proc = NULL;
	db->keeper_started = 0;
	db->extoid = extoid;
	db->dboid = MyDatabaseId;
	for (int lane = OUTBOX_LANES - 1; lane >= 0; lane--)
		LWLockRelease(&db->lanes[lane].lane.lock);
	LWLockRelease(&outbox_shared->lock);
	return db;
}

/*
 * An entry whose extension may not come to be goes when the (sub)transaction
 * aborts.  If the extension was created further out and stays, the next use
 * builds the entry again.
 */
static void
forget_uncommitted(void)
{
	if (OidIsValid(uncommitted_extension))
		outbox_db_remove(MyDatabaseId, uncommitted_extension);
	uncommitted_extension = InvalidOid;
}

/* The database's entry, built when it is not there yet. */
OutboxDb *
outbox_db_get(Oid extoid)
{
	OutboxDb   *db;
	const OutboxSegment *current[OUTBOX_LANES];
	uint64		highest = 0;
	List	   *segments;
	bool		uncommitted;

	outbox_require_preload();
	db = outbox_db_find(MyDatabaseId, extoid);
	if (db != NULL)
		return db;
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot use pg_outbox during recovery")));

	(void) outbox_lock(extoid, OUTBOX_LOCK_BUILD, true);
	db = outbox_db_find(MyDatabaseId, extoid);
	if (db == NULL)
	{
		uncommitted = extension_is_uncommitted(extoid);
		segments = outbox_segment_list();
		list_sort(segments, newest_first);
		for (int lane = 0; lane < OUTBOX_LANES; lane++)
			current[lane] = choose_current(segments, lane, &highest);
		if (uncommitted && uncommitted_extension != extoid)
		{
			/* one that this transaction made and dropped again */
			forget_uncommitted();
			uncommitted_extension = extoid;
		}
		highest = Max(highest, sequence_last_value());
		if (OUTBOX_RULE("ids-above-positions"))
			highest = Max(highest, outbox_position_highest_low());
		db = install_entry(extoid, current, highest + 1);
		if (!uncommitted)
			outbox_wake_launcher();
	}
	outbox_unlock(extoid, OUTBOX_LOCK_BUILD);
	return db;
}

/* Make a prepared segment the lane's current one. */
void
outbox_lane_switch(OutboxDb *db, int lane, Oid relid, uint64 generation)
{
	OutboxLane *l = &db->lanes[lane].lane;

	LWLockAcquire(&l->lock, LW_EXCLUSIVE);
	if (db->dboid == MyDatabaseId && l->generation < generation)
	{
		l->relid = relid;
		l->generation = generation;
	}
	LWLockRelease(&l->lock);
}

/* It has come to be: let it have a keeper. */
static void
confirm_uncommitted(void)
{
	OutboxDb   *db = outbox_db_find(MyDatabaseId, uncommitted_extension);

	if (db != NULL)
		db->uncommitted = false;
	uncommitted_extension = InvalidOid;
}

static void
lane_xact_callback(XactEvent event, void *arg)
{
	if (!OidIsValid(uncommitted_extension))
		return;
	switch (event)
	{
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			forget_uncommitted();
			break;
		case XACT_EVENT_COMMIT:
			confirm_uncommitted();
			outbox_wake_launcher();
			break;
		default:
			break;
	}
}

Oid
outbox_uncommitted_extension(void)
{
	return uncommitted_extension;
}

static void
lane_subxact_callback(SubXactEvent event, SubTransactionId mySubid,
					  SubTransactionId parentSubid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		forget_uncommitted();
}

void
outbox_lane_init(void)
{
	RegisterXactCallback(lane_xact_callback, NULL);
	RegisterSubXactCallback(lane_subxact_callback, NULL);
}
