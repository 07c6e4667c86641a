/*-------------------------------------------------------------------------
 *
 * utility_hook.c
 *	  What has to happen around utility statements.
 *
 * CREATE SERVER of one of our wrappers writes the server's first position in
 * the same transaction, under the freeing lock, so that the keeper never frees
 * what the new server is entitled to; and says whose log it belongs to (see
 * log/identity.c).  All that changes servers wakes our workers when it
 * commits.  COMMIT PREPARED and ROLLBACK PREPARED wake them too, as the
 * session that prepared has left.
 *
 * Statements that need a database free of other sessions hold our workers off
 * (hold_off.c), but only for users who may run the statement: anybody else
 * would stop delivery by trying.
 *
 * Before any of that guard.c keeps DDL off the log.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "compat.h"
#include "drop.h"
#include "foreign/foreign.h"
#include "guard.h"
#include "hold_off.h"
#include "log/backlog.h"
#include "log/identity.h"
#include "log/lane.h"
#include "log/own_work.h"
#include "log/position.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "shmem.h"
#include "tcop/utility.h"
#include "transport/registry.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "utility_hook.h"
#include "wake.h"

static ProcessUtility_hook_type prev_process_utility = NULL;

/* The first position of a new server of ours, and where it is at home. */
static void
server_created(CreateForeignServerStmt *stmt)
{
	Oid			serverid = get_foreign_server_oid(stmt->servername, true);
	OutboxServer *server;
	Oid			extoid;
	OutboxOwnWork work;

	if (!OidIsValid(serverid) ||
		!registry_is_wrapper(GetForeignServer(serverid)->fdwid))
		return;
	outbox_identity_settle(stmt->servername);
	extoid = get_extension_oid("pg_outbox", false);
	(void) outbox_db_get(extoid);
	(void) outbox_lock(extoid, OUTBOX_LOCK_FREEING, true);
	server = registry_load_public(serverid, CurrentMemoryContext);
	outbox_own_work_begin(&work);
	outbox_position_create(serverid, stmt->servername,
						   server->core.start == OUTBOX_START_EARLIEST);
	outbox_own_work_end(&work);
}

/*
 * A server is about to be renamed.  What was redriven to it carries its name,
 * and nobody would want it under the new one.  What is being redriven is waited
 * for, and nothing more is until this transaction ends.
 */
static void
check_rename(RenameStmt *stmt)
{
	const char *name = strVal(stmt->object);
	Oid			serverid = registry_find_server(name);
	OutboxBacklog backlog;

	if (!OidIsValid(serverid) || !outbox_owns_server(serverid, GetUserId()))
		return;
	/* another's turn may have come first: then PostgreSQL says so */
	serverid = registry_lock_name(name, true);
	if (!OidIsValid(serverid))
		return;
	outbox_backlog_count(registry_load_public(serverid, CurrentMemoryContext), true,
						 &backlog);
	if (backlog.messages > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("cannot rename server \"%s\" while redriven messages are on their way to it",
						name),
				 errhint("Try again when outbox.flush() says that all is delivered.")));
}

/* The server that a statement has renamed, or InvalidOid. */
static Oid
renamed_server(RenameStmt *stmt)
{
	if (stmt->renameType != OBJECT_FOREIGN_SERVER)
		return InvalidOid;
	return registry_find_server(stmt->newname);
}

/* An option of CREATE or ALTER DATABASE, or NULL. */
static DefElem *
database_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
		if (strcmp(((DefElem *) lfirst(lc))->defname, name) == 0)
			return lfirst(lc);
	return NULL;
}

/* May the user copy this database?  As createdb() asks. */
static bool
may_copy(Oid dboid)
{
	HeapTuple	tuple;
	bool		may = superuser();

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		may = may || ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	if (!may || outbox_owns_database(dboid, GetUserId()))
		return may;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	may = HeapTupleIsValid(tuple) && ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return may;
}

/* The database that a statement needs for itself, or InvalidOid. */
static Oid
database_wanted(Node *stmt)
{
	const char *name = NULL;
	Oid			dboid;

	if (IsA(stmt, CreatedbStmt))
	{
		DefElem    *option = database_option(((CreatedbStmt *) stmt)->options, "template");

		dboid = get_database_oid(option != NULL && option->arg != NULL ?
								 defGetString(option) : "template1", true);
		return OidIsValid(dboid) && may_copy(dboid) ? dboid : InvalidOid;
	}
	if (IsA(stmt, DropdbStmt))
		name = ((DropdbStmt *) stmt)->dbname;
	else if (IsA(stmt, RenameStmt) && ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		name = ((RenameStmt *) stmt)->subname;
	else if (IsA(stmt, AlterDatabaseStmt) &&
			 database_option(((AlterDatabaseStmt *) stmt)->options, "tablespace") != NULL)
		name = ((AlterDatabaseStmt *) stmt)->dbname;
	if (name == NULL)
		return InvalidOid;
	/* of the current database they are refused */
	dboid = get_database_oid(name, true);
	return OidIsValid(dboid) && dboid != MyDatabaseId &&
		outbox_owns_database(dboid, GetUserId()) ? dboid : InvalidOid;
}

/* A database that is new, or may let workers in now, is looked into. */
static void
database_changed(Node *stmt, Oid held_off)
{
	const char *name;
	Oid			dboid;

	if (IsA(stmt, DropdbStmt))
	{
		if (OidIsValid(held_off))
			outbox_db_remove(held_off, InvalidOid);
		return;
	}
	name = IsA(stmt, CreatedbStmt) ? ((CreatedbStmt *) stmt)->dbname :
		((AlterDatabaseStmt *) stmt)->dbname;
	dboid = get_database_oid(name, true);
	if (OidIsValid(dboid))
		outbox_look_into_at_commit(dboid);
}

/* Does the statement change servers or what belongs to them? */
static bool
changes_servers(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreateForeignServerStmt:
		case T_AlterForeignServerStmt:
		case T_CreateUserMappingStmt:
		case T_AlterUserMappingStmt:
		case T_DropUserMappingStmt:
			return true;
		case T_RenameStmt:
			return ((RenameStmt *) stmt)->renameType == OBJECT_FOREIGN_SERVER;
		case T_AlterOwnerStmt:
			return ((AlterOwnerStmt *) stmt)->objectType == OBJECT_FOREIGN_SERVER;
		default:
			return false;
	}
}

/* What has to be done once a statement has run. */
static void
statement_done(Node *stmt, Oid held_off, bool is_new)
{
	if (IsA(stmt, DropdbStmt) || IsA(stmt, CreatedbStmt) || IsA(stmt, AlterDatabaseStmt))
		database_changed(stmt, held_off);
	else if (IsA(stmt, CreateForeignServerStmt) && is_new)
		server_created((CreateForeignServerStmt *) stmt);
	else if (IsA(stmt, RenameStmt) && OidIsValid(renamed_server((RenameStmt *) stmt)))
		outbox_identity_renamed(strVal(((RenameStmt *) stmt)->object),
								((RenameStmt *) stmt)->newname);
	else if (IsA(stmt, TransactionStmt) &&
			 (((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED ||
			  ((TransactionStmt *) stmt)->kind == TRANS_STMT_ROLLBACK_PREPARED))
	{
		outbox_wake_at_commit();
		outbox_drop_check_at_commit();
	}
	if (changes_servers(stmt))
		outbox_wake_at_commit();
}

static void
next_process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
					 ProcessUtilityContext context, ParamListInfo params,
					 QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility)
		prev_process_utility(pstmt, queryString, readOnlyTree, context, params,
							 queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context, params,
								queryEnv, dest, qc);
}

static void
outbox_process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
					   ProcessUtilityContext context, ParamListInfo params,
					   QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	PlannedStmt *allowed = outbox_guard(pstmt);
	Oid			dboid = database_wanted(stmt);
	List	   *backlogs = NIL;
	bool		drops = IsA(stmt, DropStmt) || IsA(stmt, DropOwnedStmt);
	bool		is_new = false;

	if (allowed == NULL)
		return;
	if (OidIsValid(dboid))
		outbox_hold_off(dboid);
	if (drops)
		backlogs = outbox_drop_prepare(stmt);
	else if (IsA(stmt, CreateForeignServerStmt))
		is_new = !OidIsValid(get_foreign_server_oid(((CreateForeignServerStmt *) stmt)->servername, true));
	else if (IsA(stmt, RenameStmt) &&
			 ((RenameStmt *) stmt)->renameType == OBJECT_FOREIGN_SERVER)
		check_rename((RenameStmt *) stmt);

	next_process_utility(allowed, queryString, readOnlyTree, context, params,
						 queryEnv, dest, qc);

	if (drops)
		outbox_drop_done(backlogs);
	else
		statement_done(stmt, dboid, is_new);
}

void
outbox_utility_hook_init(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = outbox_process_utility;
}
