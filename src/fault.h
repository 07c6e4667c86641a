/*-------------------------------------------------------------------------
 *
 * fault.h
 *	  Fault points and rule switches, compiled in for tests only.
 *
 * A test build (OUTBOX_FAULT_POINTS) has the setting outbox.fault, a comma
 * separated list of name=action.  At OUTBOX_FAULT("name") the action "error"
 * raises, "fatal" ends the process, "crash" kills it like SIGKILL, "wait" waits
 * until the name is gone from the list by a reload, "lock:N" waits for
 * pg_advisory_lock(N) of another session.  OUTBOX_RULE("name") is true unless the list has
 * name=off: it switches a rule of the log off, to see that a test notices.
 * In other builds both cost nothing.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_FAULT_H
#define OUTBOX_FAULT_H

#ifdef OUTBOX_FAULT_POINTS
extern void outbox_fault(const char *name);
extern bool outbox_rule(const char *name);
extern void outbox_fault_define_setting(void);

#define OUTBOX_FAULT(name)	outbox_fault(name)
#define OUTBOX_RULE(name)	outbox_rule(name)
#else
#define OUTBOX_FAULT(name)	((void) 0)
#define OUTBOX_RULE(name)	true
#endif

#endif							/* OUTBOX_FAULT_H */
