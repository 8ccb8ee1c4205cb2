# 426_http_large.pl
#
# Answers of a megabyte each, as many as may be in flight at a time: a worker
# keeps of them what it wants, and of what it wants no more than its share.  And
# an address that is a secret, which the target repeats: it is shown nowhere.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $hostile = start_hostile();
my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\npayment_sync.max_workers = 1\nlog_statement = none\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id int PRIMARY KEY, amount int);
SELECT payment_sync.capture_table('payments');
SQL

# The most memory that the worker ever had, in MB.
sub peak
{
	my ($pid) = worker_pids($node);
	my ($kb) = slurp_file("/proc/$pid/status") =~ /VmHWM:\s+(\d+)/;
	return $kb / 1024;
}

sub begin
{
	my ($name, $server, $user) = @_;
	create_target($node, $name, { retry_delay_min => 20, retry_delay_max => 200, %$server }, $user);
	$node->safe_psql('postgres', "SELECT payment_sync.create_sync('$name', '{payments}', server => '$name')");
	return;
}

# -------------------------------------------------------------------- large

begin('quiet', { url => "$hostile->{base}/hook" }, {});
$node->safe_psql('postgres', 'INSERT INTO payments VALUES (0, 0)');
wait_delivered($node, 'quiet');
my $before = peak();
control($hostile, '/_mode/large');
begin('large', { url => "$hostile->{base}/hook", max_in_flight => 200 }, {});
$node->safe_psql('postgres', 'INSERT INTO payments SELECT i, i FROM generate_series(1, 400) i');
wait_delivered($node, $_) for 'large', 'quiet';
cmp_ok(peak() - $before, '<', 64, 'two hundred answers of a megabyte: what nobody reads is not kept');
$node->safe_psql('postgres', "SELECT payment_sync.drop_sync('quiet')");

# Each answer is wanted whole, and none of them acknowledges.
$node->safe_psql('postgres', q(ALTER SERVER large OPTIONS (ADD success_body 'ok')));
$node->safe_psql('postgres', 'UPDATE payments SET amount = -1');
$node->poll_query_until('postgres', <<'SQL') or die 'no error to be seen';
SELECT last_error ~ 'is not the one that acknowledges' FROM payment_sync.stat_sync WHERE name = 'large'
SQL
control($hostile, '/_mode/ok');
wait_delivered($node, 'large');
cmp_ok(peak() - $before, '<', 64, 'those that are wanted whole have a limit all together');
$node->safe_psql('postgres', "SELECT payment_sync.drop_sync('large')");

# ------------------------------------------------------- a secret address

control($hostile, '/_mode/echo');
my $path = '/services/T0HIDDEN0/B0HIDDEN1/p%C3%A4ss%2Dword?code=hidden-code-7&x={table}';
begin('secret', {}, { url => "$hostile->{base}$path" });
$node->safe_psql('postgres', "UPDATE payments SET amount = 7 WHERE id = 1");
$node->poll_query_until('postgres', 'SELECT count(*) > 0 FROM payment_sync.dead_letters') or die 'not refused';
my $seen = $node->safe_psql('postgres',
	"SELECT array_agg(d)::text FROM payment_sync.dead_letters d; SELECT array_agg(s)::text FROM payment_sync.stat_sync s; SELECT array_agg(s)::text FROM payment_sync.stat_target s");
like($seen, qr/Cannot POST/, 'what the target says is shown');
unlike($seen . slurp_file($node->logfile), qr/HIDDEN|hidden-code|p%C3%A4ss|p\x{c3}\x{a4}ss/, 'but nothing of the address');

$node->stop;
done_testing();
