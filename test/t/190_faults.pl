# A slice of the fault campaign: seeds that are always the same, and a fresh one.
# `make faults SEED=n COUNT=m` runs others, see test/faults/campaign.pl.
use FindBin;
use lib "$FindBin::Bin/../faults";
use OutboxTest;
use Faults::Campaign;

my $fresh = 1_000_000 + time % 1_000_000;
note("the fresh seed is $fresh");
Faults::Campaign->run(seeds => [ $fresh, 13, 15 ], seconds => 60);
done_testing();
