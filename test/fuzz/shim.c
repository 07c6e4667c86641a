/*
 * The functions of PostgreSQL's server that our parsers use, in a program of its
 * own.  What PostgreSQL has in libpgcommon and libpgport (StringInfo, psprintf,
 * verification of UTF-8) comes from there.
 */
#include "fuzz.h"

#include <setjmp.h>

#include "access/reloptions.h"
#include "access/timeline.h"
#include "access/xlog.h"
#include "commands/defrem.h"
#include "common/int.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/varlena.h"

/* --- memory ---------------------------------------------------------------- */

typedef struct Chunk
{
	struct Chunk *next;
	struct Chunk *prev;
	Size		size;
	uint64		magic;
} Chunk;

#define MAGIC	UINT64CONST(0x6f7574626f786d65)

static Chunk chunks = {&chunks, &chunks, 0, 0};
MemoryContext CurrentMemoryContext = NULL;

static Chunk *
chunk_of(void *pointer)
{
	Chunk	   *chunk = (Chunk *) pointer - 1;

	REQUIRE(chunk->magic == MAGIC);
	return chunk;
}

static void
link_chunk(Chunk *chunk)
{
	chunk->next = chunks.next;
	chunk->prev = &chunks;
	chunks.next->prev = chunk;
	chunks.next = chunk;
}

static void
unlink_chunk(Chunk *chunk)
{
	chunk->next->prev = chunk->prev;
	chunk->prev->next = chunk->next;
}

void *
palloc(Size size)
{
	Chunk	   *chunk = malloc(sizeof(Chunk) + size);

	chunk->size = size;
	chunk->magic = MAGIC;
	link_chunk(chunk);
	/* nothing may rest on what fresh memory holds */
	memset(chunk + 1, 0xA5, size);
	return chunk + 1;
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void
pfree(void *pointer)
{
	unlink_chunk(chunk_of(pointer));
	free((Chunk *) pointer - 1);
}

void *
repalloc(void *pointer, Size size)
{
	void	   *copy = palloc(size);

	memcpy(copy, pointer, Min(size, chunk_of(pointer)->size));
	pfree(pointer);
	return copy;
}

void *
MemoryContextAllocHuge(MemoryContext context, Size size)
{
	return palloc(size);
}

char *
pnstrdup(const char *in, Size len)
{
	char	   *copy;

	len = strnlen(in, len);
	copy = palloc(len + 1);
	memcpy(copy, in, len);
	copy[len] = '\0';
	return copy;
}

char *
pstrdup(const char *in)
{
	return pnstrdup(in, strlen(in));
}

void
fuzz_reset(void)
{
	while (chunks.next != &chunks)
		pfree(chunks.next + 1);
}

/* --- the input --------------------------------------------------------------- */

uint8
fuzz_byte(Fuzz *in)
{
	if (in->size == 0)
		return 0;
	in->size--;
	return *in->data++;
}

uint64
fuzz_u64(Fuzz *in)
{
	uint64		value = 0;

	for (int i = 0; i < 8; i++)
		value = value << 8 | fuzz_byte(in);
	return value;
}

static char *
take(Fuzz *in, size_t len, size_t used)
{
	char	   *text = pnstrdup((const char *) in->data, len);

	in->data += used;
	in->size -= used;
	/* no byte more than it has */
	return repalloc(text, strlen(text) + 1);
}

char *
fuzz_line(Fuzz *in)
{
	const uint8 *end = in->size == 0 ? NULL : memchr(in->data, '\n', in->size);

	return end == NULL ? fuzz_rest(in) : take(in, end - in->data, end - in->data + 1);
}

char *
fuzz_rest(Fuzz *in)
{
	return in->size == 0 ? pstrdup("") : take(in, in->size, in->size);
}

void
fuzz_broken(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
	abort();
}

/* --- errors -------------------------------------------------------------------- */

FuzzRaised	fuzz_raised;
static sigjmp_buf *catcher = NULL;
static int	level;
static size_t text_used;

bool
fuzz_raises(void (*function) (void *), void *arg)
{
	sigjmp_buf	here;

	memset(&fuzz_raised, 0, offsetof(FuzzRaised, text) + 1);
	fuzz_raised.hides_statement = false;
	text_used = 0;
	if (sigsetjmp(here, 0) != 0)
	{
		catcher = NULL;
		return true;
	}
	catcher = &here;
	function(arg);
	catcher = NULL;
	return false;
}

bool
errstart(int elevel, const char *domain)
{
	level = elevel;
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	if (level < ERROR)
		return;
	REQUIRE(catcher != NULL);
	siglongjmp(*catcher, 1);
}

int
errcode(int sqlerrcode)
{
	fuzz_raised.sqlerrcode = sqlerrcode;
	return 0;
}

int
errhidestmt(bool hide_stmt)
{
	fuzz_raised.hides_statement = hide_stmt;
	return 0;
}

int
errhidecontext(bool hide_ctx)
{
	return 0;
}

#define KEEP_TEXT(name) \
int \
name(const char *fmt,...) \
{ \
	va_list		args; \
\
	va_start(args, fmt); \
	text_used += vsnprintf(fuzz_raised.text + text_used, \
						   sizeof(fuzz_raised.text) - text_used, fmt, args); \
	text_used = Min(text_used, sizeof(fuzz_raised.text) - 1); \
	va_end(args); \
	return 0; \
}

KEEP_TEXT(errmsg)
KEEP_TEXT(errmsg_internal)
KEEP_TEXT(errdetail)
KEEP_TEXT(errdetail_internal)
KEEP_TEXT(errhint)

void
OUTBOX_EXCEPTIONAL_CONDITION(condition, file, line)
{
	fuzz_broken(file, line, condition);
}

/* --- lists and options ----------------------------------------------------------- */

List *
lappend(List *list, void *datum)
{
	if (list == NIL)
	{
		list = palloc0(sizeof(List));
		list->type = T_List;
	}
	if (list->length == list->max_length)
	{
		ListCell   *more = palloc0((list->max_length + 1) * 2 * sizeof(ListCell));

		if (list->elements != NULL)
		{
			memcpy(more, list->elements, list->length * sizeof(ListCell));
			pfree(list->elements);
		}
		list->elements = more;
		list->max_length = (list->max_length + 1) * 2;
	}
	list->elements[list->length++].ptr_value = datum;
	return list;
}

/* Targets pass the list itself. */
List *
untransformRelOptions(Datum options)
{
	return (List *) DatumGetPointer(options);
}

char *
defGetString(DefElem *def)
{
	return (char *) def->arg;
}

/* Only its order of nearness counts, and that it reads what it is given. */
int
varstr_levenshtein_less_equal(const char *source, int slen, const char *target, int tlen,
							  int ins_c, int del_c, int sub_c, int max_d, bool trusted)
{
	int			d = abs(slen - tlen);

	for (int i = 0; i < Min(slen, tlen); i++)
		d += source[i] != target[i];
	return d;
}

/* --- the server -------------------------------------------------------------------- */

bool		shim_superuser = false;
int			shim_encoding = PG_UTF8;
bool		IsBinaryUpgrade = false;
const char *debug_query_string = NULL;
char	   *outbox_traceparent = NULL;
char	   *outbox_tracestate = NULL;

bool
superuser(void)
{
	return shim_superuser;
}

int
GetDatabaseEncoding(void)
{
	return shim_encoding;
}

bool
pg_verify_mbstr(int encoding, const char *mbstr, int len, bool noError)
{
	return pg_encoding_verifymbstr(encoding, mbstr, len) == len;
}

char *
pg_server_to_any(const char *s, int len, int encoding)
{
	return unconstify(char *, s);
}

char *
pg_any_to_server(const char *s, int len, int encoding)
{
	return unconstify(char *, s);
}

void	  **
find_rendezvous_variable(const char *varName)
{
	static void *variable = &variable;

	return &variable;
}

TimeLineID
GetWALInsertionTimeLine(void)
{
	return 3;
}

XLogRecPtr
GetXLogInsertRecPtr(void)
{
	return UINT64CONST(0x500000000);
}

List *
readTimeLineHistory(TimeLineID targetTLI)
{
	static TimeLineHistoryEntry entries[3] = {
		{3, UINT64CONST(0x200000000), InvalidXLogRecPtr},
		{2, UINT64CONST(0x100000000), UINT64CONST(0x200000000)},
		{1, 0, UINT64CONST(0x100000000)}
	};
	List	   *list = NIL;

	for (int i = 0; i < 3; i++)
		list = lappend(list, &entries[i]);
	return list;
}

FullTransactionId
ReadNextFullTransactionId(void)
{
	return FullTransactionIdFromU64(UINT64CONST(0x500000000));
}

/* --- words ---------------------------------------------------------------------------- */

/* As in bool.c: any unambiguous beginning. */
bool
parse_bool(const char *value, bool *result)
{
	static const struct
	{
		const char *word;
		int			least;
		bool		value;
	}			words[] = {
		{"true", 1, true}, {"false", 1, false}, {"yes", 1, true}, {"no", 1, false},
		{"on", 2, true}, {"off", 2, false}, {"1", 1, true}, {"0", 1, false}
	};
	int			len = strlen(value);

	for (int i = 0; i < (int) lengthof(words); i++)
	{
		if (len >= words[i].least && len <= (int) strlen(words[i].word) &&
			pg_strncasecmp(value, words[i].word, len) == 0)
		{
			*result = words[i].value;
			return true;
		}
	}
	return false;
}

/* Fields between white space; enough of datetime.c for intervals with units. */
int
ParseDateTime(const char *timestr, char *workbuf, size_t buflen,
			  char **field, int *ftype, int maxfields, int *numfields)
{
	char	   *next;

	if (strlen(timestr) >= buflen)
		return DTERR_BAD_FORMAT;
	strcpy(workbuf, timestr);
	*numfields = 0;
	for (char *f = strtok_r(workbuf, " \t\n\r", &next); f != NULL; f = strtok_r(NULL, " \t\n\r", &next))
	{
		if (*numfields >= maxfields)
			return DTERR_BAD_FORMAT;
		ftype[*numfields] = DTK_STRING;
		field[(*numfields)++] = f;
	}
	return 0;
}

__int128	shim_interval_ms;

static bool
add(int *to, int64 value)
{
	int64		sum = *to + value;

	*to = (int) sum;
	return sum >= PG_INT32_MIN && sum <= PG_INT32_MAX;
}

/* Numbers and units by turns.  The fields are as wide as PostgreSQL's. */
int
DecodeInterval(char **field, int *ftype, int nf, int range, int *dtype, struct pg_itm_in *itm)
{
	memset(itm, 0, sizeof(*itm));
	*dtype = DTK_DELTA;
	shim_interval_ms = 0;
	if (nf == 0 || nf % 2 != 0)
		return DTERR_BAD_FORMAT;
	for (int i = 0; i < nf; i += 2)
	{
		char	   *end;
		int64		n = strtoi64(field[i], &end, 10);
		bool		fits = true;
		int64		usec = 0;

		if (*end != '\0' || end == field[i])
			return DTERR_BAD_FORMAT;
		if (n > PG_INT32_MAX || n < PG_INT32_MIN)
			return DTERR_FIELD_OVERFLOW;
		if (strcmp(field[i + 1], "us") == 0)
			usec = n;
		else if (strcmp(field[i + 1], "ms") == 0)
			usec = n * 1000;
		else if (strcmp(field[i + 1], "s") == 0)
			usec = n * USECS_PER_SEC;
		else if (strcmp(field[i + 1], "min") == 0)
			usec = n * USECS_PER_MINUTE;
		else if (strcmp(field[i + 1], "h") == 0)
			fits = !pg_mul_s64_overflow(n, USECS_PER_HOUR, &usec);
		else if (strcmp(field[i + 1], "d") == 0)
			fits = add(&itm->tm_mday, n);
		else if (strcmp(field[i + 1], "mon") == 0)
			fits = add(&itm->tm_mon, n);
		else if (strcmp(field[i + 1], "y") == 0)
			fits = add(&itm->tm_year, n);
		else
			return DTERR_BAD_FORMAT;
		if (!fits || pg_add_s64_overflow(itm->tm_usec, usec, &itm->tm_usec))
			return DTERR_FIELD_OVERFLOW;
	}
	shim_interval_ms = itm->tm_usec / 1000 +
		((__int128) itm->tm_mday + ((__int128) itm->tm_mon + (__int128) itm->tm_year * 12) * 30) *
		SECS_PER_DAY * 1000;
	return 0;
}
