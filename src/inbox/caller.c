/*-------------------------------------------------------------------------
 *
 * caller.c
 *	  Functions that need more rights than who calls them, and must know who.
 *
 * A subscription's handler runs with its owner's rights later on, so the owner must
 * be the role that called: not that of the session, which may have come here through
 * somebody else's function (SECURITY DEFINER, or the handler of a subscription, that
 * a worker with all rights runs).  Inside a function with its definer's rights nothing
 * tells of the role before.  So each is a pair: this one notes the role and calls
 * its other half, definer_NAME, which has the definer's rights and which nobody else
 * may call.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(inbox_as_caller);
PG_FUNCTION_INFO_V1(inbox_caller);

/* Who called the function whose other half runs. */
static Oid	calling_role = InvalidOid;

/* The other half of a function: the same schema and arguments. */
static Oid
other_half(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	char	   *name;
	Oid			half;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	name = psprintf("definer_%s", NameStr(form->proname));
	half = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name),
						   PointerGetDatum(&form->proargtypes),
						   ObjectIdGetDatum(form->pronamespace));
	if (!OidIsValid(half))
		elog(ERROR, "function \"%s\" has no other half", NameStr(form->proname));
	ReleaseSysCache(tuple);
	return half;
}

Datum
inbox_as_caller(PG_FUNCTION_ARGS)
{
	FmgrInfo   *half = fcinfo->flinfo->fn_extra;
	FunctionCallInfo call = palloc0(SizeForFunctionCallInfo(PG_NARGS()));
	Oid			outer = calling_role;
	Datum		result;

	if (half == NULL)
	{
		half = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(FmgrInfo));
		fmgr_info_cxt(other_half(fcinfo->flinfo->fn_oid), half, fcinfo->flinfo->fn_mcxt);
		fcinfo->flinfo->fn_extra = half;
	}
	InitFunctionCallInfoData(*call, half, PG_NARGS(), PG_GET_COLLATION(), NULL, NULL);
	for (int i = 0; i < PG_NARGS(); i++)
		call->args[i] = fcinfo->args[i];
	calling_role = GetUserId();
	PG_TRY();
	{
		result = FunctionCallInvoke(call);
	}
	PG_FINALLY();
	{
		calling_role = outer;
	}
	PG_END_TRY();
	fcinfo->isnull = call->isnull;
	return result;
}

Datum
inbox_caller(PG_FUNCTION_ARGS)
{
	Name		name = palloc0(sizeof(NameData));

	if (!OidIsValid(calling_role))
		elog(ERROR, "not called through the function that notes the caller");
	namestrcpy(name, GetUserNameFromId(calling_role, false));
	PG_RETURN_NAME(name);
}
