# How a relay comes to its broker: credentials, certificates, rights.  What is wrong is a
# state with a hint, no secret shows anywhere, publishers don't notice, and it heals by
# itself when the cause is gone.
package Conformance::Access;

use strict;
use warnings;

use OutboxTest;

sub checks
{
	return (
		'wrong credentials' => \&credentials,
		'TLS' => \&tls,
		'a forbidden topic' => \&forbidden);
}

# nothing that others can see may have it
sub no_secret_ok
{
	my ($c, $secret) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	unlike($c->pg->log_text, qr/\Q$secret\E/, 'no secret in the log');
	unlike($c->pg->relay_status, qr/\Q$secret\E/, 'nor in relay_status');
	my ($half, $other) = $secret =~ /^(.*)(....)$/;
	# a session that has just ended may still be there, with its own statement
	return is($c->sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type <> 'client backend'
		AND query LIKE '%$half' || '$other%'"), 0, 'nor in pg_stat_activity of workers');
}

sub credentials
{
	my ($c) = @_;
	my $topic = $c->destinations('login');
	my $option = $c->broker->password_option;
	my %right = $c->broker->mapping_options;
	my $wrong = 'w0nt-be-shown';

	$c->server(topics => $topic, password => $wrong);
	$c->sql("SELECT judge.publish_many('$topic', 200)");
	$c->state_ok('error', 'a wrong password is an error');
	isnt($c->status('last_error'), '', 'that is told: ' . $c->status('last_error'));
	like($c->status('hint'), qr/user mapping/, 'with a hint: ' . $c->status('hint'));
	is($c->status('delivered'), 0, 'nothing is delivered');
	is($c->sql("SELECT outbox.flush('1ms')"), 'f', 'flush knows it');
	no_secret_ok($c, $wrong);
	$c->sql(qq{ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (SET "$option" '$right{$option}')});
	$c->flush_ok('the right one is enough');
	$c->state_ok('running');
	$c->judge_ok([$topic], 'once and in order');
	no_secret_ok($c, $right{$option});

	# taken away while it runs
	$c->sql(qq{ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (SET "$option" '$wrong')});
	$c->sql("SELECT judge.publish_many('$topic', 200)");
	$c->state_ok('error', 'a password that became wrong');
	$c->sql(qq{ALTER USER MAPPING FOR PUBLIC SERVER events OPTIONS (SET "$option" '$right{$option}')});
	$c->flush_ok('and right again');
	$c->judge_ok([$topic], 'once and in order');

	# statements that fail
	my $ca_option = $c->broker->ca_option;
	$c->pg->sql_fails(qq{CREATE USER MAPPING FOR CURRENT_USER SERVER events OPTIONS ("$option" 's3cret-one', nonsense 's3cret-two')},
		qr/invalid option "nonsense"/, 'an unknown option of a user mapping');
	$c->pg->sql_fails(qq{ALTER SERVER events OPTIONS (ADD "$option" 's3cret-three')}, qr/\Q$option\E/, 'a secret in a server');
	no_secret_ok($c, 's3cret-');
	return;
}

sub tls
{
	my ($c) = @_;
	my $topic = $c->destinations('tls');
	my $option = $c->broker->ca_option;
	my $ca = $c->broker->certificate('ca');

	$c->server(topics => $topic, tls => 'other-ca');
	$c->sql("SELECT judge.publish_many('$topic', 200)");
	$c->state_ok('error', 'a certificate of another CA is an error');
	like($c->status('last_error'), qr/ssl|tls|certificate/i, 'it says so: ' . $c->status('last_error'));
	like($c->status('hint'), qr/certificate/, 'with a hint: ' . $c->status('hint'));
	is($c->status('delivered'), 0, 'nothing is delivered');
	$c->sql(qq{ALTER SERVER events OPTIONS (SET "$option" '$ca')});
	$c->flush_ok('the right CA is enough');
	$c->judge_ok([$topic], 'once and in order, by TLS');

	# a connection that is lost, by TLS too
	$c->broker->kill_server;
	$c->state_ok('retrying');
	$c->sql("SELECT judge.publish_many('$topic', 2000)");
	$c->broker->start_server;
	$c->flush_ok('delivered after an outage');
	$c->judge_outage_ok([$topic], 'all in order');
	return;
}

sub forbidden
{
	my ($c) = @_;
	return if $c->lacks('refuses_others_topics');
	my ($open, $forbidden) = $c->destinations('open', 'forbidden');

	$c->broker->deny($forbidden);
	$c->server(topics => "$open, $forbidden");
	$c->sql("SELECT judge.publish_many('$_', 100)") for $forbidden, $open, $forbidden, $open;
	ok($c->pg->wait_until(sub { $c->messages($open) >= 200 }), 'others go on beside a forbidden topic');
	is($c->sql("SELECT outbox.flush('1ms')"), 'f', 'its own messages wait');
	$c->wait_ok("SELECT last_error LIKE '%$forbidden%' AND hint <> '' FROM outbox.relay_status", 'last_error names it, with a hint')
	  or diag($c->status('last_error'));
	$c->broker->undeny($forbidden);
	$c->flush_ok('allowed: delivered');
	$c->judge_ok([$open], 'the others: once and in order');
	$c->judge_ok([$forbidden], 'and those in order', duplicates => 1);
	is($c->dead_letters('count(*)'), 0, 'no dead letters');
	return;
}

1;
