/*-------------------------------------------------------------------------
 *
 * accept.c
 *	  inbox.accept(), inbox.accept_batch(), inbox.forget().
 *
 * For applications that consume by themselves: the mark is part of the caller's
 * transaction, so it is there if and only if what was done on its word is.  Works
 * where the server has not loaded the library.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "compat.h"
#include "fmgr.h"
#include "inbox/mark.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#define PLAIN_DAYS		10000

PG_FUNCTION_INFO_V1(inbox_accept);
PG_FUNCTION_INFO_V1(inbox_accept_batch);
PG_FUNCTION_INFO_V1(inbox_forget);

static void
check_may_write(const char *function)
{
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

static void
check_length(const char *what, const text *value, int max)
{
	int			length = VARSIZE_ANY_EXHDR(value);

	if (length < 1 || length > max)
		ereport(ERROR,
				(errcode(length < 1 ? ERRCODE_INVALID_PARAMETER_VALUE :
						 ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s must have 1 to %d bytes, not %d", what, max, length)));
}

static text *
get_name(FunctionCallInfo fcinfo, int n, const char *what, int max)
{
	text	   *value;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	value = PG_GETARG_TEXT_PP(n);
	check_length(what, value, max);
	return value;
}

/*
 * How long marks count, in microseconds.  What has no months needs no calendar (a
 * day is one of 24 hours then), which costs more than all the rest of the parameters.
 */
static int64
get_ttl(FunctionCallInfo fcinfo, int n)
{
	Interval   *ttl;
	int64		ttl_us;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("ttl must not be null")));
	ttl = PG_GETARG_INTERVAL_P(n);
	if (ttl->month == 0 && abs(ttl->day) <= PLAIN_DAYS &&
		ttl->time <= PLAIN_DAYS * USECS_PER_DAY && ttl->time >= -PLAIN_DAYS * USECS_PER_DAY)
		ttl_us = ttl->day * USECS_PER_DAY + ttl->time;
	else
	{
		TimestampTz now = GetCurrentTimestamp();

		ttl_us = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														 TimestampTzGetDatum(now),
														 IntervalPGetDatum(ttl))) - now;
	}
	if (ttl_us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be positive, not %s",
						DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(ttl))))));
	return ttl_us;
}

Datum
inbox_accept(PG_FUNCTION_ARGS)
{
	text	   *consumer = get_name(fcinfo, 0, "consumer", INBOX_MAX_CONSUMER);
	text	   *id = get_name(fcinfo, 1, "message_id", INBOX_MAX_MESSAGE_ID);
	int64		ttl_us = get_ttl(fcinfo, 2);
	InboxMarks *marks;
	bool		is_new;

	check_may_write("inbox.accept()");
	marks = inbox_marks_open(ttl_us);
	is_new = inbox_mark_set(marks, PointerGetDatum(consumer), PointerGetDatum(id));
	inbox_marks_close(marks);
	PG_RETURN_BOOL(is_new);
}

Datum
inbox_forget(PG_FUNCTION_ARGS)
{
	text	   *consumer = get_name(fcinfo, 0, "consumer", INBOX_MAX_CONSUMER);
	text	   *id = get_name(fcinfo, 1, "message_id", INBOX_MAX_MESSAGE_ID);
	InboxMarks *marks;
	bool		found;

	check_may_write("inbox.forget()");
	marks = inbox_marks_open(0);
	found = inbox_mark_forget(marks, PointerGetDatum(consumer), PointerGetDatum(id));
	inbox_marks_close(marks);
	PG_RETURN_BOOL(found);
}

/* The elements of a text array, checked. */
static Datum *
get_ids(FunctionCallInfo fcinfo, int n, int *count)
{
	ArrayType  *array;
	Datum	   *ids;
	bool	   *nulls;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("message_ids must not be null")));
	array = PG_GETARG_ARRAYTYPE_P(n);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("message_ids must have one dimension, not %d", ARR_NDIM(array))));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &ids, &nulls, count);
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("message_id must not be null"),
					 errdetail("Element %d of message_ids is.", i + 1)));
		ids[i] = PointerGetDatum(DatumGetTextPP(ids[i]));
		check_length("message_id", (text *) DatumGetPointer(ids[i]), INBOX_MAX_MESSAGE_ID);
	}
	return ids;
}

Datum
inbox_accept_batch(PG_FUNCTION_ARGS)
{
	text	   *consumer = get_name(fcinfo, 0, "consumer", INBOX_MAX_CONSUMER);
	int			n;
	Datum	   *ids = get_ids(fcinfo, 1, &n);
	int64		ttl_us = get_ttl(fcinfo, 2);
	bool	   *is_new = palloc(n * sizeof(bool));
	int			nresult = 0;
	InboxMarks *marks;

	check_may_write("inbox.accept_batch()");
	if (n == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));
	marks = inbox_marks_open(ttl_us);
	inbox_marks_set(marks, PointerGetDatum(consumer), ids, n, is_new);
	inbox_marks_close(marks);

	for (int i = 0; i < n; i++)
		if (is_new[i])
			ids[nresult++] = ids[i];
	PG_RETURN_ARRAYTYPE_P(construct_array(ids, nresult, TEXTOID, -1, false, TYPALIGN_INT));
}
