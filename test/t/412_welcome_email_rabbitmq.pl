# The example of a welcome e-mail, over rabbitmq.
use FindBin;
use OutboxTest;

$ENV{BROKER} = 'rabbitmq';
do "$FindBin::Bin/../../examples/welcome-email/scenario.pl" or die $@ || $!;
