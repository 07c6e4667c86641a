# README can be pasted: every SQL block in it runs, in order, and does what it says.
# And it is complete: what a role may use, every setting, column and state is there.
use OutboxTest;

use File::Basename qw(dirname);
use PostgreSQL::Test::Utils ();

my $readme = PostgreSQL::Test::Utils::slurp_file(dirname(__FILE__) . '/../../README.md');
my $kafka = OutboxKafka->shared;
my $pg = OutboxTest->server('readme', extension => 0);
my $bootstrap = $kafka->bootstrap;
my @blocks = $readme =~ /^```sql\n(.*?)^```$/msg;

$kafka->create_topic($_, 2) for qw(orders audit.login);
cmp_ok(scalar @blocks, '>', 5, 'README has SQL');
for my $i (0 .. $#blocks)
{
	my $sql = $blocks[$i] =~ s/localhost:9092/$bootstrap/gr;
	my ($first) = $sql =~ /^(.*)$/m;
	my ($out, $err) = ('', '');
	my $rc = $pg->psql('postgres', $sql, stdout => \$out, stderr => \$err, on_error_stop => 1);

	ok($rc == 0 && $err !~ /^(WARNING|ERROR)/m, "block $i: $first") || diag("$err$out");
	like($out, qr/^t\nevents\|running\|1\|$/m, 'the start: delivered, as shown') if $i == 0;
}
ok($pg->flush, 'all that README publishes was delivered');
is($pg->sql('SELECT count(*) FROM outbox.dead_letter'), 0, 'no dead letters');

my @got = $kafka->consume('orders');
my ($first) = grep { ($_->{key} // '') eq 'order-1' } @got;
is($first->{payload}, '{"item": "tea", "amount": 3}', 'the first message in Kafka');
is(scalar @got, 6, 'and the others');

# complete
sub mentions
{
	my ($what, $query) = @_;
	my @missing = grep { $readme !~ /\b\Q$_\E\b/ } split /\n/, $pg->sql($query);
	is("@missing", '', "README names every $what");
}

mentions('function for a role', <<END);
SELECT DISTINCT p.proname FROM pg_proc p, aclexplode(p.proacl) a
WHERE p.pronamespace IN ('outbox'::regnamespace, 'inbox'::regnamespace) AND a.grantee <> p.proowner
  AND p.proname NOT IN ('messages', 'unrouted_messages')
END
mentions('view and column', <<END);
SELECT relname FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'v'
UNION
SELECT attname FROM pg_attribute WHERE attnum > 0 AND attrelid IN ('inbox.seen'::regclass, 'outbox.message'::regclass,
	'outbox.relay_status'::regclass, 'outbox.dead_letter'::regclass, 'outbox.unrouted'::regclass)
END
mentions('setting', <<END);
SELECT name FROM pg_settings WHERE name LIKE 'outbox.%' AND name <> 'outbox.fault'
END
mentions('default', <<END);
SELECT format('%s` | `%s', name, current_setting(name)) FROM pg_settings
WHERE name LIKE 'outbox.%' AND vartype = 'integer'
END

$pg->stop;
done_testing();
