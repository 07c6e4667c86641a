/*-------------------------------------------------------------------------
 *
 * jet_auth.c
 *	  Who we are to the server: user and password, token, nkey, credentials;
 *	  and TLS.
 *
 * An nkey is a pair of Ed25519 keys.  Its seed is, in base32, two bytes that
 * say what it is for, 32 bytes and a checksum; the public key is one byte, the
 * 32 bytes and a checksum.  The seed signs what the server makes up; the
 * server knows the public key, by its settings or by the JWT of the
 * credentials, which is signed.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include "jet.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define KEY_LEN			32
#define SEED_BYTES		36		/* decoded */
#define PUBLIC_BYTES	35
#define PREFIX_USER		(20 << 3)	/* "U" */

static const char base32[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

static bool
base32_decode(const char *text, unsigned char *to, size_t size)
{
	uint32_t	bits = 0;
	int			nbits = 0;
	size_t		n = 0;

	for (; *text; text++)
	{
		const char *at = strchr(base32, *text);

		if (at == NULL)
			return false;
		bits = bits << 5 | (uint32_t) (at - base32);
		nbits += 5;
		if (nbits >= 8)
		{
			if (n == size)
				return false;
			nbits -= 8;
			to[n++] = (unsigned char) (bits >> nbits);
		}
	}
	return n == size;
}

static void
base32_encode(const unsigned char *from, size_t len, char *to)
{
	uint32_t	bits = 0;
	int			nbits = 0;

	for (size_t i = 0; i < len; i++)
	{
		bits = bits << 8 | from[i];
		for (nbits += 8; nbits >= 5; nbits -= 5)
			*to++ = base32[bits >> (nbits - 5) & 31];
	}
	*to = '\0';
}

/* CRC-16 as in XMODEM. */
static uint16_t
checksum(const unsigned char *data, size_t len)
{
	uint16_t	crc = 0;

	for (size_t i = 0; i < len; i++)
	{
		crc ^= (uint16_t) (data[i] << 8);
		for (int bit = 0; bit < 8; bit++)
			crc = (uint16_t) (crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1);
	}
	return crc;
}

/* The public key of a seed, to "to", of 57 bytes. */
static bool
public_key(const char *seed, char *to)
{
	unsigned char raw[SEED_BYTES];
	unsigned char key[PUBLIC_BYTES] = {PREFIX_USER};
	size_t		len = KEY_LEN;
	EVP_PKEY   *pkey;
	uint16_t	crc;
	bool		good;

	if (!base32_decode(seed, raw, sizeof(raw)))
		return false;
	crc = checksum(raw, SEED_BYTES - 2);
	if (raw[SEED_BYTES - 2] != (crc & 0xff) || raw[SEED_BYTES - 1] != crc >> 8)
		return false;
	pkey = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, raw + 2, KEY_LEN);
	good = pkey != NULL && EVP_PKEY_get_raw_public_key(pkey, key + 1, &len) == 1;
	EVP_PKEY_free(pkey);
	explicit_bzero(raw, sizeof(raw));
	crc = checksum(key, PUBLIC_BYTES - 2);
	key[PUBLIC_BYTES - 2] = crc & 0xff;
	key[PUBLIC_BYTES - 1] = crc >> 8;
	base32_encode(key, sizeof(key), to);
	return good;
}

/* The line behind a line that contains "begin", malloc'd; NULL: there is none. */
static char *
section(const char *text, const char *begin)
{
	const char *c = strstr(text, begin);
	size_t		len;

	if (c == NULL || (c = strchr(c, '\n')) == NULL)
		return NULL;
	c += strspn(c, "\r\n \t");
	len = strcspn(c, "\r\n \t");
	return strndup(c, len);
}

static natsStatus
give_jwt(char **jwt, char **problem, void *arg)
{
	const JetConnection *c = arg;

	*jwt = strdup(c->jwt);
	return *jwt == NULL ? NATS_NO_MEMORY : NATS_OK;
}

static natsStatus
sign(char **problem, unsigned char **signature, int *len, const char *nonce, void *arg)
{
	const JetConnection *c = arg;

	return nats_Sign(c->seed, nonce, signature, len);
}

static natsStatus
set_nkey(JetConnection *c, natsOptions *options)
{
	char		key[PUBLIC_BYTES * 8 / 5 + 2];

	c->seed = strdup(c->config->nkey_seed);
	if (c->seed == NULL || !public_key(c->seed, key))
		return NATS_CONNECTION_AUTH_FAILED;
	return natsOptions_SetNKey(options, key, sign, c);
}

static natsStatus
set_credentials(JetConnection *c, natsOptions *options)
{
	c->jwt = section(c->config->credentials, "BEGIN NATS USER JWT");
	c->seed = section(c->config->credentials, "BEGIN USER NKEY SEED");
	if (c->jwt == NULL || c->seed == NULL)
		return NATS_CONNECTION_AUTH_FAILED;
	return natsOptions_SetUserCredentialsCallbacks(options, give_jwt, c, sign, c);
}

static natsStatus
set_tls(JetConnection *c, const JetUrl *url, natsOptions *options)
{
	const JetConfig *config = c->config;
	natsStatus	status = NATS_OK;

	/* a server that wants TLS gets it in any case */
	if (url->tls)
		status = natsOptions_SetSecure(options, true);
	if (status == NATS_OK && config->tls_ca != NULL)
		status = natsOptions_SetCATrustedCertificates(options, config->tls_ca);
	if (status == NATS_OK && config->tls_certificate != NULL)
		status = natsOptions_SetCertificatesChain(options, config->tls_certificate,
												  config->tls_key);
	if (status == NATS_OK)
		status = config->tls_verify ? natsOptions_SetExpectedHostname(options, url->host) :
			natsOptions_SkipServerVerification(options, true);
	return status;
}

/* What the library needs to know for the URL that is next. */
natsStatus
jet_auth(JetConnection *c, natsOptions *options)
{
	const JetConfig *config = c->config;
	const JetUrl *url = &config->urls[c->next_url];
	natsStatus	status = NATS_OK;

	if (config->user != NULL)
		status = natsOptions_SetUserInfo(options, config->user,
										 config->password ? config->password : "");
	else if (config->token != NULL)
		status = natsOptions_SetToken(options, config->token);
	else if (config->nkey_seed != NULL)
		status = set_nkey(c, options);
	else if (config->credentials != NULL)
		status = set_credentials(c, options);
	if (status == NATS_OK)
		status = set_tls(c, url, options);
	return status;
}

void
jet_auth_forget(JetConnection *c)
{
	if (c->seed != NULL)
		explicit_bzero(c->seed, strlen(c->seed));
	free(c->seed);
	free(c->jwt);
	c->seed = c->jwt = NULL;
}
