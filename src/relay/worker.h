/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What all background workers of pg_outbox do alike.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WORKER_H
#define OUTBOX_WORKER_H

#include "hold_off.h"

/*
 * A worker's first steps: signals, and, for a worker of a database, saying
 * that it is on its way there.  Doesn't return when it has to stay out.
 * The database's oid, to be connected to (InvalidOid for the launcher).
 */
extern Oid outbox_worker_begin(void);

/* Settings that a database or role may carry and that a worker must not. */
extern void outbox_worker_settings(void);

/* Read the configuration again if asked to. */
extern void outbox_worker_reload(void);

/* The extension's oid in this database, or InvalidOid.  Own transaction. */
extern Oid	outbox_worker_extension(void);

/* Start a worker of a database; false when there is no slot for it. */
extern bool outbox_worker_start(const char *function, const char *name,
								Oid dboid, Datum arg);

/* Wait for the latch, at most that long, and reset it. */
extern void outbox_worker_wait(long ms, const char *wait_event);

#endif							/* OUTBOX_WORKER_H */
