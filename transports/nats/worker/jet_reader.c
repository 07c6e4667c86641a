/*-------------------------------------------------------------------------
 *
 * jet_reader.c
 *	  The io thread of the way in.
 *
 * The server sends, from a sequence on, to a subject of ours: a "push consumer"
 * that lasts as long as the connection.  It numbers what it sends, tells how
 * far it is once a second when there is nothing, and asks whether we have room
 * before it sends more.  Should a number be missing, or nothing be heard of it,
 * another such consumer goes on behind the last message that has come.
 *
 * Before each one the stream is looked at: what it does not have any more,
 * though it was not read, is a gap, and so is a stream that was made anew: the
 * place is one of the stream that was made at a certain time.
 *
 * Of a stream with limits nothing is acknowledged.  A work queue gives each
 * message to one consumer, from its first on: what was committed is acknowledged
 * when it comes again.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet_source.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define IDLE_MS				1000
#define REQUEST_TIMEOUT_MS	5000
#define SILENT_MS			5000	/* of a consumer with heartbeats each second */
#define PASS_EVERY_MS		5000
#define MAX_UNACKNOWLEDGED	20000

/* --- what main is shown ----------------------------------------------------------------- */

static void
show(OutboxConsumer *consumer, bool connected, const OutboxError *error)
{
	pthread_mutex_lock(&consumer->io.lock);
	consumer->io.status.connected = connected;
	consumer->io.status.was_connected |= connected;
	if (error != NULL)
	{
		consumer->io.status.error = *error;
		consumer->io.status.nerrors++;
	}
	pthread_mutex_unlock(&consumer->io.lock);
	thread_wake(consumer->io.fd);
}

/* --- beginning ------------------------------------------------------------------------------ */

static bool
ask(OutboxConsumer *consumer, const char *what, const char *body, OutboxError *error)
{
	char		subject[512];

	snprintf(subject, sizeof(subject), "$JS.API.%s.%s", what, consumer->config.stream);
	consumer->request = ++consumer->next_request;
	consumer->asked_at = thread_now_ms();
	return jet_request(&consumer->connection, subject, body, consumer->request, error);
}

/* The stream is to be looked at before it goes on. */
void
jet_look_again(OutboxConsumer *consumer, int after_ms)
{
	consumer->request = 0;
	consumer->reading = JET_READ_LOOK;
	consumer->look_due = thread_now_ms() + after_ms;
}

static void
failed(OutboxConsumer *consumer, const OutboxError *error)
{
	show(consumer, false, error);
	jet_look_again(consumer, JET_LOOK_AGAIN_MS);
}

/* Have the server send from consumer->next on; false: the connection is gone. */
static bool
start(OutboxConsumer *consumer, OutboxError *error)
{
	char		filter[JET_MAX_SUBJECT] = "";
	char		quoted[3][JET_MAX_SUBJECT + 16];
	char		body[3 * JET_MAX_SUBJECT + 1024];
	natsStatus	status;

	jet_stop_deliveries(consumer);
	snprintf(consumer->deliver, sizeof(consumer->deliver), "%s-%llu", consumer->connection.inbox,
			 (unsigned long long) ++consumer->ndeliver);
	status = natsConnection_SubscribeSync(&consumer->deliveries, consumer->connection.nc,
										  consumer->deliver);
	if (status == NATS_OK)
		status = natsSubscription_SetPendingLimits(consumer->deliveries, -1, -1);
	if (status != NATS_OK)
	{
		(void) jet_error_status(error, status, NULL);
		return false;
	}
	(void) jet_topic_filter(consumer, filter, sizeof(filter));
	jet_json_quote(quoted[0], sizeof(quoted[0]), consumer->config.stream);
	jet_json_quote(quoted[1], sizeof(quoted[1]), consumer->deliver);
	jet_json_quote(quoted[2], sizeof(quoted[2]), filter);
	snprintf(body, sizeof(body), "{\"stream_name\":%s,\"config\":{\"deliver_subject\":%s,\"filter_subject\":%s,"
			 "\"replay_policy\":\"instant\",\"flow_control\":true,\"idle_heartbeat\":1000000000,"
			 "\"inactive_threshold\":5000000000,\"mem_storage\":true,\"num_replicas\":1,",
			 quoted[0], quoted[1], quoted[2]);
	if (consumer->work_queue)
		snprintf(body + strlen(body), sizeof(body) - strlen(body),
				 "\"deliver_policy\":\"all\",\"ack_policy\":\"explicit\",\"ack_wait\":3600000000000,"
				 "\"max_ack_pending\":%d}}", MAX_UNACKNOWLEDGED);
	else
		snprintf(body + strlen(body), sizeof(body) - strlen(body),
				 "\"deliver_policy\":\"by_start_sequence\",\"opt_start_seq\":%llu,\"ack_policy\":\"none\"}}",
				 (unsigned long long) (consumer->next > 0 ? consumer->next : 1));
	consumer->delivered = 0;
	consumer->pass_to = 0;
	consumer->heard = consumer->pass_asked = thread_now_ms();
	consumer->reading = JET_READ_STARTING;
	return ask(consumer, "CONSUMER.CREATE", body, error);
}

/* Where messages of that time begin: a consumer that is never used would. */
static bool
ask_for_time(OutboxConsumer *consumer, int64_t ms, OutboxError *error)
{
	char		stream[512];
	char		when[64];
	char		body[1024];
	time_t		seconds = (time_t) (ms / 1000);
	struct tm	tm;

	gmtime_r(&seconds, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
	jet_json_quote(stream, sizeof(stream), consumer->config.stream);
	snprintf(body, sizeof(body), "{\"stream_name\":%s,\"config\":{\"deliver_policy\":\"by_start_time\","
			 "\"opt_start_time\":\"%s.%03dZ\",\"ack_policy\":\"none\",\"replay_policy\":\"instant\","
			 "\"inactive_threshold\":1000000000,\"mem_storage\":true,\"num_replicas\":1}}",
			 stream, when, (int) (ms % 1000));
	consumer->reading = JET_READ_ASKING;
	return ask(consumer, "CONSUMER.CREATE", body, error);
}

/* --- the stream ------------------------------------------------------------------------------ */

static void
answer_time(OutboxConsumer *consumer, int64_t sequence)
{
	pthread_mutex_lock(&consumer->io.lock);
	consumer->answer = sequence;
	consumer->question = JET_ASK_DONE;
	pthread_mutex_unlock(&consumer->io.lock);
	thread_wake(consumer->io.fd);
}

static bool
usable(OutboxConsumer *consumer, const char *text, OutboxError *error)
{
	char		retention[32] = "";

	(void) jet_json_string(text, "config.retention", retention, sizeof(retention));
	pthread_mutex_lock(&consumer->io.lock);
	consumer->work_queue = strcmp(retention, "workqueue") == 0;
	pthread_mutex_unlock(&consumer->io.lock);
	if (consumer->work_queue && !consumer->exact)
	{
		error_set(error, OUTBOX_CONFIG, "WORK_QUEUE",
				  "the stream is a work queue, of which a subscription takes all messages of one subject, or of a pattern that ends in \".*\"",
				  "Name one topic, or one pattern such as 'orders.*'.");
		return false;
	}
	if (strcmp(retention, "interest") != 0)
		return true;
	error_set(error, OUTBOX_CONFIG, "INTEREST",
			  "the stream keeps messages only as long as its consumers have not acknowledged them (interest)",
			  "Subscribe to a stream with retention by limits or a work queue; one may have this stream as its source.");
	return false;
}

/* Say which topic the stream does not take, or that it does now. */
static void
tell_missing(OutboxConsumer *consumer, const char *info)
{
	const char *topic = jet_topic_missing(consumer, info);
	OutboxError error = {0};
	char		text[400];

	if (topic != NULL)
	{
		snprintf(text, sizeof(text), "stream \"%.100s\" has no subject for topic \"%.200s\"",
				 consumer->config.stream, topic);
		error_set(&error, OUTBOX_TOPIC, "NO_SUBJECT", text,
				  "Add it to the stream's subjects; other topics are consumed.");
	}
	if (topic != NULL || consumer->one_missing)
		show(consumer, !consumer->none_there, &error);
	consumer->one_missing = topic != NULL;
}

static void
stream_seen(OutboxConsumer *consumer, const char *text)
{
	int64_t		first = 0;
	int64_t		last = 0;
	char		created[JET_CREATED] = "";
	OutboxError error;

	if (!usable(consumer, text, &error))
	{
		failed(consumer, &error);
		return;
	}
	(void) jet_json_number(text, "state.first_seq", &first);
	(void) jet_json_number(text, "state.last_seq", &last);
	(void) jet_json_string(text, "created", created, sizeof(created));
	consumer->looked.sequence = 0;
	jet_witness_note(&consumer->looked, text);
	consumer->has_older = jet_is_older(text, created);
	pthread_mutex_lock(&consumer->io.lock);
	strcpy(consumer->created, created);
	consumer->first_sequence = first > 0 ? (uint64_t) first : 1;
	consumer->last_sequence = (uint64_t) last;
	consumer->seen = true;
	pthread_mutex_unlock(&consumer->io.lock);
	show(consumer, !consumer->none_there, NULL);
	tell_missing(consumer, text);
	consumer->reading = JET_READ_READY;
}

static void
started(OutboxConsumer *consumer)
{
	if (consumer->none_there)
		show(consumer, true, NULL);
	consumer->none_there = false;
	consumer->witness = consumer->looked;
	consumer->heard = thread_now_ms();
	consumer->reading = JET_READ_RUN;
}

/* The server does not send; a topic that is missing was told of already. */
static void
refused(OutboxConsumer *consumer, const char *text)
{
	OutboxError error;

	consumer->none_there = jet_error_code(text) == JET_NO_SUCH_SUBJECT;
	if (consumer->none_there && consumer->one_missing)
	{
		show(consumer, false, NULL);
		jet_look_again(consumer, JET_LOOK_AGAIN_MS);
		return;
	}
	(void) jet_error_answer(&error, &consumer->config, "could not read", text);
	failed(consumer, &error);
}

/* Is what we want to read there, or was it never? */
static bool
is_gap(OutboxConsumer *consumer)
{
	if (consumer->next > consumer->last_sequence + 1)
		return true;
	return !consumer->work_queue && consumer->next < consumer->first_sequence;
}

/* Main has to seek anew: there is a gap, or the stream is the same under another name. */
static void
stand_still(OutboxConsumer *consumer, bool same)
{
	pthread_mutex_lock(&consumer->io.lock);
	consumer->gap = true;
	consumer->gap_same = same;
	consumer->gap_at = (int64_t) consumer->next;
	pthread_mutex_unlock(&consumer->io.lock);
	consumer->reading = JET_READ_GAP;
	thread_wake(consumer->io.fd);
}

/*
 * The stream was made at another time than the one that is meant, or its server has
 * forgotten when, see jet_witness.c.
 */
static bool
check_stream(OutboxConsumer *consumer, OutboxError *error)
{
	char		body[64];

	if (consumer->has_older || consumer->witness.sequence == 0)
	{
		stand_still(consumer, consumer->has_older);
		return true;
	}
	snprintf(body, sizeof(body), "{\"seq\":%lld}", (long long) consumer->witness.sequence);
	consumer->reading = JET_READ_CHECKING;
	return ask(consumer, "STREAM.MSG.GET", body, error);
}

static void
stream_checked(OutboxConsumer *consumer, const char *text)
{
	stand_still(consumer, jet_witness_is(&consumer->witness, text));
}

/* The stream was looked at: go on. */
static bool
go_on(OutboxConsumer *consumer, OutboxError *error)
{
	int64_t		wanted;
	int64_t		ms;
	uint64_t	generation;
	bool		asked;
	bool		same;

	pthread_mutex_lock(&consumer->io.lock);
	wanted = consumer->wanted;
	generation = consumer->generation;
	same = consumer->wanted_created[0] == '\0' ||
		strcmp(consumer->wanted_created, consumer->created) == 0;
	asked = consumer->question == JET_ASK_TIME;
	ms = consumer->question_ms;
	pthread_mutex_unlock(&consumer->io.lock);
	if (asked && !consumer->work_queue)
		return ask_for_time(consumer, ms, error);
	if (asked)
		answer_time(consumer, (int64_t) consumer->first_sequence);
	if (wanted < 0)
		return true;
	if (consumer->following != generation)
	{
		consumer->following = generation;
		consumer->next = (uint64_t) wanted;
	}
	if (!same)
		return check_stream(consumer, error);
	if (!is_gap(consumer))
		return start(consumer, error);
	stand_still(consumer, false);
	return true;
}

static void
request_answered(OutboxConsumer *consumer, const JetAnswer *answer)
{
	int64_t		sequence;

	if (answer->number != consumer->request)
		return;
	consumer->request = 0;
	if (consumer->reading == JET_READ_CHECKING)
	{
		stream_checked(consumer, answer->text);
		return;
	}
	if (jet_error_code(answer->text) != 0)
	{
		refused(consumer, answer->text);
		return;
	}
	switch (consumer->reading)
	{
		case JET_READ_LOOKING:
			stream_seen(consumer, answer->text);
			break;
		case JET_READ_STARTING:
			started(consumer);
			break;
		case JET_READ_ASKING:
			if (jet_json_number(answer->text, "delivered.stream_seq", &sequence))
				answer_time(consumer, sequence + 1);
			consumer->reading = JET_READ_READY;
			break;
		case JET_READ_RUN:
			if (!consumer->work_queue)
				jet_pass(consumer, answer->text);
			jet_witness_note(&consumer->witness, answer->text);
			tell_missing(consumer, answer->text);
			break;
		default:
			break;
	}
}

/* --- answers ---------------------------------------------------------------------------------------- */

static void
take_answers(OutboxConsumer *consumer)
{
	JetAnswer	answer;
	OutboxError error;
	bool		nobody;
	char		text[256];

	while (jet_next_answer(&consumer->connection, &answer, &nobody))
	{
		if (!nobody && answer.to_request)
			request_answered(consumer, &answer);
		else if (nobody && consumer->request != 0)
		{
			error_set(&error, OUTBOX_CONFIG, "NO_JETSTREAM",
					  "JetStream does not answer: it is not enabled on this server, or not for this account",
					  "Switch it on: nats-server -js, or in the account's settings.");
			failed(consumer, &error);
		}
		natsMsg_Destroy(answer.msg);
	}
	if (jet_denied(&consumer->connection, text, sizeof(text)) > 0)
	{
		error_set(&error, OUTBOX_CONFIG, "PERMISSION", text,
				  "Allow this user to publish to \"$JS.API.STREAM.INFO.>\", \"$JS.API.STREAM.MSG.GET.>\", \"$JS.API.CONSUMER.CREATE.>\", \"$JS.FC.>\" and \"$JS.ACK.>\", and to receive at \"_INBOX.>\".");
		failed(consumer, &error);
	}
}

/* --- turns --------------------------------------------------------------------------------------- */

static void
connection_lost(OutboxConsumer *consumer, const OutboxError *error)
{
	jet_stop_deliveries(consumer);
	jet_disconnect(&consumer->connection);
	jet_look_again(consumer, 0);
	io_connect_later(&consumer->io);
	show(consumer, false, error);
}

static bool
seek_came(OutboxConsumer *consumer)
{
	bool		came;

	pthread_mutex_lock(&consumer->io.lock);
	came = (consumer->wanted >= 0 && consumer->following != consumer->generation) ||
		consumer->question == JET_ASK_TIME;
	pthread_mutex_unlock(&consumer->io.lock);
	return came;
}

/* What is to be done next; false: the connection is gone. */
static bool
proceed(OutboxConsumer *consumer, OutboxError *error)
{
	int64_t		now = thread_now_ms();

	if (consumer->request != 0)
	{
		if (now - consumer->asked_at < REQUEST_TIMEOUT_MS)
			return true;
		error_set(error, OUTBOX_RETRY, "TIMEOUT", "JetStream did not answer in time", NULL);
		return false;
	}
	switch (consumer->reading)
	{
		case JET_READ_LOOK:
			if (now < consumer->look_due)
				return true;
			consumer->reading = JET_READ_LOOKING;
			return ask(consumer, "STREAM.INFO", "", error);
		case JET_READ_READY:
			return go_on(consumer, error);
		case JET_READ_RUN:
			if (seek_came(consumer) || now - consumer->heard > SILENT_MS)
				jet_look_again(consumer, 0);
			else if (now - consumer->pass_asked > PASS_EVERY_MS &&
					 (!consumer->work_queue || consumer->one_missing))
			{
				consumer->pass_asked = now;
				return ask(consumer, "STREAM.INFO", "", error);
			}
			return true;
		case JET_READ_GAP:
			if (seek_came(consumer))
				jet_look_again(consumer, 0);
			return true;
		default:
			return true;
	}
}

static void
work(OutboxConsumer *consumer, bool readable)
{
	OutboxError error;

	if (!jet_connection_turn(&consumer->connection, readable, &error))
	{
		connection_lost(consumer, &error);
		return;
	}
	take_answers(consumer);
	jet_take_deliveries(consumer);
	jet_acknowledge_committed(consumer);
	if (!proceed(consumer, &error) || !jet_connection_turn(&consumer->connection, false, &error))
		connection_lost(consumer, &error);
}

static void
connect_in_time(OutboxConsumer *consumer)
{
	OutboxError error;

	if (thread_now_ms() < consumer->io.connect_due)
		return;
	if (jet_connect(&consumer->connection, &error))
		consumer->io.connect_wait = 0;
	else
		connection_lost(consumer, &error);
}

/* Sleep until there is something to do; true: the socket has something. */
static bool
reader_sleep(OutboxConsumer *consumer)
{
	struct pollfd fds[2] = {{consumer->io.io_fd, POLLIN, 0}, {consumer->connection.fd, POLLIN, 0}};
	int64_t		now = thread_now_ms();
	int64_t		wait = IDLE_MS;

	if (consumer->connection.nc == NULL)
		wait = consumer->io.connect_due - now;
	else if (consumer->request == 0 && consumer->reading == JET_READ_LOOK)
		wait = consumer->look_due - now;
	else if (consumer->request == 0 && consumer->reading == JET_READ_READY && seek_came(consumer))
		wait = 0;
	if (consumer->connection.wants_write)
		fds[1].events |= POLLOUT;
	if (wait > IDLE_MS)
		wait = IDLE_MS;
	if (poll(fds, 2, wait < 0 ? 0 : (int) wait) > 0)
		thread_drain(consumer->io.io_fd);
	return (fds[1].revents & ~POLLOUT) != 0;
}

/* The thread's main function. */
void *
jet_reader_main(void *arg)
{
	OutboxConsumer *consumer = arg;
	OutboxError error;
	bool		readable = false;
	bool		stop = false;

	while (!stop)
	{
		if (consumer->connection.nc == NULL)
			connect_in_time(consumer);
		if (consumer->connection.nc != NULL)
			work(consumer, readable);
		readable = reader_sleep(consumer);
		pthread_mutex_lock(&consumer->io.lock);
		stop = consumer->io.stop;
		pthread_mutex_unlock(&consumer->io.lock);
	}
	if (consumer->connection.nc != NULL)
	{
		jet_acknowledge_committed(consumer);
		(void) jet_connection_turn(&consumer->connection, false, &error);
	}
	jet_stop_deliveries(consumer);
	jet_disconnect(&consumer->connection);
	io_thread_ended(&consumer->io);
	return NULL;
}
