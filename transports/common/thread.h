/*-------------------------------------------------------------------------
 *
 * thread.h
 *	  What worker transports with threads of their own need of the system.
 *
 * Every thread blocks all signals, so that the server's handlers run in the
 * main one only; two threads tell each other of news by eventfds.  Nothing here
 * knows the server.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_THREAD_H
#define OUTBOX_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* Milliseconds of a monotonic clock. */
extern int64_t thread_now_ms(void);

/* How long to wait, with something due at a time; 0: nothing is. */
extern int	thread_wait_until(int wait, int64_t due, int64_t now);

/* Make an eventfd readable, or not; any thread. */
extern void thread_wake(int fd);
extern void thread_drain(int fd);

/* A condition whose timeouts no clock that is set disturbs. */
extern void thread_cond_init(pthread_cond_t *cond);

extern bool thread_start(pthread_t *thread, void *(*main) (void *), void *arg);

/*
 * Wait for a thread's last act, *ended, of which it tells by the condition;
 * false: not in time.
 */
extern bool thread_await(pthread_mutex_t *lock, pthread_cond_t *cond, const bool *ended,
						 int timeout_ms);

/*
 * Such a thread is no more, or (false) it still runs, with its memory, and the
 * process has to exit.
 */
extern bool thread_part(pthread_t thread, bool ended);

#pragma GCC visibility pop

#endif							/* OUTBOX_THREAD_H */
