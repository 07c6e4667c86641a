# A slice of the fault campaign with subscriptions: a worker that dies, stands still longer
# than its group bears, is cancelled, or set back; server, broker and network that fail; and
# each message has its effect once, in the order of its key.
# The seeds are always the same; `make faults SETUP='inbox=1' ...` and
# test/deep/220_faults.pl run others, see test/faults/campaign.pl.
use FindBin;
use lib "$FindBin::Bin/../faults";
use OutboxTest;
use Faults::Campaign;

# these are the other campaign's, which runs beside this one, and fills them
delete $ENV{OUTBOX_BROKER_DISKS};

Faults::Campaign->run(seeds => [ 5, 12 ], seconds => 30,
	kinds => [ 'inbox-*', 'machine-crash', 'immediate-restart', 'broker-kill', 'broker-freeze', 'net-cut' ],
	setup => { inbox => 2, brokers => 1, databases => 1, standby => 'none', disk => 'large', faults => 14 });
done_testing();
