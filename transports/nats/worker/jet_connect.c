/*-------------------------------------------------------------------------
 *
 * jet_connect.c
 *	  A connection to a NATS server, driven by one thread of ours.
 *
 * One URL is tried at a time, and the library never reconnects.  Once
 * connected it reads and writes only when jet_connection_turn() tells it to.
 *
 * All replies come to one subscription, of subjects that end in the number of
 * what they reply to: inbox.17 to a record, inbox.r3 to a request.
 *
 * What the server forbids is told in a callback, in a thread of the library's
 * that may be late: it finds the connection by its number in a list, if it is
 * still there, and leaves the text.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <openssl/ssl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CONNECT_TIMEOUT_MS	3000
#define IO_BUFFER			(64 * 1024)
#define LIBRARY_CLOSE_MS	3000
#define USED_BYTES			((size_t) 64 * 1024)

static pthread_mutex_t live_lock = PTHREAD_MUTEX_INITIALIZER;
static JetConnection *live = NULL;
static uint64_t last_id = 0;
static int	library_users = 0;

/*
 * The library's own threads begin with the first user and end with the last.
 * They inherit how they are scheduled: SCHED_BATCH lets none of them take the
 * processor from the thread that wakes it, as the one that destroys messages would
 * for each of them.
 */
bool
jet_library_open(void)
{
	sigset_t	all;
	sigset_t	saved;
	struct sched_param priority;
	int			policy;
	natsStatus	status = NATS_OK;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	(void) pthread_getschedparam(pthread_self(), &policy, &priority);
	if (policy == SCHED_OTHER)
		(void) pthread_setschedparam(pthread_self(), SCHED_BATCH, &priority);
	if (library_users == 0)
		status = nats_Open(-1);
	(void) pthread_setschedparam(pthread_self(), policy, &priority);
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	if (status != NATS_OK)
		return false;
	library_users++;
	return true;
}

/*
 * At its end the library frees OpenSSL's list of compression methods, which
 * OpenSSL frees at the end of the process: so there is none by then.
 */
void
jet_library_close(void)
{
	if (--library_users > 0)
		return;
	(void) SSL_COMP_get_compression_methods();
	(void) SSL_COMP_set0_compression_methods(NULL);
	(void) nats_CloseAndWait(LIBRARY_CLOSE_MS);
}

void
jet_connection_init(JetConnection *c, const JetConfig *config, int wake_fd)
{
	memset(c, 0, sizeof(*c));
	c->config = config;
	c->wake_fd = wake_fd;
	c->fd = -1;
}

void
jet_connection_release(JetConnection *c)
{
	jet_disconnect(c);
}

/* --- what the library calls ------------------------------------------------------ */

static natsStatus
attach(void **data, void *loop, natsConnection *nc, natsSock fd)
{
	JetConnection *c = loop;

	*data = c;
	c->fd = (int) fd;
	return NATS_OK;
}

static natsStatus
read_event(void *data, bool add)
{
	return NATS_OK;
}

static natsStatus
write_event(void *data, bool add)
{
	((JetConnection *) data)->wants_write = add;
	return NATS_OK;
}

static natsStatus
detach(void *data)
{
	((JetConnection *) data)->fd = -1;
	return NATS_OK;
}

/* In a thread of the library's. */
static void
on_error(natsConnection *nc, natsSubscription *sub, natsStatus status, void *arg)
{
	uint64_t	id = (uint64_t) (uintptr_t) arg;
	const char *text = nats_GetLastError(NULL);

	if (status != NATS_NOT_PERMITTED || text == NULL)
		return;
	pthread_mutex_lock(&live_lock);
	for (JetConnection *c = live; c != NULL; c = c->next_live)
	{
		if (c->id != id)
			continue;
		snprintf(c->denied, sizeof(c->denied), "%s", text);
		c->ndenied++;
		thread_wake(c->wake_fd);
	}
	pthread_mutex_unlock(&live_lock);
}

static void
enlist(JetConnection *c)
{
	pthread_mutex_lock(&live_lock);
	c->id = ++last_id;
	c->ndenied = 0;
	c->next_live = live;
	live = c;
	pthread_mutex_unlock(&live_lock);
}

static void
delist(JetConnection *c)
{
	pthread_mutex_lock(&live_lock);
	for (JetConnection **link = &live; *link != NULL; link = &(*link)->next_live)
	{
		if (*link == c)
		{
			*link = c->next_live;
			break;
		}
	}
	pthread_mutex_unlock(&live_lock);
}

/* How often something was forbidden since the last call, and the server's last text. */
int
jet_denied(JetConnection *c, char *text, size_t size)
{
	int			n;

	pthread_mutex_lock(&live_lock);
	n = c->ndenied;
	if (n > 0)
		snprintf(text, size, "%s", c->denied);
	c->ndenied = 0;
	pthread_mutex_unlock(&live_lock);
	return n;
}

/* --- connecting ------------------------------------------------------------------ */

static natsStatus
set_options(JetConnection *c, natsOptions *options)
{
	natsStatus	status = natsOptions_SetURL(options, c->config->urls[c->next_url].text);

	if (status == NATS_OK)
		status = natsOptions_SetName(options, c->config->client_id);
	if (status == NATS_OK)
		status = natsOptions_SetTimeout(options, CONNECT_TIMEOUT_MS);
	if (status == NATS_OK)
		status = natsOptions_SetAllowReconnect(options, false);
	if (status == NATS_OK)
		status = natsOptions_SetIgnoreDiscoveredServers(options, true);
	/* else a timer of the library's writes, and closes, when it likes */
	if (status == NATS_OK)
		status = natsOptions_SetPingInterval(options, 0);
	/* else a thread of the library's writes; with an event loop this writes
	 * nothing at once either */
	if (status == NATS_OK)
		status = natsOptions_SetSendAsap(options, true);
	if (status == NATS_OK)
		status = natsOptions_SetIOBufSize(options, IO_BUFFER);
	if (status == NATS_OK)
		status = natsOptions_SetErrorHandler(options, on_error, (void *) (uintptr_t) c->id);
	if (status == NATS_OK)
		status = natsOptions_SetEventLoop(options, c, attach, read_event, write_event, detach);
	return status == NATS_OK ? jet_auth(c, options) : status;
}

static natsStatus
subscribe(JetConnection *c)
{
	natsInbox  *inbox;
	char		subject[sizeof(c->inbox) + 2];
	natsStatus	status = natsInbox_Create(&inbox);

	if (status != NATS_OK)
		return status;
	snprintf(c->inbox, sizeof(c->inbox), "%s", inbox);
	natsInbox_Destroy(inbox);
	snprintf(subject, sizeof(subject), "%s.*", c->inbox);
	status = natsConnection_SubscribeSync(&c->sub, c->nc, subject);
	if (status == NATS_OK)
		status = natsSubscription_SetPendingLimits(c->sub, -1, -1);
	return status;
}

/* Try one URL. */
bool
jet_connect(JetConnection *c, OutboxError *error)
{
	natsOptions *options = NULL;
	natsStatus	status = natsOptions_Create(&options);

	enlist(c);
	c->wants_write = false;
	if (status == NATS_OK)
		status = set_options(c, options);
	if (status == NATS_OK)
		status = natsConnection_Connect(&c->nc, options);
	natsOptions_Destroy(options);
	if (status == NATS_OK)
		status = subscribe(c);
	jet_auth_forget(c);
	c->next_url = (c->next_url + 1) % c->config->nurls;
	c->heard = thread_now_ms();
	if (status == NATS_OK)
		return true;
	/* a server that has no nkeys says so in this way */
	if ((status == NATS_ERR || status == NATS_INVALID_ARG) && (c->config->nkey_seed != NULL || c->config->credentials != NULL))
		(void) jet_error_status(error, NATS_CONNECTION_AUTH_FAILED, nats_GetLastError(NULL));
	else
		(void) jet_error_status(error, status, NULL);
	jet_disconnect(c);
	return false;
}

static void
destroy_used(JetConnection *c)
{
	while (c->nused > 0)
		natsMsg_Destroy(c->used[--c->nused]);
	c->used_bytes = 0;
}

/*
 * A message is done with, written or read.  The library has a thread that
 * destroys them all, and wakes it for each one while it has nothing to do: which
 * costs more than to publish one.  So it gets many at once.
 */
void
jet_let_go(JetConnection *c, natsMsg *msg)
{
	c->used[c->nused++] = msg;
	c->used_bytes += (size_t) natsMsg_GetDataLength(msg);
	if (c->nused == JET_MAX_USED || c->used_bytes >= USED_BYTES)
		destroy_used(c);
}

/*
 * What is buffered is not sent.  The library would wait for a reply first, so
 * the socket goes before it.
 */
void
jet_disconnect(JetConnection *c)
{
	delist(c);
	destroy_used(c);
	if (c->fd >= 0 && c->wants_write)
	{
		shutdown(c->fd, SHUT_RDWR);
		natsConnection_ProcessReadEvent(c->nc);
	}
	natsSubscription_Destroy(c->sub);
	natsConnection_Destroy(c->nc);
	jet_auth_forget(c);
	c->sub = NULL;
	c->nc = NULL;
	c->fd = -1;
}

/* Read, when there is something, and write what is buffered; false: it is gone. */
bool
jet_connection_turn(JetConnection *c, bool readable, OutboxError *error)
{
	const char *why = NULL;
	natsStatus	status;

	if (readable)
	{
		natsConnection_ProcessReadEvent(c->nc);
		c->heard = thread_now_ms();
	}
	if (c->wants_write)
		natsConnection_ProcessWriteEvent(c->nc);
	if (!natsConnection_IsClosed(c->nc))
		return true;
	status = natsConnection_GetLastError(c->nc, &why);
	if (status == NATS_OK || status == NATS_NOT_PERMITTED || why == NULL || *why == '\0')
		why = "it has ended";
	(void) jet_error_status(error, status, why);
	return false;
}

/* --- replies --------------------------------------------------------------------- */

/*
 * The next reply that has come; false: none.  That nobody listens where
 * something was sent comes without the number.
 */
bool
jet_next_answer(JetConnection *c, JetAnswer *answer, bool *no_responders)
{
	size_t		prefix = strlen(c->inbox) + 1;
	natsStatus	status;
	const char *number;

	memset(answer, 0, sizeof(*answer));
	status = natsSubscription_NextMsg(&answer->msg, c->sub, 0);
	*no_responders = status == NATS_NO_RESPONDERS;
	if (*no_responders)
		return true;
	if (status != NATS_OK)
		return false;
	number = natsMsg_GetSubject(answer->msg);
	number += strlen(number) > prefix ? prefix : strlen(number);
	answer->to_request = *number == 'r';
	answer->number = strtoull(number + answer->to_request, NULL, 10);
	answer->text = natsMsg_GetData(answer->msg);
	if (answer->text == NULL)
		answer->text = "";
	return true;
}

/* Ask JetStream's API. */
bool
jet_request(JetConnection *c, const char *subject, const char *body, uint64_t number,
			OutboxError *error)
{
	char		reply[sizeof(c->inbox) + 32];
	natsStatus	status;

	snprintf(reply, sizeof(reply), "%s.r%llu", c->inbox, (unsigned long long) number);
	status = natsConnection_PublishRequestString(c->nc, subject, reply, body);
	if (status == NATS_OK)
		return true;
	(void) jet_error_status(error, status, NULL);
	return false;
}
