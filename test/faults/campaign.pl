# The fault campaign: seeded scenarios against a real PostgreSQL and a real Kafka.
#
#   make faults SEED=n COUNT=m                       n, n + 1, ...
#   KINDS='relay-kill net-cut' make faults ...       of these kinds only; inbox-* stands
#                                                    for all that begin so
#   SETUP='brokers=3 exactly_once=1' make faults ... instead of what the seed says
#   SETUP='inbox=1' make faults ...                  with a subscription in each database,
#                                                    of so many workers
#   SETUP='without=mark' ...                         with a rule of the log switched off
#                                                    (src/fault.h), to see it noticed
#   FAULTS_SECONDS=600 make faults COUNT=1000        as many as begin in that time
#   FAULTS_KEEP=1 make faults ...                    what failed is kept: also the directories of
#                                                    brokers and servers
#   RDKAFKA=new make faults ...                      with a newer librdkafka
#
# Faults/Scenario.pm says what a scenario is, Faults/Kinds/ what is done to it,
# Faults/Verdict.pm what must hold in the end.
BEGIN { $ENV{OUTBOX_FILE_TIMEOUT} ||= 1_000_000 }
use FindBin;
use lib $FindBin::Bin, "$FindBin::Bin/../lib";
use OutboxTest;
use Faults::Campaign;

Faults::Campaign->run(from => $ENV{SEED} || int(time % 1_000_000), count => $ENV{COUNT} || 1,
	seconds => $ENV{FAULTS_SECONDS},
	kinds => [ split ' ', $ENV{KINDS} || '' ],
	setup => { map { split /=/, $_, 2 } split ' ', $ENV{SETUP} || '' });
done_testing();
