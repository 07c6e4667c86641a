/*-------------------------------------------------------------------------
 *
 * fault.c
 *	  Fault points and rule switches of test builds; empty in others.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fault.h"

#ifdef OUTBOX_FAULT_POINTS

#include <signal.h>
#include <unistd.h>

#include "compat.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

static char *fault_setting = "";

/* The action set for a name: points into the setting, not terminated. */
static const char *
fault_action(const char *name)
{
	size_t		len = strlen(name);
	const char *p = fault_setting;

	while (p != NULL && *p != '\0')
	{
		while (*p == ',' || *p == ' ')
			p++;
		if (strncmp(p, name, len) == 0 && p[len] == '=')
			return p + len + 1;
		p = strchr(p, ',');
	}
	return NULL;
}

/*
 * Wait for pg_advisory_lock(key) of another session.  Also done where an LWLock
 * is held, to see what others do meanwhile; it can't be cancelled there.
 */
static void
wait_for_advisory_lock(int key)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, (uint32) key, 1);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	LockRelease(&tag, ExclusiveLock, false);
}

/* Do what the test asked for at this point. */
void
outbox_fault(const char *name)
{
	const char *action = fault_action(name);

	if (action == NULL)
		return;
	if (strncmp(action, "crash", 5) == 0)
		kill(MyProcPid, SIGKILL);
	else if (strncmp(action, "error", 5) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("fault point \"%s\"", name)));
	else if (strncmp(action, "fatal", 5) == 0)
		ereport(FATAL,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("fault point \"%s\"", name)));
	else if (strncmp(action, "lock:", 5) == 0)
		wait_for_advisory_lock(atoi(action + 5));
	else if (strncmp(action, "wait", 4) == 0)
	{
		/* waits for a reload, so not for places that hold an LWLock; shown as PgSleep */
		while ((action = fault_action(name)) != NULL &&
			   strncmp(action, "wait", 4) == 0)
		{
			(void) WaitLatch(MyLatch,
							 WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 10, WAIT_EVENT_PG_SLEEP);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			if (ConfigReloadPending)
			{
				ConfigReloadPending = false;
				ProcessConfigFile(PGC_SIGHUP);
			}
		}
	}
}

/* Is this rule in force? */
bool
outbox_rule(const char *name)
{
	const char *action = fault_action(name);

	return action == NULL || strncmp(action, "off", 3) != 0;
}

void
outbox_fault_define_setting(void)
{
	DefineCustomStringVariable("outbox.fault",
							   "Fault points and rule switches, for tests only.",
							   NULL,
							   &fault_setting,
							   "",
							   PGC_SUSET,
							   GUC_NOT_IN_SAMPLE,
							   NULL, NULL, NULL);
}

#endif							/* OUTBOX_FAULT_POINTS */
