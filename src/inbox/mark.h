/*-------------------------------------------------------------------------
 *
 * mark.h
 *	  Marks of messages that a consumer has seen.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_INBOX_MARK_H
#define OUTBOX_INBOX_MARK_H

/* The table of marks, opened for a few of them. */
typedef struct InboxMarks InboxMarks;

/* Longest names, in bytes. */
#define INBOX_MAX_CONSUMER		200
#define INBOX_MAX_MESSAGE_ID	1024

/*
 * Open it, in the current context, for marks that count for ttl_us microseconds; a
 * snapshot must be active.  An error in between needs no clean-up.
 */
extern InboxMarks *inbox_marks_open(int64 ttl_us);
extern void inbox_marks_close(InboxMarks *marks);

/*
 * Mark a message as seen by a consumer (both texts), as part of the current
 * transaction.  False: it was, and the mark has not expired.  Waits for another
 * transaction that is about to set or remove the mark.
 */
extern bool inbox_mark_set(InboxMarks *marks, Datum consumer, Datum message_id);

/* Remove a mark; false: there is none that counts. */
extern bool inbox_mark_forget(InboxMarks *marks, Datum consumer, Datum message_id);

#endif							/* OUTBOX_INBOX_MARK_H */
