/*-------------------------------------------------------------------------
 *
 * own_work.c
 *	  Working on our own tables on behalf of somebody else.
 *
 * Whoever runs CREATE SERVER or DROP SERVER may have no rights on our tables.
 * And he may have put operators of his own into the search path, which must
 * not be found by statements that run with a superuser's rights.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "executor/spi.h"
#include "log/own_work.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

void
outbox_own_work_begin(OutboxOwnWork *work)
{
	GetUserIdAndSecContext(&work->userid, &work->context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   work->context | SECURITY_LOCAL_USERID_CHANGE);
	work->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
}

void
outbox_own_work_end(const OutboxOwnWork *work)
{
	SPI_finish();
	PopActiveSnapshot();
	AtEOXact_GUC(true, work->guc_level);
	SetUserIdAndSecContext(work->userid, work->context);
}
