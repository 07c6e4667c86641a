/*-------------------------------------------------------------------------
 *
 * subtransaction.c
 *	  To try something, and have it undone when it fails.
 *
 * The subtransaction is over in any case when this returns, also after an error: a
 * caller further out that has one of its own, as PL/pgSQL has for EXCEPTION, ends
 * the innermost, whosever that is.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "subtransaction.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

bool
outbox_attempt(OutboxAttempt attempt, void *arg, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	*error = NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (attempt(arg))
		{
			ReleaseCurrentSubTransaction();
			done = true;
		}
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}
