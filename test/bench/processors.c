/*-------------------------------------------------------------------------
 *
 * processors.c
 *	  How far apart two processors are.
 *
 *	bench_processors
 *
 * Prints how many nanoseconds it takes to hand a cache line from one of this
 * process's processors to another one: some 25 to 60 where they share a cache,
 * more than 100 where they don't.  What two threads pass to each other, as a
 * producer and the library's thread of a broker do, costs accordingly; and the
 * processors of a virtual machine are moved about by its host, every few
 * seconds at times.  Prints 0 where there is only one.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "measure.h"

#define TURNS	10000			/* handed over and back */
#define TRIES	5				/* the fastest counts: a thread may lose its processor */

static _Alignas(256) atomic_long turn;

static void
pin(int processor)
{
	cpu_set_t	set;

	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void
wait_for(long n)
{
	while (atomic_load_explicit(&turn, memory_order_acquire) != n)
		;
}

static void *
answer(void *processor)
{
	pin(*(int *) processor);
	for (long i = 0; i < TURNS; i++)
	{
		wait_for(2 * i + 1);
		atomic_store_explicit(&turn, 2 * i + 2, memory_order_release);
	}
	return NULL;
}

/* Nanoseconds a hand-over, once the other thread is there. */
static double
hand_over(int other)
{
	pthread_t	thread;
	double		start = 0;
	double		seconds;

	atomic_store(&turn, 0);
	if (pthread_create(&thread, NULL, answer, &other) != 0)
		bench_fail("thread", "not started");
	for (long i = 0; i < TURNS; i++)
	{
		if (i == 1)
			start = bench_now();
		atomic_store_explicit(&turn, 2 * i + 1, memory_order_release);
		wait_for(2 * i + 2);
	}
	seconds = bench_now() - start;
	pthread_join(thread, NULL);
	return seconds * 1e9 / (2 * (TURNS - 1));
}

int
main(void)
{
	cpu_set_t	set;
	int			mine[2];
	int			n = 0;
	double		fastest = 0;

	if (sched_getaffinity(0, sizeof(set), &set) != 0)
		bench_fail("processors", "not known");
	for (int i = 0; i < CPU_SETSIZE && n < 2; i++)
		if (CPU_ISSET(i, &set))
			mine[n++] = i;
	if (n == 2)
	{
		pin(mine[0]);
		for (int i = 0; i < TRIES; i++)
		{
			double		ns = hand_over(mine[1]);

			if (i == 0 || ns < fastest)
				fastest = ns;
		}
	}
	printf("%.0f\n", fastest);
	return 0;
}
