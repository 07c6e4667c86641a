/*-------------------------------------------------------------------------
 *
 * expire.h
 *	  Removing marks that have expired.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_INBOX_EXPIRE_H
#define OUTBOX_INBOX_EXPIRE_H

/* The keeper's: a batch, in a transaction of its own.  True: there may be more. */
extern bool inbox_keeper_expire(void);

#endif							/* OUTBOX_INBOX_EXPIRE_H */
