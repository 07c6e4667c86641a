# Messages that a consumer has read, written as judge_consume.c says (one line of COPY a
# message): the judge's tables take such lines as they are, tests get hashes.
package OutboxConsumed;

use strict;
use warnings;

use JSON::PP ();

sub _uncopy
{
	my ($text) = @_;
	return undef if $text eq '\N';
	my %escaped = (t => "\t", n => "\n", r => "\r");
	$text =~ s/\\(.)/exists $escaped{$1} ? $escaped{$1} : $1/ge;
	return $text;
}

sub _unhex
{
	my ($text) = @_;
	return undef unless defined $text;
	return pack('H*', substr($text, 2));
}

# Hashes of topic, partition, offset, timestamp, message_id, ledger, key, headers (array
# of pairs), header (hash), payload; in the order of topics, partitions and offsets.  The
# lines have their payloads in hexadecimal.
sub messages
{
	my ($lines) = @_;
	my @messages;

	for (split /\n/, $lines)
	{
		my @f = map { _uncopy($_) } split /\t/;
		my $headers = JSON::PP->new->utf8->decode($f[7]);
		push @messages,
		  { topic => $f[0], partition => $f[1], offset => $f[2], timestamp => $f[3],
			message_id => $f[4], ledger => $f[5], key => _unhex($f[6]),
			headers => $headers, header => { map { $_->[0] => $_->[1] } @$headers },
			payload => _unhex($f[8]) };
	}
	# not "return sort": in scalar context that is undefined
	@messages = sort { $a->{topic} cmp $b->{topic} || $a->{partition} <=> $b->{partition}
			|| $a->{offset} <=> $b->{offset} } @messages;
	return @messages;
}

1;
