/*-------------------------------------------------------------------------
 *
 * model.h
 *	  A model of the log's algorithm: its state, its rules, its steps.
 *
 * A state is one flat struct without pointers, so that it can be copied, hashed
 * and compared as bytes.  What a crash of the server leaves is in Disk; there are
 * two of it: as WAL says by now, and as far as WAL is flushed.  A flush copies the
 * one over the other, a crash the other over the one: since a flush may come after
 * any step, a crash can leave any beginning of WAL.
 *
 * What only the judge knows (who was sent what, what must go before what) is in
 * Spec, and no step of the algorithm reads it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define MAX_LANES	3
#define MAX_SEGS	6
#define MAX_PUBS	4
#define MAX_SRVS	2
#define MAX_MSGS	14
#define MAX_XIDS	12
#define MAX_BATCHES	14
#define MAX_TIMELINES 4
#define TOPICS		3
#define LAGGER		1			/* the topic that may lag */
#define NONE		0xff
#define MAX_ACTIONS	128
#define MAX_TRACE	2000

/* Of messages, of transactions (as snapshots are) or of segments. */
typedef uint16_t Set;

#define BIT(n)		((Set) (1u << (n)))
#define HAS(set, n) (((set) >> (n)) & 1)

/* --- the log on disk ------------------------------------------------------- */

typedef enum XactState
{
	XACT_NONE, XACT_OPEN, XACT_PREPARED, XACT_COMMITTED, XACT_ABORTED
} XactState;

typedef struct Segment
{
	uint8_t		lane;			/* NONE: in the pool */
	uint8_t		generation;
} Segment;

typedef struct Position
{
	Set			s1;
	Set			s2;
	Set			acked;			/* messages beyond the cursor */
	uint8_t		cursor;
	uint8_t		low;			/* 0: there is no such row */
	uint8_t		n;				/* with exactly-once delivery only: its number */
	uint8_t		epoch;			/* ... and that of the log then */
} Position;

typedef struct Disk
{
	Position	pos[MAX_SRVS][2];	/* main stream, lagging topic */
	uint16_t	lsn;			/* of the last record, where there is a standby */
	uint16_t	unused2;
	Set			rolled_back;	/* messages behind a savepoint */
	uint8_t		xact[MAX_XIDS];
	uint8_t		place[MAX_MSGS];	/* segment of a message's row, or NONE */
	Segment		seg[MAX_SEGS];
	uint8_t		servers;		/* created ones, a bit each */
	uint8_t		next_xid;		/* behind all that WAL knows of */
	uint8_t		sequence;
	uint8_t		unused;
} Disk;

/* A row's columns.  Rows of a segment lie in the order of their numbers. */
typedef struct Message
{
	Set			before;			/* of its key, must be delivered before it */
	uint8_t		id;
	uint8_t		xid;
	uint8_t		epoch;
	uint8_t		topic;
	uint8_t		savepoint;		/* published behind one */
	uint8_t		unused;
} Message;

/* --- shared memory and processes ------------------------------------------- */

typedef enum PubStep
{
	PUB_IDLE,					/* no transaction */
	PUB_XACT,					/* in one that published */
	PUB_OPEN,					/* has a segment open, wants its lane */
	PUB_IDS,					/* found no id left */
	PUB_ID,						/* holds the lane and an id */
	PUB_RECORD,					/* its commit is in WAL, but nobody sees it yet */
	PUB_ENDED					/* is to move the publish counter */
} PubStep;

typedef struct Pub
{
	Set			before;
	uint8_t		step;
	uint8_t		xid;
	uint8_t		lane;
	uint8_t		seg;
	uint8_t		id;
	uint8_t		topic;
	uint8_t		savepoint;
	uint8_t		n;				/* messages of this transaction */
} Pub;

typedef struct Shared
{
	Set			running;		/* transactions, prepared ones too */
	uint8_t		next_xid;
	uint8_t		next_id;
	uint8_t		limit_id;
	uint8_t		count;			/* the publish counter */
	uint8_t		epoch;
	uint8_t		looked;			/* the keeper is about to free ... */
	uint8_t		to_free;		/* ... these segments */
	uint8_t		current[MAX_LANES];
	uint8_t		holder[MAX_LANES];	/* publisher + 1 */
	uint8_t		locks[MAX_XIDS];	/* segments locked by transactions */
	uint8_t		timeline;
	uint8_t		unused;
	uint16_t	fork[MAX_TIMELINES];	/* where each ended */
} Shared;

typedef struct Batch
{
	Set			s1;
	Set			s2;
	uint16_t	lsn;			/* what s2 sees ends there; 0: not known yet */
	uint16_t	s1_lsn;
	uint8_t		s1_low;			/* the position before the batch; 0: not known */
	uint8_t		undecided;
	uint8_t		used;
	uint8_t		unused;
} Batch;

/* An entry of the open list, by transaction; lowest 0: none. */
typedef struct Open
{
	uint8_t		lowest;
	uint8_t		highest;
	uint8_t		lanes;
	uint8_t		ended;
} Open;

typedef struct Reader
{
	Set			last;
	uint16_t	last_lsn;		/* of last; 0: safe */
	uint8_t		from;			/* C */
	uint8_t		end;			/* E, 0: unknown */
	uint8_t		has_count;
	uint8_t		count;
	uint8_t		batch;			/* number + 1; 0: between batches */
	uint8_t		next;
	uint8_t		track_from;
	uint8_t		track_to;
	uint8_t		range_from;		/* of the batch, beside ranges of open ones */
	uint8_t		range_end;
	uint8_t		next_from;
	uint8_t		next_end;
	Open		open[MAX_XIDS];
	uint8_t		first_id[MAX_SEGS]; /* believed, where a rule is off */
	uint8_t		hint[MAX_SEGS]; /* rows passed, where a rule is off */
} Reader;

typedef enum EntryState
{
	ENTRY_QUEUED = 1, ENTRY_SENT, ENTRY_APPENDED, ENTRY_HELD, ENTRY_DONE
} EntryState;

typedef struct Entry
{
	uint8_t		msg;
	uint8_t		state;
	uint8_t		batch;
} Entry;

typedef struct Stream
{
	Reader		reader;
	Entry		entry[MAX_MSGS];
	uint8_t		n;
	uint8_t		unused;
} Stream;

/* Of exactly-once delivery; CHUNK_NONE without. */
typedef enum ChunkState
{
	CHUNK_NONE, CHUNK_INIT, CHUNK_LOAD, CHUNK_CLAIM, CHUNK_READY, CHUNK_OPEN, CHUNK_MARKED,
	CHUNK_COMMIT
} ChunkState;

typedef struct Relay
{
	Batch		batch[MAX_BATCHES];
	Stream		stream[2];		/* main, the lagging topic's */
	Set			acked;			/* as listed at the last stop */
	uint16_t	base_lsn;		/* WAL that bookmarks rest on in any case */
	Segment		list[MAX_SEGS]; /* as read before they are opened */
	uint8_t		up;
	uint8_t		lagging;		/* stream[1] is there */
	uint8_t		trouble;		/* its topic is missing */
	uint8_t		main_stored;
	uint8_t		lag_stored;
	uint8_t		rejoined;		/* its rows are to go */
	uint8_t		half_stored;	/* where a rule is off: rows still to write */
	uint8_t		round;			/* step of a round, 0: none */
	uint8_t		c;
	uint8_t		count;
	uint8_t		fetching;		/* stream + 1 whose list was read */
	uint8_t		chunk;
	uint8_t		loaded;			/* the bookmark was read */
	uint8_t		uncertain;		/* whether the last chunk was committed */
	uint8_t		must_abort;
	uint8_t		decided;		/* the broker has committed */
	uint8_t		chunk_n;		/* number of the chunk's bookmark */
	uint8_t		announced;		/* epoch of bookmarks */
	uint8_t		position_n;
	uint8_t		position_epoch;
	uint8_t		unused;
} Relay;

/* A server's position, and an open transaction, as its broker keeps them. */
typedef struct Bookmark
{
	Position	pos[2];
	uint16_t	lsn;
	uint8_t		timeline;
	uint8_t		n;				/* 0: there is none */
	uint8_t		epoch;
	uint8_t		unused;
} Bookmark;

typedef struct Broker
{
	Bookmark	bookmark;
	Bookmark	marked;			/* in the open transaction */
	uint8_t		pending[MAX_MSGS];	/* messages + 1 */
	uint8_t		n;
	uint8_t		unused;
} Broker;

/* --- what the judge knows ---------------------------------------------------- */

typedef struct Spec
{
	Message		msg[MAX_MSGS];
	Set			safe;			/* their rows were flushed */
	Set			replicated;		/* ... and are at the standby */
	Set			lost;			/* never safe, and taken by a crash */
	Set			emptied;		/* their rows were freed or vacuumed */
	Set			skip[MAX_SRVS]; /* from before the server's time */
	Set			delivered[MAX_SRVS];
	Set			may_repeat[MAX_SRVS];
	uint8_t		last[MAX_SRVS][TOPICS]; /* message + 1 */
	uint8_t		nmsgs;
	uint8_t		set_back;		/* somebody set the sequence back */
} Spec;

/* How often things may still happen. */
typedef enum Fault
{
	CRASHES, KILLS, STOPS, LOSSES, TROUBLES, STALLS, ROTATIONS, PREPARES, ABORTS,
	SAVEPOINTS, CREATES, SET_BACKS, VACUUMS, PROMOTIONS, NFAULTS
} Fault;

typedef struct State
{
	Disk		disk;
	Disk		flushed;
	Disk		standby;
	Shared		shared;
	Pub			pub[MAX_PUBS];
	Spec		spec;
	uint8_t		budget[NFAULTS];
	Broker		broker[MAX_SRVS];
	Relay		relay[MAX_SRVS];	/* last: a scope may have fewer */
} State;

/* --- scope -------------------------------------------------------------------- */

typedef struct Scope
{
	const char *name;
	uint8_t		lanes;
	uint8_t		segs;
	uint8_t		pubs;
	uint8_t		srvs;			/* one is there from the start */
	uint8_t		msgs;
	uint8_t		xids;
	uint8_t		xact_msgs;
	uint8_t		topics;
	uint8_t		piece;			/* messages fetched at once */
	uint8_t		reserve;		/* ids reserved at once */
	uint8_t		exactly_once;	/* servers that are, a bit each */
	bool		standby;
	bool		synchronous;	/* it is a synchronous one */
	bool		frees;
	bool		ids_rounds;		/* rounds that only look at ids */
	bool		split_list;		/* segments are listed, then opened */
	bool		split_commit;	/* commits are written, then seen */
	bool		one_by_one;		/* entries are sent */
	bool		careful;		/* the same, and topics don't wait for each other */
	bool		split_open;		/* segments are opened, then lanes taken */
	uint8_t		budget[NFAULTS];
} Scope;

extern Scope scope;

/* --- rules --------------------------------------------------------------------- */

typedef enum Property
{
	P_NONE, P_LOST, P_PHANTOM, P_ORDER, P_STALE, P_REPEATED, P_FREED, P_POSITION, P_LANE,
	P_IDS, P_STUCK, NPROPERTIES
} Property;

extern const char *const property_names[NPROPERTIES];

/* With the scope in which its absence shows. */
#define RULES \
	X(LANE_LOCK, "lane-lock", "everything") \
	X(IDS_UNDER_LOCK, "ids-under-lock", "everything") \
	X(APPEND_RECHECK, "append-recheck", "everything") \
	X(TOUCH_LANES, "touch-lanes", "everything") \
	X(C_BEFORE_TOUCH, "c-before-touch", "everything") \
	X(E_BEHIND_SNAPSHOT, "e-behind-snapshot", "everything") \
	X(MERGE, "merge", "everything") \
	X(OPEN_LIST, "open-list", "everything") \
	X(OPEN_RANGE, "open-range", "everything") \
	X(OPEN_LANES, "open-lanes", "everything") \
	X(ENDED_WAKES, "ended-wakes", "everything") \
	X(COUNT_AT_PREPARE, "count-at-prepare", "everything") \
	X(COUNT_BEFORE_SNAPSHOT, "count-before-snapshot", "everything") \
	X(VISIBLE, "visible", "everything") \
	X(FLUSH_BEFORE_SEND, "flush-before-send", "everything") \
	X(POSITION_LOW, "position-low", "everything") \
	X(POSITION_BEHIND_ACK, "position-behind-ack", "everything") \
	X(POSITION_WITH_ACKED, "position-with-acked", "everything") \
	X(MOVED_BY_S1, "moved-by-s1", "everything") \
	X(OPEN_THEN_CHECK, "open-then-check", "everything") \
	X(KNOWN_BY_GENERATION, "known-by-generation", "everything") \
	X(HINT_CHECKED, "hint-checked", "everything") \
	X(FREE_CLOSED, "free-closed", "everything") \
	X(FREE_BELOW_LOW, "free-below-low", "everything") \
	X(SCAN_CURSOR, "scan-cursor", "everything") \
	X(FREE_ALL_SERVERS, "free-all-servers", "everything") \
	X(FREE_LAGGING, "free-lagging", "everything") \
	X(FREEING_LOCK, "freeing-lock", "everything") \
	X(FREE_FLUSHES, "free-flushes", "everything") \
	X(LEAVE_IN_FLIGHT, "leave-in-flight", "everything") \
	X(LEAVE_OPEN_LIST, "leave-open-list", "everything") \
	X(LEAVE_TOGETHER, "leave-together", "everything") \
	X(REJOIN_EQUAL, "rejoin-equal", "everything") \
	X(REJOIN_ANSWERED, "rejoin-answered", "everything") \
	X(RESUME_ANSWERED, "resume-answered", "everything") \
	X(NEW_EPOCH, "new-epoch", "everything") \
	X(IDS_ABOVE_LANES, "ids-above-lanes", "set-back") \
	X(IDS_ABOVE_POSITIONS, "ids-above-positions", "set-back") \
	X(SEQUENCE_BEFORE_LIMIT, "sequence-before-limit", "everything") \
	X(CURRENT_HIGHEST, "current-highest", "everything") \
	X(POSITION_AT_BROKER, "position-at-broker", "exactly-once") \
	X(BOOKMARK_ANNOUNCED, "bookmark-announced", "exactly-once") \
	X(COMMIT_ANSWERED, "commit-answered", "exactly-once") \
	X(IDS_BELOW_LIMIT, "ids-below-limit", "ids") \
	X(STORE_UNLESS_OPEN, "store-unless-open", "exactly-once") \
	X(WITH_BOOKMARKS_ACKED, "position-with-bookmarks-acked", "careful") \
	X(ALL_ROWS, "all-rows", "synchronous") \
	X(REPLICATED_BEFORE_SEND, "replicated-before-send", "synchronous") \
	X(REPLICATED_BEFORE_BOOKMARK, "replicated-before-bookmark", "synchronous") \
	X(BOOKMARK_HISTORY, "bookmark-history", "asynchronous")

typedef enum Rule
{
#define X(rule, name, where) RULE_##rule,
	RULES
#undef X
	NRULES
} Rule;

extern int	rule_off;			/* a Rule, or -1 */

#define ON(rule) (rule_off != RULE_##rule)

/* --- steps ------------------------------------------------------------------------ */

#define ACTIONS \
	X(OPEN, 6) X(TAKE, 6) X(REFILL, 4) X(INSERT, 6) \
	X(ROLLBACK_TO, 2) X(COMMIT, 4) X(SEEN, 4) X(COUNT, 4) X(ABORT, 2) X(PREPARE, 2) \
	X(COMMIT_PREPARED, 2) X(ABORT_PREPARED, 1) \
	X(START, 3) X(KILL, 1) X(STOP, 1) \
	X(ROUND, 5) X(IDS_ROUND, 2) X(TOUCH, 6) X(SNAPSHOT, 6) X(LIST, 6) X(FETCH, 6) X(FOLLOW, 4) \
	X(SEND, 6) X(APPEND, 3) X(ACK, 5) X(LOSE_CLIENT, 1) X(STORE, 2) X(STORE_REST, 3) \
	X(STALL, 1) X(MISSING, 1) X(RETURNED, 3) X(RESUME, 2) X(REJOIN, 4) X(TRIM, 3) \
	X(TXN_INIT, 3) X(TXN_LOAD, 3) X(CLAIM, 3) X(MARK, 2) X(ASK_COMMIT, 3) X(TXN_COMMIT, 3) \
	X(COMMITTED, 3) X(TXN_ABORT, 3) \
	X(LIST_SEGMENT, 2) X(SWITCH, 2) X(LOOK, 2) X(FREE, 3) X(CREATE, 1) \
	X(FLUSH, 1) X(CRASH, 1) X(SET_BACK, 1) X(VACUUM, 1) X(REPLICATE, 3) X(PROMOTE, 1)

typedef enum Kind
{
#define X(kind, weight) A_##kind,
	ACTIONS
#undef X
	NKINDS
} Kind;

/* Who, and what with. */
typedef struct Action
{
	uint8_t		kind;
	uint8_t		a;
	uint8_t		b;
	uint8_t		c;
	uint8_t		then;			/* what follows at once, see explore.c */
} Action;

#define THEN_FLUSH	1
#define THEN_KILL	2
#define THEN_CRASH	4

typedef struct Actions
{
	int			n;
	Action		action[MAX_ACTIONS];
} Actions;

/* The first violation since it was last set to P_NONE. */
extern Property violated;
extern char violation[200];

extern void violate(Property property, const char *format,...)
			__attribute__((format(printf, 2, 3)));

/* steps.c: all that may happen next; do one of them */
/* Leave out orders of steps that make no difference, see explore.c. */
extern bool reduce;

extern void model_init(State *st);
extern void model_actions(const State *st, Actions *out);
extern bool model_step(State *st, const Action *action);
extern void model_describe(const State *before, const Action *action, const State *after, FILE *out);
extern bool is_normal(const Action *action);
extern void canonicalise(State *st);
extern int	kind_weight(Kind kind);

static inline void
add_action(Actions *out, Kind kind, int a, int b, int c)
{
	out->action[out->n++] =
		(Action) {(uint8_t) kind, (uint8_t) a, (uint8_t) b, (uint8_t) c, 0};
}

static inline int
popcount(unsigned set)
{
	return __builtin_popcount(set);
}

/* database.c: transactions, WAL, what a crash leaves */
extern Set	snapshot(const State *st);
extern bool snapshot_before(Set a, Set b);
extern void xact_record(State *st, int xid, XactState state);
extern void xact_end(State *st, int xid);
extern void database_flush(State *st);
extern int	rows_of_segment(const State *st, int seg, uint8_t *rows);
extern bool is_replicated(const State *st, uint16_t lsn);
extern bool writes_wal(Kind kind);
extern void database_crash(State *st, bool promoted);
extern void database_build(State *st);
extern int	find_prepared(const State *st, int from);
extern void database_actions(const State *st, Actions *out);
extern void database_step(State *st, const Action *action);

/* publisher.c: append */
extern void publisher_actions(const State *st, int p, Actions *out);
extern void publisher_step(State *st, const Action *action);

/* keeper.c: rotation, freeing */
extern void keeper_actions(const State *st, Actions *out);
extern void keeper_step(State *st, const Action *action);
extern uint8_t closed_segments(const State *st);

/* reader.c: rounds and pieces */
extern void reader_create(Relay *r, int stream, const Position *start);
extern void reader_clone(Relay *r);
extern uint16_t reader_position(const Relay *r, int stream, Position *pos);
extern uint16_t position_before(const State *st, const Relay *r, const Entry *entry, Position *pos);
extern bool position_before_batch(const Batch *batch, Position *pos);
extern uint8_t end_of_ids(const State *st);
extern bool nothing_new(const State *st, const Relay *r);
extern void reader_snapshot(State *st, Relay *r);
extern bool reader_follow(State *st, Relay *r);
extern void reader_fetch(State *st, Relay *r, int stream);
extern void collect_batches(Relay *r);

/* relay.c: windows, answers, lagging topics; stored.c: positions */
extern void relay_actions(const State *st, int s, Actions *out);
extern bool relay_is_alone(const State *st, const Action *action);
extern void relay_step(State *st, const Action *action);
extern void window_add(Relay *r, int stream, int msg, int batch);
extern void windows_pop(Relay *r);
extern bool relay_is_idle(const State *st, int s);
extern bool positions_storable(const State *st, int s);
extern bool positions_moved(const State *st, int s);
extern bool positions_behind_chunk(State *st, int s, Position *pos, uint16_t *lsn);
extern bool positions_store(State *st, int s, bool last);
extern void positions_store_rest(State *st, int s);
extern void stored_start(State *st, int s);

/* chunk.c: exactly once */
extern bool is_exactly_once(int s);
extern bool chunk_may_read(const Relay *r, int s);
extern bool chunk_may_store(const Relay *r, int s);
extern bool chunk_may_send(const Relay *r, int s);
extern void chunk_lose_client(Relay *r);
extern void chunk_append(Broker *broker, int msg);
extern void chunk_actions(const State *st, int s, bool in_flight, Actions *out);
extern void broker_actions(const State *st, int s, Actions *out);
extern void chunk_step(State *st, const Action *action);

/* properties.c: the judge */
extern bool is_message(const State *st, int msg);
extern bool done_by(const State *st, const Position *pos, int msg);
extern const Position *position_of(const Disk *disk, int s, int topic);
extern Set	predecessors(const State *st, int topic, int xid);
extern void judge_insert(State *st, int msg);
extern void judge_send(const State *st, int s, int msg);
extern void judge_append(State *st, int s, int msg);
extern void judge_store(const State *st, int s, const Disk *before);
extern void judge_free(const State *st, int msg);
extern void judge_state(const State *st);
extern void judge_end(const State *st);
extern void relay_went_down(State *st, int s, bool promoted);

/* explore.c */
typedef struct Trace
{
	int			n;
	Action		action[MAX_TRACE];
} Trace;

typedef struct Result
{
	uint64_t	states;			/* looked at, of a walk: steps */
	uint64_t	runs;			/* that came to an end, of walks: all */
	int			depth;
	bool		complete;
	Property	property;		/* violated; P_NONE: none */
	char		text[sizeof(violation)];
	Trace		trace;
} Result;

extern void explore_all(double seconds, Result *result);
extern void explore_walks(uint64_t seed, uint64_t walks, double seconds, Result *result);
extern void explore_minimise(Result *result);
extern void explore_print(const Trace *trace);

#endif							/* MODEL_H */
