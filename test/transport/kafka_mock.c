/*-------------------------------------------------------------------------
 *
 * kafka_mock.c
 *	  The library's mock broker, for what a real one does only by chance.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>

#include "kafka_driver.h"

/* Clients, consumers and administration connect to it until mock_end(). */
Mock
mock_begin(const char *topic, int partitions)
{
	char		errstr[256];
	Mock		mock;

	mock.rk = rd_kafka_new(RD_KAFKA_PRODUCER, rd_kafka_conf_new(), errstr, sizeof(errstr));
	mock.cluster = rd_kafka_mock_cluster_new(mock.rk, 1);
	rd_kafka_mock_topic_create(mock.cluster, topic, partitions, 1);
	mock.saved = bootstrap;
	bootstrap = options[0].value = rd_kafka_mock_cluster_bootstraps(mock.cluster);
	return mock;
}

void
mock_end(Mock *mock)
{
	bootstrap = options[0].value = mock->saved;
	rd_kafka_mock_cluster_destroy(mock->cluster);
	rd_kafka_destroy(mock->rk);
}
