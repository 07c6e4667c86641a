/*-------------------------------------------------------------------------
 *
 * own_work.h
 *	  Working on our own tables on behalf of somebody else.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_OWN_WORK_H
#define OUTBOX_OWN_WORK_H

/* What to go back to. */
typedef struct OutboxOwnWork
{
	Oid			userid;
	int			context;
	int			guc_level;
} OutboxOwnWork;

/*
 * Between the two, SPI runs statements with the rights of the bootstrap
 * superuser and a new snapshot.  An error in between needs no clean-up.
 */
extern void outbox_own_work_begin(OutboxOwnWork *work);
extern void outbox_own_work_end(const OutboxOwnWork *work);

#endif							/* OUTBOX_OWN_WORK_H */
