/*-------------------------------------------------------------------------
 *
 * rabbit_order.c
 *	  Lists of records, and the order of a key.
 *
 * A record that is refused (nack) or returned was overtaken by what came
 * behind it: the broker goes on with the next one.  So of a key one record at
 * a time is on its way.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <stdlib.h>
#include <string.h>

#define LIST_PREFIX rabbit_list
#define LIST_TYPE RabbitList
#define LIST_ITEM RabbitRecord
#define LIST_DEFINE
#include "common/list.h"

#define ORDER_PREFIX rabbit
#define ORDER_KEYS RabbitKeys
#define ORDER_RECORD RabbitRecord
#define ORDER_KEY(record) ((record)->key)
#define ORDER_KEY_LEN(record) ((record)->key_len)
#define ORDER_DEFINE
#include "common/key_order.h"
