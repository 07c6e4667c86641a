/*-------------------------------------------------------------------------
 *
 * publish.h
 *	  outbox.publish() and what follows a commit that published.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PUBLISH_H
#define OUTBOX_PUBLISH_H

/* The extension that a function of ours belongs to. */
extern Oid	outbox_extension_of(Oid funcid);

/* Has this transaction published? */
extern bool outbox_xact_has_published(void);

/* Note that it has: at its commit, relays are woken. */
extern void outbox_xact_published(Oid extoid);

extern void outbox_publish_init(void);

#endif							/* OUTBOX_PUBLISH_H */
