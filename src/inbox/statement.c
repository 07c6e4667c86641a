/*-------------------------------------------------------------------------
 *
 * statement.c
 *	  Statements that a worker executes again and again: planned once.
 *
 * To parse and plan the statement that moves a place on costs several times what
 * executing it does, and would be most of the work for a batch of one message.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "inbox/worker.h"

int
inbox_execute(SPIPlanPtr *plan, const char *sql, int n, Oid *types, Datum *values)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare(sql, n, types);

		if (made == NULL || SPI_keepplan(made) != 0)
			elog(ERROR, "could not prepare a statement: %s", SPI_result_code_string(SPI_result));
		*plan = made;
	}
	return SPI_execute_plan(*plan, values, NULL, false, 0);
}
