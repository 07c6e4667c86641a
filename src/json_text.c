/*-------------------------------------------------------------------------
 *
 * json_text.c
 *	  jsonb to text.
 *
 * The text is the same, byte by byte, as PostgreSQL's own cast gives.  It is
 * written here again since that conversion was a third of the time that a
 * publication takes, most of it for copying each string and looking at each
 * of its characters singly.  Here what needs no escape goes over in one piece.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "json_text.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

/* Longest escape, "\u001f", and what stands around a string. */
#define ESCAPE_ROOM		16

/* Make room for so many bytes and say where they go. */
static inline char *
room(StringInfo buf, int bytes)
{
	if (buf->maxlen - buf->len <= bytes)
		enlargeStringInfo(buf, bytes);
	return buf->data + buf->len;
}

static inline void
put(StringInfo buf, const char *data, int len)
{
	memcpy(room(buf, len), data, len);
	buf->len += len;
}

static inline bool
needs_escape(unsigned char c)
{
	return c < ' ' || c == '"' || c == '\\';
}

static void
put_escaped(StringInfo buf, unsigned char c)
{
	static const char short_names[] = "\b\f\n\r\t\"\\";
	static const char letters[] = "bfnrt\"\\";
	const char *found = c == '\0' ? NULL : strchr(short_names, c);
	char	   *to = room(buf, ESCAPE_ROOM);

	if (found == NULL)
	{
		buf->len += snprintf(to, ESCAPE_ROOM, "\\u%04x", (int) c);
		return;
	}
	to[0] = '\\';
	to[1] = letters[found - short_names];
	buf->len += 2;
}

/* A string in quotes; piece by piece between what must be escaped. */
static void
put_string(StringInfo buf, const char *data, int len)
{
	const char *end = data + len;

	room(buf, len + ESCAPE_ROOM)[0] = '"';
	buf->len++;
	while (data < end)
	{
		const char *p = data;

		while (p < end && !needs_escape((unsigned char) *p))
			p++;
		put(buf, data, p - data);
		if (p < end)
			put_escaped(buf, (unsigned char) *p++);
		data = p;
	}
	put(buf, "\"", 1);
}

static void
put_scalar(StringInfo buf, const JsonbValue *v)
{
	switch (v->type)
	{
		case jbvNull:
			put(buf, "null", 4);
			break;
		case jbvString:
			put_string(buf, v->val.string.val, v->val.string.len);
			break;
		case jbvNumeric:
			{
				char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out,
																	   NumericGetDatum(v->val.numeric)));

				put(buf, text, strlen(text));
				pfree(text);
				break;
			}
		case jbvBool:
			if (v->val.boolean)
				put(buf, "true", 4);
			else
				put(buf, "false", 5);
			break;
		default:
			elog(ERROR, "unknown jsonb scalar type: %d", (int) v->type);
	}
}

/* Append a value's text, the same as a cast to text gives. */
void
outbox_json_text(StringInfo buf, Jsonb *jsonb)
{
	JsonbIterator *it = JsonbIteratorInit(&jsonb->root);
	JsonbIteratorToken token;
	JsonbValue	v;
	bool		first = true;	/* no comma before what comes next */
	bool		raw_scalar = JB_ROOT_IS_SCALAR(jsonb);

	/* punctuation and escapes make it longer than the binary form, a bit */
	(void) room(buf, VARSIZE(jsonb) + VARSIZE(jsonb) / 4);
	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		if (token == WJB_END_ARRAY || token == WJB_END_OBJECT)
		{
			if (!raw_scalar)
				put(buf, token == WJB_END_ARRAY ? "]" : "}", 1);
			first = false;
			continue;
		}
		/* a value follows its key, everything else its predecessor */
		if (!first && token != WJB_VALUE)
			put(buf, ", ", 2);
		first = true;
		switch (token)
		{
			case WJB_BEGIN_ARRAY:
				if (!raw_scalar)
					put(buf, "[", 1);
				break;
			case WJB_BEGIN_OBJECT:
				put(buf, "{", 1);
				break;
			case WJB_KEY:
				put_string(buf, v.val.string.val, v.val.string.len);
				put(buf, ": ", 2);
				break;
			default:
				put_scalar(buf, &v);
				first = false;
		}
	}
	buf->data[buf->len] = '\0';
}
