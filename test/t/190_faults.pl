# A slice of the fault campaign, of seeds that are always the same.  `make faults` and
# test/deep/220_faults.pl run fresh ones, see test/faults/campaign.pl.
use FindBin;
use lib "$FindBin::Bin/../faults";
use OutboxTest;
use Faults::Campaign;

Faults::Campaign->run(seeds => [ 13, 15, 21 ], seconds => 60);
done_testing();
