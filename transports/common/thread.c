/*-------------------------------------------------------------------------
 *
 * thread.c
 *	  What worker transports with threads of their own need of the system.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "common/thread.h"

#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

int64_t
thread_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int
thread_wait_until(int wait, int64_t due, int64_t now)
{
	if (due == 0)
		return wait;
	if (due <= now)
		return 0;
	return due - now < wait ? (int) (due - now) : wait;
}

void
thread_wake(int fd)
{
	uint64_t	one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void
thread_drain(int fd)
{
	uint64_t	n;

	while (read(fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
}

void
thread_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

bool
thread_start(pthread_t *thread, void *(*main) (void *), void *arg)
{
	sigset_t	all;
	sigset_t	saved;
	int			failed;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	failed = pthread_create(thread, NULL, main, arg);
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	return failed == 0;
}

bool
thread_await(pthread_mutex_t *lock, pthread_cond_t *cond, const bool *ended, int timeout_ms)
{
	struct timespec until;
	bool		done;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += (long) (timeout_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000)
	{
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(lock);
	while (!*ended && pthread_cond_timedwait(cond, lock, &until) != ETIMEDOUT)
		;
	done = *ended;
	pthread_mutex_unlock(lock);
	return done;
}

bool
thread_part(pthread_t thread, bool ended)
{
	if (ended)
		pthread_join(thread, NULL);
	else
		pthread_detach(thread);
	return ended;
}
