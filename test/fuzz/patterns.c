/*
 * Topic patterns: a first line with the list, then a topic.
 *
 * A second reading of the list and a second matcher, both as simple as the rules in
 * README, must agree.
 */
#include "fuzz.h"

#include "transport/patterns.h"

typedef struct Item
{
	bool		exclude;
	char	   *text;
} Item;

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The items of a list; false when it is none. */
static bool
read_items(const char *list, Item *items, int *n)
{
	*n = 0;
	for (const char *from = list;; from++)
	{
		const char *to = strchr(from, ',');
		const char *next = to;
		Item	   *item = &items[(*n)++];

		if (to == NULL)
			to = from + strlen(from);
		while (from < to && is_blank(*from))
			from++;
		while (to > from && is_blank(to[-1]))
			to--;
		item->exclude = from < to && *from == '!';
		item->text = pnstrdup(from + item->exclude, to - from - item->exclude);
		if (item->text[0] == '\0' || item->text[0] == '!' ||
			strlen(item->text) > OUTBOX_MAX_PATTERN)
			return false;
		for (const char *c = item->text; *c; c++)
			if ((unsigned char) *c <= ' ' || *c == 0x7f)
				return false;
		if (next == NULL)
			return true;
		from = next;
	}
}

/* can[j]: the pattern read so far matches the first j bytes. */
static bool
matches(const char *pattern, const char *topic, size_t len)
{
	bool	   *can = palloc0(len + 1);

	can[0] = true;
	for (; *pattern; pattern++)
	{
		if (*pattern == '*')
		{
			for (size_t j = 1; j <= len; j++)
				can[j] = can[j] || can[j - 1];
			continue;
		}
		for (size_t j = len; j > 0; j--)
			can[j] = can[j - 1] && topic[j - 1] == *pattern;
		can[0] = false;
	}
	return can[len];
}

void
fuzz_one(Fuzz *in)
{
	char	   *list = fuzz_line(in);
	char	   *topic = fuzz_rest(in);
	size_t		len = strlen(topic);
	Item	   *items = palloc((strlen(list) + 1) * sizeof(Item));
	char	   *bare = palloc(len);
	int			n;
	bool		is_list = read_items(list, items, &n);
	char	   *reason = NULL;
	OutboxPatterns *patterns = outbox_patterns_parse(list, &reason);
	bool		included = false;
	bool		excluded = false;
	bool		all_but = true;

	REQUIRE((patterns != NULL) == is_list);
	if (patterns == NULL)
	{
		REQUIRE(reason != NULL && reason[0] != '\0');
		return;
	}
	REQUIRE(patterns->n == n);
	memcpy(bare, topic, len);	/* a topic need not have a NUL behind it */
	for (int i = 0; i < n; i++)
	{
		bool		hit = matches(items[i].text, topic, len);

		REQUIRE(outbox_glob_match(items[i].text, bare, len) == hit);
		if (items[i].exclude)
			excluded = excluded || hit;
		else
		{
			all_but = false;
			included = included || hit;
		}
	}
	REQUIRE(outbox_patterns_match(patterns, bare, len) == ((included || all_but) && !excluded));
}
