# pg_upgrade to the next major, with a backlog: the log goes on where it was, under its
# identity, though servers have other oids and transactions of the new cluster go on from
# those of the old.
use OutboxTest;
use PostgreSQL::Test::Utils ();

my $next = $ENV{OUTBOX_NEXT_CONFIG};
plan skip_all => 'no second major of PostgreSQL' unless $next;
chomp(my $old_bin = `$ENV{PG_CONFIG} --bindir`);
chomp(my $new_bin = `$next --bindir`);
(my $new_prefix = $new_bin) =~ s{/bin$}{};

my $kafka = OutboxKafka->shared;
my ($topic, $once) = map { unique_topic($_) } qw(upgrade once);
my $old = OutboxTest->server('old', conf => 'outbox.segment_size = 64kB');

$kafka->create_topic($_, 4) for $topic, $once;
$old->judge_setup;
# a server that is gone makes the oids of those behind it differ
$old->sql('CREATE FOREIGN DATA WRAPPER filler; CREATE SERVER filler FOREIGN DATA WRAPPER filler');
$old->create_server('events', $kafka, topics => $topic);
$old->create_server('once', $kafka, topics => $once, exactly_once => 'true');
$old->sql('DROP SERVER filler');
$old->sql("SELECT judge.publish_many('$_', 5000)") for $topic, $once;
ok($old->flush, 'the first part is delivered');
$old->sql(<<END);
CREATE TABLE effect (message_id text);
CREATE FUNCTION note(ms inbox.message[]) RETURNS void LANGUAGE sql AS
	'INSERT INTO public.effect SELECT m.message_id FROM unnest(ms) m';
SELECT inbox.subscribe('s', 'events', '$topic', 'note(inbox.message[])', start => 'earliest');
END
$old->wait_ok('SELECT count(*) = 5000 FROM effect', 'and consumed');
$old->sql("SELECT outbox.pause('$_')") for qw(events once);
$old->sql("SELECT judge.publish_many('$_', 5000)") for $topic, $once;
my $uuid = $old->sql('SELECT log_uuid FROM outbox.log_identity');
my $oid = $old->sql(q{SELECT oid FROM pg_foreign_server WHERE srvname = 'events'});
my $retained = $old->sql('SELECT max(id) FROM outbox.message');
# some builds mark columns by an option of their own, which others refuse
$old->sql(q{UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '%pg\_attver%'}, dbname => $_)
  for qw(postgres template1);
$old->stop;

my $new = OutboxTest->new('new', install_path => $new_prefix);
$new->init(extra => ['--no-data-checksums']);
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_outbox'\nfsync = off\noutbox.segment_size = 64kB");
my $dir = PostgreSQL::Test::Utils::tempdir();
chdir $dir or die "$dir: $!\n";
PostgreSQL::Test::Utils::command_ok(
	["$new_bin/pg_upgrade", '-b', $old_bin, '-B', $new_bin, '-d', $old->data_dir, '-D', $new->data_dir,
		'-s', $new->host, '-p', $old->port, '-P', $new->port], 'pg_upgrade');
$new->start;

is($new->sql('SELECT log_uuid FROM outbox.log_identity'), $uuid, 'the identity stays');
isnt($new->sql(q{SELECT oid FROM pg_foreign_server WHERE srvname = 'events'}), $oid, "the server's oid is another");
$new->sql("SELECT judge.publish_many('$_', 1000)") for $topic, $once;
ok($new->sql("SELECT min(id) > $retained FROM outbox.message WHERE id > $retained"), 'ids go on');
$new->sql("SELECT outbox.resume('$_')") for qw(events once);
ok($new->flush, 'the backlog is delivered');
my %verdict = $new->judge_ok($kafka, [$topic], 'everything once and in order');
is($verdict{published}, 11000, 'all of it');
%verdict = $new->judge_ok($kafka, [$once], 'exactly once: everything once and in order', committed => 1);
is($verdict{published}, 11000, 'all of it');
$new->wait_ok('SELECT count(DISTINCT message_id) = 11000 FROM effect', 'the subscription goes on');
is($new->sql('SELECT count(*) FROM effect'), 11000, 'from where it was: each once');
is($new->sql('SELECT duplicates FROM inbox.subscription_status'), 0, 'nothing was read twice');
$new->wait_ok('SELECT sum(pg_relation_size(relid)) < 512 * 1024 FROM outbox.segments',
	'and segments are freed');
$new->stop;
done_testing();
