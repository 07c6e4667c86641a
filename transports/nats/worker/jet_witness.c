/*-------------------------------------------------------------------------
 *
 * jet_witness.c
 *	  Is a stream the one that we know, whatever it says of when it was made?
 *
 * A server (2.9) that was started again writes the time of that into the stream's
 * file when the stream is changed, and tells it when it is started once more.
 * The stream is the same all the same when it has a message that is older than
 * that, or the last one that we have seen of it, with its time.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet_source.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* The stream's last message, as STREAM.INFO tells. */
void
jet_witness_note(JetWitness *witness, const char *info)
{
	int64_t		last;

	if (!jet_json_number(info, "state.last_seq", &last) || last <= witness->sequence)
		return;
	witness->ns = 0;
	witness->sequence = jet_json_string(info, "state.last_ts", witness->time, sizeof(witness->time)) ? last : 0;
}

/* Its time as the API writes it: as many digits as it needs. */
static const char *
witness_time(JetWitness *witness)
{
	time_t		seconds = (time_t) (witness->ns / 1000000000);
	struct tm	tm;
	char		digits[16];

	if (witness->ns == 0)
		return witness->time;
	gmtime_r(&seconds, &tm);
	snprintf(digits, sizeof(digits), ".%09d", (int) (witness->ns % 1000000000));
	for (int i = 9; i >= 0 && (digits[i] == '0' || digits[i] == '.'); i--)
		digits[i] = '\0';
	strftime(witness->time, sizeof(witness->time) - sizeof(digits), "%Y-%m-%dT%H:%M:%S", &tm);
	strcat(strcat(witness->time, digits), "Z");
	return witness->time;
}

/* Of times as the API writes them, with as many digits as they need, and a Z. */
static bool
is_earlier(const char *a, const char *b)
{
	size_t		na = strcspn(a, "Z");
	size_t		nb = strcspn(b, "Z");
	int			order = strncmp(a, b, na < nb ? na : nb);

	return order < 0 || (order == 0 && na < nb);
}

/* Has the stream a message that is older than it says to be itself? */
bool
jet_is_older(const char *info, const char *created)
{
	char		first[JET_CREATED];
	int64_t		messages;

	return jet_json_number(info, "state.messages", &messages) && messages > 0 &&
		jet_json_string(info, "state.first_ts", first, sizeof(first)) &&
		is_earlier(first, created);
}

/* Is a message, as the API gives it, that one? */
bool
jet_witness_is(JetWitness *witness, const char *text)
{
	char		time[JET_CREATED];

	return jet_json_string(text, "message.time", time, sizeof(time)) &&
		strcmp(time, witness_time(witness)) == 0;
}
