/*-------------------------------------------------------------------------
 *
 * create.c
 *	  Making a segment of the log, and the triggers that keep others out.
 *
 * A segment is made through the functions behind CREATE TABLE and CREATE
 * TRIGGER, not by the statements: in a user's database event triggers would
 * fire on each rotation, and ALTER DEFAULT PRIVILEGES, default_tablespace or
 * default_table_access_method would decide on what the log relies on.  It is a
 * plain heap, without TOAST (append.c keeps rows short, and every column is
 * stored plain), without rights for anybody but its owner, without autovacuum
 * (its space comes back by truncation) and with triggers that refuse what is
 * not ours.
 *
 * Logical replication.  A publication FOR ALL TABLES has our tables in it,
 * and nothing but a subscription's own end can leave them out.  Rows of
 * segments are never sent as changes (append.c); the first copy, which reads
 * the table, is skipped by the segments' triggers.  Changes of the other tables
 * are skipped by skip_replicated(): where the segments are, how far brokers
 * have got and what they refused is true of one database only.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "compat.h"
#include "fmgr.h"
#include "log/rotate.h"
#include "log/segment.h"
#include "message.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "publish.h"
#include "replication/logicalworker.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(outbox_create_segment_sql);
PG_FUNCTION_INFO_V1(outbox_refuse_dml);
PG_FUNCTION_INFO_V1(outbox_skip_replicated);

/* WITH (autovacuum_enabled = false, vacuum_truncate = false) */
static Datum
storage_options(void)
{
	List	   *options =
		list_make2(makeDefElem("autovacuum_enabled", (Node *) makeString("false"), -1),
				   makeDefElem("vacuum_truncate", (Node *) makeString("false"), -1));

	return transformRelOptions((Datum) 0, options, NULL, NULL, true, false);
}

/* CREATE TABLE, for a segment of that name; nothing is left to settings. */
static Oid
create_table(const char *name, Oid nspid, Oid owner)
{
	Oid			relid;

	relid = heap_create_with_catalog(name, nspid,
									 InvalidOid,	/* the database's tablespace */
									 InvalidOid, InvalidOid, InvalidOid,
									 owner, HEAP_TABLE_AM_OID,
									 outbox_segment_desc(), NIL,
									 RELKIND_RELATION, RELPERSISTENCE_PERMANENT,
									 false, false, ONCOMMIT_NOOP,
									 storage_options(),
									 false, /* no default privileges */
									 false, true, InvalidOid, NULL);
	CommandCounterIncrement();
	return relid;
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

/*
 * Make a segment; a member of the extension.  The lock on the list of segments
 * is kept, so that no two transactions choose the same name.
 */
Oid
outbox_create_segment(Oid extoid)
{
	Oid			nspid = get_namespace_oid("outbox", false);
	Relation	catalog = table_open(get_relname_relid("segments", nspid), ShareUpdateExclusiveLock);
	char	   *name = free_name(nspid);
	Oid			relid = create_table(name, nspid, catalog->rd_rel->relowner);

	table_close(catalog, NoLock);
	if (!creating_extension)
	{
		ObjectAddress segment;
		ObjectAddress extension;

		ObjectAddressSet(segment, RelationRelationId, relid);
		ObjectAddressSet(extension, ExtensionRelationId, extoid);
		recordDependencyOn(&segment, &extension, DEPENDENCY_EXTENSION);
	}
	add_trigger(relid, name, "refuse_rows", true,
				TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE);
	add_trigger(relid, name, "refuse_truncate", false,
				TRIGGER_TYPE_TRUNCATE);
	CommandCounterIncrement();
	return relid;
}

Datum
outbox_create_segment_sql(PG_FUNCTION_ARGS)
{
	Oid			extoid = creating_extension ? CurrentExtensionObject :
		outbox_extension_of(fcinfo->flinfo->fn_oid);

	PG_RETURN_OID(outbox_create_segment(extoid));
}

static TriggerData *
trigger_data(FunctionCallInfo fcinfo, const char *function)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function outbox.%s() must be called as a trigger", function)));
	return (TriggerData *) fcinfo->context;
}

/*
 * Trigger of segments.  The first copy of a subscription FOR ALL TABLES comes
 * as a replica: its rows are skipped, the subscriber has a log of its own.
 */
Datum
outbox_refuse_dml(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = trigger_data(fcinfo, "refuse_dml");

	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA &&
		TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		return PointerGetDatum(NULL);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("cannot modify \"%s\", a segment of the outbox",
					RelationGetRelationName(trigdata->tg_relation)),
			 errhint("Publish with outbox.publish(); delivered messages are removed by themselves.")));
}

/*
 * Triggers of our other tables.  Rows: ENABLE REPLICA; only logical replication
 * is kept out, not a dump that is restored with session_replication_role set.
 * TRUNCATE: always, since a subscriber's could only be refused, and the
 * subscription would stop.
 */
Datum
outbox_skip_replicated(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = trigger_data(fcinfo, "skip_replicated");

	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot truncate \"%s\", a table of pg_outbox",
						RelationGetRelationName(trigdata->tg_relation)),
				 errhint("Dead letters are removed with outbox.discard().")));
	if (IsLogicalWorker())
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ?
						   trigdata->tg_newtuple : trigdata->tg_trigtuple);
}
