/*
 * jsonb to text: a JSON text.  The same as a printer that goes character by character.
 */
#include "fuzz.h"

#include "json_text.h"

void
fuzz_one(Fuzz *in)
{
	Jsonb	   *jsonb = shim_jsonb_in(fuzz_rest(in));
	StringInfoData buf;

	if (jsonb == NULL)
		return;
	initStringInfo(&buf);
	appendStringInfoString(&buf, "before ");
	outbox_json_text(&buf, jsonb);
	REQUIRE(strcmp(buf.data, psprintf("before %s", shim_jsonb_out(jsonb))) == 0);
	REQUIRE(buf.len == (int) strlen(buf.data) && buf.len < buf.maxlen);
}
