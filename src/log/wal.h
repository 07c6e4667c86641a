/*-------------------------------------------------------------------------
 *
 * wal.h
 *	  What must be safe before a message leaves the database.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WAL_H
#define OUTBOX_WAL_H

#include "access/xlogdefs.h"

/* Flush what is in WAL by now; returns how far that is. */
extern XLogRecPtr outbox_flush_wal(void);

#endif							/* OUTBOX_WAL_H */
