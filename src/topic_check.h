/*-------------------------------------------------------------------------
 *
 * topic_check.h
 *	  Refuses, when publishing, names that a broker would refuse for ever.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TOPIC_CHECK_H
#define OUTBOX_TOPIC_CHECK_H

/*
 * Both raise, naming topic, server and reason.  Names are in UTF-8.  Catalogs
 * are read when the topic is new to this backend, or a server has changed: not
 * to be called under a lane's lock.
 */
extern void outbox_check_topic(const char *topic, size_t len);

/* For a message of that topic; costs nothing where no transport has rules. */
extern void outbox_check_header(const char *topic, size_t topic_len,
								const char *name, size_t len);

#endif							/* OUTBOX_TOPIC_CHECK_H */
