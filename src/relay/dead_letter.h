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

/* Keep a message as a dead letter; commits.  A second time is harmless. */
extern void outbox_dead_letter(const char *server, const OutboxMessage *message,
							   const char *error, const char *reason, int attempts);

#endif							/* OUTBOX_DEAD_LETTER_H */
