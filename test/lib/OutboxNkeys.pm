# Keys and signed papers (JWT) of NATS' decentralized authentication: what the tool nsc makes.
#
#   my ($settings, $account) = OutboxNkeys->accounts(1);   of a server, and accounts in it
#   my $user = OutboxNkeys->new('user');
#   my $text = $account->credentials($user);               of a credentials file
#   $account->credentials($user, $other)                   ... with another one's seed
#
# An nkey is a byte (a seed: two) that says whose it is, the 32 bytes of an Ed25519 key and
# a checksum, in base32.  The signatures are openssl's.
package OutboxNkeys;

use strict;
use warnings;

use File::Temp;
use IPC::Run ();
use JSON::PP ();
use MIME::Base64 qw(encode_base64url);

my $json = JSON::PP->new->utf8->canonical;
my %prefix = (operator => 14 << 3, account => 0, user => 20 << 3);
my $seed_prefix = 18 << 3;
my $pkcs8 = pack 'H*', '302e020100300506032b657004220420';

sub _base32
{
	my ($bytes) = @_;
	my $bits = unpack 'B*', $bytes;

	$bits .= '0' x (-length($bits) % 5);
	return join '', map { ('A' .. 'Z', 2 .. 7)[ oct "0b$_" ] } $bits =~ /(.{5})/g;
}

# CRC-16 as in XMODEM.
sub _checked
{
	my ($bytes) = @_;
	my $crc = 0;

	for my $byte (unpack 'C*', $bytes)
	{
		$crc ^= $byte << 8;
		$crc = ($crc & 0x8000 ? $crc << 1 ^ 0x1021 : $crc << 1) & 0xffff for 1 .. 8;
	}
	return _base32($bytes . pack 'v', $crc);
}

sub _openssl
{
	my ($self, @command) = @_;
	my ($out, $err) = ('', '');
	local $?;

	IPC::Run::run([ 'openssl', @command ], '<', \'', '>', \$out, '2>', \$err) or die "openssl: $err";
	return $out;
}

sub _file
{
	my ($bytes) = @_;
	my $file = File::Temp->new;

	binmode $file;
	print $file $bytes;
	$file->flush;
	return $file;
}

sub new
{
	my ($class, $kind) = @_;
	my $self = bless { kind => $kind }, $class;
	my $raw = substr $self->_openssl('genpkey', '-algorithm', 'ed25519', '-outform', 'DER'), -32;
	my $first = $prefix{$kind};

	$self->{key} = _file($pkcs8 . $raw);
	$self->{seed} = _checked(pack('CC', $seed_prefix | $first >> 5, ($first & 31) << 3) . $raw);
	$self->{public} = _checked(pack('C', $first)
		  . substr $self->_openssl('pkey', '-inform', 'DER', '-in', "$self->{key}", '-pubout', '-outform', 'DER'), -32);
	return $self;
}

sub public { return $_[0]{public} }
sub seed { return $_[0]{seed} }

# A paper of another's, or of its own, with these claims.
sub sign
{
	my ($self, $owner, $claims) = @_;
	my $text = join '.', map { encode_base64url($json->encode($_)) } { typ => 'JWT', alg => 'ed25519-nkey' },
	  { jti => $owner->public, iat => time, iss => $self->public, sub => $owner->public, name => $owner->{kind},
		nats => { %$claims, type => $owner->{kind}, version => 2 } };
	my $file = _file($text);

	return "$text." . encode_base64url($self->_openssl('pkeyutl', '-sign', '-inkey', "$self->{key}", '-keyform', 'DER',
			'-rawin', '-in', "$file"));
}

sub _unlimited { return map { $_ => -1 } @_ }

# Settings of a server with so many accounts, in all of which JetStream may be used.
sub accounts
{
	my ($class, $n) = @_;
	my $operator = $class->new('operator');
	my ($system, @accounts) = map { $class->new('account') } 0 .. $n;
	my %limits = (_unlimited(qw(subs data payload imports exports conn leaf)), wildcards => JSON::PP::true);
	my %jetstream = _unlimited(qw(mem_storage disk_storage streams consumer));
	my %papers = map { $_->public => $operator->sign($_, { limits => { %limits, $_ == $system ? () : %jetstream } }) }
	  $system, @accounts;

	return (join("\n", 'operator: ' . $operator->sign($operator, {}), 'system_account: ' . $system->public,
			'resolver: MEMORY', 'resolver_preload: {', (map { "$_: $papers{$_}" } sort keys %papers), '}', ''), @accounts);
}

# Of a user of the account, who may everything.
sub credentials
{
	my ($self, $user, $other) = @_;
	my $jwt = $self->sign($user, { _unlimited(qw(subs data payload)) });

	return join "\n", '-----BEGIN NATS USER JWT-----', $jwt, '------END NATS USER JWT------', '',
	  '-----BEGIN USER NKEY SEED-----', ($other || $user)->seed, '------END USER NKEY SEED------', '';
}

1;
