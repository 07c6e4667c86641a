/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between PostgreSQL 15, 16, 17 and 18, all in one place.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_COMPAT_H
#define OUTBOX_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "pg_outbox needs PostgreSQL 15 or newer"
#endif

#include "utils/wait_event.h"

/* Varlena macros moved out of postgres.h in 16. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/*
 * Named wait events came with 17 (a name that is known is looked up); before,
 * all extensions share one.
 */
#if PG_VERSION_NUM >= 170000
#define outbox_wait_event(name) WaitEventExtensionNew(name)
#else
#define outbox_wait_event(name) ((void) (name), PG_WAIT_EXTENSION)
#endif

/* Wait event sets belong to a resource owner since 17; ours to none. */
#include "storage/latch.h"
#if PG_VERSION_NUM >= 170000
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#define outbox_create_wait_set(context, n) CreateWaitEventSet(NULL, n)
#else
#define outbox_create_wait_set(context, n) CreateWaitEventSet(context, n)
#endif

/* 18 keeps a compact copy of what heap tuples need to know of a column. */
#if PG_VERSION_NUM >= 180000
#define outbox_attribute_changed(desc, i) populate_compact_attribute(desc, i)
#else
#define outbox_attribute_changed(desc, i) ((void) 0)
#endif

/* A new, empty file for a relation: the function was renamed in 16. */
#include "utils/rel.h"
#include "utils/relcache.h"
#if PG_VERSION_NUM >= 160000
#define outbox_new_relfilenumber(rel) \
	RelationSetNewRelfilenumber(rel, (rel)->rd_rel->relpersistence)
#else
#define outbox_new_relfilenumber(rel) \
	RelationSetNewRelfilenode(rel, (rel)->rd_rel->relpersistence)
#endif

/* Who owns an object or may use it: one function for all kinds of objects since 16. */
#if PG_VERSION_NUM >= 160000
#define outbox_owns_database(oid, role) \
	object_ownercheck(DatabaseRelationId, oid, role)
#define outbox_owns_extension(oid, role) \
	object_ownercheck(ExtensionRelationId, oid, role)
#define outbox_owns_server(oid, role) \
	object_ownercheck(ForeignServerRelationId, oid, role)
#define outbox_may_execute(oid, role) \
	(object_aclcheck(ProcedureRelationId, oid, role, ACL_EXECUTE) == ACLCHECK_OK)
#else
#define outbox_owns_database(oid, role) pg_database_ownercheck(oid, role)
#define outbox_owns_extension(oid, role) pg_extension_ownercheck(oid, role)
#define outbox_owns_server(oid, role) pg_foreign_server_ownercheck(oid, role)
#define outbox_may_execute(oid, role) \
	(pg_proc_aclcheck(oid, role, ACL_EXECUTE) == ACLCHECK_OK)
#endif

/*
 * The executor's parts for unique indexes: 16 added what only summarizing indexes
 * want to know, 18 the row that a check leaves out.
 */
#if PG_VERSION_NUM >= 160000
#define OutboxUpdateIndexes TU_UpdateIndexes
#define OUTBOX_UPDATES_INDEXES(indexes) ((indexes) == TU_All)
#define outbox_insert_index_tuples(result, slot, estate, update, no_error, conflict, arbiters) \
	ExecInsertIndexTuples(result, slot, estate, update, no_error, conflict, arbiters, false)
#else
#define OutboxUpdateIndexes bool
#define OUTBOX_UPDATES_INDEXES(indexes) (indexes)
#define outbox_insert_index_tuples(result, slot, estate, update, no_error, conflict, arbiters) \
	ExecInsertIndexTuples(result, slot, estate, update, no_error, conflict, arbiters)
#endif
#if PG_VERSION_NUM >= 180000
#define outbox_check_index_constraints(result, slot, estate, tid, arbiters) \
	ExecCheckIndexConstraints(result, slot, estate, tid, &(slot)->tts_tid, arbiters)
#else
#define outbox_check_index_constraints(result, slot, estate, tid, arbiters) \
	ExecCheckIndexConstraints(result, slot, estate, tid, arbiters)
#endif

/* What a failed assertion calls, for programs that stand in for the server: 16 took an argument. */
#if PG_VERSION_NUM >= 160000
#define OUTBOX_EXCEPTIONAL_CONDITION(condition, file, line) \
	ExceptionalCondition(const char *condition, const char *file, int line)
#else
#define OUTBOX_EXCEPTIONAL_CONDITION(condition, file, line) \
	ExceptionalCondition(const char *condition, const char *type, const char *file, int line)
#endif

#endif							/* OUTBOX_COMPAT_H */
