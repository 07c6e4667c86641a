/*-------------------------------------------------------------------------
 *
 * rabbit_library.h
 *	  The headers of rabbitmq-c, which 0.12 has given a directory of their own.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RABBIT_LIBRARY_H
#define OUTBOX_RABBIT_LIBRARY_H

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#endif

#endif							/* OUTBOX_RABBIT_LIBRARY_H */
