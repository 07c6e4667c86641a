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

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "fmgr.h"

#include "kafka.h"

PG_MODULE_MAGIC;

/*
 * The library allocates a buffer for each request, of a megabyte where there is a
 * backlog.  By its defaults the C library gives the freed ones back to the system, and
 * half of a drain's page faults were to get them again.  What is larger than usual
 * requests still goes back at once, and what stays in an idle worker is bounded.
 */
#define REQUEST_BUFFER_MAX	(4 * 1024 * 1024)
#define FREE_MEMORY_KEPT	(8 * 1024 * 1024)

extern PGDLLEXPORT const OutboxTransport *outbox_transport(void);

/* What a relay worker looks up by OUTBOX_TRANSPORT_ENTRY. */
const OutboxTransport *
outbox_transport(void)
{
#ifdef __GLIBC__
	(void) mallopt(M_MMAP_THRESHOLD, REQUEST_BUFFER_MAX);
	(void) mallopt(M_TRIM_THRESHOLD, FREE_MEMORY_KEPT);
#endif
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
