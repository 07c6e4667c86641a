/*
 * jsonb as the sequence of tokens that its iterator gives.  That is all our code sees
 * of it.
 */
#include "fuzz.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

typedef struct Token
{
	JsonbIteratorToken token;
	JsonbValue	value;
} Token;

typedef struct Tokens
{
	int			n;
	int			max;
	Token	   *tokens;
	int			depth;
	int			open[64];		/* where what is open began */
} Tokens;

/* A value's container, and its tokens behind it. */
typedef struct Container
{
	int32		vl_len_;
	uint32		header;			/* of JsonbContainer */
	Tokens	   *tokens;
} Container;

StaticAssertDecl(offsetof(Container, header) == offsetof(Jsonb, root), "same place");

static Tokens *
tokens_of(JsonbContainer *container)
{
	return ((Container *) ((char *) container - offsetof(Container, header)))->tokens;
}

static JsonbValue *
add(Tokens *t, JsonbIteratorToken token, const JsonbValue *value)
{
	if (t->n == t->max)
	{
		t->max = (t->max + 4) * 2;
		t->tokens = t->tokens ? repalloc(t->tokens, t->max * sizeof(Token)) :
			palloc(t->max * sizeof(Token));
	}
	memset(&t->tokens[t->n], 0, sizeof(Token));
	t->tokens[t->n].token = token;
	if (value != NULL)
		t->tokens[t->n].value = *value;
	/* members of the array around it */
	if (t->depth > 0 && (token == WJB_ELEM || token == WJB_BEGIN_ARRAY || token == WJB_BEGIN_OBJECT) &&
		t->tokens[t->open[t->depth - 1]].token == WJB_BEGIN_ARRAY)
		t->tokens[t->open[t->depth - 1]].value.val.array.nElems++;
	if (token == WJB_BEGIN_ARRAY || token == WJB_BEGIN_OBJECT)
	{
		REQUIRE(t->depth < (int) lengthof(t->open));
		t->open[t->depth++] = t->n;
	}
	if (token == WJB_END_ARRAY || token == WJB_END_OBJECT)
		t->depth--;
	return &t->tokens[t->n++].value;
}

static Jsonb *
make(Tokens *t)
{
	Container  *c = palloc0(sizeof(Container));

	SET_VARSIZE(c, sizeof(Container));
	c->tokens = t;
	c->header = t->tokens[0].token == WJB_BEGIN_OBJECT ? JB_FOBJECT : JB_FARRAY;
	if (t->tokens[0].token == WJB_BEGIN_ARRAY && t->tokens[0].value.val.array.rawScalar)
		c->header |= JB_FSCALAR;
	return (Jsonb *) c;
}

JsonbValue *
pushJsonbValue(JsonbParseState **pstate, JsonbIteratorToken seq, JsonbValue *value)
{
	Tokens	   *t = (Tokens *) *pstate;
	JsonbValue *result = palloc0(sizeof(JsonbValue));

	if (t == NULL)
		t = palloc0(sizeof(Tokens));
	add(t, seq, value);
	*pstate = (JsonbParseState *) t;
	result->type = jbvBinary;
	result->val.binary.data = (JsonbContainer *) t;
	return result;
}

Jsonb *
JsonbValueToJsonb(JsonbValue *value)
{
	REQUIRE(value->type == jbvBinary && ((Tokens *) value->val.binary.data)->depth == 0);
	return make((Tokens *) value->val.binary.data);
}

typedef struct Iterator
{
	Tokens	   *tokens;
	int			at;
} Iterator;

JsonbIterator *
JsonbIteratorInit(JsonbContainer *container)
{
	Iterator   *it = palloc0(sizeof(Iterator));

	it->tokens = tokens_of(container);
	return (JsonbIterator *) it;
}

JsonbIteratorToken
JsonbIteratorNext(JsonbIterator **it, JsonbValue *value, bool skipNested)
{
	Iterator   *i = (Iterator *) *it;

	if (i->at >= i->tokens->n)
		return WJB_DONE;
	*value = i->tokens->tokens[i->at].value;
	return i->tokens->tokens[i->at++].token;
}

/* --- numbers: their text, behind a header --------------------------------------- */

Datum
numeric_out(PG_FUNCTION_ARGS)
{
	return CStringGetDatum(pstrdup(VARDATA(PG_GETARG_POINTER(0))));
}

Datum
DirectFunctionCall1Coll(PGFunction func, Oid collation, Datum arg1)
{
	LOCAL_FCINFO(fcinfo, 1);

	fcinfo->args[0].value = arg1;
	fcinfo->args[0].isnull = false;
	return func(fcinfo);
}

/* --- from text ---------------------------------------------------------------------- */

static const char *
skip(const char *p)
{
	return p + strspn(p, " \t\r\n");
}

/* A string's bytes, escapes undone; NULL: broken. */
static const char *
read_string(const char *p, JsonbValue *v)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (p++; *p != '"'; p++)
	{
		unsigned int code;

		if (*p == '\0')
			return NULL;
		if (*p != '\\')
		{
			appendStringInfoCharMacro(&buf, *p);
			continue;
		}
		p++;
		if (*p == 'u')
		{
			if (strspn(p + 1, "0123456789abcdefABCDEF") < 4 || sscanf(p + 1, "%4x", &code) != 1 ||
				code == 0 || code > 0x7f)
				return NULL;
			appendStringInfoCharMacro(&buf, (char) code);
			p += 4;
		}
		else
		{
			const char *at = *p ? strchr("bfnrt\"\\/", *p) : NULL;

			if (at == NULL)
				return NULL;
			appendStringInfoCharMacro(&buf, "\b\f\n\r\t\"\\/"[at - "bfnrt\"\\/"]);
		}
	}
	v->type = jbvString;
	v->val.string.len = buf.len;
	/* no NUL behind it, as in jsonb */
	v->val.string.val = palloc(buf.len);
	memcpy(v->val.string.val, buf.data, buf.len);
	return p + 1;
}

static const char *
read_scalar(const char *p, JsonbValue *v)
{
	size_t		n = strspn(p, "-+.0123456789eE");

	memset(v, 0, sizeof(*v));
	if (*p == '"')
		return read_string(p, v);
	if (strncmp(p, "null", 4) == 0)
		return p + 4;
	v->type = jbvBool;
	v->val.boolean = *p == 't';
	if (strncmp(p, "true", 4) == 0)
		return p + 4;
	if (strncmp(p, "false", 5) == 0)
		return p + 5;
	if (n == 0)
		return NULL;
	v->type = jbvNumeric;
	v->val.numeric = palloc0(VARHDRSZ + n + 1);
	SET_VARSIZE(v->val.numeric, VARHDRSZ + n + 1);
	memcpy(VARDATA(v->val.numeric), p, n);
	return p + n;
}

static const char *
read_value(const char *p, Tokens *t)
{
	JsonbValue	v = {0};
	bool		object = *p == '{';
	char		close = object ? '}' : ']';

	if (*p != '{' && *p != '[')
	{
		p = read_scalar(p, &v);
		if (p != NULL)
			add(t, WJB_ELEM, &v);
		return p;
	}
	if (t->depth >= 20)
		return NULL;
	v.type = object ? jbvObject : jbvArray;
	add(t, object ? WJB_BEGIN_OBJECT : WJB_BEGIN_ARRAY, &v);
	for (p = skip(p + 1); *p != close; p = skip(p + (*p == ',')))
	{
		if (object)
		{
			if (*p != '"' || (p = read_string(p, &v)) == NULL || *(p = skip(p)) != ':')
				return NULL;
			add(t, WJB_KEY, &v);
			p = skip(p + 1);
		}
		p = read_value(p, t);
		if (p == NULL || (*(p = skip(p)) != ',' && *p != close))
			return NULL;
		/* a member's value comes as WJB_VALUE */
		if (object && t->tokens[t->n - 1].token == WJB_ELEM)
			t->tokens[t->n - 1].token = WJB_VALUE;
	}
	add(t, object ? WJB_END_OBJECT : WJB_END_ARRAY, NULL);
	return p + 1;
}

Jsonb *
shim_jsonb_in(const char *text)
{
	Tokens	   *t = palloc0(sizeof(Tokens));
	JsonbValue	v = {0};
	bool		scalar;

	text = skip(text);
	scalar = *text != '{' && *text != '[';
	if (scalar)
	{
		v.type = jbvArray;
		v.val.array.rawScalar = true;
		add(t, WJB_BEGIN_ARRAY, &v);
	}
	text = read_value(text, t);
	if (text == NULL || *skip(text) != '\0')
		return NULL;
	if (scalar)
		add(t, WJB_END_ARRAY, NULL);
	return make(t);
}

/* --- to text: character by character ------------------------------------------------ */

static void
print_scalar(StringInfo buf, const JsonbValue *v)
{
	if (v->type == jbvNull)
		appendStringInfoString(buf, "null");
	else if (v->type == jbvBool)
		appendStringInfoString(buf, v->val.boolean ? "true" : "false");
	else if (v->type == jbvNumeric)
		appendStringInfoString(buf, VARDATA(v->val.numeric));
	else
	{
		appendStringInfoChar(buf, '"');
		for (int i = 0; i < v->val.string.len; i++)
		{
			unsigned char c = v->val.string.val[i];

			switch (c)
			{
				case '\b': appendStringInfoString(buf, "\\b"); break;
				case '\f': appendStringInfoString(buf, "\\f"); break;
				case '\n': appendStringInfoString(buf, "\\n"); break;
				case '\r': appendStringInfoString(buf, "\\r"); break;
				case '\t': appendStringInfoString(buf, "\\t"); break;
				case '"': appendStringInfoString(buf, "\\\""); break;
				case '\\': appendStringInfoString(buf, "\\\\"); break;
				default:
					if (c < ' ')
						appendStringInfo(buf, "\\u%04x", c);
					else
						appendStringInfoChar(buf, c);
			}
		}
		appendStringInfoChar(buf, '"');
	}
}

static int
print_value(StringInfo buf, const Tokens *t, int at)
{
	bool		object = t->tokens[at].token == WJB_BEGIN_OBJECT;
	bool		scalar = !object && t->tokens[at].token == WJB_BEGIN_ARRAY &&
		t->tokens[at].value.val.array.rawScalar;
	bool		first = true;

	if (!object && t->tokens[at].token != WJB_BEGIN_ARRAY)
	{
		print_scalar(buf, &t->tokens[at].value);
		return at + 1;
	}
	if (!scalar)
		appendStringInfoChar(buf, object ? '{' : '[');
	for (at++; t->tokens[at].token != WJB_END_ARRAY && t->tokens[at].token != WJB_END_OBJECT; first = false)
	{
		if (!first)
			appendStringInfoString(buf, ", ");
		if (object)
		{
			print_scalar(buf, &t->tokens[at++].value);
			appendStringInfoString(buf, ": ");
		}
		at = print_value(buf, t, at);
	}
	if (!scalar)
		appendStringInfoChar(buf, object ? '}' : ']');
	return at + 1;
}

char *
shim_jsonb_out(Jsonb *jsonb)
{
	StringInfoData buf;

	initStringInfo(&buf);
	print_value(&buf, tokens_of(&jsonb->root), 0);
	return buf.data;
}
