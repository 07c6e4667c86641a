/*-------------------------------------------------------------------------
 *
 * jet_order.c
 *	  Lists of records, and the order of a key while others write to the
 *	  stream.
 *
 * Then nothing but one record of a key is on its way at a time: should it be
 * refused, none has passed it.  Holders stay what they are when the others are
 * gone; there are no new ones then.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdlib.h>
#include <string.h>

#define LIST_PREFIX jet_list
#define LIST_TYPE JetList
#define LIST_ITEM JetRecord
#define LIST_DEFINE
#include "common/list.h"

#define ORDER_PREFIX jet
#define ORDER_KEYS JetKeys
#define ORDER_RECORD JetRecord
#define ORDER_KEY(record) ((record)->data.key)
#define ORDER_KEY_LEN(record) ((record)->data.key_len)
#define ORDER_DEFINE
#include "common/key_order.h"
