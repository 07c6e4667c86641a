/*-------------------------------------------------------------------------
 *
 * wake.c
 *	  Waking our workers when what they have to see is there to be seen.
 *
 * A statement that changes servers wakes keeper and relays when its
 * transaction has committed, and not earlier: they would look, see the old
 * state and sleep on.  Nor is the commit callback late enough.  It runs before
 * invalidation messages are sent, so a worker could look through a stale cache.
 * The last phase in which resources are released comes behind both.  (It comes
 * at PREPARE too, where a wake-up is for nothing; COMMIT PREPARED wakes on its
 * own account.)
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "shmem.h"
#include "utils/resowner.h"
#include "wake.h"

static bool wanted = false;
static Oid	look = InvalidOid;

void
outbox_wake_at_commit(void)
{
	wanted = true;
}

void
outbox_look_into_at_commit(Oid dboid)
{
	look = dboid;
}

static void
wake_at_end(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (!isTopLevel || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	if (isCommit && OidIsValid(look))
	{
		outbox_look_into(look, 0);
		outbox_wake_keeper(look);
	}
	if (isCommit && wanted)
	{
		outbox_look_into(MyDatabaseId, 0);
		outbox_wake_keeper(MyDatabaseId);
		outbox_wake_relays(MyDatabaseId);
	}
	wanted = false;
	look = InvalidOid;
}

void
outbox_wake_init(void)
{
	RegisterResourceReleaseCallback(wake_at_end, NULL);
}
