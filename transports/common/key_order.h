/*-------------------------------------------------------------------------
 *
 * key_order.h
 *	  One record of a key at a time.
 *
 * Where a broker may refuse a record and take the one behind it, of a key one
 * record at a time is on its way.  It holds the key: it is in a hash table,
 * with the list of those that follow it, and the first of them takes its
 * place when it is done with.  Records without a key have no order to keep.
 * Nothing is allocated for a key.  All of this is the io thread's.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KEY_ORDER_H
#define OUTBOX_KEY_ORDER_H

#include <stdbool.h>
#include <stddef.h>

struct IoRecord;

/* Keys that have a record on its way. */
typedef struct IoKeys
{
	struct IoRecord **buckets;
	size_t		nbuckets;		/* a power of two */
	size_t		n;
} IoKeys;

#pragma GCC visibility push(hidden)

/* False: out of memory. */
extern bool io_keys_init(IoKeys *keys);
extern void io_keys_free(IoKeys *keys);

/*
 * May this record go?  Else it follows the one that holds its key.  With "hold"
 * it holds that from now on.
 */
extern bool io_key_enter(IoKeys *keys, struct IoRecord *record, bool hold);

/* A record is done with: the one that holds its key now, or NULL. */
extern struct IoRecord *io_key_leave(IoKeys *keys, struct IoRecord *record);

#pragma GCC visibility pop

#endif							/* OUTBOX_KEY_ORDER_H */
