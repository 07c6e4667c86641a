/*-------------------------------------------------------------------------
 *
 * key_order.h
 *	  One record of a key at a time: a template, as list.h.
 *
 * Where a broker may refuse a record and take the one behind it, of a key one
 * record at a time is on its way.  It holds the key: it is in a hash table,
 * with the list of those that follow it, and the first of them takes its
 * place when it is done with.  Records without a key have no order to keep.
 * Nothing is allocated for a key.
 *
 *	ORDER_PREFIX		of the functions: jet makes jet_key_enter()
 *	ORDER_KEYS			the table's type
 *	ORDER_RECORD		the records' type, also the tag of its struct, with the
 *						members topic, hash, hash_next, holds_key, followers
 *						(a list of list.h with the functions jet_list_append()
 *						and so on)
 *	ORDER_KEY(r), ORDER_KEY_LEN(r)	a record's key; NULL: none
 *	ORDER_DECLARE, ORDER_DEFINE
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#define ORDER_PASTE(a, b)	a##_##b
#define ORDER_NAME_(a, b)	ORDER_PASTE(a, b)
#define ORDER_NAME(name)	ORDER_NAME_(ORDER_PREFIX, name)
#define ORDER_LIST_NAME(name)	ORDER_NAME(list_##name)

#ifdef ORDER_DECLARE

typedef struct ORDER_KEYS
{
	struct ORDER_RECORD **buckets;
	size_t		nbuckets;		/* a power of two */
	size_t		n;
} ORDER_KEYS;

extern bool ORDER_NAME(keys_init) (ORDER_KEYS *keys);
extern void ORDER_NAME(keys_free) (ORDER_KEYS *keys);
extern bool ORDER_NAME(key_enter) (ORDER_KEYS *keys, struct ORDER_RECORD *record, bool hold);
extern struct ORDER_RECORD *ORDER_NAME(key_leave) (ORDER_KEYS *keys, struct ORDER_RECORD *record);

#endif

#ifdef ORDER_DEFINE

#define MIN_BUCKETS	256

/* FNV-1a; a topic's address stands for its name. */
static uint64_t
key_hash(const ORDER_RECORD *record)
{
	uint64_t	hash = 14695981039346656037u ^ ((uintptr_t) record->topic >> 4);

	for (size_t i = 0; i < ORDER_KEY_LEN(record); i++)
		hash = (hash ^ (unsigned char) ORDER_KEY(record)[i]) * 1099511628211u;
	return hash ^ hash >> 32;
}

static bool
same_key(const ORDER_RECORD *a, const ORDER_RECORD *b)
{
	return a->hash == b->hash && a->topic == b->topic &&
		ORDER_KEY_LEN(a) == ORDER_KEY_LEN(b) &&
		memcmp(ORDER_KEY(a), ORDER_KEY(b), ORDER_KEY_LEN(a)) == 0;
}

static ORDER_RECORD **
bucket_of(const ORDER_KEYS *keys, uint64_t hash)
{
	return &keys->buckets[hash & (keys->nbuckets - 1)];
}

/* False when there is no memory; a table that is there is just fuller then. */
static bool
grow(ORDER_KEYS *keys)
{
	ORDER_KEYS	bigger = {.nbuckets = keys->nbuckets == 0 ? MIN_BUCKETS : keys->nbuckets * 2,
	.n = keys->n};

	bigger.buckets = calloc(bigger.nbuckets, sizeof(ORDER_RECORD *));
	if (bigger.buckets == NULL)
		return false;
	for (size_t i = 0; i < keys->nbuckets; i++)
	{
		for (ORDER_RECORD *record = keys->buckets[i], *next; record != NULL; record = next)
		{
			ORDER_RECORD **bucket = bucket_of(&bigger, record->hash);

			next = record->hash_next;
			record->hash_next = *bucket;
			*bucket = record;
		}
	}
	free(keys->buckets);
	*keys = bigger;
	return true;
}

bool
ORDER_NAME(keys_init) (ORDER_KEYS *keys)
{
	return grow(keys);
}

void
ORDER_NAME(keys_free) (ORDER_KEYS *keys)
{
	free(keys->buckets);
}

/*
 * May this record go?  Else it follows the one that holds its key.  With "hold"
 * it holds that from now on.
 */
bool
ORDER_NAME(key_enter) (ORDER_KEYS *keys, ORDER_RECORD *record, bool hold)
{
	ORDER_RECORD **bucket;

	if (ORDER_KEY(record) == NULL || record->holds_key || (!hold && keys->n == 0))
		return true;
	if (keys->n >= keys->nbuckets)
		(void) grow(keys);
	record->hash = key_hash(record);
	bucket = bucket_of(keys, record->hash);
	for (ORDER_RECORD *holder = *bucket; holder != NULL; holder = holder->hash_next)
	{
		if (same_key(holder, record))
		{
			ORDER_LIST_NAME(append) (&holder->followers, record);
			return false;
		}
	}
	if (hold)
	{
		record->hash_next = *bucket;
		*bucket = record;
		record->holds_key = true;
		keys->n++;
	}
	return true;
}

/* A record is done with: the one that holds its key now, or NULL. */
ORDER_RECORD *
ORDER_NAME(key_leave) (ORDER_KEYS *keys, ORDER_RECORD *record)
{
	ORDER_RECORD **link;
	ORDER_RECORD *heir;

	if (!record->holds_key)
		return NULL;
	record->holds_key = false;
	link = bucket_of(keys, record->hash);
	while (*link != record)
		link = &(*link)->hash_next;
	heir = ORDER_LIST_NAME(take) (&record->followers);
	if (heir == NULL)
	{
		*link = record->hash_next;
		keys->n--;
		return NULL;
	}
	heir->holds_key = true;
	heir->hash = record->hash;
	heir->hash_next = record->hash_next;
	heir->followers = record->followers;
	record->followers.first = record->followers.last = NULL;
	*link = heir;
	return heir;
}

#undef MIN_BUCKETS

#endif

#undef ORDER_PASTE
#undef ORDER_NAME_
#undef ORDER_NAME
#undef ORDER_LIST_NAME
#undef ORDER_PREFIX
#undef ORDER_KEYS
#undef ORDER_RECORD
#undef ORDER_KEY
#undef ORDER_KEY_LEN
#undef ORDER_DECLARE
#undef ORDER_DEFINE
