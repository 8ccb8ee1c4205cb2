# PaymentSyncTest.pm
#
# What the TAP tests share: a source and a target server, and waiting for a
# sync without sleeping.

package PaymentSyncTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(start_source start_target connect_target wait_delivered
  same_rows differing_rows stat worker_pids);

# A poll that times out and whose result nobody looks at ends the test.  One that
# asks a server that restarts does not end it: a psql that is turned away may be
# gone before it is sent the query.
{
	no warnings 'redefine';
	my $poll = \&PostgreSQL::Test::Cluster::poll_query_until;
	*PostgreSQL::Test::Cluster::poll_query_until = sub {
		my $became_true;
		until (eval { $became_true = $poll->(@_); 1 })
		{
			die $@ if $@ !~ /Broken pipe/;
			select undef, undef, undef, 0.1;
		}
		die "timed out waiting for: $_[2]" if !$became_true && !defined wantarray;
		return $became_true;
	};
}

# For test/coverage: what is killed does not count what it has executed.
if ($ENV{PSYNC_COVERAGE})
{
	no warnings 'redefine';
	*PostgreSQL::Test::Cluster::teardown_node = sub { $_[0]->stop('fast', fail_ok => 1) };
}

# start_source(NAME, [preload => 0|1], [conf => TEXT])
sub start_source
{
	my ($name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(allows_streaming => 1);
	my $preload = $option{preload} // 1;
	$node->append_conf('postgresql.conf', <<CONF);
listen_addresses = '127.0.0.1'
max_prepared_transactions = 20
payment_sync.retry_delay_max = '500ms'
CONF
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'payment_sync'\n")
	  if $preload;
	$node->append_conf('postgresql.conf', $option{conf}) if $option{conf};
	$node->start;
	return $node;
}

# start_target(NAME, [conf => TEXT]): a server without the extension
sub start_target
{
	my ($name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init;
	$node->append_conf('postgresql.conf', "max_prepared_transactions = 20\n");
	$node->append_conf('postgresql.conf', $option{conf}) if $option{conf};
	$node->start;
	return $node;
}

# connect_target(SOURCE, TARGET, [server => NAME], [db => NAME], [user => NAME])
sub connect_target
{
	my ($source, $target, %option) = @_;
	my $server = $option{server} // 'target';
	my $db = $option{db} // 'postgres';
	my $user = $option{user} // $target->safe_psql('postgres', 'SELECT current_user');
	my $host = $target->host;
	my $port = $target->port;
	my $sourcedb = $option{sourcedb} // 'postgres';
	$source->safe_psql($sourcedb, <<SQL);
CREATE EXTENSION IF NOT EXISTS payment_sync;
CREATE SERVER $server FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '$host', port '$port', dbname '$db');
CREATE USER MAPPING FOR CURRENT_USER SERVER $server OPTIONS (user '$user');
SQL
	return;
}

# Everything that was committed before this call is at the target, no batch is
# under way, and the tables have followed: a crash forgets nothing of it.
sub wait_delivered
{
	my ($source, $sync, %option) = @_;
	my $db = $option{db} // 'postgres';
	$source->poll_query_until($db, <<SQL)
SELECT v.lag_changes = 0 AND NOT EXISTS (
	SELECT FROM payment_sync.progress_batch
	WHERE sync = '$sync' AND state IN ('pending', 'running'))
	AND (v.windows, v.changes, v.rows_read, v.bytes, v.last_success) IS NOT DISTINCT FROM
	(st.windows, st.changes, st.rows_read, st.bytes, st.last_success)
FROM payment_sync.stat_sync v
JOIN payment_sync.sync s USING (name)
JOIN payment_sync.sync_state st ON st.sync = s.id
WHERE v.name = '$sync'
SQL
	  or die "sync $sync did not deliver: "
	  . $source->safe_psql($db,
		"SELECT row_to_json(s) FROM payment_sync.stat_sync s WHERE name = '$sync'");
	return;
}

# A column of stat_sync.
sub stat
{
	my ($source, $sync, $column, %option) = @_;
	return $source->safe_psql($option{db} // 'postgres',
		"SELECT $column FROM payment_sync.stat_sync WHERE name = '$sync'");
}

# The rows on which the two queries' results differ, as text; empty if none.
sub differing_rows
{
	my ($source, $target, $query, %option) = @_;
	my $target_query = $option{target_query} // $query;
	my %rows;
	my $copy = "COPY (SELECT r::text FROM (%s) r) TO STDOUT";
	for my $line (split /\n/,
		$source->safe_psql($option{sourcedb} // 'postgres', sprintf $copy, $query))
	{
		$rows{$line}++;
	}
	for my $line (split /\n/,
		$target->safe_psql($option{targetdb} // 'postgres', sprintf $copy, $target_query))
	{
		$rows{$line}--;
	}
	return join "\n",
	  map { ($rows{$_} > 0 ? 'missing: ' : 'unexpected: ') . $_ }
	  sort grep { $rows{$_} != 0 } keys %rows;
}

# A test: both sides have the same rows.
sub same_rows
{
	my ($source, $target, $query, $name, %option) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(differing_rows($source, $target, $query, %option), '', $name);
}

sub worker_pids
{
	my ($source) = @_;
	return split /\n/, $source->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'payment_sync worker'");
}

1;
