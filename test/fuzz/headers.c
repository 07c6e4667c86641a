/*
 * Headers: a byte that chooses, then wire form as stored, or the JSON text of a caller's.
 */
#include "fuzz.h"

#include "message.h"

static StringInfoData wire;

static void
from_jsonb(void *arg)
{
	outbox_headers_from_jsonb(&wire, arg);
}

/* Whatever is stored: nothing outside is read, and what is read is whole. */
static void
step_through(const char *headers, int len)
{
	StringInfoData again;
	int			pos = 0;
	const char *name;
	const char *value;
	int			name_len;
	int			value_len;

	initStringInfo(&again);
	while (outbox_headers_next(headers, len, &pos, &name, &name_len, &value, &value_len))
	{
		REQUIRE(name_len >= 0 && name >= headers && name + name_len < headers + len);
		REQUIRE(value_len >= 0 && value > name && value + value_len < headers + len);
		REQUIRE(name[name_len] == '\0' && value[value_len] == '\0');
		outbox_headers_append(&again, name, name_len, value, value_len);
		REQUIRE(again.len == pos && memcmp(again.data, headers, pos) == 0);
	}
	REQUIRE(pos <= len);
}

/* A caller's: into wire form, and out again as pairs. */
static void
to_and_fro(Jsonb *jsonb)
{
	char	   *before = shim_jsonb_out(jsonb);
	char	   *after;
	int			n = 0;
	int			pos = 0;
	const char *name;
	const char *value;
	int			name_len;
	int			value_len;

	initStringInfo(&wire);
	if (fuzz_raises(from_jsonb, jsonb))
	{
		REQUIRE(fuzz_raised.sqlerrcode == ERRCODE_INVALID_PARAMETER_VALUE);
		return;
	}
	step_through(wire.data, wire.len);
	while (outbox_headers_next(wire.data, wire.len, &pos, &name, &name_len, &value, &value_len))
	{
		REQUIRE(name_len > 0 && pg_strcasecmp(name, "message-id") != 0);
		n++;
	}
	REQUIRE(pos == wire.len);

	after = shim_jsonb_out(outbox_headers_to_jsonb(wire.data, wire.len));
	if (before[0] == '[')
		REQUIRE(strcmp(before, after) == 0);
	else
	{
		/* an object's come as pairs, and pairs once more as they are */
		Jsonb	   *pairs = shim_jsonb_in(after);

		REQUIRE(before[0] == '{' && pairs != NULL);
		REQUIRE(strcmp(before, "{}") != 0 || n == 0);
		initStringInfo(&wire);
		REQUIRE(!fuzz_raises(from_jsonb, pairs));
		REQUIRE(strcmp(shim_jsonb_out(outbox_headers_to_jsonb(wire.data, wire.len)), after) == 0);
	}
}

void
fuzz_one(Fuzz *in)
{
	if (fuzz_byte(in) == 'w')
	{
		char	   *copy = palloc(in->size);

		memcpy(copy, in->data, in->size);
		step_through(copy, in->size);
	}
	else
	{
		Jsonb	   *jsonb = shim_jsonb_in(fuzz_rest(in));

		if (jsonb != NULL)
			to_and_fro(jsonb);
	}
}
