/*-------------------------------------------------------------------------
 *
 * judge_line.h
 *	  Values in the lines that the judge reads, as judge_consume.c describes them.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef JUDGE_LINE_H
#define JUDGE_LINE_H

#include <stdio.h>

static inline void
put_hex(FILE *out, const void *data, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *p = data;

	fputs("\\\\x", out);
	for (size_t i = 0; i < len; i++)
	{
		putc_unlocked(digits[p[i] >> 4], out);
		putc_unlocked(digits[p[i] & 15], out);
	}
}

static inline void
put_char(FILE *out, char c)
{
	switch (c)
	{
		case '\\':
			fputs("\\\\", out);
			break;
		case '\t':
			fputs("\\t", out);
			break;
		case '\n':
			fputs("\\n", out);
			break;
		case '\r':
			fputs("\\r", out);
			break;
		default:
			putc_unlocked(c, out);
	}
}

static inline void
put_text(FILE *out, const char *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		put_char(out, data[i]);
}

/* A JSON string inside COPY text: its backslashes are escaped once more. */
static inline void
put_json(FILE *out, const char *data, size_t len)
{
	putc_unlocked('"', out);
	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = data[i];

		if (c == '"' || c == '\\')
			fputs(c == '"' ? "\\\\\"" : "\\\\\\\\", out);
		else if (c < 0x20)
			fprintf(out, "\\\\u%04x", c);
		else
			putc_unlocked(c, out);
	}
	putc_unlocked('"', out);
}

#endif							/* JUDGE_LINE_H */
