# A broker as the conformance suite sees it: what each transport's adapter has to be.
#
# An adapter is a class of its own (Conformance/Kafka.pm, ...) on top of this one, mostly
# on what test/lib has for that broker.  Its methods act on a real server that belongs to
# one test file alone.  "Destination" is where the messages of a topic are in the end: a
# topic, a subject of a stream, a queue that is bound to the topic's name.  A topic's
# destination has the topic's name.
#
# What a broker cannot give is a capability that it lacks, with the reason, and the checks
# that need it are skipped with that reason; see lacks().
package Conformance::Broker;

use strict;
use warnings;

use OutboxConsumed;

my @capabilities = qw(partitions empty_keys tombstones header_order repeated_headers header_line_breaks
  header_outer_blanks header_bytes resend_after_outage own_duplicates keeps_messages
  missing_destinations start_latest refuses_others_topics subscriptions places);

sub _must { my ($self, $what) = @_; die ref($self) || $self, " has no $what\n" }

# --- what it is ----------------------------------------------------------------------

# The transport's name, as in its folder: 'kafka'.
sub name { return $_[0]->_must('name') }

# Why the broker cannot give this; undef: it can.  An adapter overrides reasons(), a hash
# of capability and reason.  The capabilities:
#
# partitions             a destination has several, each with an order of its own
# empty_keys             a key that is empty is not the same as none
# tombstones             a payload that is NULL is not the same as an empty one
# header_order           headers of different names stay in their order
# repeated_headers       a header's name may come several times, and the order of these stays
# header_line_breaks     a header's value may have line breaks
# header_outer_blanks    ... and begin and end with blanks
# header_bytes           ... and be anything but UTF-8 text (what others send)
# resend_after_outage    after an outage nothing is there twice: the broker, or its client,
#                        knows what it had received before the connection was lost
# own_duplicates         a message that two servers send to one destination is there twice
# keeps_messages         what was consumed can be read again: inbox.seek('earliest')
# missing_destinations   a message without a destination is noticed
# start_latest           a subscription can begin behind what is there already
# refuses_others_topics  a user may be forbidden a single topic: deny()
# places                 a message without an id is known again by its place
# subscriptions          a subscription can consume from it
sub lacks
{
	my ($self, $capability) = @_;
	die "no such capability: $capability\n" unless grep { $_ eq $capability } @capabilities;
	return { $self->reasons }->{$capability};
}

sub reasons { return () }

# The largest payload that is tested: what the server takes, or what outbox.max_message_size
# (16 MB) leaves beside key and headers.
sub largest_payload { return 16_000_000 }

# A limit of sizes that create() is asked for (a payload of half as much again is then
# refused), and what the column "error" of such a dead letter says.
sub limit { return 20_000 }
sub refused_error { return $_[0]->_must('refused_error') }

# What relay_status.last_error says when a destination is missing, and the column "error"
# of its dead letters in the end.
sub missing_message { return $_[0]->_must('missing_message') }
sub missing_error { return $_[0]->_must('missing_error') }

# Most of the relay's own memory, in MB, beyond outbox.relay_memory: library, buffers.
sub memory_overhead { return 60 }

# --- its life ---------------------------------------------------------------------------

# Starts a server, and returns when it answers: of its own for this file, with passwords,
# with a listener for TLS, and reached through a fault_proxy (OutboxProxy).  It makes no
# destinations by itself.
sub start { return $_[0]->_must('start') }

# Ends it and removes what it left.  It ends with the test too.
sub end { return $_[0]->_must('end') }

# A clean stop; SIGKILL.  What it has confirmed survives both.
sub stop_server { return $_[0]->_must('stop_server') }
sub kill_server { return $_[0]->_must('kill_server') }

# Starts it again, on the same ports and data; returns when it answers.  Where it runs:
# nothing to do.
sub start_server { return $_[0]->_must('start_server') }

# SIGSTOP and SIGCONT to all of its processes that have connections or data.
sub freeze { return $_[0]->_must('freeze') }
sub thaw { return $_[0]->_must('thaw') }

# What the network does between the relay and the broker: a command of fault_proxy without
# the number of the link: link('delay', 50), link('cut'), link('pass').
sub link { return $_[0]->_must('link') }

# All that checks may have left: the server runs, thawed, behind a network that works.
sub heal
{
	my ($self) = @_;
	$self->thaw;
	$self->link('pass');
	$self->start_server;
	return;
}

# --- how PostgreSQL connects to it -----------------------------------------------------

# A hash of options of CREATE SERVER, without those of the core (topics, ...).  What the
# destinations have in common is among them (an exchange, a stream).  Waits between
# attempts to connect are short.
# tls => 'ca' or 'other-ca': by TLS, trusting the CA that has signed the server's
# certificate, or one that has not; not through the proxy.
sub server_options { return $_[0]->_must('server_options') }

# ... and of its user mapping.  password => '...': this instead of the right one.
# tls as above.
sub mapping_options { return $_[0]->_must('mapping_options') }

# The option of the user mapping that has the password; and the one of the server that has
# the CA's certificate as text.
sub password_option { return 'password' }
sub ca_option { return $_[0]->_must('ca_option') }

# The text of a CA's certificate: 'ca', 'other-ca'.
sub certificate { return $_[0]->_must('certificate') }

# An option of a server that makes the relay take a new connection when it is altered:
# name and value.
sub harmless_option { return $_[0]->_must('harmless_option') }

# Forbids the relay's user to write to a topic, and takes that back.
sub deny { return $_[0]->_must('deny') }
sub undeny { return $_[0]->_must('undeny') }

# --- its destinations ---------------------------------------------------------------------

# Makes a destination; with several partitions where there are such.  partitions => 1: only
# one.  limit => BYTES: larger messages are refused; where a destination has no limit of its
# own, by all of the broker, until set_limit() or delete().
sub create { return $_[0]->_must('create') }

# Sets that limit for a destination that has one.
sub set_limit { return $_[0]->_must('set_limit') }

sub delete { return $_[0]->_must('delete') }

# Writes what is in these destinations, in their order, and leaves it there: lines as the
# head of test/judge/judge_consume.c says, which the judge takes as they are.  "offset" is
# the place in its partition (0, where there are none).  An administrator reads, not
# through the proxy.
#
# n         waits for so many messages; else what is there now
# out       a file, instead of the result
# payload   'hex', or 'none': left out
# timeout   in seconds
#
# What a broker has outside of headers (key, message id) is in its own column.
sub consume_raw { return $_[0]->_must('consume_raw') }

# Headers that the transport adds: their names; or that, of one.
sub own_headers { return 'message-id' }

sub is_own_header
{
	my ($self, $name, $value) = @_;
	return scalar grep { $_ eq $name } $self->own_headers;
}

# What is in a destination as hashes (see OutboxConsumed), without the transport's own
# headers.
sub messages
{
	my ($self, $topic, %options) = @_;
	my @messages =
	  OutboxConsumed::messages($self->consume_raw([$topic], %options, payload => 'hex'));

	for my $m (@messages)
	{
		$m->{headers} = [ grep { !$self->is_own_header(@$_) } @{ $m->{headers} } ];
	}
	return @messages;
}

# Sends messages to a destination as any producer may: hashes of payload, key, headers
# ([name, value], ...), message_id, all bytes; undef is none.  They are there on return, in
# this order.  With a message_id the transport's inbox knows them by it.
sub produce { return $_[0]->_must('produce') }

1;
