/*-------------------------------------------------------------------------
 *
 * jet_io.c
 *	  The io thread of the way out.
 *
 * A turn: take what main has handed over, connect when there is no
 * connection, read answers, publish, hand reports back; then sleep until the
 * socket, main or a timer has something.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#define IDLE_MS				1000
#define ANSWER_TIMEOUT_MS	10000

/* Show whether the stream takes messages. */
void
jet_show_blocked(OutboxClient *client)
{
	bool		held = client->io.again.first != NULL && client->wire_n == 0 &&
		client->ready.first == NULL && client->heirs.first == NULL;
	bool		blocked = client->blamed || held;
	bool		changed;

	pthread_mutex_lock(&client->io.thread.lock);
	changed = client->io.thread.status.blocked != blocked;
	client->io.thread.status.blocked = blocked;
	pthread_mutex_unlock(&client->io.thread.lock);
	if (changed)
		thread_wake(client->io.thread.fd);
}

static void
connection_lost(OutboxClient *client, const OutboxError *error)
{
	jet_wire_lost(client);
	jet_disconnect(&client->connection);
	client->blamed = false;
	client->look_due = 0;
	io_connect_soon(&client->io.thread);
	io_show_connected(&client->io.thread, false);
	jet_show_blocked(client);
	io_show_error(&client->io.thread, error);
}

/* Try to connect when it is time to. */
static void
connect_in_time(OutboxClient *client)
{
	OutboxError error;

	if (thread_now_ms() < client->io.thread.connect_due)
		return;
	if (jet_connect(&client->connection, &error))
	{
		client->io.thread.connect_wait = 0;
		io_show_connected(&client->io.thread, true);
		return;
	}
	io_connect_later(&client->io.thread);
	io_show_error(&client->io.thread, &error);
}

/* --- answers that have no number ------------------------------------------------------- */

static void
no_responders(OutboxClient *client)
{
	OutboxError error;
	char		text[JET_MAX_SUBJECT + 128];

	if (client->request != 0)
	{
		error_set(&error, OUTBOX_CONFIG, "NO_JETSTREAM",
				  "JetStream does not answer: it is not enabled on this server, or not for this account",
				  "Switch it on: nats-server -js, or in the account's settings.");
		jet_stream_failed(client, &error);
		return;
	}
	if (client->alone == NULL)
	{
		jet_unanswered(client, 1);
		return;
	}
	if (!client->doubt)
	{
		client->doubt = true;
		jet_again_alone(client);
		return;
	}
	client->doubt = false;
	snprintf(text, sizeof(text), "no stream takes subject \"%.200s%.200s\" (no responders)",
			 client->config.prefix, client->alone->topic->name);
	error_set(&error, OUTBOX_TOPIC, "NO_RESPONDERS", text,
			  "Add the subject to the stream; its messages wait.");
	jet_topic_failed(client, jet_wire_pull(client, client->first), &error);
}

/* The server's words: Permissions Violation for Publish to "subject". */
static void
forbidden(OutboxClient *client, const char *text, int n)
{
	OutboxError error;
	char		subject[JET_MAX_SUBJECT];

	if (strstr(text, "\"$JS.API") != NULL || strstr(text, "\"_INBOX.") != NULL)
	{
		error_set(&error, OUTBOX_CONFIG, "PERMISSION", text,
				  "Allow this user to publish to \"$JS.API.STREAM.INFO.>\" and \"$JS.API.STREAM.MSG.GET.>\", and to receive at \"_INBOX.>\".");
		jet_stream_failed(client, &error);
		return;
	}
	if (client->alone == NULL)
	{
		if (client->wire_n > client->unanswered)
			jet_unanswered(client, n);
		return;
	}
	snprintf(subject, sizeof(subject), "\"%s%s\"", client->config.prefix,
			 client->alone->topic->name);
	if (strstr(text, subject) == NULL)
		return;
	error_set(&error, OUTBOX_TOPIC, "PERMISSION", text,
			  "Allow this user to publish to the subject; its messages wait.");
	jet_topic_failed(client, jet_wire_pull(client, client->first), &error);
}

static void
take_answers(OutboxClient *client)
{
	JetAnswer	answer;
	bool		nobody;
	char		text[256];
	int			denied;

	while (jet_next_answer(&client->connection, &answer, &nobody))
	{
		if (nobody)
			no_responders(client);
		else if (answer.to_request)
			jet_stream_answer(client, &answer);
		else
			jet_answered(client, &answer);
		jet_let_go(&client->connection, answer.msg);
	}
	denied = jet_denied(&client->connection, text, sizeof(text));
	if (denied > 0)
		forbidden(client, text, denied);
}

/* --- turns ----------------------------------------------------------------------------- */

static bool
answers_in_time(OutboxClient *client, OutboxError *error)
{
	if (client->wire_n <= client->unanswered ||
		thread_now_ms() - client->answered_at < ANSWER_TIMEOUT_MS)
		return true;
	/* what the server drops without a word, it drops alone the next time */
	jet_doubt_topics(client);
	error_set(error, OUTBOX_RETRY, "TIMEOUT", "the stream did not acknowledge in time", NULL);
	return false;
}

/* One turn with a connection. */
static void
work(OutboxClient *client, bool readable)
{
	OutboxError error;

	if (!jet_connection_turn(&client->connection, readable, &error))
	{
		take_answers(client);
		connection_lost(client, &error);
		return;
	}
	take_answers(client);
	jet_go_on(client);
	if (!jet_stream_turn(client, &error) || !answers_in_time(client, &error) ||
		!jet_publish(client, &error) ||
		!jet_connection_turn(&client->connection, false, &error))
		connection_lost(client, &error);
	else
		jet_show_blocked(client);
}

/* Something to do that no file descriptor tells of. */
static bool
has_work(const OutboxClient *client)
{
	if (client->connection.nc == NULL)
		return false;
	return client->request == 0 &&
		(client->phase == JET_PROBING || client->phase == JET_CREATING ||
		 (client->phase == JET_DRAIN && client->wire_n <= client->unanswered));
}

/* Sleep until there is something to do; true: the socket has something. */
static bool
io_sleep(OutboxClient *client, int64_t retry_due)
{
	struct pollfd fds[2] = {{client->io.thread.io_fd, POLLIN, 0}, {-1, POLLIN, 0}};
	int64_t		now = thread_now_ms();
	int			wait = thread_wait_until(IDLE_MS, retry_due, now);

	if (client->connection.nc == NULL)
		wait = thread_wait_until(wait, client->io.thread.connect_due, now);
	else
	{
		fds[1].fd = client->connection.fd;
		if (client->connection.wants_write)
			fds[1].events |= POLLOUT;
		if (client->phase == JET_LOOK)
			wait = thread_wait_until(wait, client->look_due > 0 ? client->look_due : now, now);
		if (has_work(client))
			wait = 0;
	}
	if (poll(fds, 2, io_may_sleep(&client->io) ? wait : 0) > 0)
		thread_drain(client->io.thread.io_fd);
	return (fds[1].revents & ~POLLOUT) != 0;
}

/* The thread's main function. */
void *
jet_io_main(void *arg)
{
	OutboxClient *client = arg;
	bool		all;
	bool		readable = false;

	while (io_take_orders(&client->io, &client->ready, &client->purging, &all))
	{
		int64_t		retry_due = io_take_due(&client->io, thread_now_ms(), &client->heirs);

		if (client->connection.nc == NULL && (!client->purging || client->nunsure > 0))
			connect_in_time(client);
		if (client->connection.nc != NULL)
			work(client, readable);
		if (client->purging)
			jet_purge_records(client, all);
		io_hand_back(&client->io);
		readable = io_sleep(client, retry_due);
	}
	jet_disconnect(&client->connection);
	io_thread_ended(&client->io.thread);
	return NULL;
}
