/*-------------------------------------------------------------------------
 *
 * message.c
 *	  Headers and ids of messages.
 *
 * Headers are turned into their wire form in the publishing session, once, so
 * that the relay has nothing to parse and nothing to fail on.  The wire form
 * keeps order and repeated names, which jsonb keeps not.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "message.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"

/* Append one header in wire form. */
void
outbox_headers_append(StringInfo buf, const char *name, int name_len,
					  const char *value, int value_len)
{
	uint32		len = name_len;

	appendBinaryStringInfo(buf, (char *) &len, sizeof(len));
	appendBinaryStringInfo(buf, name, name_len);
	appendStringInfoCharMacro(buf, '\0');
	len = value_len;
	appendBinaryStringInfo(buf, (char *) &len, sizeof(len));
	appendBinaryStringInfo(buf, value, value_len);
	appendStringInfoCharMacro(buf, '\0');
}

/* One length-prefixed, NUL-terminated string; false when it doesn't fit. */
static bool
next_string(const char *headers, int len, int *pos, const char **str, int *str_len)
{
	uint32		n;

	if (len - *pos < (int) sizeof(n))
		return false;
	memcpy(&n, headers + *pos, sizeof(n));
	*pos += sizeof(n);
	if (n >= (uint32) (len - *pos) || headers[*pos + n] != '\0')
		return false;
	*str = headers + *pos;
	*str_len = (int) n;
	*pos += n + 1;
	return true;
}

/* Step through headers in wire form; false at the end (or at damage). */
bool
outbox_headers_next(const char *headers, int len, int *pos,
					const char **name, int *name_len,
					const char **value, int *value_len)
{
	return *pos < len &&
		next_string(headers, len, pos, name, name_len) &&
		next_string(headers, len, pos, value, value_len);
}

/* A caller's header in server encoding, checked, appended in UTF-8. */
static void
append_caller_header(StringInfo buf, const char *name, int name_len,
					 const char *value, int value_len)
{
	char	   *wire_name;
	char	   *wire_value;

	if (name_len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header name must not be empty")));
	if (name_len == strlen("message-id") &&
		pg_strncasecmp(name, "message-id", name_len) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("header \"message-id\" is reserved"),
				 errhint("Pass the parameter message_id instead.")));

	wire_name = pg_server_to_any(name, name_len, PG_UTF8);
	wire_value = pg_server_to_any(value, value_len, PG_UTF8);
	outbox_headers_append(buf,
						  wire_name,
						  wire_name == name ? name_len : (int) strlen(wire_name),
						  wire_value,
						  wire_value == value ? value_len : (int) strlen(wire_value));
}

static void
bad_headers(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("headers must be an object of strings, or an array of pairs of strings"),
			 errhint("For example {\"source\": \"web\"} or [[\"source\", \"web\"], [\"source\", \"app\"]].")));
}

/* Expect a string from the iterator. */
static void
expect_string(JsonbIteratorToken token, JsonbIteratorToken want, JsonbValue *v)
{
	if (token != want || v->type != jbvString)
		bad_headers();
}

/* Callers' headers into wire form. */
void
outbox_headers_from_jsonb(StringInfo buf, Jsonb *headers)
{
	JsonbIterator *it = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	name;
	JsonbValue	value;
	bool		pairs;

	token = JsonbIteratorNext(&it, &value, false);
	if ((token != WJB_BEGIN_OBJECT && token != WJB_BEGIN_ARRAY) ||
		(token == WJB_BEGIN_ARRAY && value.val.array.rawScalar))
		bad_headers();
	pairs = (token == WJB_BEGIN_ARRAY);

	for (;;)
	{
		token = JsonbIteratorNext(&it, &name, false);
		if (token == WJB_END_OBJECT || token == WJB_END_ARRAY)
			break;
		if (pairs)
		{
			if (token != WJB_BEGIN_ARRAY || name.val.array.nElems != 2)
				bad_headers();
			expect_string(JsonbIteratorNext(&it, &name, false), WJB_ELEM, &name);
			expect_string(JsonbIteratorNext(&it, &value, false), WJB_ELEM, &value);
			if (JsonbIteratorNext(&it, &(JsonbValue)
								  {
									  0
								  }, false) != WJB_END_ARRAY)
				bad_headers();
		}
		else
		{
			expect_string(token, WJB_KEY, &name);
			expect_string(JsonbIteratorNext(&it, &value, false), WJB_VALUE, &value);
		}
		append_caller_header(buf, name.val.string.val, name.val.string.len,
							 value.val.string.val, value.val.string.len);
	}
}

static JsonbValue *
push_string(JsonbParseState **state, const char *str, int len)
{
	JsonbValue	v;
	char	   *local = pg_any_to_server(str, len, PG_UTF8);

	v.type = jbvString;
	v.val.string.val = local;
	v.val.string.len = local == str ? len : (int) strlen(local);
	return pushJsonbValue(state, WJB_ELEM, &v);
}

/* Headers as an array of pairs, which keeps order and repeated names. */
Jsonb *
outbox_headers_to_jsonb(const char *headers, int len)
{
	JsonbParseState *state = NULL;
	int			pos = 0;
	const char *name;
	const char *value;
	int			name_len;
	int			value_len;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	while (outbox_headers_next(headers, len, &pos, &name, &name_len, &value, &value_len))
	{
		pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		push_string(&state, name, name_len);
		push_string(&state, value, value_len);
		pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/* 32 bits as eight hex digits: each digit in a byte, and all of them at once. */
static void
put_hex(char *to, uint32 value)
{
	uint64		digits = value;
	uint64		letters;

	digits = (digits | digits << 16) & UINT64CONST(0x0000FFFF0000FFFF);
	digits = (digits | digits << 8) & UINT64CONST(0x00FF00FF00FF00FF);
	digits = (digits | digits << 4) & UINT64CONST(0x0F0F0F0F0F0F0F0F);
	/* 1 where a digit is more than nine */
	letters = (digits + UINT64CONST(0x0606060606060606)) >> 4 & UINT64CONST(0x0101010101010101);
	digits += UINT64CONST(0x3030303030303030) + letters * ('a' - '0' - 10);
	digits = pg_hton64(digits);
	memcpy(to, &digits, sizeof(digits));
}

/* So many digits and what follows them; where to go on. */
static inline char *
put_group(char *to, const char *digits, int n, char next)
{
	memcpy(to, digits, n);
	to[n] = next;
	return to + n + 1;
}

/*
 * The derived message id: a UUID version 8 (RFC 9562) made of the 64 bits of
 * the epoch and the low 58 bits of the id.  The same on every re-send; an id
 * that is used again after a crash or in a copy comes with another epoch.
 */
void
outbox_message_uuid(uint64 epoch, uint64 id, char *buf)
{
	char		hex[32];
	uint64		hi;
	uint64		lo;

	/* 48 bits, version, 12 bits | variant, 4 bits of epoch, 58 bits of id */
	hi = (epoch & ~UINT64CONST(0xFFFF)) | UINT64CONST(0x8000) |
		((epoch >> 4) & UINT64CONST(0x0FFF));
	lo = (UINT64CONST(2) << 62) | ((epoch & UINT64CONST(0xF)) << 58) |
		(id & ((UINT64CONST(1) << 58) - 1));
	/* by hand: a relay does this for each message */
	put_hex(hex, hi >> 32);
	put_hex(hex + 8, (uint32) hi);
	put_hex(hex + 16, lo >> 32);
	put_hex(hex + 24, (uint32) lo);
	buf = put_group(buf, hex, 8, '-');
	buf = put_group(buf, hex + 8, 4, '-');
	buf = put_group(buf, hex + 12, 4, '-');
	buf = put_group(buf, hex + 16, 4, '-');
	put_group(buf, hex + 20, 12, '\0');
}
