/*-------------------------------------------------------------------------
 *
 * jet_order.c
 *	  Lists of records, and the order of a key while others write to the
 *	  stream.
 *
 * Then nothing but one record of a key is on its way at a time: should it be
 * refused, none has passed it.  The record that is holds the key: it is in a
 * hash table, with a list of those that follow it.  Holders stay what they are
 * when the others are gone; there are no new ones then.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdlib.h>
#include <string.h>

#define MIN_BUCKETS	256

void
jet_list_append(JetList *list, JetRecord *record)
{
	record->next = NULL;
	if (list->first == NULL)
		list->first = record;
	else
		list->last->next = record;
	list->last = record;
}

void
jet_list_prepend(JetList *list, JetRecord *record)
{
	record->next = list->first;
	if (list->first == NULL)
		list->last = record;
	list->first = record;
}

/* Append all of another list, which is empty afterwards. */
void
jet_list_splice(JetList *list, JetList *tail)
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
JetRecord *
jet_list_take(JetList *list)
{
	JetRecord  *record = list->first;

	if (record == NULL)
		return NULL;
	list->first = record->next;
	if (list->first == NULL)
		list->last = NULL;
	record->next = NULL;
	return record;
}

/* FNV-1a; a topic's address stands for its name. */
static uint64_t
key_hash(const JetRecord *record)
{
	uint64_t	hash = 14695981039346656037u ^ ((uintptr_t) record->topic >> 4);

	for (size_t i = 0; i < record->data.key_len; i++)
		hash = (hash ^ (unsigned char) record->data.key[i]) * 1099511628211u;
	return hash ^ hash >> 32;
}

static bool
same_key(const JetRecord *a, const JetRecord *b)
{
	return a->hash == b->hash && a->topic == b->topic && a->data.key_len == b->data.key_len &&
		memcmp(a->data.key, b->data.key, a->data.key_len) == 0;
}

static JetRecord **
bucket_of(JetKeys *keys, uint64_t hash)
{
	return &keys->buckets[hash & (keys->nbuckets - 1)];
}

/* False when there is no memory; a table that is there is just fuller then. */
static bool
grow(JetKeys *keys)
{
	JetKeys		bigger = {.nbuckets = keys->nbuckets == 0 ? MIN_BUCKETS : keys->nbuckets * 2,
	.n = keys->n};

	bigger.buckets = calloc(bigger.nbuckets, sizeof(JetRecord *));
	if (bigger.buckets == NULL)
		return false;
	for (size_t i = 0; i < keys->nbuckets; i++)
	{
		for (JetRecord *record = keys->buckets[i], *next; record != NULL; record = next)
		{
			JetRecord **bucket = bucket_of(&bigger, record->hash);

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
jet_keys_init(JetKeys *keys)
{
	return grow(keys);
}

void
jet_keys_free(JetKeys *keys)
{
	free(keys->buckets);
}

/*
 * May this record go?  Else it follows the one that holds its key.  With "hold"
 * it holds that from now on.
 */
bool
jet_key_enter(JetKeys *keys, JetRecord *record, bool hold)
{
	JetRecord **bucket;

	if (record->data.key == NULL || record->holds_key || (!hold && keys->n == 0))
		return true;
	if (keys->n >= keys->nbuckets)
		(void) grow(keys);
	record->hash = key_hash(record);
	bucket = bucket_of(keys, record->hash);
	for (JetRecord *holder = *bucket; holder != NULL; holder = holder->hash_next)
	{
		if (same_key(holder, record))
		{
			jet_list_append(&holder->followers, record);
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
JetRecord *
jet_key_leave(JetKeys *keys, JetRecord *record)
{
	JetRecord **link;
	JetRecord  *heir;

	if (!record->holds_key)
		return NULL;
	record->holds_key = false;
	link = bucket_of(keys, record->hash);
	while (*link != record)
		link = &(*link)->hash_next;
	heir = jet_list_take(&record->followers);
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
