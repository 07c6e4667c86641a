# The transport for Kafka passes the suite of all transports.
use FindBin;
use lib "$FindBin::Bin/../conformance";
use OutboxTest;
use Conformance;

Conformance->run('Kafka');
