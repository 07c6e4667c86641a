/*-------------------------------------------------------------------------
 *
 * kafka_sent.c
 *	  What a record takes along, and its headers, used again.
 *
 * A record's headers are a list that the library owns from produce() to the
 * delivery report, made of small pieces of memory.  Made for each record and freed
 * with it, they were a third of what a drain cost the relay's thread: they are
 * far from its caches when they come back, and as the pieces are freed in the order
 * in which they were made, all neighbours are joined to large blocks and split again.
 * So memory of records on their way is touched as little as may be, and asked for
 * some records ahead.
 *
 * Now most records of an application have headers of the same names and lengths: a
 * message id, a trace's.  Such a list is taken off the record when it is reported,
 * and kept; the next record of its shape writes its values over those that are in
 * there, and nothing else of it is touched.  That is in order: the library copies a
 * header when it is added, so the memory is the list's own, and a list that was
 * detached is ours; it keeps nothing of a value but its length, which stays.
 *
 * A few shapes are known at a time.  A record of another one has its list made and
 * freed, until so many came that its shape takes the place of one that is known.
 * No more lists are kept than there are records in flight, and some: so memory
 * goes back after a backlog.  What goes with a record itself is small, is cut from
 * blocks, and stays until the client is closed, since not every record is reported
 * by then.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "kafka.h"

#include <stdlib.h>
#include <string.h>

#define SPARE_LISTS			1000	/* some 200 kB */
#define STRANGERS			1000	/* records of no known shape before one is forgotten */
#define BLOCK_ITEMS			128

struct KafkaSentBlock
{
	struct KafkaSentBlock *next;
	max_align_t items[];
};

static bool
has_shape(const KafkaShape *shape, const OutboxRecord *record)
{
	const char *name = shape->names;

	if (record->nheaders != shape->nheaders)
		return false;
	for (int i = 0; i < record->nheaders; i++)
	{
		const OutboxHeader *header = &record->headers[i];

		if (header->value == NULL || header->value_len != shape->lens[i] ||
			strcmp(header->name, name) != 0)
			return false;
		name += strlen(name) + 1;
	}
	return true;
}

/* Are a record's headers few and small enough to keep some lists of them? */
static bool
may_be_kept(const OutboxRecord *record)
{
	size_t		names = 0;
	size_t		values = 0;

	if (record->nheaders == 0 || record->nheaders > KAFKA_SHAPE_HEADERS)
		return false;
	for (int i = 0; i < record->nheaders; i++)
	{
		if (record->headers[i].value == NULL)
			return false;
		names += strlen(record->headers[i].name) + 1;
		values += record->headers[i].value_len;
	}
	return names <= KAFKA_SHAPE_NAMES && values <= KAFKA_SHAPE_VALUES;
}

/* One without a list; NULL: no memory. */
static KafkaSent *
take_bare(OutboxClient *client, int nvalues)
{
	size_t		size = sizeof(KafkaSent) + nvalues * sizeof(char *);
	KafkaSent  *sent = client->bare[nvalues];
	KafkaSentBlock *block;

	if (sent != NULL)
	{
		client->bare[nvalues] = sent->next;
		return sent;
	}
	block = malloc(sizeof(KafkaSentBlock) + BLOCK_ITEMS * size);
	if (block == NULL)
		return NULL;
	block->next = client->sent_blocks;
	client->sent_blocks = block;
	for (int i = 0; i < BLOCK_ITEMS; i++)
	{
		sent = (KafkaSent *) ((char *) block->items + i * size);
		sent->nvalues = nvalues;
		sent->next = client->bare[nvalues];
		client->bare[nvalues] = sent;
	}
	client->bare[nvalues] = sent->next;
	return sent;
}

/* Free its list, and keep the rest for another record. */
static void
strip(OutboxClient *client, KafkaSent *sent)
{
	if (sent->headers != NULL)
		rd_kafka_headers_destroy(sent->headers);
	sent->next = client->bare[sent->nvalues];
	client->bare[sent->nvalues] = sent;
}

/* One with a list of this shape, used before; NULL: there is none. */
static KafkaSent *
take_spare(OutboxClient *client, KafkaShape *shape)
{
	if (shape->nspare == 0)
		return NULL;
	client->nspare--;
	shape->nspare--;
	if (shape->nspare > 2 * KAFKA_PREFETCH)
	{
		const KafkaSent *ahead = shape->spare[shape->nspare - KAFKA_PREFETCH];

		__builtin_prefetch(shape->spare[shape->nspare - 2 * KAFKA_PREFETCH]);
		__builtin_prefetch(ahead->values[0], 1);
		__builtin_prefetch(ahead->headers);
	}
	return shape->spare[shape->nspare];
}

/* Keep one for the next record of its shape; false: no memory. */
static bool
give_spare(OutboxClient *client, KafkaShape *shape, KafkaSent *sent)
{
	if (shape->nspare == shape->max_spare)
	{
		size_t		max = shape->max_spare ? shape->max_spare * 2 : 1024;
		KafkaSent **grown = realloc(shape->spare, max * sizeof(*grown));

		if (grown == NULL)
			return false;
		shape->spare = grown;
		shape->max_spare = max;
	}
	shape->spare[shape->nspare++] = sent;
	client->nspare++;
	return true;
}

/* Make a place a record's shape; the lists of what it was are not used again. */
static void
become(OutboxClient *client, KafkaShape *shape, const OutboxRecord *record)
{
	char	   *name = shape->names;

	while (shape->nspare > 0)
		strip(client, take_spare(client, shape));
	shape->version++;
	shape->nheaders = record->nheaders;
	for (int i = 0; i < record->nheaders; i++)
	{
		shape->lens[i] = record->headers[i].value_len;
		name = stpcpy(name, record->headers[i].name) + 1;
	}
}

/* NULL: the record's shape is none that is known. */
static KafkaShape *
shape_of(OutboxClient *client, const OutboxRecord *record)
{
	KafkaShape *shape;

	if (record->nheaders == 0)
		return NULL;
	for (int i = 0; i < KAFKA_SHAPES; i++)
		if (has_shape(&client->shapes[i], record))
			return &client->shapes[i];
	if (!may_be_kept(record))
		return NULL;
	shape = &client->shapes[client->next_shape];
	if (shape->nheaders > 0 && ++client->strangers < STRANGERS)
		return NULL;
	client->strangers = 0;
	client->next_shape = (client->next_shape + 1) % KAFKA_SHAPES;
	become(client, shape, record);
	return shape;
}

/* Note where the list has its values; false when that can't be told. */
static bool
find_values(KafkaSent *sent, const KafkaShape *shape)
{
	for (int i = 0; i < shape->nheaders; i++)
	{
		const char *name;
		const void *value;
		size_t		size;

		if (rd_kafka_header_get_all(sent->headers, i, &name, &value, &size) !=
			RD_KAFKA_RESP_ERR_NO_ERROR || size != shape->lens[i])
			return false;
		sent->values[i] = (char *) value;
	}
	return true;
}

/* NULL: no memory. */
static KafkaSent *
sent_new(OutboxClient *client, KafkaShape *shape, const OutboxRecord *record)
{
	KafkaSent  *sent = take_bare(client, shape != NULL ? shape->nheaders : 0);

	if (sent == NULL)
		return NULL;
	sent->headers = NULL;
	sent->shape = NULL;
	if (record->nheaders > 0)
		sent->headers = rd_kafka_headers_new(record->nheaders);
	for (int i = 0; i < record->nheaders; i++)
	{
		const OutboxHeader *header = &record->headers[i];

		rd_kafka_header_add(sent->headers, header->name, -1, header->value,
							(ssize_t) header->value_len);
	}
	if (shape != NULL && find_values(sent, shape))
	{
		sent->shape = shape;
		sent->version = shape->version;
	}
	return sent;
}

/* For a record that is about to be handed to the library; NULL: no memory. */
KafkaSent *
kafka_sent_make(OutboxClient *client, const OutboxRecord *record)
{
	KafkaShape *shape = shape_of(client, record);
	KafkaSent  *sent = shape != NULL ? take_spare(client, shape) : NULL;

	if (sent == NULL)
		sent = sent_new(client, shape, record);
	else
		for (int i = 0; i < shape->nheaders; i++)
			memcpy(sent->values[i], record->headers[i].value, shape->lens[i]);
	if (sent == NULL)
		return NULL;
	sent->tag = record->tag;
	sent->timestamp_ms = record->timestamp_ms;
	sent->place = -1;
	sent->later = NULL;
	atomic_store_explicit(&sent->assigned, -1, memory_order_relaxed);
	return sent;
}

rd_kafka_headers_t *
kafka_sent_headers(const KafkaSent *sent)
{
	return sent->headers;
}

/* The library did not take the record. */
void
kafka_sent_refused(OutboxClient *client, KafkaSent *sent)
{
	strip(client, sent);
}

/*
 * Of a record that is reported, and which the library is about to free: its headers
 * are ours again.  (The callback's message is const for all of the library's users.)
 */
KafkaSent *
kafka_sent_detach(const rd_kafka_message_t *message)
{
	rd_kafka_headers_t *headers;

	(void) rd_kafka_message_detach_headers((rd_kafka_message_t *) message, &headers);
	return message->_private;
}

/*
 * Take back what records had along that kafka_sent_detach() was called for; each
 * report has the record's tag then.
 */
void
kafka_sent_back(OutboxClient *client, OutboxReport *reports, size_t n)
{
	for (size_t i = 0; i < n; i++)
	{
		KafkaSent  *sent = reports[i].tag;
		KafkaShape *shape = sent->shape;

		if (i + KAFKA_PREFETCH < n)
			__builtin_prefetch(reports[i + KAFKA_PREFETCH].tag, 1);
		reports[i].tag = sent->tag;
		if (shape == NULL || sent->version != shape->version ||
			!give_spare(client, shape, sent))
			strip(client, sent);
	}
	/* those that will hardly be needed */
	for (int i = 0; i < KAFKA_SHAPES; i++)
		while (client->shapes[i].nspare > 0 &&
			   client->nspare > client->accepted + SPARE_LISTS)
			strip(client, take_spare(client, &client->shapes[i]));
}

/* At close, when the library is gone. */
void
kafka_sent_free(OutboxClient *client)
{
	KafkaSentBlock *block = client->sent_blocks;

	for (int i = 0; i < KAFKA_SHAPES; i++)
	{
		KafkaShape *shape = &client->shapes[i];

		while (shape->nspare > 0)
			strip(client, take_spare(client, shape));
		free(shape->spare);
	}
	while (block != NULL)
	{
		KafkaSentBlock *next = block->next;

		free(block);
		block = next;
	}
}
