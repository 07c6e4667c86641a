/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  A system clock that jumps: to be preloaded into a server.
 *
 * The file that FAULT_CLOCK names holds by how many seconds (an int64) the clock
 * of all processes that it is preloaded into is ahead.  As when a system's clock
 * is set, all see the jump at once, the monotonic clock doesn't, and who sleeps
 * until a time of day sleeps until then, or wakes at once.
 *
 * Called from signal handlers too, so nothing here allocates or locks.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* how long a sleeper may be unaware of a jump */
#define LOOK_EVERY_NS	(50 * 1000 * 1000)

static const int64_t no_offset;
static const volatile int64_t *offset = &no_offset;

static int	(*next_clock_gettime) (clockid_t, struct timespec *);
static int	(*next_cnd_timedwait) (cnd_t *, mtx_t *, const struct timespec *);

__attribute__((constructor))
static void
find_clock(void)
{
	const char *path = getenv("FAULT_CLOCK");
	int			fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);

	next_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
	next_cnd_timedwait = dlsym(RTLD_NEXT, "cnd_timedwait");
	if (fd >= 0)
	{
		void	   *map = mmap(NULL, sizeof(*offset), PROT_READ, MAP_SHARED, fd, 0);

		if (map != MAP_FAILED)
			offset = map;
		close(fd);
	}
}

static int
real_clock(clockid_t clock, struct timespec *now)
{
	return next_clock_gettime != NULL
		? next_clock_gettime(clock, now)
		: (int) syscall(SYS_clock_gettime, clock, now);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			result = real_clock(clock, now);

	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *offset;
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec t;

	(void) zone;
	clock_gettime(CLOCK_REALTIME, &t);
	now->tv_sec = t.tv_sec;
	now->tv_usec = t.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *result)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME_COARSE, &t);
	if (result != NULL)
		*result = t.tv_sec;
	return t.tv_sec;
}

int
timespec_get(struct timespec *now, int base)
{
	if (base != TIME_UTC)
		return 0;
	clock_gettime(CLOCK_REALTIME, now);
	return base;
}

static bool
is_before(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

/*
 * Until a time of day that a jump brings nearer or farther: so it is looked at
 * again and again.  Who is woken in between for nothing has to reckon with that.
 */
int
cnd_timedwait(cnd_t *cond, mtx_t *mutex, const struct timespec *until)
{
	int64_t		ahead = *offset;
	struct timespec now;
	struct timespec look;
	struct timespec due = *until;
	int			result;

	/* by the same offset as what is taken off again, should it jump just now */
	real_clock(CLOCK_REALTIME, &now);
	now.tv_sec += ahead;
	look = now;
	look.tv_nsec += LOOK_EVERY_NS;
	if (look.tv_nsec >= 1000000000)
	{
		look.tv_sec++;
		look.tv_nsec -= 1000000000;
	}
	if (is_before(&look, &due))
		due = look;
	due.tv_sec -= ahead;
	result = next_cnd_timedwait(cond, mutex, &due);
	if (result != thrd_timedout)
		return result;
	clock_gettime(CLOCK_REALTIME, &now);
	return is_before(&now, until) ? thrd_success : thrd_timedout;
}
