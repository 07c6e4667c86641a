/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  What pg_outbox keeps in shared memory.
 *
 * Three things: a table of databases in use (ids, lanes, counters), a table
 * of relays (their latch, state and figures), and the hold-offs that keep
 * workers out of a database while a utility statement needs it alone.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SHMEM_H
#define OUTBOX_SHMEM_H

#include "access/xlogdefs.h"
#include "port/atomics.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#define OUTBOX_LANES		8
#define OUTBOX_ERROR_LEN	512

/*
 * A lane: a chain of segments, of which one takes appends.  Which one is
 * changed under the lock in exclusive mode only; ids are taken and rows are
 * inserted under the same lock, which is what keeps a lane sorted.
 */
typedef struct OutboxLane
{
	LWLock		lock;
	Oid			relid;			/* current segment */
	uint64		generation;		/* its generation */
} OutboxLane;

typedef union OutboxLanePadded
{
	OutboxLane	lane;
	char		pad[PG_CACHE_LINE_SIZE];
} OutboxLanePadded;

/*
 * A database with the extension in use.  A slot is found under
 * OutboxShared.lock; whoever holds a lane's lock and still finds dboid,
 * extoid and incarnation as they were may use it, since a slot is emptied
 * only under all of its lanes' locks.
 */
typedef struct OutboxDb
{
	Oid			dboid;			/* InvalidOid: free slot */
	Oid			extoid;
	uint64		incarnation;	/* never the same twice in a server's life */
	uint64		epoch;			/* random; part of message ids */
	pg_atomic_uint64 next_id;	/* the next id to hand out */
	pg_atomic_uint64 limit_id;	/* ids from here on are not reserved yet */
	pg_atomic_uint64 publish_count; /* transactions that published and
									 * committed or prepared */
	pg_atomic_uint64 backlog_bytes; /* retained log, as the keeper saw it */
	pg_atomic_uint64 unrouted;	/* messages that no server wanted */
	XLogRecPtr	begun_lsn;		/* all of its messages lie beyond in WAL ... */
	uint64		begun_xid;		/* ... and what ran before has lower xids */
	bool		uncommitted;	/* its CREATE EXTENSION may still roll back */
	pid_t		keeper_pid;		/* 0: none; changed under OutboxShared.lock */
	PGPROC	   *keeper_proc;
	int64		keeper_started; /* last attempt to start one; see elapsed.h */
	OutboxLanePadded lanes[OUTBOX_LANES];
} OutboxDb;

/* The closed list of states that outbox.relay_status shows. */
typedef enum OutboxRelayState
{
	OUTBOX_STATE_STARTING = 0,
	OUTBOX_STATE_RUNNING,
	OUTBOX_STATE_PAUSED,
	OUTBOX_STATE_DISABLED,
	OUTBOX_STATE_RETRYING,
	OUTBOX_STATE_WAITING_FOR_STANDBY,
	OUTBOX_STATE_BLOCKED,
	OUTBOX_STATE_ERROR,
	OUTBOX_STATE_FENCED,
	OUTBOX_STATE_NO_WORKER
} OutboxRelayState;

/* What is shown with the last of them. */
#define OUTBOX_NO_WORKER_ERROR	"no free slot for a background worker"
#define OUTBOX_NO_WORKER_HINT	"Raise max_worker_processes."

/*
 * A relay's slot, claimed by the keeper for one server and kept as long as
 * the server exists, so that figures and the last error outlive the worker.
 * All but the atomics is protected by the slot's mutex, identity also by
 * OutboxShared.lock.
 */
typedef struct OutboxRelaySlot
{
	slock_t		mutex;
	Oid			dboid;			/* InvalidOid: free slot */
	Oid			extoid;
	Oid			serverid;
	char		server_name[NAMEDATALEN];
	uint64		generation;		/* counts claims of this slot */
	pid_t		pid;			/* 0: not running */
	PGPROC	   *proc;			/* to set its latch */
	OutboxRelayState state;
	pg_atomic_uint32 reload;	/* raised by DDL: read the server again */
	pg_atomic_uint32 stop;		/* raised by the keeper: end cleanly */

	/* figures, written by the relay */
	pg_atomic_uint64 delivered; /* acknowledged messages since start */
	pg_atomic_uint64 dead;
	pg_atomic_uint64 in_flight;
	pg_atomic_uint64 confirmed_count;	/* publish_count whose messages are all
										 * acknowledged or dead letters */
	pg_atomic_uint64 done_id;	/* ids below are done or not this server's, but
								 * for what long transactions published; 0:
								 * not known yet */
	pg_atomic_uint64 latency_us;	/* publish-to-ack, recent mean */
	pg_atomic_uint64 memory;	/* bytes in the window */
	TimestampTz oldest_unacked; /* publish time of the oldest message that the
								 * relay read and that is unacknowledged, or 0 */
	TimestampTz started;
	int64		tried;			/* the same, by elapsed.h's clock */
	char		last_error[OUTBOX_ERROR_LEN];
	char		last_hint[256];
	TimestampTz last_error_at;
	int			lagging;		/* topics that lag */
} OutboxRelaySlot;

#define OUTBOX_HOLD_OFFS	4

/* What a process says of itself, see hold_off.c; under OutboxShared.lock. */
typedef struct OutboxProcEntry
{
	Oid			works_in;		/* a worker: the database it is in, or about
								 * to connect to */
	Oid			holds_off[OUTBOX_HOLD_OFFS];	/* a backend: databases that
												 * workers must leave */
} OutboxProcEntry;

#define OUTBOX_LOOKS		64

/* A database that the launcher is to have a keeper look into. */
typedef struct OutboxLook
{
	Oid			dboid;			/* InvalidOid: unused */
	int64		not_before;		/* by elapsed.h's clock */
} OutboxLook;

typedef struct OutboxShared
{
	LWLock		lock;			/* tables' structure */
	pg_atomic_uint64 incarnations;
	int			max_databases;
	int			max_relays;
	int			max_procs;
	PGPROC	   *launcher_proc;
	pid_t		launcher_pid;
	bool		scan_databases; /* launcher: look into every database */
	bool		no_worker;		/* the launcher found no slot for a keeper */
	OutboxLook	looks[OUTBOX_LOOKS];
	pg_atomic_uint32 nholdoffs; /* of all processes */
	OutboxRelaySlot *relays;	/* max_relays */
	struct InboxSlot *inboxes;	/* of subscriptions, as many */
	OutboxDb   *dbs;			/* max_databases */
	OutboxProcEntry *procs;		/* max_procs, by the number of the PGPROC */
} OutboxShared;

extern OutboxShared *outbox_shared; /* NULL when not preloaded */

extern void outbox_shmem_request(void);
extern void outbox_shmem_startup(void);

/* Raise when the library was not preloaded. */
extern void outbox_require_preload(void);

/* The slot of (this database, extoid), or NULL.  Never builds one. */
extern OutboxDb *outbox_db_find(Oid dboid, Oid extoid);

/* The same, built from the catalog when it is not there yet (lane.c). */
extern OutboxDb *outbox_db_get(Oid extoid);

/* Empty a slot: after DROP EXTENSION, DROP DATABASE. */
extern void outbox_db_remove(Oid dboid, Oid extoid);

/*
 * Have the launcher start a keeper in a database that may have the extension,
 * not before so many milliseconds have gone.
 */
extern void outbox_look_into(Oid dboid, int delay_ms);

/* Wake all relays of a database, its keeper, the launcher. */
extern void outbox_wake_relays(Oid dboid);
extern void outbox_wake_keeper(Oid dboid);
extern void outbox_wake_launcher(void);

#endif							/* OUTBOX_SHMEM_H */
