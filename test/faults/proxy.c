/*-------------------------------------------------------------------------
 *
 * proxy.c
 *	  A TCP proxy whose links fail as they are told to.
 *
 *	fault_proxy PORT:TARGET_PORT ...		all on 127.0.0.1
 *
 * Prints "ready" when it listens.  Commands on its input, one a line, each answered
 * by "ok"; link 0 is all of them, 1 the first:
 *
 *	LINK pass			as if nothing was between
 *	LINK reset			all connections get a RST, once; new ones pass
 *	LINK cut			the same, and new ones too, until pass
 *	LINK drop			what is sent is gone: nobody is told, nothing arrives.  A
 *						connection that this has happened to never moves again
 *	LINK half			the same for answers only: requests arrive
 *	LINK delay MS		both ways
 *	LINK slow BYTES		a second, both ways
 *
 * Ends at the end of its input.
 *
 * Copyright (c) 2026, pg_outbox contributors
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_LINKS		16
#define MAX_CONNECTIONS	1000
#define BUFFER_SIZE		(256 * 1024)
#define MAX_PIECES		256
#define TICK_MS			10

typedef enum Mode
{
	PASS,
	CUT,
	DROP,
	HALF,
	DELAY,
	SLOW
} Mode;

typedef struct Link
{
	int			listener;
	int			target;			/* port */
	Mode		mode;
	long		amount;			/* of delay or slow */
} Link;

/* Bytes of one read, that may go on from a time on. */
typedef struct Piece
{
	int64_t		due;
	size_t		length;
} Piece;

typedef struct Pipe
{
	char		data[BUFFER_SIZE];
	size_t		start,
				length;			/* never wraps: moved to the front when sent */
	Piece		pieces[MAX_PIECES];
	int			npieces;
	bool		dead;			/* nothing moves any more */
	bool		ended;			/* the reading side has seen the end */
	bool		closed;			/* and the writing side has been told */
	int64_t		free_at;		/* slow: when the next byte may go */
} Pipe;

/* up: from the client; down: to it */
typedef struct Connection
{
	Link	   *link;
	int			client,
				server;
	Pipe		up,
				down;
} Connection;

static Link links[MAX_LINKS];
static int	nlinks;
static Connection *connections[MAX_CONNECTIONS];
static int	nconnections;

static void
fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t
now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static struct sockaddr_in
local_port(int port)
{
	struct sockaddr_in address;

	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_port = htons(port);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static void
set_up_socket(int s)
{
	int			one = 1;

	fcntl(s, F_SETFL, fcntl(s, F_GETFL) | O_NONBLOCK);
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void
add_link(const char *spec)
{
	Link	   *link = &links[nlinks++];
	int			port,
				one = 1;
	struct sockaddr_in address;

	if (nlinks > MAX_LINKS || sscanf(spec, "%d:%d", &port, &link->target) != 2)
	{
		fprintf(stderr, "usage: fault_proxy PORT:TARGET_PORT ...\n");
		exit(2);
	}
	address = local_port(port);
	link->listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(link->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(link->listener, (struct sockaddr *) &address, sizeof(address)) ||
		listen(link->listener, 100))
		fail(spec);
	set_up_socket(link->listener);
}

static void
close_with_reset(int s)
{
	struct linger hard = {1, 0};

	setsockopt(s, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	close(s);
}

static void
end_connection(int i, bool reset)
{
	Connection *c = connections[i];

	if (reset)
	{
		close_with_reset(c->client);
		close_with_reset(c->server);
	}
	else
	{
		close(c->client);
		close(c->server);
	}
	free(c);
	connections[i] = connections[--nconnections];
}

/* What the mode does to a connection, new or not. */
static void
affect(Connection *c)
{
	if (c->link->mode == DROP)
		c->up.dead = c->down.dead = true;
	else if (c->link->mode == HALF)
		c->down.dead = true;
}

static void
accept_one(Link *link)
{
	struct sockaddr_in address = local_port(link->target);
	int			client = accept(link->listener, NULL, NULL);
	Connection *c;

	if (client < 0)
		return;
	if (link->mode == CUT || nconnections == MAX_CONNECTIONS)
	{
		close_with_reset(client);
		return;
	}
	c = calloc(1, sizeof(Connection));
	if (!c)
		fail("memory");
	c->link = link;
	c->client = client;
	c->server = socket(AF_INET, SOCK_STREAM, 0);
	set_up_socket(client);
	set_up_socket(c->server);
	if (connect(c->server, (struct sockaddr *) &address, sizeof(address)) && errno != EINPROGRESS)
	{
		close_with_reset(client);
		close(c->server);
		free(c);
		return;
	}
	affect(c);
	connections[nconnections++] = c;
}

/* Reads what there is room for; false: the connection is broken. */
static bool
fill(Pipe *p, int from, const Link *link)
{
	ssize_t		n;

	if (p->start > 0)
	{
		memmove(p->data, p->data + p->start, p->length);
		p->start = 0;
	}
	n = read(from, p->data + p->length, BUFFER_SIZE - p->length);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n == 0)
		p->ended = true;
	else
	{
		p->length += n;
		p->pieces[p->npieces].due = now_ms() + (link->mode == DELAY ? link->amount : 0);
		p->pieces[p->npieces++].length = n;
	}
	return true;
}

/* How much may be written now. */
static size_t
allowed(const Pipe *p, const Link *link)
{
	size_t		n = 0;
	int64_t		now = now_ms();

	if (p->dead)
		return 0;
	for (int i = 0; i < p->npieces && p->pieces[i].due <= now; i++)
		n += p->pieces[i].length;
	if (link->mode == SLOW && n > 0)
	{
		size_t		most = link->amount * TICK_MS / 1000 + 1;

		if (p->free_at > now)
			return 0;
		if (n > most)
			n = most;
	}
	return n;
}

static bool
drain(Pipe *p, int to, const Link *link)
{
	size_t		n = allowed(p, link);
	ssize_t		written = 0;

	if (n > 0)
	{
		written = send(to, p->data + p->start, n, MSG_NOSIGNAL);
		if (written < 0)
			return errno == EAGAIN || errno == EINTR || errno == ENOTCONN;
		p->start += written;
		p->length -= written;
		p->free_at = now_ms() + TICK_MS;
	}
	while (written > 0)
	{
		size_t		piece = p->pieces[0].length;

		if ((size_t) written < piece)
		{
			p->pieces[0].length -= written;
			break;
		}
		written -= piece;
		memmove(p->pieces, p->pieces + 1, --p->npieces * sizeof(Piece));
	}
	if (p->ended && p->length == 0 && !p->dead && !p->closed)
	{
		p->closed = true;
		shutdown(to, SHUT_WR);
	}
	return true;
}

static bool
has_room(const Pipe *p)
{
	return !p->dead && !p->ended && p->npieces < MAX_PIECES && p->length < BUFFER_SIZE;
}

static void
run_command(const char *line)
{
	int			number;
	char		word[16];
	long		amount = 0;
	bool		reset;

	if (sscanf(line, "%d %15s %ld", &number, word, &amount) < 2 || number < 0 || number > nlinks)
	{
		printf("what is that?\n");
		return;
	}
	reset = strcmp(word, "reset") == 0 || strcmp(word, "cut") == 0;
	for (int i = 0; i < nlinks; i++)
	{
		if (number != 0 && number != i + 1)
			continue;
		links[i].amount = amount;
		links[i].mode = strcmp(word, "cut") == 0 ? CUT
			: strcmp(word, "drop") == 0 ? DROP
			: strcmp(word, "half") == 0 ? HALF
			: strcmp(word, "delay") == 0 ? DELAY
			: strcmp(word, "slow") == 0 ? SLOW : PASS;
	}
	for (int i = nconnections; i-- > 0;)
	{
		if (number != 0 && connections[i]->link != &links[number - 1])
			continue;
		if (reset)
			end_connection(i, true);
		else
			affect(connections[i]);
	}
	printf("ok\n");
}

/* False at the end of the input. */
static bool
read_commands(void)
{
	static char line[256];
	static size_t length = 0;
	ssize_t		n = read(0, line + length, sizeof(line) - 1 - length);
	char	   *end;

	if (n <= 0)
		return n < 0 && errno == EINTR;
	length += n;
	line[length] = '\0';
	while ((end = memchr(line, '\n', length)) != NULL)
	{
		*end = '\0';
		run_command(line);
		length -= end + 1 - line;
		memmove(line, end + 1, length + 1);
	}
	fflush(stdout);
	return true;
}

/* What is polled of a connection: two entries, client and server. */
static void
prepare(const Connection *c, struct pollfd *fds)
{
	fds[0].fd = c->client;
	fds[1].fd = c->server;
	fds[0].events = (has_room(&c->up) ? POLLIN : 0) | (allowed(&c->down, c->link) > 0 ? POLLOUT : 0);
	fds[1].events = (has_room(&c->down) ? POLLIN : 0) | (allowed(&c->up, c->link) > 0 ? POLLOUT : 0);
	/* of a dead one only the end is heard */
	if (c->up.dead || c->down.dead)
	{
		fds[0].events |= POLLRDHUP;
		fds[1].events |= POLLRDHUP;
	}
}

/* False: it has ended. */
static bool
serve(Connection *c, const struct pollfd *fds)
{
	bool		broken = false;

	if ((fds[0].revents | fds[1].revents) & (POLLERR | POLLNVAL))
		return false;
	if ((c->up.dead || c->down.dead) && ((fds[0].revents | fds[1].revents) & (POLLRDHUP | POLLHUP)))
		return false;
	if ((fds[0].revents & (POLLIN | POLLHUP)) && has_room(&c->up))
		broken |= !fill(&c->up, c->client, c->link);
	if ((fds[1].revents & (POLLIN | POLLHUP)) && has_room(&c->down))
		broken |= !fill(&c->down, c->server, c->link);
	broken |= !drain(&c->up, c->server, c->link);
	broken |= !drain(&c->down, c->client, c->link);
	return !broken && !(c->up.closed && c->down.closed);
}

int
main(int argc, char **argv)
{
	static struct pollfd fds[1 + MAX_LINKS + 2 * MAX_CONNECTIONS];

	signal(SIGPIPE, SIG_IGN);
	for (int i = 1; i < argc; i++)
		add_link(argv[i]);
	printf("ready\n");
	fflush(stdout);
	for (;;)
	{
		int			n = 1 + nlinks;
		int			polled = nconnections;

		fds[0].fd = 0;
		fds[0].events = POLLIN;
		for (int i = 0; i < nlinks; i++)
		{
			fds[1 + i].fd = links[i].listener;
			fds[1 + i].events = POLLIN;
		}
		for (int i = 0; i < polled; i++)
			prepare(connections[i], &fds[n + 2 * i]);
		if (poll(fds, n + 2 * polled, TICK_MS) < 0 && errno != EINTR)
			fail("poll");
		/* from the last: one that ends is replaced by the last */
		for (int i = polled; i-- > 0;)
			if (!serve(connections[i], &fds[n + 2 * i]))
				end_connection(i, false);
		for (int i = 0; i < nlinks; i++)
			if (fds[1 + i].revents)
				accept_one(&links[i]);
		if (fds[0].revents && !read_commands())
			return 0;
	}
}
