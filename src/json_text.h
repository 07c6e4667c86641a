/*-------------------------------------------------------------------------
 *
 * json_text.h
 *	  jsonb to text.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_JSON_TEXT_H
#define OUTBOX_JSON_TEXT_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* Append a value's text, the same as a cast to text gives. */
extern void outbox_json_text(StringInfo buf, Jsonb *jsonb);

#endif							/* OUTBOX_JSON_TEXT_H */
