/*-------------------------------------------------------------------------
 *
 * elapsed.h
 *	  How long something is ago, by a clock that nobody sets.
 *
 * The time of day may be set back by hours: what waits for it, to try again
 * say, would wait as long.  The same clock in all processes of a machine, so
 * its times may be kept in shared memory; but for nothing that outlives it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ELAPSED_H
#define OUTBOX_ELAPSED_H

#include "portability/instr_time.h"

/* Milliseconds; never 0, which means never. */
static inline int64
outbox_clock_ms(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now) / 1000 + 1;
}

/* Is that so many milliseconds ago? */
static inline bool
outbox_elapsed(int64 since, int64 ms)
{
	return since == 0 || outbox_clock_ms() - since >= ms;
}

/* Milliseconds from then to now, by the same clock. */
static inline long
outbox_ms_since(instr_time since)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, since);
	return (long) INSTR_TIME_GET_MILLISEC(now);
}

#endif							/* OUTBOX_ELAPSED_H */
