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

/*
 * Mark several, of which each id is another one, in ascending order of their bytes.
 * Not too many: all are undone, and set once more, when one was set.
 */
extern void inbox_marks_set_ordered(InboxMarks *marks, Datum consumer, const Datum *ids, int n,
									bool *set);

/* mark_many.c: any number in any order; of those with the same id the first is set. */
extern void inbox_marks_set(InboxMarks *marks, Datum consumer, const Datum *ids, int n, bool *set);

/* When does a mark expire that is set at a time? */
extern TimestampTz inbox_mark_expiry(TimestampTz at, int64 ttl_us);

/* Remove a mark; false: there is none that counts. */
extern bool inbox_mark_forget(InboxMarks *marks, Datum consumer, Datum message_id);

#endif							/* OUTBOX_INBOX_MARK_H */
