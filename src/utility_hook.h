/*-------------------------------------------------------------------------
 *
 * utility_hook.h
 *	  What has to happen around utility statements.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_UTILITY_HOOK_H
#define OUTBOX_UTILITY_HOOK_H

extern void outbox_utility_hook_init(void);

#endif							/* OUTBOX_UTILITY_HOOK_H */
