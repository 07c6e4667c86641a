# The example of a welcome e-mail, over nats.
use FindBin;
use OutboxTest;

$ENV{BROKER} = 'nats';
do "$FindBin::Bin/../../examples/welcome-email/scenario.pl" or die $@ || $!;
