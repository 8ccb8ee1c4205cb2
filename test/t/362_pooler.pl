# 362_pooler.pl
#
# PgBouncer before the target, in session and in transaction mode, with one
# server connection that other clients use in turn: windows small and large,
# batches and reconcile() work, and what we set reaches nobody else.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run;
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes;

my ($pgbouncer) = grep { -x $_ } map { "$_/pgbouncer" } (split /:/, $ENV{PATH}), '/usr/sbin';
plan skip_all => 'pgbouncer is not installed' if !defined $pgbouncer;

my $source = start_source('source', conf => "payment_sync.retry_delay_max = '100ms'\n");
my $target = start_target('target');
my $user = $target->safe_psql('postgres', 'SELECT current_user');
both($source, $target, 'CREATE TABLE pay (id int PRIMARY KEY, n numeric(12,2)); CREATE TABLE ballast (id bigint PRIMARY KEY); CREATE TABLE refs (id int PRIMARY KEY, pay int)');
$target->safe_psql('postgres', 'ALTER TABLE refs ADD FOREIGN KEY (pay) REFERENCES pay');
$source->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
SELECT payment_sync.capture_table(t) FROM unnest('{pay,ballast,refs}'::regclass[]) t;
SQL

# start_pooler(MODE, SIZE): returns the port and what to stop
sub start_pooler
{
	my ($mode, $size) = @_;
	my $tmp = PostgreSQL::Test::Utils::tempdir();
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	append_to_file("$tmp/ini", <<INI);
[databases]
postgres = host=@{[$target->host]} port=@{[$target->port]} dbname=postgres user=$user pool_size=$size
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
auth_type = any
pool_mode = $mode
logfile = $tmp/log
unix_socket_dir =
INI
	my $pooler = IPC::Run::start([ $pgbouncer, "$tmp/ini" ], '>', '/dev/null', '2>&1');
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return ($port, $pooler) if -e "$tmp/log" && slurp_file("$tmp/log") =~ /process up/;
		Time::HiRes::usleep(100_000);
	}
	die 'pgbouncer does not start';
}

# What another client of the pool finds set.
my @names = qw(search_path synchronous_commit row_security extra_float_digits payment_sync.origin TimeZone
  statement_timeout enable_seqscan jit client_min_messages session_replication_role client_connection_check_interval);

sub settings_of_others
{
	my ($port) = @_;
	my ($out, $err) = ('', '');
	my $query = 'SELECT ' . join q( || '|' || ), map { "COALESCE(current_setting('$_', true), '')" } @names;
	IPC::Run::run([ 'psql', '-XAt', '-h', '127.0.0.1', '-p', $port, '-U', 'other', '-d', 'postgres', '-c', $query ], '>', \$out, '2>', \$err)
	  or die "psql through the pooler: $err";
	return $out;
}

my $id = 0;
for my $mode ('transaction', 'session')
{
	# in session mode a client keeps its server connection
	my ($port, $pooler) = start_pooler($mode, $mode eq 'transaction' ? 1 : 5);
	my $clean = settings_of_others($port);
	my $more = $mode eq 'transaction' ? ", session_replication_role 'origin'" : '';
	$source->safe_psql('postgres', <<SQL);
CREATE SERVER $mode FOREIGN DATA WRAPPER payment_sync_postgres OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres', sslmode 'disable'$more);
CREATE USER MAPPING FOR CURRENT_USER SERVER $mode OPTIONS (user 'other');
SELECT payment_sync.create_sync('$mode', '{pay,ballast,refs}', server => '$mode', batch => true);
SQL
	my %dirty;
	for my $round (1 .. 12)
	{
		$id++;
		my $sql = "INSERT INTO pay VALUES ($id, $id.10); INSERT INTO refs VALUES ($id, $id); UPDATE pay SET n = n + 1 WHERE id = $id - 1";
		$sql .= "; DELETE FROM refs WHERE id = $id - 2; UPDATE refs SET id = -id WHERE id = $id - 3" if $round % 2 == 0;
		if ($round % 4 == 0)
		{
			large_window($source, $sql);
		}
		else
		{
			small_window($source, $sql);
		}
		goes_on($source, $mode);
		my $now = settings_of_others($port);
		$dirty{$now} = 1 if $now ne $clean;
	}
	is(stat($source, $mode, 'errors'), 0, "$mode mode: no errors");
	is(join("\n", keys %dirty), '', "$mode mode: other clients find what they had");
	same_rows($source, $target, 'SELECT * FROM pay', "$mode mode: all is delivered");
	same_rows($source, $target, 'SELECT * FROM refs', "$mode mode: also what references it");
	same_rows($source, $target, 'SELECT * FROM ballast', "$mode mode: also large windows");

	$source->safe_psql('postgres', "CALL payment_sync.batch_sync('$mode', mirror => true)");
	$target->safe_psql('postgres', 'UPDATE pay SET n = 0 WHERE id = 1');
	is($source->safe_psql('postgres', "SELECT different, missing, unexpected FROM payment_sync.reconcile('$mode', 'pay')"),
		'1|0|0', "$mode mode: reconcile finds what differs");
	$source->safe_psql('postgres', "CALL payment_sync.batch_sync('$mode', mirror => true)");
	same_rows($source, $target, 'SELECT * FROM pay', "$mode mode: a batch in mirror mode");
	is(settings_of_others($port), $clean, "$mode mode: nor do batches and readers leave anything behind");
	$source->safe_psql('postgres', "SELECT payment_sync.drop_sync('$mode')");
	$pooler->kill_kill;
}

# not behind a pooler: prepared statements are used
$source->safe_psql('postgres', 'DROP SERVER session CASCADE');
connect_target($source, $target);
$source->safe_psql('postgres', "SELECT payment_sync.create_sync('direct', '{pay}', server => 'target'); INSERT INTO pay VALUES (1000, 1)");
goes_on($source, 'direct');
same_rows($source, $target, 'SELECT * FROM pay', 'without a pooler');

done_testing();
