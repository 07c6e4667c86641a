/*-------------------------------------------------------------------------
 *
 * create.c
 *	  Making a segment of the log.
 *
 * A segment is made through the functions behind CREATE TABLE and CREATE
 * TRIGGER, not by the statements: in a user's database event triggers would
 * fire on each rotation.  It is a plain heap, without TOAST (append.c keeps
 * rows short, and every column is stored plain), without autovacuum (its space
 * comes back by truncation) and with triggers that refuse what is not ours.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/tablecmds.h"
#include "commands/trigger.h"
#include "compat.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "log/rotate.h"
#include "log/segment.h"
#include "message.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(outbox_create_segment_sql);
PG_FUNCTION_INFO_V1(outbox_refuse_dml);

static DefElem *
storage_option(char *name, char *value)
{
	return makeDefElem(name, (Node *) makeString(value), -1);
}

/* CREATE TABLE, for a segment of that name */
static CreateStmt *
table_statement(char *name)
{
	CreateStmt *stmt = makeNode(CreateStmt);
	TupleDesc	desc = outbox_segment_desc();

	stmt->relation = makeRangeVar("outbox", name, -1);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(desc, i);
		ColumnDef  *column = makeColumnDef(NameStr(attr->attname), attr->atttypid, -1, InvalidOid);

		column->storage = TYPSTORAGE_PLAIN;
		stmt->tableElts = lappend(stmt->tableElts, column);
	}
	stmt->options = list_make2(storage_option("autovacuum_enabled", "false"),
							   storage_option("vacuum_truncate", "false"));
	stmt->oncommit = ONCOMMIT_NOOP;
	stmt->accessMethod = "heap";
	return stmt;
}

/* CREATE TRIGGER ... ENABLE ALWAYS, so that replication can't write either */
static void
add_trigger(Oid relid, char *segment, char *name, bool row, int16 events)
{
	CreateTrigStmt *stmt = makeNode(CreateTrigStmt);

	stmt->trigname = name;
	stmt->relation = makeRangeVar("outbox", segment, -1);
	stmt->funcname = list_make2(makeString("outbox"), makeString("refuse_dml"));
	stmt->row = row;
	stmt->timing = TRIGGER_TYPE_BEFORE;
	stmt->events = events;
	(void) CreateTriggerFiringOn(stmt, NULL, relid, InvalidOid, InvalidOid,
								 InvalidOid, InvalidOid, InvalidOid, NULL,
								 false, false, TRIGGER_FIRES_ALWAYS);
}

/* The first name segment_N that is free. */
static char *
free_name(Oid nspid)
{
	for (int n = 1;; n++)
	{
		char	   *name = psprintf("segment_%d", n);

		if (!OidIsValid(get_relname_relid(name, nspid)))
			return name;
		pfree(name);
	}
}

/* Make a segment; a member of the extension. */
Oid
outbox_create_segment(Oid extoid)
{
	Oid			nspid = get_namespace_oid("outbox", false);
	char	   *name = free_name(nspid);
	Relation	catalog = table_open(get_relname_relid("segments", nspid), AccessShareLock);
	Oid			owner = catalog->rd_rel->relowner;
	ObjectAddress segment;
	ObjectAddress extension;

	table_close(catalog, AccessShareLock);
	segment = DefineRelation(table_statement(name), RELKIND_RELATION, owner, NULL, NULL);
	CommandCounterIncrement();
	if (!creating_extension)
	{
		ObjectAddressSet(extension, ExtensionRelationId, extoid);
		recordDependencyOn(&segment, &extension, DEPENDENCY_EXTENSION);
	}
	add_trigger(segment.objectId, name, "refuse_rows", true,
				TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE);
	add_trigger(segment.objectId, name, "refuse_truncate", false,
				TRIGGER_TYPE_TRUNCATE);
	CommandCounterIncrement();
	return segment.objectId;
}

Datum
outbox_create_segment_sql(PG_FUNCTION_ARGS)
{
	if (!creating_extension)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("segments are made by CREATE EXTENSION and by the keeper only")));
	PG_RETURN_OID(outbox_create_segment(CurrentExtensionObject));
}

/*
 * Trigger of segments.  The first copy of a subscription FOR ALL TABLES comes
 * as a replica: its rows are skipped, the subscriber has a log of its own.
 */
Datum
outbox_refuse_dml(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function outbox.refuse_dml() must be called as a trigger")));
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA &&
		TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		return PointerGetDatum(NULL);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("cannot modify \"%s\", a segment of the outbox",
					RelationGetRelationName(trigdata->tg_relation)),
			 errhint("Publish with outbox.publish(); delivered messages are removed by themselves.")));
}
