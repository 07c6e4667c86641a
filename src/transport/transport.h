/*-------------------------------------------------------------------------
 *
 * transport.h
 *	  What the relay asks of a message broker's client library.
 *
 * A transport is two shared libraries.  One is loaded by client backends for
 * DDL and name checks and contains no client library (OutboxTransportDdl).
 * The other is loaded by relay workers only, and links the client library
 * (OutboxTransport).  The core knows a transport by the option "library" of
 * its foreign-data wrapper, never by name: with library 'pg_outbox_x', the
 * worker loads $libdir/pg_outbox_x and backends load $libdir/pg_outbox_x_fdw.
 *
 * Contract of the way out; source.h has the way in.  The relay calls every
 * function from its main thread.  No function takes a lock that the server
 * knows, calls into the server beyond palloc and elog(DEBUGn/LOG) on the main
 * thread, or blocks for longer than the time it is given.  A client library's own threads run with
 * all signals blocked and touch nothing of the server; they hand over through
 * the library's queue and the eventfd.
 *
 * send() borrows the record's memory (topic, key, payload, names and values of
 * headers; not the record itself, nor its array of headers) until the record's
 * report was returned by poll(), or until close() returned.  Every
 * record that send() accepted is reported exactly once, unless close() comes
 * first.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TRANSPORT_H
#define OUTBOX_TRANSPORT_H

#define OUTBOX_TRANSPORT_ABI	1

/* What a failure means for the relay; never derived from message text. */
typedef enum OutboxFailure
{
	OUTBOX_OK = 0,
	OUTBOX_RETRY,				/* passing: the client keeps trying, or it is
								 * full (send): try again later */
	OUTBOX_LATER,				/* send(): not before another record has been
								 * answered, of the topic as a rule; other
								 * topics may go */
	OUTBOX_TOPIC,				/* this topic is missing or forbidden */
	OUTBOX_DEAD,				/* this record was refused for good, alone */
	OUTBOX_SUSPECT,				/* refused together with others: to be sent
								 * again in careful mode */
	OUTBOX_PURGED,				/* given back: unsent, or undecided by purge()
								 * or a fatal error: to be sent again */
	OUTBOX_FATAL,				/* this client instance is of no more use */
	OUTBOX_CONFIG,				/* settings, credentials: needs a person */
	OUTBOX_ABORT,				/* this transaction can only be aborted */
	OUTBOX_FENCED				/* another instance has our identity now */
} OutboxFailure;

/* The steps of transactional delivery. */
typedef enum OutboxTxnStep
{
	OUTBOX_TXN_INIT,			/* fence former instances, settle what they
								 * left open; once, before all else */
	OUTBOX_TXN_BEGIN,
	OUTBOX_TXN_COMMIT,
	OUTBOX_TXN_ABORT
} OutboxTxnStep;

typedef struct OutboxError
{
	OutboxFailure failure;
	char		name[64];		/* the library's error name, e.g.
								 * MSG_SIZE_TOO_LARGE */
	char		text[512];		/* never contains a secret */
	char		hint[256];		/* what a person can do, or empty */
} OutboxError;

typedef struct OutboxOption
{
	const char *name;
	const char *value;
} OutboxOption;

typedef struct OutboxHeader
{
	const char *name;			/* NUL-terminated UTF-8 */
	const char *value;
	size_t		value_len;
} OutboxHeader;

typedef struct OutboxRecord
{
	const char *topic;			/* NUL-terminated UTF-8 */
	int32_t		partition;		/* -1: by key */
	const char *key;			/* NULL: no key */
	size_t		key_len;
	const char *payload;		/* NULL: tombstone */
	size_t		payload_len;
	int			nheaders;
	const OutboxHeader *headers;
	int64_t		timestamp_ms;	/* since 1970-01-01 UTC */
	const char *content_type;	/* of the payload, static; NULL: none */
	void	   *tag;			/* comes back in the report; not NULL */
} OutboxRecord;

typedef struct OutboxReport
{
	void	   *tag;
	OutboxFailure failure;		/* OK, TOPIC, DEAD, SUSPECT or PURGED */
	const char *name;			/* of the error, empty when OK; like text,
								 * static or valid until the next poll() */
	const char *text;			/* of the error, or NULL */
} OutboxReport;

typedef struct OutboxTransportConfig
{
	const char *server_name;
	const char *client_id;		/* default for the library's client name */
	int			noptions;		/* the server's and user mapping's options,
								 * without those that belong to the core */
	const OutboxOption *options;
	bool		careful;		/* one record a request and in flight; a
								 * refusal is then the record's own */
	int			max_batch;		/* records that may be refused together; 0:
								 * the library's default */
	size_t		max_bytes;		/* bound of accepted, unreported bytes */
	size_t		max_message_size;	/* bytes */
	const char *topics;			/* patterns of what is routed here, as in the
								 * server's option, without exclusions; for
								 * brokers where it is to be made ready */

	/* NULL: without transactions; else the client's identity across restarts,
	 * and where its bookmarks are */
	const char *transactional_id;
	const char *bookmark_topic;
	const char *bookmark_key;
} OutboxTransportConfig;

typedef struct OutboxTransportStatus
{
	bool		connected;		/* some broker answers */
	bool		was_connected;	/* some has since open(): it may have appended
								 * what is unreported */
	bool		blocked;		/* connected, yet the broker takes nothing for
								 * now; "error" says why: RETRY, or CONFIG when
								 * a person is needed */
	bool		failed;			/* error.failure is FATAL or CONFIG: close */
	uint64_t	nerrors;		/* grows with each error seen: a change says
								 * that "error" is new */
	OutboxError error;			/* the last one seen; RETRY: status only */
} OutboxTransportStatus;

typedef struct OutboxClient OutboxClient;	/* the transport's own */
typedef struct OutboxSource OutboxSource;	/* see source.h */

typedef struct OutboxTransport
{
	int			abi;			/* OUTBOX_TRANSPORT_ABI */
	const char *name;			/* for messages: "kafka" */

	/* NULL and *error set when it can't be opened */
	OutboxClient *(*open) (const OutboxTransportConfig *config,
						   OutboxError *error);

	/* readable when poll() may have something; owned by the client */
	int			(*event_fd) (OutboxClient *client);

	/*
	 * Hand over one record: OK (a report will come), RETRY (full: poll, then
	 * again), TOPIC, DEAD, ABORT, FATAL or CONFIG (no report will come).
	 */
	OutboxFailure (*send) (OutboxClient *client, const OutboxRecord *record,
						   OutboxError *error);

	/*
	 * Collect up to max reports and serve the library's callbacks, without
	 * waiting.  Drains the eventfd first.  Returns how many.
	 */
	int			(*poll) (OutboxClient *client, OutboxReport *reports, int max);

	void		(*status) (OutboxClient *client, OutboxTransportStatus *status);

	/*
	 * Is this topic there and ours to write?  Starts a look-up when none
	 * is under way; RETRY: not known yet, ask again.  Else OK or TOPIC (with
	 * *error).  With topics_on_trial OK only means that it may be tried.
	 */
	OutboxFailure (*probe_topic) (OutboxClient *client, const char *topic,
								  OutboxError *error);

	/* Send now what waits for company. */
	void		(*flush) (OutboxClient *client);

	/*
	 * Give back as PURGED reports what is queued in the client; with
	 * in_flight, also what is on its way to a broker, which may still append
	 * it.  Without, that ends by itself and is reported as it ended, so that
	 * it need not be sent twice; it may take long (the broker may be down),
	 * and purge() may be called again to cut it short.  Nothing may be sent
	 * afterwards.
	 */
	void		(*purge) (OutboxClient *client, bool in_flight);

	/*
	 * Destroy, within about timeout_ms.  Unreported records are forgotten.
	 * Returns false when the library could not be stopped in time: then the
	 * process must exit, for borrowed memory may still be read.
	 */
	bool		(*close) (OutboxClient *client, int timeout_ms);

	/*
	 * Transactions; NULL: the broker has none.  What is sent between BEGIN and
	 * COMMIT becomes visible together, or not at all.
	 *
	 * transaction() waits for nothing.  It answers RETRY as long as the step is
	 * not done (*error's name is empty, unless INIT can't be done for now), and
	 * makes the eventfd readable when there is something to ask for.  Else OK,
	 * ABORT, FENCED, FATAL or CONFIG, with *error; after FATAL a COMMIT may have
	 * taken place.  ABORT to an ABORT tells why, and wants to be asked again.
	 * COMMIT and ABORT need all reports to have been polled, and nothing to be
	 * in flight: where answers don't come, or ABORT says that it is not safe
	 * (FATAL), close() it is, and the next client's INIT aborts.
	 */
	OutboxFailure (*transaction) (OutboxClient *client, OutboxTxnStep step,
								  OutboxError *error);

	/* *error of a transaction that has no answer to any of its records: CONFIG */
	void		(*explain_silence) (OutboxClient *client, OutboxError *error);

	/*
	 * Write the client's bookmark, as part of the transaction.  It is copied
	 * and makes no report.  RETRY: not before some report that is to come.
	 */
	OutboxFailure (*bookmark_write) (OutboxClient *client, const char *text,
									 OutboxError *error);

	/*
	 * Read the last committed bookmark, after INIT; the place for it is made
	 * when it is missing.  RETRY: not known yet, ask again.  OK: *text is it, or
	 * NULL when there is none; valid until close().
	 */
	OutboxFailure (*bookmark_read) (OutboxClient *client, const char **text,
									OutboxError *error);

	/* version text of the library, for the log */
	const char *(*version) (void);

	/*
	 * How long the broker waits for the end of a transaction before it aborts
	 * it, and how long after a commit it needs to take the next one without
	 * delay, both in ms.
	 */
	int			transaction_ms;
	int			transaction_settles_ms;

	/*
	 * The broker tells of a topic by what it does with the next record, and in
	 * no other way: one that was resumed is not known to be there before
	 * something of it is delivered.
	 */
	bool		topics_on_trial;

	/* bytes of memory that the library uses for a record beyond its data */
	size_t		record_overhead;
	size_t		header_overhead;
	/* ... and it copies a payload of no more than this */
	size_t		copied_payload;

	/* the way in; NULL: the broker has none */
	const OutboxSource *source;
} OutboxTransport;

/* The symbol that a worker library exports. */
typedef const OutboxTransport *(*OutboxTransportEntry) (void);
#define OUTBOX_TRANSPORT_ENTRY	"outbox_transport"

/* The DDL half: exported by the _fdw library, safe in any backend. */
typedef struct OutboxTransportDdl
{
	int			abi;
	const char *name;

	/* NULL when the name is fine, else why it is not (static, English) */
	const char *(*check_topic) (const char *topic, size_t len);

	/* same for a header's name */
	const char *(*check_header) (const char *name, size_t len);

	/* its source's, see source.h */
	bool		own_numbers;
} OutboxTransportDdl;

typedef const OutboxTransportDdl *(*OutboxTransportDdlEntry) (void);
#define OUTBOX_TRANSPORT_DDL_ENTRY	"outbox_transport_ddl"

#endif							/* OUTBOX_TRANSPORT_H */
