#!/usr/bin/perl
# Runs TAP tests like prove, and writes how many passed and failed into a file, and
# what failed into another.
#
#   run_tap.pl COUNTS_FILE FAILURES_FILE test.pl ...
#
# A file that breaks off, or that runs no test, counts as one failure.
# OUTBOX_TEST_JOBS: files at a time (2); OUTBOX_TEST_VERBOSE: each test is shown.
use strict;
use warnings;
use TAP::Harness;

my ($counts, $failures, @files) = @ARGV;
my $verbose = $ENV{OUTBOX_TEST_VERBOSE};
my $harness = TAP::Harness->new({
	verbosity => $verbose ? 1 : 0,
	jobs => $verbose ? 1 : $ENV{OUTBOX_TEST_JOBS} || 2,
	timer => 1,
	failures => 1,
	lib => [ split /:/, $ENV{PERL5LIB} || '' ] });
my %failed;
$harness->callback(made_parser => sub {
	my ($parser, $job) = @_;
	$parser->callback(test => sub {
		push @{ $failed{ $job->[0] } }, $_[0]->as_string if !$_[0]->is_ok;
	});
});
my $result = $harness->runtests(@files);
my ($passed, $failed) = (scalar $result->passed, scalar $result->failed);

for my $file ($result->descriptions)
{
	my ($parser) = $result->parsers($file);
	next if $parser->skip_all || $parser->failed;
	next if !($parser->exit || $parser->parse_errors || !$parser->tests_run);
	push @{ $failed{$file} }, join ', ', 'broke off, exit code ' . ($parser->exit // '?'), $parser->parse_errors;
	$failed++;
}
open my $told, '>>', $failures or die "$failures: $!\n";
for my $file (sort keys %failed)
{
	print $told "$file: $_\n" for @{ $failed{$file} };
	print $told said_of_failures($file);
}
close $told;
open my $f, '>', $counts or die "$counts: $!\n";
print $f "$passed $failed\n";
close $f;
exit($failed ? 1 : 0);

# The diagnostics of the failed tests, as PostgreSQL::Test::Utils keeps them beside the
# servers' logs: at most 12 lines each, as what CI shows last is short.
sub said_of_failures
{
	my ($name) = $_[0] =~ m{([^/]+)\.pl$};
	# where they are differs by PostgreSQL's major
	my ($path) = grep { -e } map { "$_/regress_log_$name" } $ENV{TESTLOGDIR} || '.',
		($ENV{TESTDIR} || '.') . '/tmp_check/log';
	return if !$path;
	open my $log, '<', $path or return;
	my (@said, $more);

	while (my $line = <$log>)
	{
		$line =~ s/^\[[0-9:.]+\](?:\([^)]*\))? //;
		$more = 12 if $line =~ /^#\s+Failed test/;
		$more = 0 if $line =~ /^###|^# Running:/;
		push @said, '  ' . substr($line, 0, 300) if $more && $line =~ /^#/ && $more-- > 0;
	}
	chomp @said;
	return map { "$_\n" } @said;
}
