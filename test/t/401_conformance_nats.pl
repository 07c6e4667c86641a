# The transport for NATS JetStream passes the suite of all transports.
use FindBin;
use lib "$FindBin::Bin/../conformance";
use OutboxNats;
use OutboxTest;
use Conformance;

plan skip_all => 'NATS is not on this machine' unless OutboxNats->available;

Conformance->run('Nats');
