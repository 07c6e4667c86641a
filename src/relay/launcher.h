/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The launcher: starts a keeper in every database that uses pg_outbox.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LAUNCHER_H
#define OUTBOX_LAUNCHER_H

extern void outbox_launcher_register(void);

#endif							/* OUTBOX_LAUNCHER_H */
