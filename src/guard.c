/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Keeping DDL off the log.
 *
 * The log relies on its segments being what create.c made them: heaps without
 * indexes, TOAST, rules and further triggers, whose pages are in the order in
 * which they were written.  A superuser's statement, often one meant for all
 * tables, could change that, so those that name a segment are refused here.
 *
 * A statement that only dumps badly is refused too: pg_dump leaves segments
 * out, as members of the extension, but not what was granted on them or that a
 * publication names them, and the restored database has fewer segments.
 *
 * VACUUM FULL leaves segments out.  It copies rows in the order of line
 * pointers, and a plain VACUUM may have given one back to a later row: inside
 * a page the reader sorts, but the copy's page boundaries fall elsewhere, and
 * the lane would no longer increase from page to page.  There is nothing to
 * gain either: delivered segments are emptied as a whole.  For a VACUUM FULL
 * of the whole database the other tables are listed in its place.
 *
 * Passed on, since they keep pages as they are: plain VACUUM, REINDEX (there
 * is no index; its lock makes publishers take other lanes), ALTER TABLE ALL IN
 * TABLESPACE (copies blocks), LOCK, COMMENT, REASSIGN OWNED.  DROP of a
 * segment is refused by PostgreSQL, as the extension requires it.
 *
 * Nothing is refused while an extension's script runs (the next version's may
 * change segments) nor where the extension isn't.
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
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "fault.h"
#include "guard.h"
#include "log/segment.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

static bool
extension_exists(void)
{
	return OidIsValid(get_extension_oid("pg_outbox", true));
}

static Oid
relation_of(const RangeVar *rv)
{
	return RangeVarGetRelid(rv, NoLock, true);
}

static bool
is_id_sequence(Oid relid)
{
	return extension_exists() &&
		relid == get_relname_relid("message_id_seq", get_namespace_oid("outbox", true));
}

/* The statement names this relation: may it? */
static void
check_relation(Node *stmt, const RangeVar *rv)
{
	Oid			relid;

	/* most statements end here, without a look into a catalog */
	if (rv == NULL || (strncmp(rv->relname, "segment_", 8) != 0 &&
					   strcmp(rv->relname, "message_id_seq") != 0))
		return;
	relid = relation_of(rv);
	if (!OidIsValid(relid))
		return;					/* PostgreSQL says so in its own words */
	if (outbox_is_segment(relid))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s is not allowed on \"%s\", a segment of the outbox",
						CreateCommandName(stmt), rv->relname),
				 errhint("Segments are made, filled and emptied by pg_outbox alone; read outbox.message instead.")));
	if (!IsA(stmt, GrantStmt) && is_id_sequence(relid))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s is not allowed on \"%s\", the outbox's sequence of message ids",
						CreateCommandName(stmt), rv->relname),
				 errhint("An id is never used twice; pg_outbox alone sets the sequence.")));
}

static void
check_relations(Node *stmt, List *relations)
{
	ListCell   *lc;

	foreach(lc, relations)
		if (IsA(lfirst(lc), RangeVar))
			check_relation(stmt, lfirst(lc));
}

/* The first parts of a qualified name: the table of a trigger or a column. */
static void
check_name(Node *stmt, List *name, int parts)
{
	if (parts > 0)
		check_relation(stmt, makeRangeVarFromNameList(list_truncate(list_copy(name), parts)));
}

/* ALTER TABLE: its table, and one that becomes its parent or partition. */
static void
check_alter_table(AlterTableStmt *stmt)
{
	ListCell   *lc;

	check_relation((Node *) stmt, stmt->relation);
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst(lc);

		if (cmd->subtype == AT_AddInherit)
			check_relation((Node *) stmt, (RangeVar *) cmd->def);
		else if (cmd->subtype == AT_AttachPartition)
			check_relation((Node *) stmt, ((PartitionCmd *) cmd->def)->name);
	}
}

/* DROP TRIGGER; nothing else hangs on a segment. */
static void
check_drop(DropStmt *stmt)
{
	ListCell   *lc;

	if (stmt->removeType != OBJECT_TRIGGER)
		return;
	foreach(lc, stmt->objects)
		check_name((Node *) stmt, lfirst(lc), list_length(lfirst(lc)) - 1);
}

static void
check_grant(GrantStmt *stmt)
{
	ListCell   *lc;

	if (stmt->objtype != OBJECT_TABLE)
		return;
	if (stmt->targtype == ACL_TARGET_OBJECT)
		check_relations((Node *) stmt, stmt->objects);
	else if (stmt->targtype == ACL_TARGET_ALL_IN_SCHEMA && stmt->is_grant)
	{
		foreach(lc, stmt->objects)
			if (strcmp(strVal(lfirst(lc)), "outbox") == 0 && extension_exists())
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("cannot grant rights on all tables of schema \"outbox\""),
						 errdetail("The log's segments are among them."),
						 errhint("Grant role outbox_admin or outbox_publisher, or name the tables.")));
	}
}

static void
check_publication(Node *stmt, List *objects)
{
	ListCell   *lc;

	foreach(lc, objects)
	{
		PublicationObjSpec *object = lfirst(lc);

		if (object->pubtable != NULL)
			check_relation(stmt, object->pubtable->relation);
	}
}

static void
check_rename(RenameStmt *stmt)
{
	check_relation((Node *) stmt, stmt->relation);
	if (stmt->renameType == OBJECT_SCHEMA &&
		(strcmp(stmt->subname, "outbox") == 0 || strcmp(stmt->subname, "inbox") == 0) &&
		extension_exists())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("schema \"%s\" belongs to pg_outbox and keeps its name",
						stmt->subname)));
}

static void
check_extension_contents(AlterExtensionContentsStmt *stmt)
{
	if (strcmp(stmt->extname, "pg_outbox") == 0 && stmt->action < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("nothing can be taken out of extension pg_outbox"),
				 errhint("DROP EXTENSION pg_outbox drops it as a whole.")));
}

/* Raise when the statement would harm the log. */
static void
check_statement(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_AlterTableStmt:
			check_alter_table((AlterTableStmt *) stmt);
			break;
		case T_RenameStmt:
			check_rename((RenameStmt *) stmt);
			break;
		case T_AlterObjectSchemaStmt:
			check_relation(stmt, ((AlterObjectSchemaStmt *) stmt)->relation);
			break;
		case T_AlterObjectDependsStmt:
			check_relation(stmt, ((AlterObjectDependsStmt *) stmt)->relation);
			break;
		case T_AlterSeqStmt:
			check_relation(stmt, ((AlterSeqStmt *) stmt)->sequence);
			break;
		case T_AlterExtensionContentsStmt:
			check_extension_contents((AlterExtensionContentsStmt *) stmt);
			break;
		case T_ClusterStmt:
			check_relation(stmt, ((ClusterStmt *) stmt)->relation);
			break;
		case T_IndexStmt:
			check_relation(stmt, ((IndexStmt *) stmt)->relation);
			break;
		case T_CreateTrigStmt:
			check_relation(stmt, ((CreateTrigStmt *) stmt)->relation);
			check_relation(stmt, ((CreateTrigStmt *) stmt)->constrrel);
			break;
		case T_RuleStmt:
			check_relation(stmt, ((RuleStmt *) stmt)->relation);
			break;
		case T_CreatePolicyStmt:
			check_relation(stmt, ((CreatePolicyStmt *) stmt)->table);
			break;
		case T_CreateStatsStmt:
			check_relations(stmt, ((CreateStatsStmt *) stmt)->relations);
			break;
		case T_CreateStmt:
		case T_CreateForeignTableStmt:
			check_relations(stmt, ((CreateStmt *) stmt)->inhRelations);
			break;
		case T_DropStmt:
			check_drop((DropStmt *) stmt);
			break;
		case T_GrantStmt:
			check_grant((GrantStmt *) stmt);
			break;
		case T_SecLabelStmt:
			if (((SecLabelStmt *) stmt)->objtype == OBJECT_TABLE)
				check_name(stmt, (List *) ((SecLabelStmt *) stmt)->object,
						   list_length((List *) ((SecLabelStmt *) stmt)->object));
			break;
		case T_CreatePublicationStmt:
			check_publication(stmt, ((CreatePublicationStmt *) stmt)->pubobjects);
			break;
		case T_AlterPublicationStmt:
			if (((AlterPublicationStmt *) stmt)->action != AP_DropObjects)
				check_publication(stmt, ((AlterPublicationStmt *) stmt)->pubobjects);
			break;
		default:
			break;
	}
}

/* VACUUM FULL, in any of its spellings, of tables? */
static bool
is_vacuum_full(Node *stmt)
{
	bool		full = false;
	ListCell   *lc;

	if (!IsA(stmt, VacuumStmt) || !((VacuumStmt *) stmt)->is_vacuumcmd)
		return false;
	foreach(lc, ((VacuumStmt *) stmt)->options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "full") == 0)
			full = defGetBoolean(option);
		else if (strcmp(option->defname, "only_database_stats") == 0)
			return false;		/* no table is touched */
	}
	return full;
}

/* All tables that VACUUM would take, but for segments. */
static List *
all_but_segments(void)
{
	Relation	rel = table_open(RelationRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(rel, 0, NULL);
	HeapTuple	tuple;
	List	   *result = NIL;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_class class = (Form_pg_class) GETSTRUCT(tuple);

		if ((class->relkind == RELKIND_RELATION ||
			 class->relkind == RELKIND_MATVIEW ||
			 class->relkind == RELKIND_PARTITIONED_TABLE) &&
			!outbox_is_segment(class->oid))
			result = lappend(result, makeVacuumRelation(NULL, class->oid, NIL));
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/* The tables of a list that are no segments. */
static List *
without_segments(List *relations)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, relations)
	{
		VacuumRelation *vr = lfirst(lc);
		Oid			relid = OidIsValid(vr->oid) ? vr->oid : relation_of(vr->relation);

		if (!OidIsValid(relid) || !outbox_is_segment(relid))
			result = lappend(result, vr);
		else
			ereport(NOTICE,
					(errmsg("skipping \"%s\", a segment of the outbox", get_rel_name(relid)),
					 errdetail("VACUUM FULL would put its rows out of order; it is emptied as a whole once its messages are delivered.")));
	}
	return result;
}

/* VACUUM FULL without segments, or NULL when it named nothing else. */
static PlannedStmt *
narrow_vacuum_full(PlannedStmt *pstmt)
{
	/* VACUUM commits in between: what it reads lives as long as the portal */
	MemoryContext old = MemoryContextSwitchTo(PortalContext);
	PlannedStmt *narrow = copyObject(pstmt);
	VacuumStmt *stmt = (VacuumStmt *) narrow->utilityStmt;

	stmt->rels = stmt->rels == NIL ? all_but_segments() : without_segments(stmt->rels);
	MemoryContextSwitchTo(old);
	return stmt->rels != NIL ? narrow : NULL;
}

PlannedStmt *
outbox_guard(PlannedStmt *pstmt)
{
	Node	   *stmt = pstmt->utilityStmt;

	if (creating_extension)
		return pstmt;
	if (!is_vacuum_full(stmt))
		check_statement(stmt);
	else if (extension_exists() && OUTBOX_RULE("vacuum-full-skips-segments"))
		return narrow_vacuum_full(pstmt);
	return pstmt;
}
