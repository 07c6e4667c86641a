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

/* Signal handlers; signals unblocked. */
extern void outbox_worker_signals(void);

/* Settings that a database or role may carry and that a worker must not. */
extern void outbox_worker_settings(void);

/* Read the configuration again if asked to. */
extern void outbox_worker_reload(void);

/* The extension's oid in this database, or InvalidOid.  Own transaction. */
extern Oid	outbox_worker_extension(void);

/* Start a worker; its pid once it runs, 0 when there is no slot. */
extern bool outbox_worker_start(const char *function, const char *name,
								Datum arg);

/* Wait for the latch, at most that long, and reset it. */
extern void outbox_worker_wait(long ms, const char *wait_event);

#endif							/* OUTBOX_WORKER_H */
