/*-------------------------------------------------------------------------
 *
 * error.h
 *	  What went wrong, as a value.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ERROR_H
#define OUTBOX_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/transport.h"

#pragma GCC visibility push(hidden)

/* Fill *error, with a hint or NULL; returns the failure. */
extern OutboxFailure error_set(OutboxError *error, OutboxFailure failure, const char *name,
							   const char *text, const char *hint);

#pragma GCC visibility pop

#endif							/* OUTBOX_ERROR_H */
