/*-------------------------------------------------------------------------
 *
 * rabbit_error.c
 *	  What went wrong, as values.
 *
 * AMQP has reply codes; what a code means depends on whether it closed the
 * connection (of which only settings and permissions need a person) or a
 * channel, where the caller knows what it had asked for.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdio.h>
#include <string.h>

/* The network, or the library itself. */
OutboxFailure
rabbit_error_status(OutboxError *error, int status)
{
	char		text[256];

	snprintf(text, sizeof(text), "connection to the broker: %s",
			 amqp_error_string2(status));
	return error_set(error, OUTBOX_RETRY, "TRANSPORT", text,
					 "It is tried again. Does the broker run, and can it be reached from here?");
}

/* As the specification calls a reply code; static. */
const char *
rabbit_code_name(int code)
{
	static const struct
	{
		int			code;
		const char *name;
	}			names[] = {
		{311, "CONTENT_TOO_LARGE"},
		{312, "NO_ROUTE"},
		{313, "NO_CONSUMERS"},
		{320, "CONNECTION_FORCED"},
		{402, "INVALID_PATH"},
		{403, "ACCESS_REFUSED"},
		{404, "NOT_FOUND"},
		{405, "RESOURCE_LOCKED"},
		{406, "PRECONDITION_FAILED"},
		{501, "FRAME_ERROR"},
		{502, "SYNTAX_ERROR"},
		{503, "COMMAND_INVALID"},
		{504, "CHANNEL_ERROR"},
		{505, "UNEXPECTED_FRAME"},
		{506, "RESOURCE_ERROR"},
		{530, "NOT_ALLOWED"},
		{540, "NOT_IMPLEMENTED"},
		{541, "INTERNAL_ERROR"},
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].code == code)
			return names[i].name;
	return "UNKNOWN";
}

/* Why the broker closed a connection or a channel. */
OutboxFailure
rabbit_error_closed(OutboxError *error, bool connection, int code, amqp_bytes_t text)
{
	OutboxFailure failure = OUTBOX_RETRY;
	const char *hint = NULL;
	char		line[400];

	snprintf(line, sizeof(line), "the broker closed the %s: %.*s",
			 connection ? "connection" : "channel", (int) text.len, (const char *) text.bytes);
	if (connection && (code == AMQP_ACCESS_REFUSED || code == AMQP_NOT_ALLOWED ||
					   code == AMQP_INVALID_PATH))
	{
		failure = OUTBOX_CONFIG;
		hint = "Check user and password of the user mapping, the virtual host in option \"url\", and the user's permissions there.";
	}
	return error_set(error, failure, rabbit_code_name(code), line, hint);
}

/* A short string of the library's, as a string of ours. */
void
rabbit_copy_short(char *to, amqp_bytes_t from)
{
	size_t		len = from.len > RABBIT_MAX_SHORT ? RABBIT_MAX_SHORT : from.len;

	if (len > 0)
		memcpy(to, from.bytes, len);
	to[len] = '\0';
}
