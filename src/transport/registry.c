/*-------------------------------------------------------------------------
 *
 * registry.c
 *	  The servers of this database, and the libraries behind them.
 *
 * A server is ours when its foreign-data wrapper is a member of the extension:
 * no name of a transport stands here.  Options were checked when they were
 * set, yet nothing here raises for a bad one: it may come from another version
 * or be written past the validator, and then the server's relay has to show
 * the problem while publishers and other relays go on.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/reloptions.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "fault.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "transport/registry.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#define EXTENSION_NAME	"pg_outbox"

static bool
is_member(Oid wrapper, Oid extension)
{
	return OidIsValid(extension) &&
		getExtensionOfObject(ForeignDataWrapperRelationId, wrapper) == extension;
}

bool
registry_is_wrapper(Oid wrapper)
{
	return is_member(wrapper, get_extension_oid(EXTENSION_NAME, true));
}

List *
registry_list_servers(MemoryContext context)
{
	Oid			extension = get_extension_oid(EXTENSION_NAME, true);
	List	   *ours = NIL;
	List	   *others = NIL;
	List	   *servers = NIL;
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (!OidIsValid(extension))
		return NIL;

	rel = table_open(ForeignServerRelationId, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_server form = (Form_pg_foreign_server) GETSTRUCT(tuple);
		MemoryContext old;

		/* many servers may share a wrapper: look each up once */
		if (list_member_oid(others, form->srvfdw))
			continue;
		if (!list_member_oid(ours, form->srvfdw))
		{
			if (!is_member(form->srvfdw, extension))
			{
				others = lappend_oid(others, form->srvfdw);
				continue;
			}
			ours = lappend_oid(ours, form->srvfdw);
		}

		old = MemoryContextSwitchTo(context);
		servers = lappend_oid(servers, form->oid);
		MemoryContextSwitchTo(old);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	list_free(ours);
	list_free(others);
	return servers;
}

Oid
registry_find_server(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	return server && registry_is_wrapper(server->fdwid) ? server->serverid : InvalidOid;
}

/*
 * A lock of its own beside PostgreSQL's on the server, which DROP EXTENSION
 * takes last: by then whoever keeps a name may wait for the tables.
 */
static void
name_lock_tag(LOCKTAG *tag, Oid serverid)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, ForeignServerRelationId, serverid, 1);
}

Oid
registry_lock_name(const char *name, bool to_change)
{
	LOCKMODE	mode = to_change ? AccessExclusiveLock : AccessShareLock;
	Oid			serverid;
	LOCKTAG		tag;

	/* nothing is written in recovery; the statement itself is refused */
	while (OidIsValid(serverid = registry_find_server(name)) && !RecoveryInProgress())
	{
		name_lock_tag(&tag, serverid);
		(void) LockAcquire(&tag, mode, false, false);
		AcceptInvalidationMessages();
		if (registry_find_server(name) == serverid)
			break;
		LockRelease(&tag, mode, false);
	}
	return serverid;
}

bool
registry_try_keep_name(Oid serverid)
{
	LOCKTAG		tag;

	name_lock_tag(&tag, serverid);
	if (OUTBOX_RULE("keep-name") &&
		LockAcquire(&tag, AccessShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return true;
}

/* A copy in UTF-8; in an SQL_ASCII database validators made sure that it is. */
static char *
to_utf8(const char *text)
{
	if (GetDatabaseEncoding() == PG_UTF8 || GetDatabaseEncoding() == PG_SQL_ASCII)
		return pstrdup(text);
	return pstrdup(pg_server_to_any(text, strlen(text), PG_UTF8));
}

/* Set an option; one that comes later replaces one of the same name. */
static void
put_option(OutboxServer *server, const char *name, const char *value)
{
	int			i = 0;

	while (i < server->noptions && strcmp(server->options[i].name, name) != 0)
		i++;
	if (i == server->noptions)
	{
		server->options = server->options == NULL ?
			palloc(sizeof(OutboxOption)) :
			repalloc(server->options, (i + 1) * sizeof(OutboxOption));
		server->options[i].name = to_utf8(name);
		server->noptions++;
	}
	server->options[i].value = to_utf8(value);
}

static void
load_wrapper(OutboxServer *server, Oid wrapper)
{
	ForeignDataWrapper *fdw = GetForeignDataWrapperExtended(wrapper, FDW_MISSING_OK);
	ListCell   *lc;

	if (fdw == NULL)
		return;
	foreach(lc, fdw->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, "library") == 0)
			server->library = pstrdup(defGetString(def));
	}
	if (server->library == NULL)
		server->problem = psprintf("foreign-data wrapper \"%s\" has no option \"library\"",
								   fdw->fdwname);
}

static void
load_server_options(OutboxServer *server, List *options)
{
	ListCell   *lc;

	outbox_core_options_init(&server->core);
	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		OutboxCoreOptions before = server->core;
		OutboxOptionError error;

		switch (outbox_core_option_take(&server->core, def->defname,
										to_utf8(defGetString(def)), &error))
		{
			case OUTBOX_OPTION_TAKEN:
				break;
			case OUTBOX_OPTION_BAD:
				server->core = before;
				server->problem = error.message;
				break;
			case OUTBOX_OPTION_FOREIGN:
				put_option(server, def->defname, defGetString(def));
				break;
		}
	}

	/* a name both here and above is refused by validators */
	for (int i = 0; i < server->core.nextra; i++)
		put_option(server, server->core.extra[i].name, server->core.extra[i].value);
}

/* The mapping of the server's owner, else the one for PUBLIC, if any. */
static void
load_mapping(OutboxServer *server)
{
	HeapTuple	tuple;
	Datum		datum;
	bool		isnull;
	ListCell   *lc;

	tuple = SearchSysCache2(USERMAPPINGUSERSERVER,
							ObjectIdGetDatum(server->owner),
							ObjectIdGetDatum(server->oid));
	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER,
								ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(server->oid));
	if (!HeapTupleIsValid(tuple))
		return;

	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple,
							Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
	{
		foreach(lc, untransformRelOptions(datum))
		{
			DefElem    *def = lfirst_node(DefElem, lc);

			put_option(server, def->defname, defGetString(def));
		}
	}
	ReleaseSysCache(tuple);
}

static int
compare_options(const void *a, const void *b)
{
	return strcmp(((const OutboxOption *) a)->name, ((const OutboxOption *) b)->name);
}

static uint64
hash_text(const StringInfoData *buf)
{
	return hash_bytes_extended((const unsigned char *) buf->data, buf->len, 0);
}

static void
append_with_nul(StringInfo buf, const char *text)
{
	if (text)
		appendStringInfoString(buf, text);
	appendStringInfoChar(buf, '\0');
}

/*
 * What was written differs: good enough, a change of spelling costs one
 * reconfiguration.  The server's name is the client's default name.
 */
static void
hash_options(OutboxServer *server)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_with_nul(&buf, server->name);
	append_with_nul(&buf, server->library);
	if (server->core.exactly_once)
		append_with_nul(&buf, server->core.position_topic ? server->core.position_topic : "");
	for (int i = 0; i < server->noptions; i++)
	{
		append_with_nul(&buf, server->options[i].name);
		append_with_nul(&buf, server->options[i].value);
	}
	server->client_hash = hash_text(&buf);

	pfree(buf.data);
}

/* Freezing leaves the transaction id in the row. */
static void
load_version(OutboxServer *server)
{
	HeapTuple	tuple = SearchSysCache1(FOREIGNSERVEROID, ObjectIdGetDatum(server->oid));

	if (!HeapTupleIsValid(tuple))
		return;
	server->altered_by = HeapTupleHeaderGetRawXmin(tuple->t_data);
	ReleaseSysCache(tuple);
}

static OutboxServer *
load_server(Oid oid, MemoryContext context, bool with_mapping)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	ForeignServer *foreign = GetForeignServerExtended(oid, FSV_MISSING_OK);
	OutboxServer *server = NULL;

	if (foreign && registry_is_wrapper(foreign->fdwid))
	{
		server = palloc0(sizeof(OutboxServer));
		server->oid = oid;
		server->owner = foreign->owner;
		server->name_local = foreign->servername;
		server->name = to_utf8(foreign->servername);
		load_wrapper(server, foreign->fdwid);
		load_server_options(server, foreign->options);
		if (with_mapping)
			load_mapping(server);
		if (server->noptions > 1)
			qsort(server->options, server->noptions, sizeof(OutboxOption), compare_options);
		hash_options(server);
		load_version(server);
	}
	MemoryContextSwitchTo(old);
	return server;
}

OutboxServer *
registry_load_server(Oid oid, MemoryContext context)
{
	return load_server(oid, context, true);
}

OutboxServer *
registry_load_public(Oid oid, MemoryContext context)
{
	return load_server(oid, context, false);
}

/*
 * A symbol of $libdir/<library><suffix>.  Whatever keeps it from being loaded
 * (the file, a library that it needs, the symbol) is one error to the caller.
 */
static void *
load_symbol(const char *library, const char *suffix, const char *symbol)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *path = psprintf("$libdir/%s%s", library, suffix);
	void	   *volatile function = NULL;

	PG_TRY();
	{
		function = load_external_function(path, symbol, true, NULL);
	}
	PG_CATCH();
	{
		ErrorData  *cause;

		MemoryContextSwitchTo(context);
		cause = CopyErrorData();
		if (cause->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			cause->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FILE),
				 errmsg("could not load library \"%s%s\"", library, suffix),
				 errdetail_internal("%s", cause->message),
				 errhint("Install pg_outbox's library for this kind of broker, and the client library that it needs.")));
	}
	PG_END_TRY();
	pfree(path);
	return function;
}

static void
check_abi(const char *library, const char *suffix, int abi)
{
	if (abi != OUTBOX_TRANSPORT_ABI)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("library \"%s%s\" belongs to another version of pg_outbox", library, suffix),
				 errdetail("It has interface version %d, this pg_outbox has %d.",
						   abi, OUTBOX_TRANSPORT_ABI),
				 errhint("Install both from the same version and restart the server.")));
}

const OutboxTransport *
registry_load_transport(const char *library)
{
	OutboxTransportEntry entry = (OutboxTransportEntry)
		load_symbol(library, "", OUTBOX_TRANSPORT_ENTRY);
	const OutboxTransport *transport = entry();

	check_abi(library, "", transport->abi);
	return transport;
}

const OutboxTransportDdl *
registry_load_ddl(const char *library)
{
	OutboxTransportDdlEntry entry = (OutboxTransportDdlEntry)
		load_symbol(library, "_fdw", OUTBOX_TRANSPORT_DDL_ENTRY);
	const OutboxTransportDdl *ddl = entry();

	check_abi(library, "_fdw", ddl->abi);
	return ddl;
}
