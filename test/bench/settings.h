/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The properties that a relay gives its producer, for the references.
 *
 * A reference that is configured otherwise would compare configurations.  See
 * transports/kafka/worker/kafka_config.c.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_SETTINGS_H
#define BENCH_SETTINGS_H

#include <librdkafka/rdkafka.h>

#include "measure.h"

static const char *const producer_settings[][2] = {
	{"linger.ms", "0"},
	{"socket.nagle.disable", "true"},
	{"partitioner", "murmur2_random"},
	{"enable.idempotence", "true"},
	{"enable.gapless.guarantee", "true"},
	{"acks", "all"},
	{"retries", "2147483647"},
	{"message.timeout.ms", "0"},
	{"message.max.bytes", "17825792"},
	{"queue.buffering.max.messages", "0"},
	{"queue.buffering.max.kbytes", "229376"},
	{"log_level", "3"},
	{NULL, NULL}
};

static inline void
bench_set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char		errstr[256];

	if (rd_kafka_conf_set(conf, name, value, errstr, sizeof(errstr)) != RD_KAFKA_CONF_OK)
		bench_fail(name, errstr);
}

static inline rd_kafka_conf_t *
bench_producer_conf(const char *bootstrap)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	for (int i = 0; producer_settings[i][0] != NULL; i++)
		bench_set(conf, producer_settings[i][0], producer_settings[i][1]);
	bench_set(conf, "bootstrap.servers", bootstrap);
	return conf;
}

#endif							/* BENCH_SETTINGS_H */
