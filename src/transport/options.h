/*-------------------------------------------------------------------------
 *
 * options.h
 *	  The core's own options of a server, the same for every transport.
 *
 * Compiled into pg_outbox.so and into each transport's DDL library, hence
 * hidden (see patterns.h).  Errors are values: a validator raises them, a
 * relay shows them as a state.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_OPTIONS_H
#define OUTBOX_OPTIONS_H

#include "nodes/pg_list.h"
#include "transport/patterns.h"
#include "transport/transport.h"

typedef enum OutboxFormat
{
	OUTBOX_FORMAT_PLAIN
} OutboxFormat;

typedef enum OutboxStart
{
	OUTBOX_START_NOW,			/* what is published from now on */
	OUTBOX_START_EARLIEST		/* what is retained, first */
} OutboxStart;

typedef enum OutboxOnError
{
	OUTBOX_ON_ERROR_DEAD_LETTER,
	OUTBOX_ON_ERROR_BLOCK		/* the topic waits */
} OutboxOnError;

#define OUTBOX_FOR_EVER		INT64CONST(-1)

typedef struct OutboxCoreOptions
{
	OutboxPatterns *patterns;
	OutboxFormat format;
	bool		exactly_once;
	char	   *position_topic; /* of exactly_once; NULL: the default */
	OutboxStart start;
	OutboxOnError on_error;
	int64		topic_timeout;	/* ms, or OUTBOX_FOR_EVER */
	bool		paused;
	char	   *home;			/* uuid of the log it belongs to, or NULL */
	int			nextra;			/* option extra, split into its pairs */
	OutboxOption *extra;
} OutboxCoreOptions;

typedef struct OutboxOptionError
{
	int			sqlerrcode;
	const char *message;
	const char *detail;			/* or NULL */
	const char *hint;			/* or NULL */
} OutboxOptionError;

typedef enum OutboxOptionResult
{
	OUTBOX_OPTION_TAKEN,
	OUTBOX_OPTION_FOREIGN,		/* not one of the core's */
	OUTBOX_OPTION_BAD			/* see *error */
} OutboxOptionResult;

#pragma GCC visibility push(hidden)

/* Names of the core's options, NULL at the end. */
extern const char *const outbox_core_option_names[];

extern void outbox_core_options_init(OutboxCoreOptions *core);

/* Take one option.  Allocates in the current context. */
extern OutboxOptionResult outbox_core_option_take(OutboxCoreOptions *core,
												  const char *name, const char *value,
												  OutboxOptionError *error);

/* Set an error; returns false for the caller to return. */
extern bool outbox_option_error(OutboxOptionError *error, int sqlerrcode,
								const char *message, const char *detail, const char *hint);

#pragma GCC visibility pop

#endif							/* OUTBOX_OPTIONS_H */
