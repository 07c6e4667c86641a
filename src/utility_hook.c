/*-------------------------------------------------------------------------
 *
 * utility_hook.c
 *	  What has to happen around utility statements.
 *
 * CREATE SERVER of one of our wrappers writes the server's first position in
 * the same transaction, under the freeing lock, so that the keeper never frees
 * what the new server is entitled to.  DROP SERVER removes positions with the
 * keeper's next look.  COMMIT PREPARED and ROLLBACK PREPARED wake the relays,
 * as the session that prepared has left.  Statements that need a database free
 * of other sessions raise a hold-off first and wait until our workers are out.
 * Before any of that guard.c keeps DDL off the log.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "foreign/foreign.h"
#include "guard.h"
#include "hold_off.h"
#include "log/lane.h"
#include "log/position.h"
#include "log/segment.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "shmem.h"
#include "tcop/utility.h"
#include "transport/registry.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utility_hook.h"

static ProcessUtility_hook_type prev_process_utility = NULL;

/* The first position of a new server of ours. */
static void
server_created(CreateForeignServerStmt *stmt)
{
	Oid			serverid = get_foreign_server_oid(stmt->servername, true);
	OutboxServer *server;
	Oid			extoid;

	if (!OidIsValid(serverid) ||
		!registry_is_wrapper(GetForeignServer(serverid)->fdwid))
		return;
	extoid = get_extension_oid("pg_outbox", false);
	(void) outbox_db_get(extoid);
	(void) outbox_lock(extoid, OUTBOX_LOCK_FREEING, true);
	server = registry_load_public(serverid, CurrentMemoryContext);
	PushActiveSnapshot(GetLatestSnapshot());
	if (server != NULL)
	{
		Oid			userid;
		int			context;

		GetUserIdAndSecContext(&userid, &context);
		SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
							   context | SECURITY_LOCAL_USERID_CHANGE);
		outbox_position_create(serverid, stmt->servername,
							   server->core.start == OUTBOX_START_EARLIEST);
		SetUserIdAndSecContext(userid, context);
	}
	PopActiveSnapshot();
	outbox_wake_keeper(MyDatabaseId);
	outbox_wake_launcher();
}

/* The database that a statement needs for itself, or InvalidOid. */
static Oid
database_wanted(Node *stmt)
{
	if (IsA(stmt, DropdbStmt))
		return get_database_oid(((DropdbStmt *) stmt)->dbname, true);
	if (IsA(stmt, RenameStmt) && ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		return get_database_oid(((RenameStmt *) stmt)->subname, true);
	if (IsA(stmt, CreatedbStmt))
	{
		ListCell   *lc;

		foreach(lc, ((CreatedbStmt *) stmt)->options)
		{
			DefElem    *option = lfirst(lc);

			if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
				return get_database_oid(defGetString(option), true);
		}
	}
	if (IsA(stmt, AlterDatabaseStmt))
	{
		ListCell   *lc;

		foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				return get_database_oid(((AlterDatabaseStmt *) stmt)->dbname, true);
	}
	return InvalidOid;
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

	if (allowed == NULL)
		return;
	if (OidIsValid(dboid))
		outbox_hold_off(dboid);
	next_process_utility(allowed, queryString, readOnlyTree, context, params,
						 queryEnv, dest, qc);

	if (IsA(stmt, DropdbStmt) && OidIsValid(dboid))
		outbox_db_remove(dboid, InvalidOid);
	else if (IsA(stmt, CreateForeignServerStmt))
		server_created((CreateForeignServerStmt *) stmt);
	else if (IsA(stmt, AlterForeignServerStmt) || IsA(stmt, DropStmt))
	{
		outbox_wake_keeper(MyDatabaseId);
		outbox_wake_relays(MyDatabaseId);
	}
	else if (IsA(stmt, TransactionStmt) &&
			 (((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED ||
			  ((TransactionStmt *) stmt)->kind == TRANS_STMT_ROLLBACK_PREPARED))
		outbox_wake_relays(MyDatabaseId);
}

void
outbox_utility_hook_init(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = outbox_process_utility;
}
