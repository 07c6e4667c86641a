/*-------------------------------------------------------------------------
 *
 * io_thread.h
 *	  A client or a consumer whose connection belongs to a thread of its own.
 *
 * Two threads meet in an IoThread, which is the first member of a transport's
 * OutboxClient or OutboxConsumer:
 *
 *	main	the relay or the subscription's worker: every function of the
 *			transport's table.  It waits for nothing but a lock that is held
 *			for a few instructions
 *	io		the one that connects, writes and reads
 *
 * Each tells the other of news by the other's eventfd.  What may be touched
 * without the lock is said at each member; before the thread is started, and
 * when it is no more, all is main's.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_IO_THREAD_H
#define OUTBOX_IO_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "transport/source.h"
#include "transport/transport.h"

typedef struct IoThread
{
	/* set before the thread starts */
	pthread_t	thread;
	int			fd;				/* eventfd for main */
	int			io_fd;			/* ... and for io */

	/* between the threads, guarded by lock */
	pthread_mutex_t lock;
	pthread_cond_t ended_cond;
	bool		stop;
	bool		ended;			/* the thread's last act */
	OutboxTransportStatus status;

	/* io only */
	int64_t		connect_due;	/* ms */
	int			connect_wait;
} IoThread;

#pragma GCC visibility push(hidden)

/* --- main ------------------------------------------------------------------------ */

/*
 * What begins with an IoThread, of so many bytes, all else zero; NULL with
 * *error.
 */
extern void *io_thread_new(size_t size, OutboxError *error);

/* Main of the thread is called with what io_thread_new() made; false: *error. */
extern bool io_thread_start(IoThread *io, void *(*main) (void *), OutboxError *error);

/* Have the thread end. */
extern void io_thread_stop(IoThread *io);

/* Wait for its end; false: not in time. */
extern bool io_thread_await(IoThread *io, int timeout_ms);

/* The thread was never started, or is no more. */
extern void io_thread_free(IoThread *io);

/* For the tables of what begins with an IoThread. */
extern int	io_client_event_fd(OutboxClient *client);
extern void io_client_status(OutboxClient *client, OutboxTransportStatus *status);
extern int	io_consumer_event_fd(OutboxConsumer *consumer);
extern void io_consumer_status(OutboxConsumer *consumer, OutboxTransportStatus *status);

/* --- io -------------------------------------------------------------------------- */

/* Show an error, which is new. */
extern void io_show_error(IoThread *io, const OutboxError *error);

extern void io_show_connected(IoThread *io, bool connected);

/* When to connect next: the connection was lost, or there was none, each time later. */
extern void io_connect_soon(IoThread *io);
extern void io_connect_later(IoThread *io);

/* The thread's last act. */
extern void io_thread_ended(IoThread *io);

#pragma GCC visibility pop

#endif							/* OUTBOX_IO_THREAD_H */
