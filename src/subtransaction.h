/*-------------------------------------------------------------------------
 *
 * subtransaction.h
 *	  To try something, and have it undone when it fails.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SUBTRANSACTION_H
#define OUTBOX_SUBTRANSACTION_H

/* False: undo it. */
typedef bool (*OutboxAttempt) (void *arg);

/*
 * Run it in a subtransaction and the current context; false when it was undone.
 * *error is what it raised, in the current context, else NULL.
 */
extern bool outbox_attempt(OutboxAttempt attempt, void *arg, ErrorData **error);

#endif							/* OUTBOX_SUBTRANSACTION_H */
