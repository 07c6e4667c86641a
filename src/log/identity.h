/*-------------------------------------------------------------------------
 *
 * identity.h
 *	  Whose log this is: telling copies and restored dumps from the original.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_IDENTITY_H
#define OUTBOX_IDENTITY_H

#include "transport/registry.h"

/*
 * All of these need a transaction, and work with the rights of the bootstrap
 * superuser.
 */

/* Make the log's identity that of this database, see the banner. */
extern void outbox_identity_check(void);

/* The log's uuid, palloc'd. */
extern char *outbox_identity_uuid(void);

/*
 * Why a server must not be spoken to from this database, or NULL; and what
 * helps then.  Palloc'd in the current context.
 */
extern const char *outbox_identity_problem(const OutboxServer *server);
extern const char *outbox_identity_hint(const OutboxServer *server);

/* Make a server at home here that was created without the option home. */
extern void outbox_identity_settle(const char *server_name);

/* Have positions and dead letters follow a server that was renamed. */
extern void outbox_identity_name_positions(void);
extern void outbox_identity_renamed(const char *old_name, const char *new_name);

#endif							/* OUTBOX_IDENTITY_H */
