/*-------------------------------------------------------------------------
 *
 * relay.h
 *	  The relay's state, shared by its loop and its parts.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RELAY_H
#define OUTBOX_RELAY_H

#include "portability/instr_time.h"
#include "relay/route.h"
#include "relay/window.h"
#include "shmem.h"
#include "storage/latch.h"
#include "transport/registry.h"

struct Relay;
struct OutboxBookmark;

/*
 * A reader and what it has read.  The main stream has all topics but those
 * that lag, which have a stream each (lagging.c).
 */
typedef struct OutboxStream
{
	struct Relay *relay;
	MemoryContext context;
	OutboxTopic *topic;			/* NULL: the main stream */
	OutboxReader *reader;
	OutboxWindow *window;
	bool		waits_for_standby;	/* what is to be sent is not on them yet */
	instr_time	held;			/* since when the main reader waits for us */
	bool		holding;

	/* the position as stored */
	bool		stored;			/* there is a row */
	uint64		stored_cursor;
	uint64		stored_low;
	uint64		stored_xmax;	/* of S2 */
	int			stored_nxip;
	bool		stored_between; /* S1 is not S2: inside a batch */
} OutboxStream;

/* Ids that were acknowledged beyond the stored cursor, as ranges from .. to. */
typedef struct OutboxAcked
{
	uint64	   *ranges;			/* pairs, sorted */
	int			n;				/* of pairs */
	uint64		left;			/* ids not met yet */
} OutboxAcked;

typedef enum OutboxChunkState
{
	OUTBOX_CHUNK_NONE,			/* no transactions, or no client */
	OUTBOX_CHUNK_INIT,			/* the client takes over its identity */
	OUTBOX_CHUNK_LOAD,			/* its bookmark is being read */
	OUTBOX_CHUNK_CLAIM,			/* the next one is being announced */
	OUTBOX_CHUNK_READY,			/* between two chunks */
	OUTBOX_CHUNK_OPEN,			/* messages are being sent */
	OUTBOX_CHUNK_CLOSING,		/* its bookmark is to be sent */
	OUTBOX_CHUNK_MARKED,		/* it is; answers are being waited for */
	OUTBOX_CHUNK_COMMIT,		/* all is answered: committing */
	OUTBOX_CHUNK_ABORT
} OutboxChunkState;

/* What is sent in one of the broker's transactions, see chunk.c. */
typedef struct OutboxChunk
{
	OutboxChunkState state;
	bool		loaded;			/* we know where to go on */
	bool		uncertain;		/* whether the last one was committed */
	bool		must_abort;
	bool		failing;		/* an error is shown, until a step succeeds */
	Size		bytes;			/* of its messages, without the library's */
	int64		n;				/* number of its bookmark */
	instr_time	begun;			/* the transaction; before, the client's first
								 * steps */
	uint64		announced;		/* the epoch of its bookmarks */
	XLogRecPtr	base_lsn;		/* WAL that positions as loaded, and the
								 * announcement, rest on */
	int			aborts;			/* in a row */
	instr_time	aborted_at;
	instr_time	aborting;		/* since when it is to be; zero: not */
	instr_time	committed_at;
	OutboxError cause;			/* of the abort under way */
} OutboxChunk;

/* How much is under way at a time, see flow.c. */
typedef struct OutboxFlow
{
	uint64		limit;			/* messages of the main stream; 0: none yet */
	bool		held_back;		/* by it, in the last pass */
	bool		was_held_back;	/* ... in this period */
	uint64		answered;		/* in this period, of the main stream */
	int			slow_periods;	/* in a row, up to now */
	instr_time	since;			/* the period's begin */
} OutboxFlow;

typedef struct Relay
{
	OutboxRelaySlot *slot;
	OutboxDb   *db;
	Oid			extoid;
	Oid			serverid;
	MemoryContext context;
	MemoryContext server_context;
	MemoryContext loading;		/* of a definition that is not taken over yet */
	MemoryContext scratch;		/* of positions being stored */
	OutboxServer *server;
	OutboxRouter *router;
	OutboxWindows *windows;
	OutboxStream main;
	List	   *lagging;		/* of OutboxStream */
	List	   *rejoined;		/* names of topics whose rows are to be deleted
								 * with the main stream's next position */
	OutboxMessage **fetched;	/* of a fetch under way */
	int			nfetched;
	bool		adding;			/* ... it is over: they are put into a window */
	OutboxAcked acked;

	/* the client */
	const OutboxTransport *transport;
	OutboxClient *client;
	instr_time	opened;			/* when it was */
	long		first_answer_ms;	/* how long it took from there; -1: none yet */
	bool		careful;
	instr_time	refused_at;		/* when a message was, last */
	uint64		passes;			/* over all that is queued */
	uint64		later;			/* the last pass in which an entry had to wait */
	OutboxFlow	flow;
	bool		small_batches;
	uint64		narrowing;		/* messages still to go in small batches */
	int			back_off_ms;
	instr_time	retry_at;
	uint64		errors_seen;
	int64		clock_ahead;	/* when that was looked at last, in microseconds */
	char		logged[OUTBOX_ERROR_LEN];	/* of the library's errors, the last */
	int64		logged_at;		/* by elapsed.h's clock */
	WaitEventSet *wait_set;
	bool		connected;
	OutboxChunk chunk;
	bool		fenced;			/* another instance delivers */
	bool		start_again;	/* fenced, and altered since */

	int64		position_n;		/* number of the position stored last */
	uint64		position_epoch; /* of the log, when that was stored */
	instr_time	stored_at;
	uint64		head;			/* oldest message of the main window */
	instr_time	head_since;
	bool		probe_now;		/* topics in trouble are tried at once */
	uint64		delivered_at_trim;	/* when free memory was given back last */
} Relay;

/* client.c */
extern bool relay_client_ensure(Relay *relay);
extern void relay_client_close(Relay *relay, bool drain);
extern bool relay_client_destroy(Relay *relay, int timeout_ms);
extern void relay_client_check(Relay *relay);
extern void relay_back_off(Relay *relay);
extern void relay_await_reports(Relay *relay, long timeout_ms);

/* send.c */
extern bool relay_send(Relay *relay);
extern void relay_collect(Relay *relay);
extern void relay_take_held(Relay *relay, OutboxWindow *window);

/* flow.c */
extern uint64 relay_flow_room(Relay *relay);

/* chunk.c */
extern bool relay_chunk_may_read(const Relay *relay);
extern bool relay_chunk_may_store(const Relay *relay);
extern void relay_chunk_eased(Relay *relay);
extern bool relay_chunk_settles(const Relay *relay);
extern bool relay_chunk_begin(Relay *relay);
extern bool relay_chunk_has_room(const Relay *relay, const OutboxEntry *entry);
extern bool relay_chunk_turn(Relay *relay, bool more);
extern void relay_chunk_finish(Relay *relay, long timeout_ms);
extern void relay_chunk_client_opened(Relay *relay);
extern bool relay_chunk_client_closed(Relay *relay);
extern void relay_chunk_lost(Relay *relay, const OutboxError *error);
extern void relay_chunk_show(Relay *relay, const OutboxError *error);
extern bool relay_chunk_step(Relay *relay, OutboxTxnStep which);
extern void relay_chunk_committed(Relay *relay);
extern void relay_chunk_aborted(Relay *relay);
extern void relay_chunk_start_over(OutboxChunk *chunk);

/* takeover.c */
extern bool relay_takeover_turn(Relay *relay);
extern void relay_takeover_pending(Relay *relay, const OutboxError *error);

/* refused.c */
extern void relay_refuse(Relay *relay, OutboxEntry *entry, const char *name,
						 const char *text);
extern void relay_keep_refused(Relay *relay);

/* lagging.c */
extern void relay_topic_trouble(Relay *relay, OutboxTopic *topic,
								OutboxTopicState state, const OutboxError *error);
extern OutboxStream *lagging_restore(Relay *relay, const char *topic,
									 const OutboxPosition *pos);
extern void lagging_drop_all(Relay *relay);
extern void lagging_probe(Relay *relay);
extern void lagging_watch_head(Relay *relay);
extern void lagging_find_stalled(Relay *relay);
extern bool lagging_read(Relay *relay);
extern bool lagging_hold_main(Relay *relay);
extern void lagging_rejoin(Relay *relay);
extern Size lagging_reserved(Relay *relay);
extern bool lagging_is_active(Relay *relay);

/* stored.c */
extern bool relay_positions_load(Relay *relay);
extern bool relay_positions_store(Relay *relay, bool last);
extern List *relay_positions_behind_chunk(Relay *relay);
extern void relay_positions_replace(Relay *relay, const struct OutboxBookmark *bookmark);
extern bool relay_is_acked(Relay *relay, uint64 id);

/* read.c */
extern bool relay_read_log(Relay *relay);
extern void relay_stream_read(OutboxStream *stream, Size max_bytes);

/* figures.c */
extern void relay_set_state(Relay *relay, OutboxRelayState state);
extern void relay_set_error(Relay *relay, const char *text, const char *hint);
extern void relay_tell_error(Relay *relay, const OutboxError *error);
extern void relay_show_figures(Relay *relay);

/* relay.c */
extern void relay_drop_wait_set(Relay *relay);

#define FETCH_MESSAGES		4096
#define FETCH_BYTES			(1024 * 1024)
#define RELAY_MAX_ENTRIES	131072	/* in the main window */
#define RELAY_FLOW_MS			50	/* a period of flow.c */

#endif							/* OUTBOX_RELAY_H */
