/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  The settings of pg_outbox.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "fault.h"
#include "guc.h"
#include "utils/guc.h"

#define MIN_SEGMENT_SIZE		64	/* kB */
#define DEFAULT_SEGMENT_SIZE	(16 * 1024)
#define MAX_SEGMENT_SIZE		(1024 * 1024)
#define MIN_RELAY_MEMORY		1024	/* kB */
#define DEFAULT_RELAY_MEMORY	(64 * 1024)
#define MAX_RELAY_MEMORY		(16 * 1024 * 1024)
#define DEFAULT_MESSAGE_SIZE	(16 * 1024) /* kB */
#define MAX_MESSAGE_SIZE		(512 * 1024)
#define MAX_DATABASES			10000

bool		outbox_enabled = true;
int			outbox_segment_size = DEFAULT_SEGMENT_SIZE;
int			outbox_retention = 0;
int			outbox_poll_interval = 1000;
int			outbox_relay_memory = DEFAULT_RELAY_MEMORY;
int			outbox_max_message_size = DEFAULT_MESSAGE_SIZE;
int			outbox_max_databases = 64;
int			outbox_max_backlog = 0;
char	   *outbox_traceparent = NULL;
char	   *outbox_tracestate = NULL;

/* Settings that a session may change for itself. */
static void
define_session_settings(void)
{
	DefineCustomStringVariable("outbox.traceparent",
							   "W3C traceparent that published messages carry.",
							   "Usually set by SET LOCAL; an invalid value is dropped, as the W3C text says.",
							   &outbox_traceparent,
							   "",
							   PGC_USERSET,
							   0,
							   NULL, NULL, NULL);

	DefineCustomStringVariable("outbox.tracestate",
							   "W3C tracestate that published messages carry beside a valid traceparent.",
							   NULL,
							   &outbox_tracestate,
							   "",
							   PGC_USERSET,
							   0,
							   NULL, NULL, NULL);
}

/* Settings of the log and of what is published. */
static void
define_log_settings(void)
{
	DefineCustomIntVariable("outbox.segment_size",
							"Size past which a segment of the log is closed.",
							NULL,
							&outbox_segment_size,
							DEFAULT_SEGMENT_SIZE, MIN_SEGMENT_SIZE, MAX_SEGMENT_SIZE,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("outbox.retention",
							"How long delivered messages are kept before their segment is freed.",
							"0 frees a segment as soon as every server has it.",
							&outbox_retention,
							0, 0, INT_MAX / 1000,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("outbox.max_message_size",
							"Largest message (topic, key, headers and payload together) that can be published.",
							NULL,
							&outbox_max_message_size,
							DEFAULT_MESSAGE_SIZE, 1, MAX_MESSAGE_SIZE,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("outbox.max_backlog",
							"Size of a database's retained log above which publishing is refused.",
							"0 means no limit.",
							&outbox_max_backlog,
							0, 0, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MB,
							NULL, NULL, NULL);
}

/* Settings of the workers. */
static void
define_worker_settings(bool preloaded)
{
	DefineCustomBoolVariable("outbox.enabled",
							 "Runs the workers of pg_outbox; publishing works either way.",
							 NULL,
							 &outbox_enabled,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("outbox.poll_interval",
							"How often an idle worker looks for work that nobody told it of.",
							NULL,
							&outbox_poll_interval,
							1000, 100, 3600 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("outbox.relay_memory",
							"Memory that a relay may use for messages in flight.",
							NULL,
							&outbox_relay_memory,
							DEFAULT_RELAY_MEMORY, MIN_RELAY_MEMORY, MAX_RELAY_MEMORY,
							PGC_SIGHUP,
							GUC_UNIT_KB,
							NULL, NULL, NULL);

	/* sizes shared memory: only at the start of the server */
	if (preloaded)
		DefineCustomIntVariable("outbox.max_databases",
								"How many databases of the server can use pg_outbox at once.",
								NULL,
								&outbox_max_databases,
								64, 1, MAX_DATABASES,
								PGC_POSTMASTER,
								0,
								NULL, NULL, NULL);
}

void
outbox_define_settings(bool preloaded)
{
	define_session_settings();
	define_log_settings();
	define_worker_settings(preloaded);
#ifdef OUTBOX_FAULT_POINTS
	outbox_fault_define_setting();
#endif
	MarkGUCPrefixReserved("outbox");
}
