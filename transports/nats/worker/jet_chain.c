/*-------------------------------------------------------------------------
 *
 * jet_chain.c
 *	  The wire: records on their way to the stream, in an order that no failure
 *	  changes.  The io thread's.
 *
 * JetStream goes on with the next message when it refuses one, and forgets the
 * ids of messages after a while (the stream's duplicate window).  So each
 * record says what it follows: the sequence that the stream's last message has
 * when all before it is stored, and the id of the record before it (not where
 * nothing is on the wire: a server that was restarted may have forgotten it).  A
 * record is stored right behind that one, or not at all.  What follows a record
 * that was refused is refused too, whatever the reason, and is sent again when
 * all is answered ("drain").
 *
 * Neither would do alone.  By sequences, another client's message could take the
 * place of one that was refused, and let the next one through.  By ids, one that
 * the stream has already (of a relay that crashed before it wrote that down)
 * could: it is answered as a duplicate whatever it follows, also behind a record
 * that was refused, and if it is the stream's last one, its successor is let
 * through.  After a connection broke, the records without an
 * answer that are stored are the first ones of them, from the last sequence we
 * know on; so a few looks at the stream tell which ones are (jet_stream.c), and
 * none is stored twice, however long it took.
 *
 * That is for a stream with nobody else who writes.  Should somebody (a record
 * is refused while the one before it was stored), then for a while records go
 * without saying what they follow, but no more than one of a key at a time
 * ("shared"; jet_settle.c).  Of those without an answer nobody knows; they are
 * sent again, and the duplicate window is what drops them.
 *
 * An answer may never come: when nobody listens to a subject, or it is
 * forbidden.  The server then says only that it happened.  Of a record that was
 * sent alone that is enough.  Of others it is counted; the wire is drained, and
 * their topics are tried anew, one record at a time.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIRE_RECORDS	4096
#define WIRE_BYTES		((size_t) 16 * 1024 * 1024)
#define WRITE_BYTES		(64 * 1024) /* buffered, then they are written */
#define MIN_RING		64
#define MIN_SHARED_MS	1000
#define MAX_SHARED_MS	60000
#define PEACE_MS		60000	/* without another writer: forgotten */

/* --- the ring ---------------------------------------------------------------------- */

static IoRecord **
slot_of(OutboxClient *client, uint64_t number)
{
	return &client->ring[number & (client->ring_size - 1)];
}

/* False: out of memory. */
static bool
wire_push(OutboxClient *client, IoRecord *record)
{
	if (client->next - client->first == client->ring_size)
	{
		size_t		size = client->ring_size == 0 ? MIN_RING : client->ring_size * 2;
		IoRecord  **ring = calloc(size, sizeof(IoRecord *));

		if (ring == NULL)
			return false;
		for (uint64_t n = client->first; n < client->next; n++)
			ring[n & (size - 1)] = *slot_of(client, n);
		free(client->ring);
		client->ring = ring;
		client->ring_size = size;
	}
	if (client->wire_n == 0)
		client->answered_at = thread_now_ms();
	jet_record(record)->refused = false;
	*slot_of(client, client->next++) = record;
	client->wire_n++;
	client->wire_bytes += record->bytes;
	client->expected++;
	return true;
}

/* It has its answer. */
static void
count_answer(OutboxClient *client, const IoRecord *record)
{
	client->wire_n--;
	client->wire_bytes -= record->bytes;
}

/* Take a record off the wire. */
IoRecord *
jet_wire_pull(OutboxClient *client, uint64_t number)
{
	IoRecord  **slot = slot_of(client, number);
	IoRecord   *record = *slot;

	*slot = NULL;
	if (record != NULL && !jet_record(record)->refused)
		count_answer(client, record);
	while (client->first < client->next && *slot_of(client, client->first) == NULL)
		client->first++;
	return record;
}

/* Back to where it came from, before all that is ready. */
static void
put_back(OutboxClient *client, IoRecord *record)
{
	io_list_prepend(record->holds_key ? &client->heirs : &client->ready, record);
}

static void
put_back_all(OutboxClient *client, IoList *list)
{
	IoList		reversed = {NULL, NULL};
	IoRecord   *record;

	while ((record = io_list_take(list)) != NULL)
		io_list_prepend(&reversed, record);
	while ((record = io_list_take(&reversed)) != NULL)
		put_back(client, record);
}

static void
chain_reset(OutboxClient *client)
{
	client->has_before = false;
	client->broken = false;
	client->unanswered = 0;
	client->alone = NULL;
}

/* --- publishing -------------------------------------------------------------------- */

/* What a record says of the one before it. */
static natsStatus
add_guard(OutboxClient *client, natsMsg *msg)
{
	char		number[32];

	if (client->alone != NULL)
	{
		natsStatus	status = natsMsgHeader_Set(msg, "Nats-Expected-Stream", client->config.stream);

		if (status != NATS_OK)
			return status;
	}
	if (!client->chained)
		return NATS_OK;
	if (client->wire_n == 0)
		client->expected = client->last_sequence;
	else
	{
		natsStatus	status = natsMsgHeader_Set(msg, "Nats-Expected-Last-Msg-Id", client->before);

		if (status != NATS_OK)
			return status;
	}
	snprintf(number, sizeof(number), "%llu", (unsigned long long) client->expected);
	return natsMsgHeader_Set(msg, "Nats-Expected-Last-Sequence", number);
}

static bool
keep_before(OutboxClient *client, const JetRecord *record)
{
	free(client->before);
	client->before = record->id ? strdup(record->id) : NULL;
	client->has_before = client->before != NULL;
	return client->has_before || record->id == NULL;
}

static natsStatus
publish_one(OutboxClient *client, IoRecord *record)
{
	char		subject[JET_MAX_SUBJECT];
	char		reply[sizeof(client->connection.inbox) + 32];
	natsMsg    *msg;
	natsStatus	status;

	snprintf(subject, sizeof(subject), "%s%s", client->config.prefix, record->topic->name);
	snprintf(reply, sizeof(reply), "%s.%llu", client->connection.inbox,
			 (unsigned long long) client->next);
	status = jet_message_make(&msg, jet_record(record), subject, reply);
	if (status != NATS_OK)
		return status;
	status = add_guard(client, msg);
	if (status == NATS_OK && !keep_before(client, jet_record(record)))
		status = NATS_NO_MEMORY;
	if (status == NATS_OK)
		status = natsConnection_PublishMsg(client->connection.nc, msg);
	jet_let_go(&client->connection, msg);
	return status;
}

/* May it go, with what is on the wire? */
static bool
may_go(OutboxClient *client, const IoRecord *record)
{
	if (client->wire_n == 0)
		return true;
	return record->topic->trial != record && (!client->chained || client->has_before) &&
		client->wire_bytes + record->bytes <= WIRE_BYTES;
}

static bool
is_busy(const OutboxClient *client)
{
	return client->purging || client->phase != JET_GO || client->request != 0 || client->alone != NULL ||
		client->wire_n >= WIRE_RECORDS || client->connection.wants_write;
}

/* It can't be sent at all; false: the connection is gone. */
static bool
not_sent(OutboxClient *client, IoRecord *record, natsStatus status, OutboxError *error)
{
	client->alone = NULL;
	client->has_before = false;
	if (status == NATS_MAX_PAYLOAD)
	{
		error_set(error, OUTBOX_DEAD, "MAX_PAYLOAD",
				  "it is larger than the NATS server's max_payload", NULL);
		jet_dead(client, record, error);
		return true;
	}
	put_back(client, record);
	(void) jet_error_status(error, status, NULL);
	return false;
}

/* Records that follow one without an id wait until it is answered. */
static bool
publish_some(OutboxClient *client, OutboxError *error)
{
	size_t		buffered = 0;

	while (buffered < WRITE_BYTES && client->wire_n < WIRE_RECORDS && client->alone == NULL)
	{
		IoRecord   *record = jet_next_record(client);
		natsStatus	status;

		if (record == NULL)
			break;
		if (!may_go(client, record))
		{
			put_back(client, record);
			break;
		}
		if (record->topic->trial == record)
			client->alone = record;
		status = publish_one(client, record);
		if (status != NATS_OK)
		{
			if (!not_sent(client, record, status, error))
				return false;
			continue;
		}
		if (!wire_push(client, record))
		{
			put_back(client, record);
			error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
			return false;
		}
		buffered += record->bytes + 256;
	}
	return true;
}

/* Publish what may go now; false: the connection is of no more use. */
bool
jet_publish(OutboxClient *client, OutboxError *error)
{
	while (!is_busy(client))
	{
		if (!publish_some(client, error))
			return false;
		if (!client->connection.wants_write)
			break;
		if (!jet_connection_turn(&client->connection, false, error))
			return false;
	}
	return true;
}

/* --- answers ----------------------------------------------------------------------- */

static void
stored(OutboxClient *client, uint64_t number, const char *text)
{
	const char *value;
	size_t		len;
	int64_t		sequence;

	if (jet_json_number(text, "seq", &sequence) && (uint64_t) sequence > client->last_sequence)
		client->last_sequence = (uint64_t) sequence;
	/* it was stored before, so that what says it follows it may not */
	if (jet_json_find(text, "duplicate", &value, &len))
		client->broken = true;
	jet_delivered(client, jet_wire_pull(client, number));
}

static void
refused(OutboxClient *client, uint64_t number, const char *text)
{
	IoRecord   *record = *slot_of(client, number);
	int			code = jet_error_code(text);
	OutboxError error;

	if (code == JET_OTHER_LAST_ID || code == JET_OTHER_LAST_SEQUENCE)
	{
		if (!client->broken)
			client->conflict = true;
		count_answer(client, record);
		jet_record(record)->refused = true;
	}
	else
	{
		char		what[JET_MAX_SUBJECT];

		snprintf(what, sizeof(what), "a message for subject \"%.100s%.200s\" was refused by",
				 client->config.prefix, record->topic->name);
		(void) jet_wire_pull(client, number);
		switch (jet_error_answer(&error, &client->config, what, text))
		{
			case OUTBOX_DEAD:
				jet_dead(client, record, &error);
				break;
			case OUTBOX_TOPIC:
				jet_topic_failed(client, record, &error);
				break;
			default:
				error.failure = OUTBOX_RETRY;
				jet_hold(client, record, &error);
				break;
		}
	}
	client->broken = true;
	if (client->chained)
		client->phase = JET_DRAIN;
}

/* The answer to a record. */
void
jet_answered(OutboxClient *client, const JetAnswer *answer)
{
	IoRecord   *record;

	client->answered_at = thread_now_ms();
	if (answer->number < client->first || answer->number >= client->next)
		return;
	record = *slot_of(client, answer->number);
	if (record == NULL || jet_record(record)->refused)
		return;
	if (jet_error_code(answer->text) != 0)
		refused(client, answer->number, answer->text);
	else
		stored(client, answer->number, answer->text);
}

/* Some records have no answer and will get none, for nobody listens or it is forbidden. */
void
jet_unanswered(OutboxClient *client, int n)
{
	client->answered_at = thread_now_ms();
	client->unanswered += n;
	client->broken = true;
	if (client->phase == JET_GO)
		client->phase = JET_DRAIN;
}

/* Nobody took the record that is alone: once more, when the stream is seen to be there. */
void
jet_again_alone(OutboxClient *client)
{
	put_back(client, jet_wire_pull(client, client->first));
	chain_reset(client);
	client->phase = JET_LOOK;
	client->look_due = 0;
}

/* Have the topics of those without an answer tried anew, one record at a time. */
void
jet_doubt_topics(OutboxClient *client)
{
	for (uint64_t n = client->first; n < client->next; n++)
	{
		IoRecord   *record = *slot_of(client, n);

		if (record != NULL && !jet_record(record)->refused && record->topic->trial == NULL &&
			atomic_load(&record->topic->state) == IO_TOPIC_FINE)
			atomic_store(&record->topic->state, IO_TOPIC_TRYING);
	}
}

/* --- going on ---------------------------------------------------------------------- */

/* Somebody else has written: without a chain for a while. */
static void
share(OutboxClient *client)
{
	int64_t		now = thread_now_ms();

	if (client->shared_ms == 0 || now - client->chained_since > PEACE_MS)
		client->shared_ms = MIN_SHARED_MS;
	else if (client->shared_ms < MAX_SHARED_MS)
		client->shared_ms *= 2;
	client->shared_until = now + client->shared_ms;
	client->chained = false;
}

/* All on the wire is answered: what was not stored goes back, and we go on. */
static void
drained(OutboxClient *client)
{
	IoList		back = {NULL, NULL};

	jet_doubt_topics(client);
	for (uint64_t n = client->first; n < client->next; n++)
	{
		IoRecord   *record = *slot_of(client, n);

		if (record != NULL)
			io_list_append(&back, record);
		*slot_of(client, n) = NULL;
	}
	client->first = client->next;
	client->wire_n = client->wire_bytes = 0;
	put_back_all(client, &back);
	chain_reset(client);
	if (client->conflict)
	{
		client->conflict = false;
		share(client);
		client->phase = JET_LOOK;
		return;
	}
	client->phase = JET_GO;
}

/* Go on where the wire is drained; into the chain again when it is time to. */
void
jet_go_on(OutboxClient *client)
{
	if (client->phase == JET_DRAIN && client->wire_n <= client->unanswered)
		drained(client);
	if (client->chained || client->phase != JET_GO || thread_now_ms() < client->shared_until)
		return;
	if (client->wire_n == 0)
	{
		client->chained = true;
		client->chained_since = thread_now_ms();
		chain_reset(client);
		client->phase = JET_LOOK;
	}
	else
		client->phase = JET_DRAIN;
}

/* --- a connection is gone ---------------------------------------------------------- */

void
jet_wire_lost(OutboxClient *client)
{
	IoList		back = {NULL, NULL};
	bool		behind_refused = false;
	bool		any = false;

	for (uint64_t n = client->first; n < client->next; n++)
	{
		IoRecord   *record = *slot_of(client, n);

		if (record == NULL)
			continue;
		behind_refused = behind_refused || (client->chained && jet_record(record)->refused);
		if (jet_record(record)->refused || behind_refused)
			io_list_append(&back, record);
		else
		{
			io_list_append(&client->unsure, record);
			client->nunsure++;
			any = true;
		}
		*slot_of(client, n) = NULL;
	}
	if (any)
		client->unsure_base = client->chained ? client->last_sequence : UINT64_MAX;
	client->first = client->next;
	client->wire_n = client->wire_bytes = 0;
	put_back_all(client, &back);
	chain_reset(client);
	client->conflict = false;
	client->request = 0;
	client->phase = JET_LOOK;
}

/* So many of those we were not sure of are stored, the first ones. */
void
jet_resolved(OutboxClient *client, size_t n)
{
	IoRecord   *record;

	while (n-- > 0 && (record = io_list_take(&client->unsure)) != NULL)
		jet_delivered(client, record);
	jet_forget_unsure(client);
	client->phase = JET_GO;
}

/* The others are sent again. */
void
jet_forget_unsure(OutboxClient *client)
{
	put_back_all(client, &client->unsure);
	client->nunsure = 0;
}
