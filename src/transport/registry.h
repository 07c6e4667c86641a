/*-------------------------------------------------------------------------
 *
 * registry.h
 *	  The servers of this database, and the libraries behind them.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_REGISTRY_H
#define OUTBOX_REGISTRY_H

#include "nodes/pg_list.h"
#include "transport/options.h"
#include "transport/transport.h"

/* A foreign server of one of our wrappers.  All text is UTF-8. */
typedef struct OutboxServer
{
	Oid			oid;
	Oid			owner;
	char	   *name;			/* UTF-8, as in the log; see name_local */
	char	   *name_local;		/* in the database's encoding, for messages */
	char	   *library;		/* option of its wrapper, or NULL */
	OutboxCoreOptions core;		/* its patterns are never NULL */

	/* why the options can't be used, or NULL; never contains a secret */
	const char *problem;

	/* server's and user mapping's, sorted by name, without the core's */
	int			noptions;
	OutboxOption *options;

	uint64		client_hash;	/* changes: the client must be opened anew */
	TransactionId altered_by;	/* differs: it was altered meanwhile, if only to and fro */
} OutboxServer;

/*
 * All of these need a transaction.  Results are in the given context, which
 * the caller resets to free them.
 */

/* Oids of all servers of our wrappers, those that are paused included. */
extern List *registry_list_servers(MemoryContext context);

/* NULL when it is not there any more, or not ours. */
extern OutboxServer *registry_load_server(Oid server, MemoryContext context);

/* The same without the user mapping: for client backends, no secrets. */
extern OutboxServer *registry_load_public(Oid server, MemoryContext context);

/* InvalidOid when there is none of that name. */
extern Oid	registry_find_server(const char *name);

/*
 * Keep a server's name as it is, or be about to change it, to the end of the
 * transaction.  What is redriven to a server carries its name, and so do its
 * dead letters: who renames or drops it has to see all of them, and who writes
 * one has to see the name.  Taken before any other lock of ours.
 *
 * By name: the server that bears it when the lock is held, or InvalidOid.
 * By oid, where nobody may be waited for: false when the lock is not free.
 */
extern Oid	registry_lock_name(const char *name, bool to_change);
extern bool registry_try_keep_name(Oid server);

/* Is this foreign-data wrapper one of ours? */
extern bool registry_is_wrapper(Oid wrapper);

/* Load a library; both raise when it is missing, broken or of another ABI. */
extern const OutboxTransport *registry_load_transport(const char *library);
extern const OutboxTransportDdl *registry_load_ddl(const char *library);

#endif							/* OUTBOX_REGISTRY_H */
