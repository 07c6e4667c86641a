/*-------------------------------------------------------------------------
 *
 * guard.h
 *	  Keeping DDL off the log.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_GUARD_H
#define OUTBOX_GUARD_H

#include "nodes/plannodes.h"

/*
 * Raises when a utility statement would harm the log.  Otherwise returns the
 * statement to run in its place: itself, a narrower one, or NULL when nothing
 * of it is left to do.
 */
extern PlannedStmt *outbox_guard(PlannedStmt *pstmt);

#endif							/* OUTBOX_GUARD_H */
