# 412_http_hostile.pl
#
# A target that misbehaves in every way.  Method: let it misbehave while rows
# change, see that the sync says why it waits and that another sync is not
# disturbed; then let it behave, and see that every event has been acknowledged,
# in order per key, and that no worker ever had much more memory than at first.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use JSON::PP;
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $hostile = start_hostile();
my $good = start_receiver();
my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\nlog_statement = none\n");
create_target($node, 'hostile', { url => "$hostile->{base}/secret-path/hook", timeout => 1, connect_timeout => 1,
	retry_delay_min => 20, retry_delay_max => 200, max_in_flight => 8 },
	{ bearer_token => 'sesame open' =~ s/ /-/r });
create_target($node, 'good', { url => "$good->{base}/hook" }, {});
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE payments (id int PRIMARY KEY, amount int);
CREATE TABLE refunds (id int PRIMARY KEY, amount int);
SELECT payment_sync.capture_table('payments');
SELECT payment_sync.capture_table('refunds');
SELECT payment_sync.create_sync('hostile', '{payments}', server => 'hostile');
SELECT payment_sync.create_sync('good', '{refunds}', server => 'good');
INSERT INTO payments SELECT i, 0 FROM generate_series(1, 20) i;
SQL
wait_delivered($node, 'hostile');

sub counted { return decode_json(control($hostile, '/_count')) }

# The most memory that each worker ever had, in kB, by process id.
sub peaks
{
	my %peak;
	for my $pid (worker_pids($node))
	{
		my ($kb) = eval { slurp_file("/proc/$pid/status") } =~ /VmHWM:\s+(\d+)/;
		$peak{$pid} = $kb if defined $kb;
	}
	return %peak;
}

# By how much has a worker grown?  One that is new began like the least one.
my %at_first = peaks();
my ($least) = sort { $a <=> $b } values %at_first;
my $growth = -1;
sub note_growth
{
	my %now = peaks();
	for my $pid (keys %now)
	{
		my $more = $now{$pid} - ($at_first{$pid} // $least);
		$growth = $more if $more > $growth;
	}
	return;
}

my $round = 0;
my %reason = (
	silent => qr/[Tt]imeout|timed out/,
	reset => qr/reset|closed|transfer/i,
	hangup => qr/no answer/,
	headers => qr/headers of the answer .* too long/,
	body => qr/status 500/,
	redirect => qr/redirect/,
	busy => qr/status 429/,
	busydate => qr/status 503/,
	error => qr/status 500/,
	garbage => qr/no answer/,
	binary => qr/status 500/,
);

for my $mode (qw(silent reset hangup headers body redirect busy busydate error garbage binary flaky))
{
	$round++;
	control($hostile, "/_mode/$mode");
	$node->safe_psql('postgres', <<SQL);
UPDATE payments SET amount = $round;
UPDATE payments SET amount = -$round WHERE id % 2 = 0;
INSERT INTO refunds VALUES ($round, 1);
SQL
	wait_until("$mode: it is tried", sub { counted()->{count} > 0 });
	wait_state($good, "$mode: the other sync goes on", sub { $_[0]{events} == $round });
	if ($mode ne 'flaky')
	{
		becomes_like(sub { $node->safe_psql('postgres',
			"SELECT concat_ws(' ', last_error, last_error_detail) FROM payment_sync.stat_sync WHERE name = 'hostile'") },
			$reason{$mode}, "$mode: the reason can be seen");
		note_growth();
		control($hostile, '/_mode/ok');
	}
	# resume: a redirect or the like is about the target and waits longer
	wait_delivered($node, 'hostile');
	note_growth();
	my %last;
	for my $body (@{ counted()->{acknowledged} })
	{
		my $event = decode_json($body);
		my $id = $event->{key}{id} // $event->{key};
		$last{$id} = $event->{new}{amount};
	}
	my @wrong = grep { ($last{$_} // 'nothing') ne ($_ % 2 ? $round : -$round) } 1 .. 20;
	is("@wrong", '', "$mode: nothing is lost, and the last event of each key came last");
}

is($node->safe_psql('postgres', 'SELECT sum(refused) FROM payment_sync.target_stats'), 0,
	'none of that is an event\'s fault');
cmp_ok($growth, '>=', 0, 'the workers could be watched');
cmp_ok($growth, '<', 64 * 1024, 'memory is bounded, also while the target misbehaves');
my $seen = $node->safe_psql('postgres', 'TABLE payment_sync.stat_sync') . slurp_file($node->logfile);
unlike($seen, qr/sesame-open|secret-path/, 'neither token nor address in views and log');

$node->stop;
done_testing();
