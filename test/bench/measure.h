/*-------------------------------------------------------------------------
 *
 * measure.h
 *	  What the benchmark's programs have in common: clocks, the payload, the
 *	  messages' names, and what they print.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#define BENCH_MAX_PAYLOAD	65536
#define BENCH_KEYS			10000
#define BENCH_KEY_SIZE		16
#define BENCH_ID_SIZE		64

static void
bench_fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(2);
}

/* Seconds of a clock that nobody sets. */
static inline double
bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Milliseconds since 1970. */
static inline double
bench_wall_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

/* To "payload", of BENCH_MAX_PAYLOAD bytes: how many. */
static inline size_t
bench_read_payload(const char *path, char *payload)
{
	FILE	   *f = fopen(path, "r");
	size_t		len;

	if (f == NULL)
		bench_fail(path, "can't be read");
	len = fread(payload, 1, BENCH_MAX_PAYLOAD, f);
	fclose(f);
	return len;
}

/* Key and message id of the nth message, of the relay's lengths. */
static inline void
bench_name(char *key, char *id, long n)
{
	static uint32_t run = 0;

	if (run == 0)
		run = (uint32_t) bench_wall_ms();
	snprintf(key, BENCH_KEY_SIZE, "key-%ld", 10000 + n % BENCH_KEYS);
	snprintf(id, BENCH_ID_SIZE, "%08x-77b3-8da6-a3ce-%012lx", run, n);
}

/* What a drain prints: seconds, and seconds of CPU. */
static inline void
bench_print_seconds(double start)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	printf("%.3f %.3f\n", bench_now() - start,
		   usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 +
		   usage.ru_stime.tv_sec + usage.ru_stime.tv_usec / 1e6);
}

static inline int
bench_by_value(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

/* Median and 99th percentile of n values, which get sorted. */
static inline void
bench_print_percentiles(double *values, long n)
{
	qsort(values, n, sizeof(double), bench_by_value);
	printf("%.3f %.3f\n", values[n / 2], values[n * 99 / 100]);
}

#endif							/* BENCH_MEASURE_H */
