/*-------------------------------------------------------------------------
 *
 * jet.h
 *	  What the parts of the NATS JetStream worker transport share.
 *
 * The client library is used as a codec with a socket: each client has one
 * thread of its own, all signals blocked, that connects, polls the socket and
 * calls the library when there is something to read or write (its "external
 * event loop").  So nothing of it blocks, none of its threads touches our
 * memory but for one callback (jet_connect.c), and no byte is buffered where
 * we can't take it back.  Which of the two threads may touch what: see
 * io_thread.h and io_client.h.
 *
 * Reconnecting is ours: the library's own would send what it had buffered,
 * behind our back, before what must come first.
 *
 * Nothing but jet_module.c knows the server, so the same objects run in a
 * plain test program.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_JET_H
#define OUTBOX_JET_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <nats/nats.h>

#include "common/error.h"
#include "common/io_client.h"
#include "common/settings.h"
#include "common/thread.h"
#include "transport/source.h"
#include "transport/transport.h"

/* What is ours in a message's headers; see jet_message.c. */
#define JET_KEY_HEADER			"outbox-key"
#define JET_TOMBSTONE_HEADER	"outbox-tombstone"
#define JET_TIME_HEADER			"outbox-time"
#define JET_ESCAPED_HEADER		"outbox-escaped"
#define JET_ID_HEADER			"message-id"	/* ours, outside of NATS */
#define JET_CONTENT_HEADER		"content-type"

#define JET_MAX_SUBJECT		2048
#define JET_MAX_USED		256 /* messages that wait to be destroyed */

/* Codes of JetStream's errors, of those that mean something to us. */
#define JET_NO_MESSAGE			10037
#define JET_NOT_ENABLED			10076
#define JET_NOT_FOR_ACCOUNT		10039
#define JET_TOO_LARGE			10054
#define JET_NAME_EXISTS			10058
#define JET_NO_STREAM			10059
#define JET_OTHER_STREAM		10060
#define JET_OVERLAP				10065
#define JET_OTHER_LAST_ID		10070
#define JET_OTHER_LAST_SEQUENCE	10071
#define JET_NO_SUCH_SUBJECT		10093
#define JET_HEADERS_TOO_LARGE	10097
#define JET_SEALED				10109

typedef struct JetUrl
{
	char	   *host;			/* without brackets */
	char	   *text;			/* as the library wants it */
	bool		tls;
} JetUrl;

/* Options, as text that is ours. */
typedef struct JetConfig
{
	int			nurls;
	JetUrl	   *urls;
	char	   *client_id;
	char	   *stream;
	char	   *topics;			/* patterns, for a stream that is created */
	bool		create_stream;
	int			replicas;
	char	   *prefix;			/* of subjects; empty: none */
	char	   *user;			/* these five NULL when not given */
	char	   *password;
	char	   *token;
	char	   *nkey_seed;
	char	   *credentials;
	char	   *tls_ca;			/* PEM texts, or NULL */
	char	   *tls_certificate;
	char	   *tls_key;
	bool		tls_verify;
} JetConfig;

/* A connection, of the thread that opened it. */
typedef struct JetConnection
{
	const JetConfig *config;
	natsConnection *nc;			/* NULL: there is none */
	natsSubscription *sub;		/* to all replies */
	char		inbox[64];		/* replies come to inbox.NUMBER */
	int			next_url;
	int			fd;				/* of the socket; -1: none */
	int			wake_fd;		/* what a callback of the library writes to */
	bool		wants_write;	/* something is buffered */
	int64_t		heard;			/* ms, when the server was last heard of */
	char	   *jwt;			/* parts of the credentials, while it connects */
	char	   *seed;

	/* messages that are done with, see jet_let_go() */
	natsMsg    *used[JET_MAX_USED];
	int			nused;
	size_t		used_bytes;

	/* see jet_connect.c: guarded by the list's lock */
	struct JetConnection *next_live;
	uint64_t	id;
	int			ndenied;		/* what the server has forbidden ... */
	char		denied[256];	/* ... the last time */
} JetConnection;

/* An answer to a request, or to a record. */
typedef struct JetAnswer
{
	bool		to_request;		/* else to a record */
	uint64_t	number;			/* of what it answers */
	const char *text;			/* JSON, NUL-terminated */
	natsMsg    *msg;			/* to be let go when done */
} JetAnswer;

/* What is handed over to the io thread. */
typedef struct JetRecord
{
	IoRecord	io;
	char	   *id;				/* its message id as a header's value; NULL:
								 * none */
	char		id_buffer[48];	/* ... when it is short; else malloc'd */
	bool		refused;		/* in the ring: by an answer; it was not stored;
								 * io only */
	OutboxHeader headers[];		/* those of io.data */
} JetRecord;

/* What the io thread is at; see jet_chain.c. */
typedef enum JetPhase
{
	JET_LOOK,					/* the stream is to be asked for */
	JET_LOOKING,				/* ... was */
	JET_CREATING,
	JET_PROBING,				/* which of "unsure" the stream has */
	JET_GO,						/* records are published */
	JET_DRAIN					/* until all on the wire is answered */
} JetPhase;

struct OutboxClient
{
	IoClient	io;
	JetConfig	config;

	/* io only */
	JetConnection connection;
	bool		purging;		/* nothing is published any more */
	JetPhase	phase;
	int64_t		look_due;		/* ms, of the next look for the stream */
	int64_t		asked_at;		/* ... of the request under way */
	uint64_t	request;		/* its number; 0: none */
	uint64_t	next_request;
	bool		blamed;			/* the stream is not there, or not for us */
	int64_t		max_msg_size;	/* of the stream; -1: none */

	/* what is on the wire: by number, NULL: settled */
	IoRecord  **ring;
	size_t		ring_size;		/* a power of two */
	uint64_t	first;
	uint64_t	next;
	size_t		wire_n;			/* not answered */
	size_t		wire_bytes;
	size_t		unanswered;		/* ... and will never be */
	int64_t		answered_at;	/* ms, when something was last */

	/* the chain */
	bool		chained;		/* nobody else seems to write */
	int64_t		chained_since;	/* ms */
	int64_t		shared_until;	/* ms; not chained until then */
	int			shared_ms;
	bool		conflict;		/* somebody else has written */
	bool		broken;			/* ... or one of ours was refused: what is on
								 * the wire behind it is refused too */
	uint64_t	last_sequence;	/* of the stream, as far as we know */
	uint64_t	expected;		/* ... when the next record gets there */
	bool		has_before;		/* what follows can name the record before it */
	char	   *before;			/* its id; NULL: it has none */

	IoList		unsure;			/* were on the wire of a connection that is
								 * gone, in their order */
	size_t		nunsure;
	uint64_t	unsure_base;	/* the first can only be behind this one;
								 * UINT64_MAX: anywhere */
	size_t		probe_low;		/* so many of them are there ... */
	size_t		probe_high;		/* ... and no more than that */
	size_t		probe_at;

	IoList		heirs;			/* to be published, before "ready" */
	IoList		ready;
	IoRecord   *alone;			/* nothing else may be on the wire */
	bool		doubt;			/* it found nobody, so the stream is looked at
								 * before its topic is blamed */
};

static inline JetRecord *
jet_record(IoRecord *record)
{
	return (JetRecord *) record;
}

/* jet_config.c */
extern bool jet_config_parse(JetConfig *config, const char *client_id, const char *topics,
							 int noptions, const OutboxOption *options,
							 OutboxError *error);
extern void jet_config_free(JetConfig *config);

/* jet_connect.c */
extern void jet_connection_init(JetConnection *c, const JetConfig *config, int wake_fd);
extern void jet_connection_release(JetConnection *c);
extern bool jet_connect(JetConnection *c, OutboxError *error);
extern void jet_disconnect(JetConnection *c);
extern bool jet_connection_turn(JetConnection *c, bool readable, OutboxError *error);
extern bool jet_next_answer(JetConnection *c, JetAnswer *answer, bool *no_responders);
extern void jet_let_go(JetConnection *c, natsMsg *msg);
extern int	jet_denied(JetConnection *c, char *text, size_t size);
extern bool jet_request(JetConnection *c, const char *subject, const char *body,
						uint64_t number, OutboxError *error);
extern bool jet_library_open(void);
extern void jet_library_close(void);

/* jet_auth.c */
extern natsStatus jet_auth(JetConnection *c, natsOptions *options);
extern void jet_auth_forget(JetConnection *c);

/* jet_json.c */
extern bool jet_json_find(const char *text, const char *path, const char **value, size_t *len);
extern bool jet_json_number(const char *text, const char *path, int64_t *number);
extern bool jet_json_string(const char *text, const char *path, char *to, size_t size);
extern bool jet_json_element(const char *text, const char *path, int n, char *to, size_t size);
extern void jet_json_quote(char *to, size_t size, const char *text);
extern char *jet_base64(const char *text, size_t len, size_t *decoded);

/* jet_topic.c */
extern bool jet_subject_covers(const char *wide, const char *subject);

/* jet_error.c */
extern OutboxFailure jet_error_status(OutboxError *error, natsStatus status, const char *why);
extern int	jet_error_code(const char *text);
extern OutboxFailure jet_error_answer(OutboxError *error, const JetConfig *config,
									  const char *what, const char *text);

/* jet_message.c */
extern const char *jet_cannot_carry(const OutboxRecord *record);
extern bool jet_make_id(JetRecord *record);
extern void jet_forget_id(IoRecord *record);
extern natsStatus jet_message_make(natsMsg **msg, const JetRecord *record, const char *subject,
								   const char *reply);

/* jet_send.c: main */
extern OutboxFailure jet_send(OutboxClient *client, const OutboxRecord *record,
							  OutboxError *error);

/* jet_settle.c: io */
extern void jet_delivered(OutboxClient *client, IoRecord *record);
extern void jet_dead(OutboxClient *client, IoRecord *record, const OutboxError *error);
extern void jet_hold(OutboxClient *client, IoRecord *record, const OutboxError *error);
extern void jet_topic_failed(OutboxClient *client, IoRecord *record, const OutboxError *error);
extern IoRecord *jet_next_record(OutboxClient *client);
extern void jet_purged(IoClient *client, IoRecord *record);
extern void jet_purge_records(OutboxClient *client, bool all);

/* jet_chain.c: io */
extern bool jet_publish(OutboxClient *client, OutboxError *error);
extern void jet_answered(OutboxClient *client, const JetAnswer *answer);
extern void jet_unanswered(OutboxClient *client, int n);
extern void jet_again_alone(OutboxClient *client);
extern void jet_doubt_topics(OutboxClient *client);
extern void jet_go_on(OutboxClient *client);
extern void jet_wire_lost(OutboxClient *client);
extern void jet_resolved(OutboxClient *client, size_t stored);
extern void jet_forget_unsure(OutboxClient *client);
extern IoRecord *jet_wire_pull(OutboxClient *client, uint64_t number);

/* jet_stream.c: io */
extern bool jet_stream_turn(OutboxClient *client, OutboxError *error);
extern void jet_stream_answer(OutboxClient *client, const JetAnswer *answer);
extern void jet_stream_failed(OutboxClient *client, const OutboxError *error);

/* jet_io.c: io */
extern void *jet_io_main(void *arg);
extern void jet_show_blocked(OutboxClient *client);

/* jet.c */
extern const OutboxTransport jet_transport;
extern bool jet_thread_start(IoThread *io, void *(*main) (void *), OutboxError *error);
extern bool jet_thread_end(IoThread *io, int timeout_ms);

/* jet_source.c */
extern const OutboxSource jet_source;

#endif							/* OUTBOX_JET_H */
