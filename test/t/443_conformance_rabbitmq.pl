# The transport for RabbitMQ passes the suite of all transports.
use FindBin;
use lib "$FindBin::Bin/../conformance";
use OutboxRabbit;
use OutboxTest;
use Conformance;

plan skip_all => 'RabbitMQ is not on this machine' unless OutboxRabbit->available;

Conformance->run('Rabbitmq');
