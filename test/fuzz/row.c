/*
 * From rows of a segment back to a message: a byte with the number of rows, then each
 * column of each row.
 */
#include "fuzz.h"

#include "access/htup_details.h"
#include "log/merge.h"
#include "log/reader.h"
#include "log/segment.h"
#include "message.h"

#define MAX_ROWS	5

typedef struct Row
{
	Datum		values[OUTBOX_NCOLUMNS];
	bool		nulls[OUTBOX_NCOLUMNS];
} Row;

static Row	rows[MAX_ROWS];
static int	nrows;
static int	at;

/* --- what the server does with tuples: here they are rows of that array ------------ */

static Row *
row_of(HeapTuple tuple)
{
	return (Row *) tuple->t_data;
}

TupleDesc
outbox_segment_desc(void)
{
	return NULL;
}

void
heap_deform_tuple(HeapTuple tuple, TupleDesc tupleDesc, Datum *values, bool *isnull)
{
	memcpy(values, row_of(tuple)->values, sizeof(rows[0].values));
	memcpy(isnull, row_of(tuple)->nulls, sizeof(rows[0].nulls));
}

HeapTuple
heap_copytuple(HeapTuple tuple)
{
	HeapTuple	copy = palloc0(sizeof(HeapTupleData));

	*copy = *tuple;
	return copy;
}

void
heap_freetuple(HeapTuple htup)
{
	pfree(htup);
}

bool
outbox_merge_next_part(OutboxMerge *merge, HeapTuple tuple, OutboxRow *row)
{
	if (++at >= nrows)
		return false;
	tuple->t_data = (HeapTupleHeader) &rows[at];
	return true;
}

void
outbox_batch_release(OutboxBatch *batch)
{
	REQUIRE(!"has a batch");
}

/* --- the input ------------------------------------------------------------------------ */

/* A bytea with a short or a long header, as both occur in tuples. */
static Datum
make_bytea(Fuzz *in)
{
	int			len = fuzz_byte(in) % 64;
	bool		is_short = fuzz_byte(in) % 2 == 0;
	char	   *v = palloc0(len + (is_short ? VARHDRSZ_SHORT : VARHDRSZ));

	if (is_short)
		SET_VARSIZE_SHORT(v, len + VARHDRSZ_SHORT);
	else
		SET_VARSIZE(v, len + VARHDRSZ);
	for (int i = 0; i < len; i++)
		VARDATA_ANY(v)[i] = (char) fuzz_byte(in);
	return PointerGetDatum(v);
}

static void
make_row(Fuzz *in, int n)
{
	Row		   *row = &rows[n];
	int			null_bits = fuzz_byte(in) << 8 | fuzz_byte(in);

	for (int c = 0; c < OUTBOX_NCOLUMNS; c++)
	{
		row->nulls[c] = false;
		if (c + 1 >= OUTBOX_COL_TOPIC)
		{
			row->nulls[c] = null_bits >> (c + 1 - OUTBOX_COL_TOPIC) & 1;
			row->values[c] = row->nulls[c] ? 0 : make_bytea(in);
		}
		else
			row->values[c] = fuzz_byte(in);
	}
	row->nulls[OUTBOX_COL_PARTITION - 1] = null_bits >> 8 & 1;
	/* the first row of each message has a topic, and says how many there are */
	if (n == 0 && row->nulls[OUTBOX_COL_TOPIC - 1])
	{
		row->nulls[OUTBOX_COL_TOPIC - 1] = false;
		row->values[OUTBOX_COL_TOPIC - 1] = make_bytea(in);
	}
	row->nulls[OUTBOX_COL_PARTS - 1] = nrows == 1;
}

static bool
want(void *arg, const char *topic, int topic_len, const char *target, uint64 id)
{
	Datum		expected = rows[0].values[OUTBOX_COL_TOPIC - 1];

	REQUIRE(topic_len == (int) VARSIZE_ANY_EXHDR(expected) &&
			memcmp(topic, VARDATA_ANY(expected), topic_len) == 0);
	REQUIRE((target == NULL) == rows[0].nulls[OUTBOX_COL_TARGET - 1]);
	REQUIRE(target == NULL || strlen(target) < NAMEDATALEN);
	return *(bool *) arg;
}

/* A field must be the pieces of all rows, one behind the other, and a NUL. */
static void
check_field(OutboxColumn column, int n, const char *data, int len)
{
	int			used = 0;
	bool		present = false;

	for (int i = 0; i < n; i++)
	{
		Datum		v = rows[i].values[column - 1];
		int			piece;

		if (rows[i].nulls[column - 1])
			continue;
		present = true;
		piece = VARSIZE_ANY_EXHDR(v);
		REQUIRE(used + piece <= len && memcmp(data + used, VARDATA_ANY(v), piece) == 0);
		used += piece;
	}
	REQUIRE(present == (data != NULL) && used == len && (data == NULL || data[len] == '\0'));
}

void
fuzz_one(Fuzz *in)
{
	int			shape = fuzz_byte(in);
	bool		wanted = shape & 0x80 ? false : true;
	Size		room = (shape >> 4 & 7) * MAXIMUM_ALIGNOF;
	HeapTupleData tuple = {0};
	OutboxRow	row = {0};
	OutboxMessage *m;

	nrows = 1 + (shape & 15) % MAX_ROWS;
	at = 0;
	for (int i = 0; i < nrows; i++)
		make_row(in, i);
	row.id = fuzz_u64(in);
	row.xid = fuzz_u64(in);
	tuple.t_data = (HeapTupleHeader) &rows[0];

	m = outbox_message_read(NULL, &tuple, &row, NULL, room, want, &wanted);
	REQUIRE((m != NULL) == wanted);
	if (m == NULL)
		return;
	REQUIRE(m->id == row.id && m->xid == row.xid && m->batch == NULL && m->room == room);
	REQUIRE(m->partition == (rows[0].nulls[OUTBOX_COL_PARTITION - 1] ? -1 :
							 (int32) rows[0].values[OUTBOX_COL_PARTITION - 1]));
	check_field(OUTBOX_COL_TOPIC, 1, m->topic, m->topic_len);
	check_field(OUTBOX_COL_KEY, nrows, m->key, m->key_len);
	check_field(OUTBOX_COL_HEADERS, nrows, m->headers, m->headers_len);
	check_field(OUTBOX_COL_PAYLOAD, nrows, m->payload, m->payload_len);
	REQUIRE((m->message_id == NULL) == rows[0].nulls[OUTBOX_COL_MESSAGE_ID - 1]);
	REQUIRE(m->damaged == (nrows > 1 && (int32) rows[0].values[OUTBOX_COL_PARTS - 1] != nrows));
	outbox_message_free(m);
}
