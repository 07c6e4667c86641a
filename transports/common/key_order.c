/*-------------------------------------------------------------------------
 *
 * key_order.c
 *	  One record of a key at a time.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "common/key_order.h"

#include <stdlib.h>
#include <string.h>

#include "common/io_client.h"

#define MIN_BUCKETS	256

/* FNV-1a; a topic's address stands for its name. */
static uint64_t
key_hash(const IoRecord *record)
{
	uint64_t	hash = 14695981039346656037u ^ ((uintptr_t) record->topic >> 4);

	for (size_t i = 0; i < record->data.key_len; i++)
		hash = (hash ^ (unsigned char) record->data.key[i]) * 1099511628211u;
	return hash ^ hash >> 32;
}

static bool
same_key(const IoRecord *a, const IoRecord *b)
{
	return a->hash == b->hash && a->topic == b->topic && a->data.key_len == b->data.key_len &&
		memcmp(a->data.key, b->data.key, a->data.key_len) == 0;
}

static IoRecord **
bucket_of(const IoKeys *keys, uint64_t hash)
{
	return &keys->buckets[hash & (keys->nbuckets - 1)];
}

/* False when there is no memory; a table that is there is just fuller then. */
static bool
grow(IoKeys *keys)
{
	IoKeys		bigger = {.nbuckets = keys->nbuckets == 0 ? MIN_BUCKETS : keys->nbuckets * 2,
	.n = keys->n};

	bigger.buckets = calloc(bigger.nbuckets, sizeof(IoRecord *));
	if (bigger.buckets == NULL)
		return false;
	for (size_t i = 0; i < keys->nbuckets; i++)
	{
		for (IoRecord *record = keys->buckets[i], *next; record != NULL; record = next)
		{
			IoRecord  **bucket = bucket_of(&bigger, record->hash);

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
io_keys_init(IoKeys *keys)
{
	return grow(keys);
}

void
io_keys_free(IoKeys *keys)
{
	free(keys->buckets);
}

bool
io_key_enter(IoKeys *keys, IoRecord *record, bool hold)
{
	IoRecord  **bucket;

	if (record->data.key == NULL || record->holds_key || (!hold && keys->n == 0))
		return true;
	if (keys->n >= keys->nbuckets)
		(void) grow(keys);
	record->hash = key_hash(record);
	bucket = bucket_of(keys, record->hash);
	for (IoRecord *holder = *bucket; holder != NULL; holder = holder->hash_next)
	{
		if (same_key(holder, record))
		{
			io_list_append(&holder->followers, record);
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

IoRecord *
io_key_leave(IoKeys *keys, IoRecord *record)
{
	IoRecord  **link;
	IoRecord   *heir;

	if (!record->holds_key)
		return NULL;
	record->holds_key = false;
	link = bucket_of(keys, record->hash);
	while (*link != record)
		link = &(*link)->hash_next;
	heir = io_list_take(&record->followers);
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
