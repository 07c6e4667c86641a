/*-------------------------------------------------------------------------
 *
 * jet_module.c
 *	  The NATS transport as a loadable module of the server.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "jet.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const OutboxTransport *outbox_transport(void);

/* What a relay worker looks up by OUTBOX_TRANSPORT_ENTRY. */
const OutboxTransport *
outbox_transport(void)
{
	return &jet_transport;
}
