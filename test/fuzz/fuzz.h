/*
 * What fuzz targets share: an input to read from, and PostgreSQL's functions that
 * the parsers use (shim.c, jsonb_shim.c).
 *
 * A target is a file that defines fuzz_one().  It states properties by REQUIRE()
 * and never raises.  Memory from palloc() is malloc's, so that the sanitizers see
 * every byte, and is freed after each input.
 */
#ifndef OUTBOX_FUZZ_H
#define OUTBOX_FUZZ_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

typedef struct Fuzz
{
	const uint8 *data;
	size_t		size;
} Fuzz;

/* The target. */
extern void fuzz_one(Fuzz *in);

/* Read from the input; zeroes when it is at its end. */
extern uint8 fuzz_byte(Fuzz *in);
extern uint64 fuzz_u64(Fuzz *in);

/* Up to a line's end, or all that is left; without what stands behind a NUL.  In
 * memory of just that size. */
extern char *fuzz_line(Fuzz *in);
extern char *fuzz_rest(Fuzz *in);

/* Run a function; did it raise?  What was raised (or only reported) last is kept. */
typedef struct FuzzRaised
{
	int			sqlerrcode;
	char		text[65536];	/* message, detail and hint */
	bool		hides_statement;
} FuzzRaised;

extern FuzzRaised fuzz_raised;
extern bool fuzz_raises(void (*function) (void *), void *arg);

/* Free all that was allocated (between inputs). */
extern void fuzz_reset(void);

extern void fuzz_broken(const char *file, int line, const char *what) __attribute__((noreturn));

#define REQUIRE(condition) \
	((condition) ? (void) 0 : fuzz_broken(__FILE__, __LINE__, #condition))

/* What PostgreSQL's server would answer. */
extern bool shim_superuser;
extern int	shim_encoding;

/* The last interval that was decoded, in milliseconds, exactly. */
extern __int128 shim_interval_ms;

/* A jsonb value made of a JSON text; NULL when it is none. */
extern Jsonb *shim_jsonb_in(const char *text);

/* And back, in the form that PostgreSQL prints. */
extern char *shim_jsonb_out(Jsonb *jsonb);

#endif							/* OUTBOX_FUZZ_H */
