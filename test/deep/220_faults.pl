# The fault campaign at length: what is clean must be without duplicates; then of
# everything, from a seed that is printed (OUTBOX_SEED=n repeats it), for an hour
# (FAULTS_SECONDS), and half of that once more with subscriptions.
use FindBin;
BEGIN { $ENV{OUTBOX_FILE_TIMEOUT} ||= 6 * 3600 }
use lib "$FindBin::Bin/../faults";
use OutboxTest;
use Faults::Campaign;

my $seed = $ENV{OUTBOX_SEED} || 1_000_000 + time % 1_000_000;
note("OUTBOX_SEED=$seed");
Faults::Campaign->run(from => $seed, count => 10, setup => { exactly_once => 0 },
	kinds => [ qw(alter-storm pause-storm relay-term terminate-workers disabled fast-restart vacuum vacuum-full
		topic-missing settings-storm checkpoint keeper-term launcher-term) ]);
my $seconds = $ENV{FAULTS_SECONDS} || 3600;
Faults::Campaign->run(from => $seed, count => 1000, seconds => $seconds);
Faults::Campaign->run(from => $seed, count => 1000, seconds => $seconds / 2, setup => { inbox => 1 });
done_testing();
