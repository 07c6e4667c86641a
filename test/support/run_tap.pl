#!/usr/bin/perl
# Runs TAP tests like prove, and writes how many passed and failed into a file.
#
#   run_tap.pl COUNTS_FILE test.pl ...
#
# A file that breaks off, or that runs no test, counts as one failure.
# OUTBOX_TEST_JOBS: files at a time (2); OUTBOX_TEST_VERBOSE: each test is shown.
use strict;
use warnings;
use TAP::Harness;

my ($counts, @files) = @ARGV;
my $verbose = $ENV{OUTBOX_TEST_VERBOSE};
my $harness = TAP::Harness->new({
	verbosity => $verbose ? 1 : 0,
	jobs => $verbose ? 1 : $ENV{OUTBOX_TEST_JOBS} || 2,
	timer => 1,
	failures => 1,
	lib => [ split /:/, $ENV{PERL5LIB} || '' ] });
my $result = $harness->runtests(@files);
my ($passed, $failed) = (scalar $result->passed, scalar $result->failed);

for my $parser ($result->parsers)
{
	next if $parser->skip_all;
	$failed++ if !$parser->failed && ($parser->exit || $parser->parse_errors || !$parser->tests_run);
}
open my $f, '>', $counts or die "$counts: $!\n";
print $f "$passed $failed\n";
close $f;
exit($failed ? 1 : 0);
