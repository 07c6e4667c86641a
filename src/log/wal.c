/*-------------------------------------------------------------------------
 *
 * wal.c
 *	  What must be safe before a message leaves the database.
 *
 * A snapshot sees a transaction once its commit record is in WAL, not once it
 * is flushed.  What is sent before it is flushed could be forgotten in a crash;
 * worse, its transaction id would be used again, and the rows of the next
 * transaction with that number would count as done.  Every transaction with an
 * id that ended has a record in WAL, so flushing up to the insert position as
 * it is after the snapshot closes both.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "compat.h"
#include "fault.h"
#include "log/reader.h"
#include "log/wal.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"

/* Flush what is in WAL by now. */
XLogRecPtr
outbox_flush_wal(void)
{
	XLogRecPtr	upto = GetXLogInsertRecPtr();

	/*
	 * Just behind a page header nothing has been inserted on that page yet,
	 * and flushing that far would fail: go back to the page's start.
	 */
	if (XLogSegmentOffset(upto, wal_segment_size) == SizeOfXLogLongPHD)
		upto -= SizeOfXLogLongPHD;
	else if (upto % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		upto -= SizeOfXLogShortPHD;
	if (OUTBOX_RULE("flush-before-send"))
		XLogFlush(upto);
	return upto;
}

/* Have synchronous standbys (if any are named) flushed up to here? */
bool
outbox_lsn_replicated(XLogRecPtr lsn)
{
	XLogRecPtr	confirmed;

	if (SyncRepStandbyNames == NULL || SyncRepStandbyNames[0] == '\0' ||
		max_wal_senders == 0)
		return true;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	confirmed = ((volatile WalSndCtlData *) WalSndCtl)->lsn[SYNC_REP_WAIT_FLUSH];
	LWLockRelease(SyncRepLock);
	return lsn <= confirmed;
}
