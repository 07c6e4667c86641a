/*-------------------------------------------------------------------------
 *
 * list.h
 *	  Singly linked lists of one type of items: a template, used as
 *	  PostgreSQL's lib/simplehash.h is.
 *
 *	LIST_PREFIX		of the functions: io_list makes io_list_append()
 *	LIST_TYPE		the list's type
 *	LIST_ITEM		the items' type, also the tag of its struct, with a member
 *					"next"; an item is in one list at a time
 *	LIST_DECLARE	declare the type and the functions
 *	LIST_DEFINE		define the functions
 *
 * All are undefined at the end, so that it can be included again.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#define LIST_PASTE(a, b)	a##_##b
#define LIST_NAME_(a, b)	LIST_PASTE(a, b)
#define LIST_NAME(name)		LIST_NAME_(LIST_PREFIX, name)

#ifdef LIST_DECLARE

typedef struct LIST_TYPE
{
	struct LIST_ITEM *first;
	struct LIST_ITEM *last;
} LIST_TYPE;

extern void LIST_NAME(append) (LIST_TYPE *list, struct LIST_ITEM *item);
extern void LIST_NAME(prepend) (LIST_TYPE *list, struct LIST_ITEM *item);
extern void LIST_NAME(splice) (LIST_TYPE *list, LIST_TYPE *tail);
extern struct LIST_ITEM *LIST_NAME(take) (LIST_TYPE *list);

#endif

#ifdef LIST_DEFINE

void
LIST_NAME(append) (LIST_TYPE *list, struct LIST_ITEM *item)
{
	item->next = NULL;
	if (list->first == NULL)
		list->first = item;
	else
		list->last->next = item;
	list->last = item;
}

void
LIST_NAME(prepend) (LIST_TYPE *list, struct LIST_ITEM *item)
{
	item->next = list->first;
	if (list->first == NULL)
		list->last = item;
	list->first = item;
}

/* Append all of another list, which is empty afterwards. */
void
LIST_NAME(splice) (LIST_TYPE *list, LIST_TYPE *tail)
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
struct LIST_ITEM *
LIST_NAME(take) (LIST_TYPE *list)
{
	struct LIST_ITEM *item = list->first;

	if (item != NULL)
	{
		list->first = item->next;
		if (list->first == NULL)
			list->last = NULL;
		item->next = NULL;
	}
	return item;
}

#endif

#undef LIST_PASTE
#undef LIST_NAME_
#undef LIST_NAME
#undef LIST_PREFIX
#undef LIST_TYPE
#undef LIST_ITEM
#undef LIST_DECLARE
#undef LIST_DEFINE
