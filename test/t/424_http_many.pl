# 424_http_many.pl
#
# More syncs in one worker than its files allow connections for: they share
# them, those that are idle give theirs back, and the worker never runs out.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $syncs = 16;
my $rows = 100;

# a third of the files may be connections: about 160, and 16 times 32 are wanted
my $node = start_source('source', conf => <<'CONF');
payment_sync.http_allowed_hosts = 'localhost'
payment_sync.max_workers = 1
max_files_per_process = 500
CONF
my $receiver = start_receiver();
$node->safe_psql('postgres', 'CREATE EXTENSION payment_sync');
create_target($node, 'hook', { url => "$receiver->{base}/hook" }, {});
for my $i (1 .. $syncs)
{
	$node->safe_psql('postgres', <<"SQL");
CREATE TABLE t$i (id int PRIMARY KEY, n int);
SELECT payment_sync.capture_table('t$i');
SELECT payment_sync.create_sync('s$i', '{t$i}', server => 'hook');
SQL
}
set_receiver($receiver, { delay => 30 });

# a few first: when the others come these are idle, with many connections each
for my $group ([ 1 .. 6 ], [ 7 .. $syncs ], [ 1 .. $syncs ])
{
	my $base = receiver_state($receiver)->{events};
	$node->safe_psql('postgres', join('', 'BEGIN;',
		(map { "INSERT INTO t$_ SELECT (SELECT count(*) FROM t$_) + i, 0 FROM generate_series(1, $rows) i;" } @$group),
		'COMMIT;'));
	wait_delivered($node, "s$_") for @$group;
	is(receiver_state($receiver)->{events} - $base, $rows * @$group, 'all events of ' . @$group . ' syncs have come');
}
judged_well($receiver, 'many syncs');
is($node->safe_psql('postgres', q{SELECT string_agg(name || ': ' || last_error, ', ') FROM payment_sync.stat_sync WHERE errors > 0}),
	'', 'no sync has failed');
unlike(slurp_file($node->logfile), qr/too many open files/i, 'the worker has not run out of files');

done_testing();
