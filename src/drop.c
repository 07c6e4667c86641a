/*-------------------------------------------------------------------------
 *
 * drop.c
 *	  Before and after the extension, or servers of it, are dropped.
 *
 * DROP EXTENSION must neither hang nor be the end of a deadlock.  It locks
 * what it drops one by one while publishers, who hold a segment's lock until
 * they commit, may ask for another segment, or for the sequence of ids.  So
 * before it starts:
 *	1. Workers are held off.  From now on no lane is rotated.
 *	2. All transactions that hold a lock on a segment are waited for, without
 *	   a lock of ours: they can go on.  After that, whoever holds a segment's
 *	   lock holds that of a lane's current segment, so he can publish more in
 *	   the same lane without another lock, and only tries others.
 *	3. Everything that is locked by several of our own functions is locked in
 *	   the order in which they lock it: dead letters, segments, the sequence.
 *	   A publisher that waits for us here holds no segment.
 * Then the drop itself finds these locks held.
 *
 * At commit the shared entry goes, while the segments are still locked.  So a
 * publisher who gets past his lock afterwards finds no entry, looks into the
 * catalog, and says that the extension was dropped.  Whether it is gone is
 * looked up before the commit, and not told from the statement, which may have
 * been rolled back to a savepoint or may have dropped it by CASCADE.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "commands/extension.h"
#include "commands/defrem.h"
#include "compat.h"
#include "drop.h"
#include "fault.h"
#include "hold_off.h"
#include "log/backlog.h"
#include "log/lane.h"
#include "log/segment.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "shmem.h"
#include "storage/lmgr.h"
#include "transport/registry.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "wake.h"

typedef struct ServerBacklog
{
	char	   *name;
	OutboxBacklog backlog;
} ServerBacklog;

static bool check_at_commit = false;
static Oid	dropped_extension = InvalidOid;

/* The tables of ours that DROP EXTENSION locks first. */
static List *
list_log(void)
{
	Oid			nspid = get_namespace_oid("outbox", true);
	Oid			letters = get_relname_relid("dead_letter", nspid);
	List	   *relids = NIL;
	ListCell   *lc;

	if (OidIsValid(letters))
		relids = lappend_oid(relids, letters);
	foreach(lc, outbox_segment_list())
		relids = lappend_oid(relids, ((OutboxSegment *) lfirst(lc))->relid);
	return relids;
}

/* See the banner. */
static void
prepare_extension_drop(void)
{
	List	   *relids;
	List	   *tags = NIL;
	ListCell   *lc;
	Oid			sequence = get_relname_relid("message_id_seq",
											 get_namespace_oid("outbox", true));

	outbox_hold_off(MyDatabaseId);
	relids = list_log();
	foreach(lc, relids)
	{
		LOCKTAG    *tag = palloc(sizeof(LOCKTAG));

		SET_LOCKTAG_RELATION(*tag, MyDatabaseId, lfirst_oid(lc));
		tags = lappend(tags, tag);
	}
	WaitForLockersMultiple(tags, AccessExclusiveLock, false);
	foreach(lc, relids)
		LockRelationOid(lfirst_oid(lc), AccessExclusiveLock);
	if (OidIsValid(sequence))
		LockRelationOid(sequence, AccessExclusiveLock);
}

/* The extension's owner, who owns its tables too. */
static Oid
extension_owner(void)
{
	Oid			relid = get_relname_relid("segments", get_namespace_oid("outbox", true));
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner = InvalidOid;

	if (HeapTupleIsValid(tuple))
	{
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
	}
	return owner;
}

/* Does the statement name the extension, of which the user is owner? */
static bool
drops_extension(Node *stmt, Oid extoid)
{
	ListCell   *lc;

	if (!OidIsValid(extoid) || !outbox_owns_extension(extoid, GetUserId()))
		return false;
	if (IsA(stmt, DropStmt) && ((DropStmt *) stmt)->removeType == OBJECT_EXTENSION)
	{
		foreach(lc, ((DropStmt *) stmt)->objects)
			if (strcmp(strVal(lfirst(lc)), "pg_outbox") == 0)
				return true;
	}
	else if (IsA(stmt, DropOwnedStmt))
	{
		foreach(lc, ((DropOwnedStmt *) stmt)->roles)
		{
			Oid			role = get_rolespec_oid(lfirst(lc), true);

			if (OidIsValid(role) && role == extension_owner())
				return true;
		}
	}
	return false;
}

/*
 * What servers of ours that a statement names have still to get.  What is being
 * redriven to them is waited for, and counts.
 */
static List *
count_backlogs(DropStmt *stmt)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, stmt->objects)
	{
		char	   *name = strVal(lfirst(lc));
		Oid			serverid = registry_find_server(name);
		OutboxServer *server;
		ServerBacklog *found;

		if (!OidIsValid(serverid) || !outbox_owns_server(serverid, GetUserId()))
			continue;
		/* another's turn may have come first: then PostgreSQL says so */
		serverid = registry_lock_name(name, true);
		if (!OidIsValid(serverid))
			continue;
		server = registry_load_public(serverid, CurrentMemoryContext);
		found = palloc(sizeof(ServerBacklog));
		found->name = pstrdup(name);
		outbox_backlog_count(server, false, &found->backlog);
		if (found->backlog.messages > 0)
			result = lappend(result, found);
	}
	return result;
}

List *
outbox_drop_prepare(Node *stmt)
{
	if (drops_extension(stmt, get_extension_oid("pg_outbox", true)))
	{
		if (OUTBOX_RULE("drop-waits-first"))
			prepare_extension_drop();
	}
	else if (IsA(stmt, DropStmt) &&
			 ((DropStmt *) stmt)->removeType == OBJECT_FOREIGN_SERVER)
		return count_backlogs((DropStmt *) stmt);
	return NIL;
}

void
outbox_drop_done(List *backlogs)
{
	ListCell   *lc;

	foreach(lc, backlogs)
	{
		ServerBacklog *found = lfirst(lc);
		char	   *size = text_to_cstring(DatumGetTextPP(DirectFunctionCall1(pg_size_pretty,
																			  Int64GetDatum((int64) found->backlog.bytes))));

		ereport(WARNING,
				(errmsg_plural("server \"%s\" is dropped with %s%llu undelivered message (%s)",
							   "server \"%s\" is dropped with %s%llu undelivered messages (%s)",
							   found->backlog.messages,
							   found->name, found->backlog.more ? "more than " : "",
							   (unsigned long long) found->backlog.messages, size),
				 errdetail("Its dead letters stay; what is undelivered is sent to other servers only.")));
	}
	outbox_wake_at_commit();
	outbox_drop_check_at_commit();
}

void
outbox_drop_check_at_commit(void)
{
	check_at_commit = true;
}

/*
 * The entry of an extension of this database that is not in the catalog, or
 * InvalidOid.  Entries are read first: one that is there belongs to a
 * committed extension (or is marked), so the catalog, read afterwards, has it
 * unless it was dropped.
 */
static Oid
find_dropped(void)
{
	List	   *extensions = NIL;
	ListCell   *lc;

	LWLockAcquire(&outbox_shared->lock, LW_SHARED);
	for (int i = 0; i < outbox_shared->max_databases; i++)
	{
		OutboxDb   *db = &outbox_shared->dbs[i];

		/* what another transaction has made and not committed is not ours */
		if (db->dboid == MyDatabaseId &&
			(!db->uncommitted || db->extoid == outbox_uncommitted_extension()))
			extensions = lappend_oid(extensions, db->extoid);
	}
	LWLockRelease(&outbox_shared->lock);
	foreach(lc, extensions)
		if (get_extension_name(lfirst_oid(lc)) == NULL)
			return lfirst_oid(lc);
	return InvalidOid;
}

void
outbox_forget_dropped(void)
{
	Oid			extoid;

	while (OidIsValid(extoid = find_dropped()))
		outbox_db_remove(MyDatabaseId, extoid);
}

static void
drop_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (check_at_commit)
				dropped_extension = find_dropped();
			break;
		case XACT_EVENT_COMMIT:
			if (OidIsValid(dropped_extension))
				outbox_db_remove(MyDatabaseId, dropped_extension);
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			check_at_commit = false;
			dropped_extension = InvalidOid;
			break;
		default:
			break;
	}
}

void
outbox_drop_init(void)
{
	RegisterXactCallback(drop_xact_callback, NULL);
}
