/*-------------------------------------------------------------------------
 *
 * kafka_module.c
 *	  The Kafka transport as a loadable module of the server.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "kafka.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const OutboxTransport *outbox_transport(void);

/* What a relay worker looks up by OUTBOX_TRANSPORT_ENTRY. */
const OutboxTransport *
outbox_transport(void)
{
	return &kafka_transport;
}

/* Main thread only.  The library logs only when its option "debug" is set. */
void
kafka_log_line(int level, const char *facility, const char *text)
{
	ereport(level <= 4 ? LOG : DEBUG1,
			(errmsg_internal("librdkafka %s: %s", facility, text),
			 errhidestmt(true)));
}
