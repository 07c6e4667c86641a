/*-------------------------------------------------------------------------
 *
 * rabbit_order.c
 *	  Lists of records, and the order of a key.
 *
 * A record that is refused (nack) or returned was overtaken by what came
 * behind it: the broker goes on with the next one.  So of a key one record at
 * a time is on its way.  Others of the same topic and key follow it here, and
 * the first of them takes its place when it is settled.  Records without a
 * key have no order to keep.
 *
 * The holder of a key is its entry in the hash table, and has the list of its
 * followers: nothing is allocated for a key.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdlib.h>
#include <string.h>

#define MIN_BUCKETS	256

void
rabbit_list_append(RabbitList *list, RabbitRecord *record)
{
	record->next = NULL;
	if (list->first == NULL)
		list->first = record;
	else
		list->last->next = record;
	list->last = record;
}

void
rabbit_list_prepend(RabbitList *list, RabbitRecord *record)
{
	record->next = list->first;
	if (list->first == NULL)
		list->last = record;
	list->first = record;
}

/* Append all of another list, which is empty afterwards. */
void
rabbit_list_splice(RabbitList *list, RabbitList *tail)
{
	if (tail->first == NULL)
		return;
	if (list->first == NULL)
		list->first = tail->first;
	else
		list->last->next = tail->first;
	list->last = tail->last;
	tail->first = tail->last = NULL;
}

/* The first one, or NULL. */
RabbitRecord *
rabbit_list_take(RabbitList *list)
{
	RabbitRecord *record = list->first;

	if (record != NULL)
	{
		list->first = record->next;
		if (list->first == NULL)
			list->last = NULL;
		record->next = NULL;
	}
	return record;
}

/* FNV-1a; a topic's address stands for its name. */
static uint64_t
key_hash(const RabbitRecord *record)
{
	uint64_t	hash = 14695981039346656037u ^ ((uintptr_t) record->topic >> 4);

	for (size_t i = 0; i < record->key_len; i++)
		hash = (hash ^ (unsigned char) record->key[i]) * 1099511628211u;
	return hash ^ hash >> 32;
}

static bool
same_key(const RabbitRecord *a, const RabbitRecord *b)
{
	return a->hash == b->hash && a->topic == b->topic && a->key_len == b->key_len &&
		memcmp(a->key, b->key, a->key_len) == 0;
}

/* False when there is no memory; then the table is just fuller. */
static bool
grow(RabbitKeys *keys)
{
	size_t		n = keys->nbuckets == 0 ? MIN_BUCKETS : keys->nbuckets * 2;
	RabbitRecord **buckets = calloc(n, sizeof(RabbitRecord *));

	if (buckets == NULL)
		return false;
	for (size_t i = 0; i < keys->nbuckets; i++)
	{
		RabbitRecord *record = keys->buckets[i];

		while (record != NULL)
		{
			RabbitRecord *next = record->hash_next;

			record->hash_next = buckets[record->hash & (n - 1)];
			buckets[record->hash & (n - 1)] = record;
			record = next;
		}
	}
	free(keys->buckets);
	keys->buckets = buckets;
	keys->nbuckets = n;
	return true;
}

bool
rabbit_keys_init(RabbitKeys *keys)
{
	return grow(keys);
}

void
rabbit_keys_free(RabbitKeys *keys)
{
	free(keys->buckets);
}

/* May this record go?  Else it follows the one that does. */
bool
rabbit_key_enter(RabbitKeys *keys, RabbitRecord *record)
{
	RabbitRecord *holder;

	if (record->key == NULL || record->holds_key)
		return true;
	if (keys->n >= keys->nbuckets)
		(void) grow(keys);
	record->hash = key_hash(record);
	for (holder = keys->buckets[record->hash & (keys->nbuckets - 1)];
		 holder != NULL; holder = holder->hash_next)
	{
		if (same_key(holder, record))
		{
			rabbit_list_append(&holder->followers, record);
			return false;
		}
	}
	record->hash_next = keys->buckets[record->hash & (keys->nbuckets - 1)];
	keys->buckets[record->hash & (keys->nbuckets - 1)] = record;
	record->holds_key = true;
	keys->n++;
	return true;
}

/* A record is settled: the one that may go next, or NULL. */
RabbitRecord *
rabbit_key_leave(RabbitKeys *keys, RabbitRecord *record)
{
	RabbitRecord **link;
	RabbitRecord *heir;

	if (!record->holds_key)
		return NULL;
	link = &keys->buckets[record->hash & (keys->nbuckets - 1)];
	while (*link != record)
		link = &(*link)->hash_next;
	record->holds_key = false;
	heir = rabbit_list_take(&record->followers);
	if (heir == NULL)
	{
		*link = record->hash_next;
		keys->n--;
		return NULL;
	}
	heir->hash = record->hash;
	heir->hash_next = record->hash_next;
	heir->followers = record->followers;
	heir->holds_key = true;
	record->followers.first = record->followers.last = NULL;
	*link = heir;
	return heir;
}
