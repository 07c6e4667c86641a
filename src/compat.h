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

/* Named wait events came with 17; before, all extensions share one. */
#if PG_VERSION_NUM >= 170000
#define OUTBOX_WAIT_EVENT(var, name) \
	((var) != 0 ? (var) : ((var) = WaitEventExtensionNew(name)))
#else
#define OUTBOX_WAIT_EVENT(var, name)	((void) (var), PG_WAIT_EXTENSION)
#endif

#endif							/* OUTBOX_COMPAT_H */
