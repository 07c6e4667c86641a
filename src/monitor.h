/*-------------------------------------------------------------------------
 *
 * monitor.h
 *	  What a DBA sees and does: outbox.relay_status, outbox.flush().
 *
 * Everything here is called from SQL; the header names the states for others.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_MONITOR_H
#define OUTBOX_MONITOR_H

#include "shmem.h"

/* A state as relay_status shows it. */
extern const char *outbox_state_name(OutboxRelayState state);

#endif							/* OUTBOX_MONITOR_H */
