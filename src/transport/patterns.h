/*-------------------------------------------------------------------------
 *
 * patterns.h
 *	  Topic patterns: which messages a server gets.
 *
 * Compiled into pg_outbox.so and into each transport's DDL library, hence
 * hidden: neither may bind to the other's copy, which can be of another
 * version after an upgrade without restart.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PATTERNS_H
#define OUTBOX_PATTERNS_H

#define OUTBOX_MAX_PATTERN	1024	/* bytes, as a topic's name */

typedef enum OutboxPatternKind
{
	OUTBOX_PATTERN_EXACT,		/* no star */
	OUTBOX_PATTERN_PREFIX,		/* one star, at the end */
	OUTBOX_PATTERN_GLOB
} OutboxPatternKind;

typedef struct OutboxPattern
{
	OutboxPatternKind kind;
	bool		exclude;
	int			len;			/* PREFIX: without the star */
	char	   *text;
} OutboxPattern;

typedef struct OutboxPatterns
{
	bool		all_but;		/* only exclusions: everything else matches */
	int			n;
	OutboxPattern items[FLEXIBLE_ARRAY_MEMBER];
} OutboxPatterns;

#pragma GCC visibility push(hidden)

/*
 * Compile a comma-separated list, in one allocation of the current context.
 * NULL when it is not one: then *reason says why (palloc'd).
 */
extern OutboxPatterns *outbox_patterns_parse(const char *list, char **reason);

extern bool outbox_patterns_match(const OutboxPatterns *patterns,
								  const char *topic, size_t len);

/* The list without those that exclude, as text (palloc'd). */
extern char *outbox_patterns_included(const OutboxPatterns *patterns);

/* One pattern of any kind, given as text. */
extern bool outbox_glob_match(const char *glob, const char *text, size_t len);

#pragma GCC visibility pop

#endif							/* OUTBOX_PATTERNS_H */
