/*-------------------------------------------------------------------------
 *
 * nats_producer.c
 *	  A plain cnats program: what the relay to NATS JetStream is compared with.
 *
 *	nats_producer URL drain SUBJECT COUNT PAYLOAD_FILE
 *		publishes COUNT messages like those that the relay makes, asynchronously
 *		as the library offers it, and prints the seconds from connecting to the
 *		last acknowledgement, and those of CPU
 *
 *	nats_producer URL latency SUBJECT COUNT PAYLOAD_FILE RATE
 *		publishes so many a second, reads them by a consumer of the stream, and
 *		prints median and 99th percentile of the milliseconds in between
 *
 *	nats_producer URL consume SUBJECT COUNT
 *		consumes only, what others publish: from their header outbox-time
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include <nats/nats.h>

#include "measure.h"

#define WINDOW		4096		/* as jet_chain.c */
#define PATIENCE_MS	30000
#define TIME_HEADER	"outbox-time"

typedef struct Arrivals
{
	pthread_mutex_t lock;
	pthread_cond_t more;
	double	   *ms;
	long		n;
	long		count;
} Arrivals;

static void
check(natsStatus status, const char *what)
{
	const char *why = nats_GetLastError(NULL);

	if (status != NATS_OK)
		bench_fail(what, why ? why : natsStatus_GetText(status));
}

static void
on_refused(jsCtx *js, jsPubAckErr *error, void *arg)
{
	bench_fail("a message was refused", error->ErrText);
}

static jsCtx *
connect_to(const char *url)
{
	natsConnection *connection;
	jsOptions	options;
	jsCtx	   *js;

	check(natsConnection_ConnectTo(&connection, url), "connect");
	check(jsOptions_Init(&options), "options");
	options.PublishAsync.MaxPending = WINDOW;
	options.PublishAsync.StallWait = PATIENCE_MS;
	options.PublishAsync.ErrHandler = on_refused;
	check(natsConnection_JetStream(&js, connection, &options), "JetStream");
	return js;
}

static void
publish(jsCtx *js, const char *subject, long n, const char *payload, size_t len)
{
	char		key[BENCH_KEY_SIZE];
	char		id[BENCH_ID_SIZE];
	char		time[32];
	natsMsg    *msg;

	bench_name(key, id, n);
	snprintf(time, sizeof(time), "%lld", (long long) bench_wall_ms());
	check(natsMsg_Create(&msg, subject, NULL, payload, (int) len), "message");
	check(natsMsgHeader_Set(msg, "Nats-Msg-Id", id), "header");
	check(natsMsgHeader_Set(msg, "outbox-key", key), "header");
	check(natsMsgHeader_Set(msg, "content-type", "application/json"), "header");
	check(natsMsgHeader_Set(msg, TIME_HEADER, time), "header");
	check(js_PublishMsgAsync(js, &msg, NULL), "publish");
}

static void
wait_for_all(jsCtx *js)
{
	jsPubOptions options;

	check(jsPubOptions_Init(&options), "options");
	options.MaxWait = PATIENCE_MS;
	check(js_PublishAsyncComplete(js, &options), "acknowledgements");
}

static void
drain(const char *url, const char *subject, long count, const char *payload, size_t len)
{
	double		start = bench_now();
	jsCtx	   *js = connect_to(url);

	for (long n = 0; n < count; n++)
		publish(js, subject, n, payload, len);
	wait_for_all(js);
	bench_print_seconds(start);
}

/* In a thread of the library's. */
static void
on_message(natsConnection *connection, natsSubscription *sub, natsMsg *msg, void *arg)
{
	Arrivals   *arrivals = arg;
	double		now = bench_wall_ms();
	const char *time;

	check(natsMsgHeader_Get(msg, TIME_HEADER, &time), "a message has no time");
	pthread_mutex_lock(&arrivals->lock);
	/* published somewhere in that millisecond */
	if (arrivals->n < arrivals->count)
		arrivals->ms[arrivals->n++] = now - atof(time) - 0.5;
	pthread_cond_signal(&arrivals->more);
	pthread_mutex_unlock(&arrivals->lock);
	natsMsg_Destroy(msg);
}

static void
subscribe(jsCtx *js, const char *subject, Arrivals *arrivals)
{
	natsSubscription *sub;
	jsSubOptions options;

	check(jsSubOptions_Init(&options), "options");
	options.Config.DeliverPolicy = js_DeliverNew;
	options.Config.AckPolicy = js_AckNone;
	check(js_Subscribe(&sub, js, subject, on_message, arrivals, NULL, &options, NULL), "subscribe");
}

static void
sleep_until(double when)
{
	struct timespec ts;

	ts.tv_sec = (time_t) when;
	ts.tv_nsec = (long) ((when - (double) ts.tv_sec) * 1e9);
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) != 0)
		;
}

static void
wait_for_arrivals(Arrivals *arrivals)
{
	pthread_mutex_lock(&arrivals->lock);
	while (arrivals->n < arrivals->count)
	{
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += PATIENCE_MS / 1000;
		if (pthread_cond_timedwait(&arrivals->more, &arrivals->lock, &until) != 0)
			bench_fail("consumer", "nothing comes");
	}
	pthread_mutex_unlock(&arrivals->lock);
}

/* Rate 0: somebody else publishes. */
static void
latency(const char *url, const char *subject, long count, const char *payload, size_t len,
		double rate)
{
	Arrivals	arrivals = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER,
		malloc(count * sizeof(double)), 0, count};
	jsCtx	   *js = connect_to(url);
	double		start;

	subscribe(js, subject, &arrivals);
	printf("ready\n");
	fflush(stdout);
	start = bench_now();
	for (long n = 0; rate > 0 && n < count; n++)
	{
		sleep_until(start + n / rate);
		publish(js, subject, n, payload, len);
	}
	wait_for_arrivals(&arrivals);
	bench_print_percentiles(arrivals.ms, count);
}

int
main(int argc, char **argv)
{
	static char payload[BENCH_MAX_PAYLOAD];
	size_t		len;

	if (argc < 5 || argc > 7)
		bench_fail("usage", "nats_producer URL drain|latency|consume SUBJECT COUNT [PAYLOAD_FILE [RATE]]");
	len = argc > 5 ? bench_read_payload(argv[5], payload) : 0;
	if (strcmp(argv[2], "drain") == 0)
		drain(argv[1], argv[3], atol(argv[4]), payload, len);
	else
		latency(argv[1], argv[3], atol(argv[4]), payload, len, argc > 6 ? atof(argv[6]) : 0);
	/* the library's threads end with the process */
	fflush(stdout);
	_exit(0);
}
