/*-------------------------------------------------------------------------
 *
 * rabbit_connect.c
 *	  A connection: opened, read, ended, and cut off by another thread.
 *
 * All calls of the library are bounded by its own deadlines but for writing:
 * a broker that stands still, or that raised an alarm, leaves the socket full,
 * and the library waits for room for ever.  The other thread sees that
 * (rabbit_connection_watch()) and shuts the socket down, which ends the wait
 * with an error.  It does so on a duplicate of the socket: the library closes
 * its own when it likes, and the number may then be somebody else's.
 *
 * Certificates are given as text, and checked by OpenSSL itself: the library
 * of 0.11 reads them from files only, and knows no addresses in certificates.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "rabbit.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/sockios.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#define CONNECT_MS		4000	/* the network's part */
#define LOGIN_MS		15000	/* the broker's */
#define STUCK_MS		30000	/* without a byte leaving */
#define FRAME_MAX		131072
#define CLOSE_MS		500

void
rabbit_connection_init(RabbitConnection *c, const RabbitConfig *config)
{
	c->config = config;
	c->fd = -1;
	pthread_mutex_init(&c->lock, NULL);
}

void
rabbit_connection_release(RabbitConnection *c)
{
	pthread_mutex_destroy(&c->lock);
}

/* Any thread: end whatever the connection's own thread waits for. */
void
rabbit_connection_cut(RabbitConnection *c)
{
	pthread_mutex_lock(&c->lock);
	if (c->fd >= 0)
		(void) shutdown(c->fd, SHUT_RDWR);
	pthread_mutex_unlock(&c->lock);
}

/* The other thread, now and then: cut off what has been stuck for long. */
void
rabbit_connection_watch(RabbitConnection *c)
{
	int64_t		busy_since = atomic_load(&c->busy_since);
	int64_t		now = thread_now_ms();
	int			bytes = 0;
	bool		moves;

	if (busy_since == 0 || now - busy_since < STUCK_MS)
	{
		c->stuck_since = 0;
		return;
	}
	pthread_mutex_lock(&c->lock);
	moves = c->fd < 0 || ioctl(c->fd, SIOCOUTQ, &bytes) != 0;
	pthread_mutex_unlock(&c->lock);
	if (moves || c->stuck_since == 0 || bytes != c->stuck_bytes)
	{
		c->stuck_bytes = bytes;
		c->stuck_since = now;
		return;
	}
	if (now - c->stuck_since < STUCK_MS)
		return;
	c->stuck_since = 0;
	rabbit_connection_cut(c);
}

/* --- TLS ------------------------------------------------------------------------ */

static _Thread_local int verify_error;	/* of the last handshake */

static int
note_verified(int good, X509_STORE_CTX *store)
{
	if (!good)
		verify_error = X509_STORE_CTX_get_error(store);
	return good;
}

/* All certificates of a PEM text. */
static bool
trust(SSL_CTX *ctx, const char *pem)
{
	BIO		   *bio = BIO_new_mem_buf(pem, -1);
	X509	   *cert;
	int			n = 0;

	while (bio != NULL && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL)
	{
		n += X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), cert) == 1;
		X509_free(cert);
	}
	BIO_free(bio);
	ERR_clear_error();
	return n > 0;
}

/* Our certificate, those between it and its authority, and its key. */
static bool
identify(SSL_CTX *ctx, const char *certificate, const char *key)
{
	BIO		   *bio = BIO_new_mem_buf(certificate, -1);
	X509	   *cert = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
	EVP_PKEY   *pkey = NULL;
	bool		good = cert != NULL && SSL_CTX_use_certificate(ctx, cert) == 1;

	X509_free(cert);
	while (good && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL)
		good = SSL_CTX_add_extra_chain_cert(ctx, cert) == 1;
	BIO_free(bio);
	bio = BIO_new_mem_buf(key, -1);
	if (good && bio != NULL)
		pkey = PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL);
	good = pkey != NULL && SSL_CTX_use_PrivateKey(ctx, pkey) == 1 &&
		SSL_CTX_check_private_key(ctx) == 1;
	EVP_PKEY_free(pkey);
	BIO_free(bio);
	ERR_clear_error();
	return good;
}

/* Whom the broker must prove to be. */
static void
expect_host(SSL_CTX *ctx, const char *host)
{
	X509_VERIFY_PARAM *param = SSL_CTX_get0_param(ctx);
	unsigned char address[sizeof(struct in6_addr)];

	if (inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1)
		X509_VERIFY_PARAM_set1_ip_asc(param, host);
	else
		X509_VERIFY_PARAM_set1_host(param, host, 0);
}

static amqp_socket_t *
tls_socket(RabbitConnection *c, const RabbitUrl *url, OutboxError *error)
{
	const RabbitConfig *config = c->config;
	amqp_socket_t *socket = amqp_ssl_socket_new(c->state);
	SSL_CTX    *ctx = socket ? amqp_ssl_socket_get_context(socket) : NULL;
	const char *bad = NULL;

	if (ctx == NULL)
	{
		error_set(error, OUTBOX_RETRY, "TLS", "could not set up TLS", NULL);
		return NULL;
	}
	amqp_ssl_socket_set_verify_peer(socket, 0); /* by OpenSSL, in the handshake */
	amqp_ssl_socket_set_verify_hostname(socket, 0);
	amqp_ssl_socket_set_ssl_versions(socket, AMQP_TLSv1_2, AMQP_TLSvLATEST);
	SSL_CTX_set_verify(ctx, config->tls_verify_peer ? SSL_VERIFY_PEER : SSL_VERIFY_NONE,
					   note_verified);
	if (config->tls_verify_host)
		expect_host(ctx, url->host);
	if (config->tls_ca == NULL)
		(void) SSL_CTX_set_default_verify_paths(ctx);
	else if (!trust(ctx, config->tls_ca))
		bad = "option \"tls_ca\" has no certificate";
	if (config->tls_certificate != NULL &&
		!identify(ctx, config->tls_certificate, config->tls_key))
		bad = "options \"tls_certificate\" and \"tls_key\" can't be used together";
	if (bad == NULL)
		return socket;
	error_set(error, OUTBOX_CONFIG, "TLS", bad, "Both are PEM texts; the key has no password.");
	return NULL;
}

/* A handshake failed: a certificate is a person's concern. */
static void
explain_tls(OutboxError *error, int status)
{
	unsigned long err = ERR_peek_last_error();
	char		text[300];

	if (verify_error != X509_V_OK)
	{
		snprintf(text, sizeof(text), "the broker's certificate is not accepted: %s",
				 X509_verify_cert_error_string(verify_error));
		error_set(error, OUTBOX_CONFIG, "CERTIFICATE", text,
				  "Set \"tls_ca\" to the certificate of the authority that signed it, and name the broker in \"url\" as its certificate does.");
	}
	else if (status == AMQP_STATUS_SSL_CONNECTION_FAILED && ERR_GET_LIB(err) == ERR_LIB_SSL)
	{
		snprintf(text, sizeof(text), "TLS handshake: %s", ERR_reason_error_string(err));
		error_set(error, OUTBOX_CONFIG, "TLS", text,
				  "Does the broker speak TLS on this port, and does it ask for a certificate?");
	}
	else
		rabbit_error_status(error, status);
	ERR_clear_error();
}

/* --- opening ---------------------------------------------------------------------- */

/* What the broker's list of connections shows, and what we can take. */
static amqp_rpc_reply_t
login(RabbitConnection *c, const RabbitUrl *url)
{
	static const char *const can[] = {
		"publisher_confirms", "basic.nack", "connection.blocked", "consumer_cancel_notify"
	};
	amqp_table_entry_t abilities[sizeof(can) / sizeof(can[0])];
	amqp_table_entry_t entries[2];
	amqp_table_t properties = {2, entries};

	for (size_t i = 0; i < sizeof(can) / sizeof(can[0]); i++)
	{
		abilities[i].key = amqp_cstring_bytes(can[i]);
		abilities[i].value.kind = AMQP_FIELD_KIND_BOOLEAN;
		abilities[i].value.value.boolean = 1;
	}
	entries[0].key = amqp_cstring_bytes("capabilities");
	entries[0].value.kind = AMQP_FIELD_KIND_TABLE;
	entries[0].value.value.table.num_entries = sizeof(can) / sizeof(can[0]);
	entries[0].value.value.table.entries = abilities;
	entries[1].key = amqp_cstring_bytes("connection_name");
	entries[1].value.kind = AMQP_FIELD_KIND_UTF8;
	entries[1].value.value.bytes = amqp_cstring_bytes(c->config->client_id);
	return amqp_login_with_properties(c->state, url->vhost, 0, FRAME_MAX,
									  c->config->heartbeat, &properties,
									  AMQP_SASL_METHOD_PLAIN,
									  c->config->user, c->config->password);
}

/* Why the broker did not let us in. */
static void
explain_login(OutboxError *error, const amqp_rpc_reply_t *reply)
{
	if (reply->reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
		reply->reply.id == AMQP_CONNECTION_CLOSE_METHOD)
	{
		amqp_connection_close_t *m = reply->reply.decoded;

		rabbit_error_closed(error, true, m->reply_code, m->reply_text);
	}
	else if (reply->library_error == AMQP_STATUS_BROKER_UNSUPPORTED_SASL_METHOD)
		error_set(error, OUTBOX_CONFIG, "AUTHENTICATION",
				  "the broker takes no user and password (SASL PLAIN)", NULL);
	else
		rabbit_error_status(error, reply->library_error);
}

/* Let the other thread cut the connection from now on. */
static void
share_socket(RabbitConnection *c)
{
	pthread_mutex_lock(&c->lock);
	c->fd = dup(amqp_get_sockfd(c->state));
	pthread_mutex_unlock(&c->lock);
}

/* Connect to the next URL, within bounds; false with *error. */
bool
rabbit_connect(RabbitConnection *c, OutboxError *error)
{
	const RabbitUrl *url = &c->config->urls[c->next_url];
	struct timeval connect_time = {CONNECT_MS / 1000, CONNECT_MS % 1000 * 1000};
	struct timeval login_time = {LOGIN_MS / 1000, LOGIN_MS % 1000 * 1000};
	amqp_socket_t *socket;
	amqp_rpc_reply_t reply;
	int			status;

	c->next_url = (c->next_url + 1) % c->config->nurls;
	c->state = amqp_new_connection();
	if (c->state == NULL)
	{
		error_set(error, OUTBOX_RETRY, "MEMORY", "out of memory", NULL);
		return false;
	}
	amqp_set_handshake_timeout(c->state, &login_time);
	verify_error = X509_V_OK;
	if (url->tls)
		socket = tls_socket(c, url, error);
	else
		socket = amqp_tcp_socket_new(c->state);
	if (socket == NULL)
	{
		rabbit_disconnect(c, false);
		return false;
	}
	status = amqp_socket_open_noblock(socket, url->host, url->port, &connect_time);
	if (status != AMQP_STATUS_OK)
	{
		char		where[300];

		if (url->tls)
			explain_tls(error, status);
		else
			rabbit_error_status(error, status);
		snprintf(where, sizeof(where), " (%s:%d)", url->host, url->port);
		strncat(error->text, where, sizeof(error->text) - strlen(error->text) - 1);
		rabbit_disconnect(c, false);
		return false;
	}
	share_socket(c);
	reply = login(c, url);
	if (reply.reply_type == AMQP_RESPONSE_NORMAL)
		return true;
	explain_login(error, &reply);
	rabbit_disconnect(c, false);
	return false;
}

/* End it; politely: with a word to the broker, which it may answer. */
void
rabbit_disconnect(RabbitConnection *c, bool politely)
{
	struct timeval close_time = {0, CLOSE_MS * 1000};

	if (c->state == NULL)
		return;
	if (politely)
	{
		(void) amqp_set_rpc_timeout(c->state, &close_time);
		(void) amqp_connection_close(c->state, AMQP_REPLY_SUCCESS);
	}
	pthread_mutex_lock(&c->lock);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
	pthread_mutex_unlock(&c->lock);
	amqp_destroy_connection(c->state);
	c->state = NULL;
	atomic_store(&c->busy_since, 0);
}

/* --- frames ------------------------------------------------------------------------- */

/* The next frame that is there; OK or RETRY, with *error: the connection is no more. */
OutboxFailure
rabbit_read_frame(RabbitConnection *c, amqp_frame_t *frame, bool *got, OutboxError *error)
{
	struct timeval now = {0, 0};
	int			status;

	atomic_store(&c->busy_since, thread_now_ms());	/* it may send a heartbeat */
	status = amqp_simple_wait_frame_noblock(c->state, frame, &now);
	atomic_store(&c->busy_since, 0);
	*got = status == AMQP_STATUS_OK;
	if (*got || status == AMQP_STATUS_TIMEOUT)
		return OUTBOX_OK;
	return rabbit_error_status(error, status);
}

/* False: reading will say why. */
bool
rabbit_send_method(RabbitConnection *c, amqp_channel_t channel,
				   amqp_method_number_t method, void *decoded)
{
	int			status;

	atomic_store(&c->busy_since, thread_now_ms());
	status = amqp_send_method(c->state, channel, method, decoded);
	atomic_store(&c->busy_since, 0);
	return status >= AMQP_STATUS_OK;
}
