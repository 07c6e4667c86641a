# The example of a welcome e-mail, over kafka.
use FindBin;
use OutboxTest;

$ENV{BROKER} = 'kafka';
do "$FindBin::Bin/../../examples/welcome-email/scenario.pl" or die $@ || $!;
