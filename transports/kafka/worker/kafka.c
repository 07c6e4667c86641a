/*-------------------------------------------------------------------------
 *
 * kafka.c
 *	  The Kafka worker transport: open, close and the table of functions.
 *
 * The producer is idempotent and gapless: librdkafka retries for ever and in
 * order, and where it would have to leave a gap (a batch refused for good) it
 * raises a fatal error instead.  The relay then purges, closes, and opens a
 * careful client for the same records: one record a request and in flight, so
 * that a refusal names the one that caused it.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define REQUEST_BUFFER_MAX	(4 * 1024 * 1024)
#define FREE_MEMORY_KEPT	(8 * 1024 * 1024)

/* The thread that destroys, and the one that waits for it. */
typedef struct KafkaCloser
{
	void		(*work) (void *arg);
	void	   *arg;
	pthread_mutex_t lock;
	pthread_cond_t done_cond;
	bool		done;
} KafkaCloser;

/* Make the eventfd readable; any thread. */
void
kafka_wake(OutboxClient *client)
{
	thread_wake(client->fd);
}

/* Threads started in between inherit the mask: none runs our handlers. */
void
kafka_block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

void
kafka_restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* Free what is not librdkafka's. */
void
kafka_client_release(OutboxClient *client)
{
	if (client->fd >= 0)
		close(client->fd);
	for (int i = 0; i < client->nsecrets; i++)
		free(client->secrets[i]);
	free(client->secrets);
	if (client->reports_first < client->reports_end)
		kafka_sent_back(client, client->reports + client->reports_first,
						client->reports_end - client->reports_first);
	free(client->reports);
	kafka_sent_free(client);
	free(client->transactional_id);
	kafka_step_free(client);
	kafka_bookmark_free(client);
	pthread_cond_destroy(&client->probe_wake);
	pthread_mutex_destroy(&client->probe_lock);
}

/* Of zeroed memory; false with *error filled. */
bool
kafka_client_init(OutboxClient *client, OutboxError *error)
{
	pthread_mutex_init(&client->probe_lock, NULL);
	pthread_cond_init(&client->probe_wake, NULL);
	client->opened_ms = thread_now_ms();
	client->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (client->fd >= 0)
		return true;
	kafka_error_set(error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__FAIL,
					"could not create an eventfd");
	return false;
}

/* A handle, with *error filled when librdkafka refuses the whole. */
static rd_kafka_t *
handle_new(OutboxClient *client, rd_kafka_type_t type, rd_kafka_conf_t *conf,
		   OutboxError *error)
{
	rd_kafka_t *rk;
	rd_kafka_resp_err_t err;
	sigset_t	saved;
	char		errstr[512] = "";

	kafka_block_signals(&saved);
	rk = rd_kafka_new(type, conf, errstr, sizeof(errstr));
	kafka_restore_signals(&saved);
	if (rk != NULL)
		return rk;
	err = rd_kafka_last_error();
	kafka_scrub(client, errstr, sizeof(errstr));
	kafka_error_set(error, OUTBOX_CONFIG,
					err ? err : RD_KAFKA_RESP_ERR__INVALID_ARG, errstr);
	return NULL;
}

/*
 * Make the client's handle, and watch the brokers from the beginning, by an
 * interceptor.  When it then refuses the configuration, 2.0.2 frees the
 * interceptor's part of it, so that the rest can't be freed any more (a double
 * free).  Hence one failure leaks a few kilobytes, and until the next success a
 * trial without the interceptor goes first.
 */
bool
kafka_client_connect(OutboxClient *client, rd_kafka_type_t type,
					 KafkaConfigBuilder build, const void *config,
					 OutboxError *error)
{
	static const uint64_t one = 1;
	static bool failed_before = false;
	rd_kafka_conf_t *conf;

	if (failed_before)
	{
		rd_kafka_t *trial;

		conf = build(client, config, error);
		if (conf == NULL)
			return false;
		trial = handle_new(client, type, conf, error);
		if (trial == NULL)
		{
			rd_kafka_conf_destroy(conf);
			return false;
		}
		rd_kafka_destroy_flags(trial, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	}

	conf = build(client, config, error);
	if (conf == NULL)
		return false;
	rd_kafka_conf_interceptor_add_on_new(conf, "pg_outbox",
										 kafka_watch_brokers, client);
	client->rk = handle_new(client, type, conf, error);
	failed_before = client->rk == NULL;
	if (client->rk == NULL)
		return false;

	rd_kafka_set_log_queue(client->rk, NULL);	/* NULL: the main queue */
	if (type == RD_KAFKA_CONSUMER)
	{
		rd_kafka_poll_set_consumer(client->rk);	/* its queue has all */
		client->queue = rd_kafka_queue_get_consumer(client->rk);
	}
	else
		client->queue = rd_kafka_queue_get_main(client->rk);
	rd_kafka_queue_io_event_enable(client->queue, client->fd,
								   &one, sizeof(one));
	return true;
}

static rd_kafka_conf_t *
producer_config(OutboxClient *client, const void *config, OutboxError *error)
{
	return kafka_config_build(client, config, error);
}

/*
 * The library allocates a buffer for each request, of a megabyte where there is a
 * backlog.  By its defaults the C library gives the freed ones back to the system, and
 * half of a drain's page faults were to get them again.  What is larger than usual
 * requests still goes back at once, and the rest when the relay is idle.
 */
static void
keep_request_buffers(void)
{
#ifdef __GLIBC__
	(void) mallopt(M_MMAP_THRESHOLD, REQUEST_BUFFER_MAX);
	(void) mallopt(M_TRIM_THRESHOLD, FREE_MEMORY_KEPT);
#endif
}

/* See transport.h.  Connecting goes on in the background. */
static OutboxClient *
kafka_open(const OutboxTransportConfig *config, OutboxError *error)
{
	OutboxClient *client = calloc(1, sizeof(OutboxClient));

	keep_request_buffers();
	memset(error, 0, sizeof(*error));
	if (client == NULL)
	{
		kafka_error_set(error, OUTBOX_FATAL, RD_KAFKA_RESP_ERR__FAIL,
						"out of memory");
		return NULL;
	}
	if (!kafka_client_init(client, error) ||
		(config->transactional_id != NULL && !kafka_bookmark_prepare(client, config, error)) ||
		!kafka_client_connect(client, RD_KAFKA_PRODUCER, producer_config, config, error))
	{
		kafka_client_release(client);
		free(client);
		return NULL;
	}
	return client;
}

static int
kafka_event_fd(OutboxClient *client)
{
	return client->fd;
}

/*
 * Only where the user chose to linger: flush() makes the broker threads send
 * at once for as long as it runs.
 */
static void
kafka_flush(OutboxClient *client)
{
	if (client->lingers && client->accepted > 0)
		(void) rd_kafka_flush(client->rk, 1);
	if (client->reports_first < client->reports_end)
		kafka_wake(client);		/* it has called back */
}

/*
 * Non-blocking, because the answers come from broker threads that may sit in
 * a name look-up.  In flight means: the broker may still append it.
 */
void
kafka_purge_queues(OutboxClient *client)
{
	client->purged_ms = thread_now_ms();
	rd_kafka_purge(client->rk, RD_KAFKA_PURGE_F_QUEUE |
				   (client->purging ? RD_KAFKA_PURGE_F_INFLIGHT : 0) |
				   RD_KAFKA_PURGE_F_NON_BLOCKING);
}

/* See transport.h; poll() goes on with it. */
static void
kafka_purge(OutboxClient *client, bool in_flight)
{
	client->draining = true;
	if (in_flight)
		client->purging = true;
	kafka_purge_queues(client);
}

static void *
closer_main(void *arg)
{
	KafkaCloser *closer = arg;

	closer->work(closer->arg);
	pthread_mutex_lock(&closer->lock);
	closer->done = true;
	pthread_cond_signal(&closer->done_cond);
	pthread_mutex_unlock(&closer->lock);
	return NULL;
}

/*
 * Have a helper thread do what may take long, and wait for it as long as we
 * may.  False: it goes on, with its memory, and the process has to exit.
 */
bool
kafka_close_within(void (*work) (void *arg), void *arg, int timeout_ms)
{
	KafkaCloser *closer = calloc(1, sizeof(KafkaCloser));
	pthread_t	thread;

	if (closer == NULL)
		return false;
	closer->work = work;
	closer->arg = arg;
	pthread_mutex_init(&closer->lock, NULL);
	thread_cond_init(&closer->done_cond);
	if (!thread_start(&thread, closer_main, closer))
		return false;
	if (!thread_part(thread, thread_await(&closer->lock, &closer->done_cond, &closer->done,
										  timeout_ms)))
		return false;
	pthread_cond_destroy(&closer->done_cond);
	pthread_mutex_destroy(&closer->lock);
	free(closer);
	return true;
}

/* Runs in a thread of its own: each of these may take long. */
static void
client_destroy(void *arg)
{
	OutboxClient *client = arg;

	kafka_step_stop(client);
	kafka_probe_stop(client);
	kafka_bookmark_stop(client);
	kafka_topics_release(client);
	rd_kafka_queue_io_event_enable(client->queue, -1, NULL, 0);
	rd_kafka_queue_destroy(client->queue);
	rd_kafka_destroy_flags(client->rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
	kafka_topics_free(client);
}

/* Purge, so that nothing more is sent, then destroy. */
static bool
kafka_close(OutboxClient *client, int timeout_ms)
{
	kafka_config_lived(client->failed ? 0 : thread_now_ms() - client->opened_ms);
	kafka_purge(client, true);
	if (!kafka_close_within(client_destroy, client, timeout_ms))
		return false;
	kafka_client_release(client);
	free(client);
	return true;
}

static const char *
kafka_version(void)
{
	return rd_kafka_version_str();
}

/*
 * Overheads: librdkafka 2.0.2 allocates about 190 bytes a message beside a
 * copy of its key, about 110 for a list of headers and 90 for each header; we
 * have a KafkaSent for each.
 */
const OutboxTransport kafka_transport = {
	.abi = OUTBOX_TRANSPORT_ABI,
	.name = "kafka",
	.open = kafka_open,
	.event_fd = kafka_event_fd,
	.send = kafka_send,
	.poll = kafka_poll,
	.status = kafka_status,
	.probe_topic = kafka_probe_topic,
	.flush = kafka_flush,
	.purge = kafka_purge,
	.close = kafka_close,
	.transaction = kafka_transaction,
	.explain_silence = kafka_explain_silence,
	.bookmark_write = kafka_bookmark_write,
	.bookmark_read = kafka_bookmark_read,
	.transaction_ms = KAFKA_TRANSACTION_MS,
	.transaction_settles_ms = 3,	/* else librdkafka waits for 20 */
	.version = kafka_version,
	.record_overhead = 420,
	.header_overhead = 90,
	.copied_payload = KAFKA_COPIED_PAYLOAD,
	.source = &kafka_source,
};
