/*-------------------------------------------------------------------------
 *
 * io_thread.c
 *	  A client or a consumer whose connection belongs to a thread of its own.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "common/io_thread.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/error.h"
#include "common/thread.h"

#define MIN_CONNECT_MS		100
#define MAX_CONNECT_MS		5000

/* --- main ------------------------------------------------------------------------ */

static void
no_resources(OutboxError *error)
{
	error_set(error, OUTBOX_FATAL, "RESOURCES", "could not create an eventfd or a thread",
			  NULL);
}

void *
io_thread_new(size_t size, OutboxError *error)
{
	IoThread   *io = calloc(1, size);

	memset(error, 0, sizeof(*error));
	if (io == NULL)
	{
		error_set(error, OUTBOX_FATAL, "MEMORY", "out of memory", NULL);
		return NULL;
	}
	pthread_mutex_init(&io->lock, NULL);
	thread_cond_init(&io->ended_cond);
	io->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	io->io_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (io->fd < 0 || io->io_fd < 0)
	{
		no_resources(error);
		io_thread_free(io);
		return NULL;
	}
	return io;
}

bool
io_thread_start(IoThread *io, void *(*main) (void *), OutboxError *error)
{
	if (thread_start(&io->thread, main, io))
		return true;
	no_resources(error);
	return false;
}

void
io_thread_stop(IoThread *io)
{
	pthread_mutex_lock(&io->lock);
	io->stop = true;
	pthread_mutex_unlock(&io->lock);
	thread_wake(io->io_fd);
}

bool
io_thread_await(IoThread *io, int timeout_ms)
{
	return thread_await(&io->lock, &io->ended_cond, &io->ended, timeout_ms);
}

void
io_thread_free(IoThread *io)
{
	pthread_cond_destroy(&io->ended_cond);
	pthread_mutex_destroy(&io->lock);
	if (io->fd >= 0)
		close(io->fd);
	if (io->io_fd >= 0)
		close(io->io_fd);
	free(io);
}

static void
copy_status(IoThread *io, OutboxTransportStatus *status)
{
	pthread_mutex_lock(&io->lock);
	*status = io->status;
	pthread_mutex_unlock(&io->lock);
}

int
io_client_event_fd(OutboxClient *client)
{
	return ((IoThread *) client)->fd;
}

void
io_client_status(OutboxClient *client, OutboxTransportStatus *status)
{
	copy_status((IoThread *) client, status);
}

int
io_consumer_event_fd(OutboxConsumer *consumer)
{
	return ((IoThread *) consumer)->fd;
}

void
io_consumer_status(OutboxConsumer *consumer, OutboxTransportStatus *status)
{
	copy_status((IoThread *) consumer, status);
}

/* --- io -------------------------------------------------------------------------- */

void
io_show_error(IoThread *io, const OutboxError *error)
{
	pthread_mutex_lock(&io->lock);
	io->status.error = *error;
	io->status.nerrors++;
	pthread_mutex_unlock(&io->lock);
	thread_wake(io->fd);
}

void
io_show_connected(IoThread *io, bool connected)
{
	pthread_mutex_lock(&io->lock);
	io->status.connected = connected;
	if (connected)
		io->status.was_connected = true;
	pthread_mutex_unlock(&io->lock);
	thread_wake(io->fd);
}

void
io_connect_soon(IoThread *io)
{
	io->connect_due = thread_now_ms() + MIN_CONNECT_MS;
}

void
io_connect_later(IoThread *io)
{
	io->connect_wait = io->connect_wait == 0 ? MIN_CONNECT_MS : io->connect_wait * 2;
	if (io->connect_wait > MAX_CONNECT_MS)
		io->connect_wait = MAX_CONNECT_MS;
	io->connect_due = thread_now_ms() + io->connect_wait;
}

void
io_thread_ended(IoThread *io)
{
	pthread_mutex_lock(&io->lock);
	io->ended = true;
	pthread_cond_signal(&io->ended_cond);
	pthread_mutex_unlock(&io->lock);
}
