/*-------------------------------------------------------------------------
 *
 * rabbit.h
 *	  What the parts of the RabbitMQ worker transport share.
 *
 * The client library blocks where it likes: amqp_basic_publish() waits for
 * ever on a full socket.  So each client and each consumer has a thread of
 * its own, the only one that calls the library, with all signals blocked.
 * Which of the two threads may touch what: see io_thread.h and io_client.h.
 *
 * Nothing but rabbit_module.c knows the server, so the same objects run in a
 * plain test program.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RABBIT_H
#define OUTBOX_RABBIT_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/io_client.h"
#include "common/settings.h"
#include "common/thread.h"
#include "rabbit_library.h"
#include "transport/source.h"
#include "transport/transport.h"

#define RABBIT_MAX_SHORT	255 /* bytes of AMQP's short strings: routing
								 * keys, names of headers, message ids */

/* What is ours in a table of headers; see rabbit_send.c. */
#define RABBIT_KEY_HEADER		"outbox-key"
#define RABBIT_TOMBSTONE_HEADER	"outbox-tombstone"
#define RABBIT_TIME_HEADER		"timestamp_in_ms"	/* as the broker's own
													 * plugin calls it */

typedef struct RabbitUrl
{
	char	   *host;
	int			port;
	char	   *vhost;
	bool		tls;
} RabbitUrl;

/* Options, as text that is ours. */
typedef struct RabbitConfig
{
	int			nurls;
	RabbitUrl  *urls;
	char	   *client_id;
	char	   *user;
	char	   *password;
	char	   *exchange;		/* empty: the default exchange */
	char	   *declare;		/* its type when it is to be made, or NULL */
	bool		mandatory;
	int			heartbeat;		/* seconds */
	char	   *tls_ca;			/* PEM texts, or NULL */
	char	   *tls_certificate;
	char	   *tls_key;
	bool		tls_verify_peer;
	bool		tls_verify_host;
} RabbitConfig;

/* A connection, of the thread that opened it, but for "fd". */
typedef struct RabbitConnection
{
	const RabbitConfig *config;
	amqp_connection_state_t state;	/* NULL: there is none */
	int			next_url;
	pthread_mutex_t lock;
	int			fd;				/* a duplicate of the socket, guarded by lock,
								 * for rabbit_connection_cut(); -1: none */
	_Atomic int64_t busy_since; /* ms; in a call that may block, 0: not */
	int			stuck_bytes;	/* main only: unsent when it looked last */
	int64_t		stuck_since;
} RabbitConnection;

/* What is handed over to the io thread. */
typedef struct RabbitRecord
{
	IoRecord	io;
	const char *message_id;		/* NULL: not a short string */
	size_t		message_id_len;
	const char *content_type;	/* a header's, or the payload's; or NULL */
	size_t		content_type_len;
	size_t		properties;		/* upper bound of the size of its header frame */
	bool		alone;			/* goes through a channel of its own; io only */
	int			nentries;
	amqp_table_entry_t entries[];
} RabbitRecord;

typedef enum RabbitChannelState
{
	RABBIT_CHANNEL_CLOSED,
	RABBIT_CHANNEL_OPENING,		/* answers are under way */
	RABBIT_CHANNEL_OPEN
} RabbitChannelState;

/* A channel of the way out; io only. */
typedef struct RabbitChannel
{
	amqp_channel_t number;
	RabbitChannelState state;
	uint64_t	first;			/* delivery tags: the lowest unsettled one */
	uint64_t	next;			/* of the next record */
	IoRecord  **ring;		/* by delivery tag; NULL: settled */
	size_t		ring_size;		/* a power of two */
	size_t		in_flight;

	/* a basic.return that is coming in */
	bool		returning;
	bool		returned_has_id;
	uint64_t	returned_size;	/* of its body */
	uint64_t	returned_left;	/* ... still to come */
	char		returned_key[RABBIT_MAX_SHORT + 1];
	char		returned_id[RABBIT_MAX_SHORT + 1];
	char		returned_text[RABBIT_MAX_SHORT + 1];
	int			returned_code;
} RabbitChannel;

#define RABBIT_SAFE_SIZE	16384	/* of a payload; no broker takes less */

#define RABBIT_CONTROL	1		/* numbers of channels */
#define RABBIT_MAIN		2
#define RABBIT_ALONE	3		/* the first of several */
#define RABBIT_NALONE	4
#define RABBIT_NCHANNELS (RABBIT_ALONE + RABBIT_NALONE)

typedef enum RabbitExchangeState
{
	RABBIT_EXCHANGE_UNKNOWN,
	RABBIT_EXCHANGE_ASKED,
	RABBIT_EXCHANGE_WANTED,		/* to be made */
	RABBIT_EXCHANGE_MADE,		/* its declaration is under way */
	RABBIT_EXCHANGE_FINE
} RabbitExchangeState;

struct OutboxClient
{
	IoClient	io;
	RabbitConfig config;

	/* io only */
	RabbitConnection connection;
	RabbitChannel channels[RABBIT_NCHANNELS];
	RabbitExchangeState exchange_state;
	int64_t		exchange_due;	/* ms, of the next look */
	bool		blocked;		/* by an alarm of the broker */
	bool		blamed;			/* the exchange is missing */
	bool		accused;		/* a record made the broker end the connection */
	IoList		ready;			/* to be published */
	IoList		alone;			/* ... one at a time */
	size_t		wire_n;			/* published, not settled */
	size_t		wire_bytes;
	int			alone_limit;	/* channels in use for them */
	size_t		taken;			/* the largest payload that the broker took */
};

static inline RabbitRecord *
rabbit_record(IoRecord *record)
{
	return (RabbitRecord *) record;
}

/* rabbit_config.c */
extern bool rabbit_config_parse(RabbitConfig *config, const char *client_id,
								int noptions, const OutboxOption *options,
								OutboxError *error);
extern void rabbit_config_free(RabbitConfig *config);

/* rabbit_connect.c */
extern void rabbit_connection_init(RabbitConnection *c, const RabbitConfig *config);
extern void rabbit_connection_release(RabbitConnection *c);
extern bool rabbit_connect(RabbitConnection *c, OutboxError *error);
extern void rabbit_disconnect(RabbitConnection *c, bool politely);
extern void rabbit_connection_cut(RabbitConnection *c);
extern void rabbit_connection_watch(RabbitConnection *c);
extern OutboxFailure rabbit_read_frame(RabbitConnection *c, amqp_frame_t *frame,
									   bool *got, OutboxError *error);
extern bool rabbit_send_method(RabbitConnection *c, amqp_channel_t channel,
							   amqp_method_number_t method, void *decoded);

/* rabbit_error.c */
extern OutboxFailure rabbit_error_status(OutboxError *error, int status);
extern const char *rabbit_code_name(int code);
extern OutboxFailure rabbit_error_closed(OutboxError *error, bool connection,
										 int code, amqp_bytes_t text);
extern void rabbit_copy_short(char *to, amqp_bytes_t from);

/* rabbit_send.c: main */
extern OutboxFailure rabbit_send(OutboxClient *client, const OutboxRecord *record,
								 OutboxError *error);
extern int	rabbit_poll(OutboxClient *client, OutboxReport *reports, int max);

/* rabbit_publish.c: io */
extern bool rabbit_publish(OutboxClient *client);
extern bool rabbit_could_publish(const OutboxClient *client);

/* rabbit_settle.c: io */
extern void rabbit_take_in(OutboxClient *client, IoList *records);
extern void rabbit_settled(OutboxClient *client, RabbitChannel *channel,
						   uint64_t tag, bool multiple, bool taken);
extern void rabbit_returned(OutboxClient *client, RabbitChannel *channel);
extern void rabbit_topic_failed(OutboxClient *client, IoTopic *topic,
								const OutboxError *error);
extern void rabbit_dead(OutboxClient *client, IoRecord *record,
						const OutboxError *error);
extern void rabbit_channel_lost(OutboxClient *client, RabbitChannel *channel, bool alone);
extern void rabbit_purge_records(OutboxClient *client, bool all);
extern int64_t rabbit_retry_due(OutboxClient *client, int64_t now);
extern bool rabbit_channel_push(RabbitChannel *channel, IoRecord *record);
extern IoRecord *rabbit_channel_pull(OutboxClient *client, RabbitChannel *channel,
										 uint64_t tag);

/* rabbit_frames.c: io */
extern bool rabbit_open_channels(OutboxClient *client);
extern bool rabbit_read_frames(OutboxClient *client, OutboxError *error);
extern bool rabbit_look_for_exchange(OutboxClient *client);

/* rabbit_io.c: io */
extern void *rabbit_io_main(void *arg);
extern void rabbit_show_blocked(OutboxClient *client);

/* rabbit_source.c */
extern const OutboxSource rabbit_source;

/* rabbit.c */
extern const OutboxTransport rabbit_transport;
extern bool rabbit_thread_end(IoThread *io, RabbitConnection *connection, int timeout_ms);

#endif							/* OUTBOX_RABBIT_H */
