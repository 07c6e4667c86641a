/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  The settings of pg_outbox; see guc.c for their meaning and bounds.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_GUC_H
#define OUTBOX_GUC_H

extern bool outbox_enabled;
extern int	outbox_segment_size;	/* kB */
extern int	outbox_retention;	/* s */
extern int	outbox_poll_interval;	/* ms */
extern int	outbox_relay_memory;	/* kB */
extern int	outbox_max_message_size;	/* kB */
extern int	outbox_max_databases;
extern int	outbox_max_backlog; /* MB, 0: unlimited */
extern char *outbox_traceparent;
extern char *outbox_tracestate;

extern void outbox_define_settings(bool preloaded);

#endif							/* OUTBOX_GUC_H */
