/*-------------------------------------------------------------------------
 *
 * dead_letter.h
 *	  Messages that a broker refused for good.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DEAD_LETTER_H
#define OUTBOX_DEAD_LETTER_H

#include "log/reader.h"
#include "transport/registry.h"

/*
 * Keep messages as dead letters, in one transaction, under the name that the
 * server has now.  One that is there already stays as it is.
 *
 * Beginning fails (false) while the server is being renamed or dropped.
 */
extern bool outbox_dead_letters_begin(const OutboxServer *server);
extern void outbox_dead_letters_add(const OutboxMessage *message, const char *error,
									const char *reason, int attempts);
extern void outbox_dead_letters_commit(void);

#endif							/* OUTBOX_DEAD_LETTER_H */
