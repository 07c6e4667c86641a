/*-------------------------------------------------------------------------
 *
 * trace.h
 *	  W3C trace context of what is published.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TRACE_H
#define OUTBOX_TRACE_H

#include "lib/stringinfo.h"

/* Append traceparent and tracestate in force here as headers, if valid. */
extern void outbox_trace_append(StringInfo headers);

#endif							/* OUTBOX_TRACE_H */
