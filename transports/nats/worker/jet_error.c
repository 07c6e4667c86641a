/*-------------------------------------------------------------------------
 *
 * jet_error.c
 *	  What went wrong, as values.
 *
 * JetStream's errors have codes of their own, beside the text.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdio.h>
#include <string.h>

/* What went wrong with a connection, and why; NULL: what a call has left behind. */
OutboxFailure
jet_error_status(OutboxError *error, natsStatus status, const char *why)
{
	char		text[400];

	if (why == NULL)
		why = nats_GetLastError(NULL);
	snprintf(text, sizeof(text), "connection to the NATS server: %s",
			 why != NULL && *why != '\0' ? why : natsStatus_GetText(status));
	switch (status)
	{
		case NATS_CONNECTION_AUTH_FAILED:
			return error_set(error, OUTBOX_CONFIG, "AUTHORIZATION", text,
							 "Check the user mapping: \"user\" and \"password\", \"token\", \"nkey_seed\" or \"credentials\".");
		case NATS_SSL_ERROR:
			return error_set(error, OUTBOX_CONFIG, "TLS", text,
							 "Check tls_ca, and the host in \"url\": the server's certificate must be for it.");
		case NATS_SECURE_CONNECTION_REQUIRED:
			return error_set(error, OUTBOX_CONFIG, "TLS", text,
							 "The server wants TLS: use 'tls://host' in \"url\".");
		case NATS_SECURE_CONNECTION_WANTED:
			return error_set(error, OUTBOX_CONFIG, "TLS", text,
							 "The server has no TLS: use 'nats://host' in \"url\", or set it up there.");
		case NATS_NO_SERVER_SUPPORT:
			return error_set(error, OUTBOX_CONFIG, "UNSUPPORTED", text,
							 "The server is too old: headers came with NATS 2.2.");
		default:
			return error_set(error, OUTBOX_RETRY, "TRANSPORT", text,
							 "It is tried again. Does the server run, and can it be reached from here?");
	}
}

/* The code of an answer that is an error; 0: it is none; 1: without a code. */
int
jet_error_code(const char *text)
{
	const char *value;
	size_t		len;
	int64_t		code;

	if (!jet_json_find(text, "error", &value, &len))
		return 0;
	return jet_json_number(text, "error.err_code", &code) && code > 1 ? (int) code : 1;
}

static const char *
hint_for(int code)
{
	switch (code)
	{
		case JET_NO_STREAM:
			return "Create it, or have it created: ALTER SERVER ... OPTIONS (ADD create_stream 'true').";
		case JET_NOT_ENABLED:
		case JET_NOT_FOR_ACCOUNT:
			return "Switch JetStream on: nats-server -js, or in the account's settings.";
		case JET_OTHER_STREAM:
			return "Add the subject to the stream of option \"stream\", or name the right stream.";
		case JET_NO_SUCH_SUBJECT:
			return "Add the subscription's topics to the subjects of the stream, or subscribe to others.";
		case JET_OVERLAP:
			return "Another stream has these subjects: name that one, or other topics, or a subject_prefix.";
		case JET_SEALED:
			return "Name another stream: this one takes nothing any more.";
		default:
			return NULL;
	}
}

/* An answer that is an error. */
OutboxFailure
jet_error_answer(OutboxError *error, const JetConfig *config, const char *what, const char *text)
{
	int			code = jet_error_code(text);
	OutboxFailure failure = OUTBOX_RETRY;
	char		description[256] = "";
	char		name[32];
	char		message[400];

	(void) jet_json_string(text, "error.description", description, sizeof(description));
	snprintf(name, sizeof(name), "JETSTREAM_%d", code);
	snprintf(message, sizeof(message), "%s stream \"%.100s\": %s", what, config->stream, description);
	switch (code)
	{
		case JET_TOO_LARGE:
		case JET_HEADERS_TOO_LARGE:
			failure = OUTBOX_DEAD;
			break;
		case JET_OTHER_STREAM:
			failure = OUTBOX_TOPIC;
			break;
		case JET_NO_STREAM:
		case JET_NOT_ENABLED:
		case JET_NOT_FOR_ACCOUNT:
		case JET_NAME_EXISTS:
		case JET_OVERLAP:
		case JET_SEALED:
			failure = OUTBOX_CONFIG;
			break;
	}
	return error_set(error, failure, name, message, hint_for(code));
}
