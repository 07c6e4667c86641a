/*-------------------------------------------------------------------------
 *
 * tsan_threads.c
 *	  C11's threads by POSIX's, for ThreadSanitizer.
 *
 * librdkafka starts and locks by <threads.h>, which gcc's ThreadSanitizer does
 * not know: it crashes in threads that it has not seen start.  The library looks
 * these names up in the program before libc.  To glibc both kinds are the same.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <threads.h>

typedef struct Start
{
	thrd_start_t function;
	void	   *arg;
} Start;

/* A call's result as C11 has it. */
static int
result_of(int err)
{
	if (err == 0)
		return thrd_success;
	return err == ETIMEDOUT ? thrd_timedout : thrd_error;
}

static void *
start_main(void *arg)
{
	Start		start = *(Start *) arg;

	free(arg);
	return (void *) (intptr_t) start.function(start.arg);
}

int
thrd_create(thrd_t *thread, thrd_start_t function, void *arg)
{
	Start	   *start = malloc(sizeof(Start));

	if (start == NULL)
		return thrd_nomem;
	*start = (Start) {function, arg};
	return result_of(pthread_create(thread, NULL, start_main, start));
}

int
thrd_join(thrd_t thread, int *value)
{
	void	   *returned = NULL;
	int			err = pthread_join(thread, &returned);

	if (value != NULL)
		*value = (int) (intptr_t) returned;
	return result_of(err);
}

int
mtx_init(mtx_t *mutex, int type)
{
	pthread_mutexattr_t attr;
	int			err;

	pthread_mutexattr_init(&attr);
	if (type & mtx_recursive)
		pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
	err = pthread_mutex_init((pthread_mutex_t *) mutex, &attr);
	pthread_mutexattr_destroy(&attr);
	return result_of(err);
}

/* There is nothing to free, and who counts references may destroy unlocked. */
void
mtx_destroy(mtx_t *mutex)
{
	(void) mutex;
}

int
mtx_lock(mtx_t *mutex)
{
	return result_of(pthread_mutex_lock((pthread_mutex_t *) mutex));
}

int
mtx_unlock(mtx_t *mutex)
{
	return result_of(pthread_mutex_unlock((pthread_mutex_t *) mutex));
}

int
cnd_init(cnd_t *cond)
{
	return result_of(pthread_cond_init((pthread_cond_t *) cond, NULL));
}

void
cnd_destroy(cnd_t *cond)
{
	(void) cond;
}

int
cnd_signal(cnd_t *cond)
{
	return result_of(pthread_cond_signal((pthread_cond_t *) cond));
}

int
cnd_broadcast(cnd_t *cond)
{
	return result_of(pthread_cond_broadcast((pthread_cond_t *) cond));
}

int
cnd_wait(cnd_t *cond, mtx_t *mutex)
{
	return result_of(pthread_cond_wait((pthread_cond_t *) cond, (pthread_mutex_t *) mutex));
}

int
cnd_timedwait(cnd_t *cond, mtx_t *mutex, const struct timespec *until)
{
	return result_of(pthread_cond_timedwait((pthread_cond_t *) cond,
											(pthread_mutex_t *) mutex, until));
}
