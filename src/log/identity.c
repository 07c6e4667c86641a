/*-------------------------------------------------------------------------
 *
 * identity.c
 *	  Whose log this is: telling copies and restored dumps from the original.
 *
 * A copy of a database must not send what the original sends.  The log has a
 * uuid, and a server carries it as its option "home", written by CREATE SERVER
 * and dumped with it.  Only where both agree does a relay run.  So
 *	- a restored dump, whose CREATE EXTENSION drew a new uuid, finds its
 *	  servers at home elsewhere;
 *	- a copy by CREATE DATABASE ... TEMPLATE has a copy of both, and is told by
 *	  the database's oid, stored beside the uuid: it draws a new uuid.  So does
 *	  a log that wakes up in another cluster of the same major version;
 *	- pg_upgrade keeps the oids of databases, and changes both the system
 *	  identifier and the major version: the log goes on with its uuid.  It does
 *	  not keep the oids of servers, so positions are matched by name;
 *	- a physical copy can't be told from a failover, and goes on.
 * outbox.adopt() writes the log's uuid into a server's "home".
 *
 * The keeper checks before it starts a relay, and CREATE SERVER before it
 * writes "home", in its own transaction.  If both do it at once, one waits
 * for the other's row and then finds nothing to do.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "log/identity.h"
#include "log/lane.h"
#include "log/own_work.h"
#include "log/position.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(outbox_adopt);
PG_FUNCTION_INFO_V1(outbox_warn_without_preload);

static void
execute(const char *sql, int nargs, Oid *types, Datum *args, int expected)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, args, NULL, false, 0);

	if (rc != expected)
		elog(ERROR, "SPI_execute_with_args returned %d for \"%s\"", rc, sql);
}

/* The one value of a query's one row; false: no row, or null. */
static bool
only_value(Datum *value)
{
	bool		isnull = true;

	if (SPI_processed == 1)
		*value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return !isnull;
}

/* After pg_upgrade: positions belong to the servers of their names. */
static void
match_positions_by_name(void)
{
	execute("UPDATE outbox.position_log p SET server = s.oid"
			" FROM pg_catalog.pg_foreign_server s"
			" JOIN pg_catalog.pg_depend d ON d.objid = s.srvfdw"
			"  AND d.classid = 'pg_catalog.pg_foreign_data_wrapper'::pg_catalog.regclass"
			"  AND d.deptype = 'e'"
			" JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid"
			"  AND e.extname = 'pg_outbox'"
			" WHERE s.srvname = p.server_name AND s.oid <> p.server",
			0, NULL, NULL, SPI_OK_UPDATE);
}

void
outbox_identity_check(void)
{
	Oid			types[3] = {OIDOID, INT8OID, INT4OID};
	Datum		args[3] = {
		ObjectIdGetDatum(MyDatabaseId),
		Int64GetDatum((int64) GetSystemIdentifier()),
		Int32GetDatum(PG_MAJORVERSION_NUM)
	};
	OutboxOwnWork work;
	Datum		changed;

	outbox_own_work_begin(&work);
	execute("SELECT true FROM outbox.log_identity WHERE database_oid = $1"
			" AND system_identifier = $2 AND major = $3",
			3, types, args, SPI_OK_SELECT);
	if (SPI_processed == 0)
	{
		execute("UPDATE outbox.log_identity SET log_uuid = CASE"
				" WHEN database_oid = $1 AND system_identifier <> $2 AND major <> $3"
				" THEN log_uuid ELSE pg_catalog.gen_random_uuid() END,"
				" database_oid = $1, system_identifier = $2, major = $3"
				" WHERE NOT (database_oid = $1 AND system_identifier = $2 AND major = $3)"
				" RETURNING true",
				3, types, args, SPI_OK_UPDATE_RETURNING);
		if (only_value(&changed))
		{
			match_positions_by_name();
			ereport(LOG, (errmsg("the log of pg_outbox is in another place than before")));
		}
	}
	outbox_own_work_end(&work);
}

char *
outbox_identity_uuid(void)
{
	MemoryContext caller = CurrentMemoryContext;
	OutboxOwnWork work;
	Datum		value;
	char	   *uuid;

	outbox_own_work_begin(&work);
	execute("SELECT log_uuid::pg_catalog.text FROM outbox.log_identity", 0, NULL, NULL,
			SPI_OK_SELECT);
	if (!only_value(&value))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("outbox.log_identity does not have its one row")));
	uuid = MemoryContextStrdup(caller, TextDatumGetCString(value));
	outbox_own_work_end(&work);
	return uuid;
}

const char *
outbox_identity_problem(const OutboxServer *server)
{
	char	   *uuid = outbox_identity_uuid();

	if (server->core.home != NULL && strcmp(server->core.home, uuid) == 0)
		return NULL;
	return "the server was created in another database, of which this is a copy or a restored dump";
}

const char *
outbox_identity_hint(const OutboxServer *server)
{
	return psprintf("If this database is to send to it, run SELECT outbox.adopt(%s).",
					quote_literal_cstr(server->name_local));
}

/* Positions carry the names that servers have now. */
void
outbox_identity_name_positions(void)
{
	OutboxOwnWork work;

	outbox_own_work_begin(&work);
	execute("UPDATE outbox.position_log p SET server_name = s.srvname"
			" FROM pg_catalog.pg_foreign_server s"
			" WHERE s.oid = p.server AND s.srvname <> p.server_name",
			0, NULL, NULL, SPI_OK_UPDATE);
	outbox_own_work_end(&work);
}

/*
 * A server was renamed.  Subscriptions follow, and its dead letters, so that they
 * can be redriven and a later server of the old name doesn't inherit them.  Where a letter of
 * the same message is there already under the new name, that one will do.
 */
void
outbox_identity_renamed(const char *old_name, const char *new_name)
{
	Oid			types[2] = {NAMEOID, NAMEOID};
	Datum		args[2] = {
		DirectFunctionCall1(namein, CStringGetDatum(old_name)),
		DirectFunctionCall1(namein, CStringGetDatum(new_name))
	};
	OutboxOwnWork work;

	CommandCounterIncrement();
	outbox_identity_name_positions();
	outbox_own_work_begin(&work);
	execute("DELETE FROM outbox.dead_letter d WHERE server = $1 AND EXISTS"
			" (SELECT FROM outbox.dead_letter o WHERE o.server = $2 AND o.id = d.id)",
			2, types, args, SPI_OK_DELETE);
	execute("UPDATE outbox.dead_letter SET server = $2 WHERE server = $1",
			2, types, args, SPI_OK_UPDATE);
	execute("UPDATE inbox.subscription SET server = $2 WHERE server = $1",
			2, types, args, SPI_OK_UPDATE);
	outbox_own_work_end(&work);
}

/* Write the option home. */
static void
write_home(const char *server_name, const char *uuid, bool given)
{
	AlterForeignServerStmt *stmt = makeNode(AlterForeignServerStmt);

	stmt->servername = pstrdup(server_name);
	stmt->options = list_make1(makeDefElemExtended(NULL, "home",
												   (Node *) makeString(pstrdup(uuid)),
												   given ? DEFELEM_SET : DEFELEM_ADD, -1));
	(void) AlterForeignServer(stmt);
	CommandCounterIncrement();
}

static bool
has_home(ForeignServer *server)
{
	ListCell   *lc;

	foreach(lc, server->options)
		if (strcmp(((DefElem *) lfirst(lc))->defname, "home") == 0)
			return true;
	return false;
}

void
outbox_identity_settle(const char *server_name)
{
	CommandCounterIncrement();
	outbox_identity_check();
	if (!has_home(GetForeignServerByName(server_name, false)))
		write_home(server_name, outbox_identity_uuid(), false);
}

/* For CREATE EXTENSION: it works without shared memory, little else does. */
Datum
outbox_warn_without_preload(PG_FUNCTION_ARGS)
{
	if (outbox_shared == NULL && !IsBinaryUpgrade)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_outbox is not loaded by the server: publishing and CREATE SERVER will fail"),
				 errhint("Add this line to postgresql.conf and restart: shared_preload_libraries = 'pg_outbox'")));
	PG_RETURN_VOID();
}

/*
 * outbox.adopt(server): runs with the rights of the extension's owner.  A
 * position is missing after a dump that was restored without our hook; it
 * then starts as if the server were created now.
 */
Datum
outbox_adopt(PG_FUNCTION_ARGS)
{
	char	   *name = NameStr(*PG_GETARG_NAME(0));
	Oid			extoid = get_extension_oid("pg_outbox", false);
	Oid			serverid = registry_find_server(name);
	OutboxServer *server;
	OutboxOwnWork work;
	Oid			types[1] = {OIDOID};
	Datum		args[1];
	bool		has_position;

	if (!OidIsValid(serverid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no outbox server \"%s\"", name),
				 errhint("See outbox.relay_status for those that there are.")));
	outbox_require_preload();
	PreventCommandDuringRecovery("outbox.adopt()");
	PreventCommandIfReadOnly("outbox.adopt()");
	(void) outbox_db_get(extoid);
	(void) outbox_lock(extoid, OUTBOX_LOCK_FREEING, true);
	outbox_identity_check();
	write_home(name, outbox_identity_uuid(), has_home(GetForeignServer(serverid)));

	server = registry_load_public(serverid, CurrentMemoryContext);
	args[0] = ObjectIdGetDatum(serverid);
	outbox_own_work_begin(&work);
	execute("SELECT 1 FROM outbox.position_log WHERE server = $1 LIMIT 1", 1, types, args,
			SPI_OK_SELECT);
	has_position = SPI_processed > 0;
	if (!has_position)
		outbox_position_create(serverid, name, server->core.start == OUTBOX_START_EARLIEST);
	outbox_own_work_end(&work);
	PG_RETURN_VOID();
}
