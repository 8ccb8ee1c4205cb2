# 251_user_code_batch.pl
#
# What users have written is run by batches, too, when they go on at a key; and
# casts that fail in the middle leave nothing behind.  A domain's check has
# become one that sleeps: a key of the domain itself is read as its base type,
# so the batch is done; a key that has the domain within fails after the time
# that it may take, and the worker serves others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source', conf => <<CONF);
payment_sync.user_code_timeout = '400ms'
payment_sync.max_workers = 1
CONF
my $dir = PostgreSQL::Test::Utils::tempdir();
sub q1 { return $node->safe_psql('postgres', $_[0]) }
sub wait_for
{
	my ($query, $what) = @_;
	$node->poll_query_until('postgres', $query)
	  or die "$what: " . q1('SELECT row_to_json(s) FROM payment_sync.stat_sync s');
	return;
}

q1(<<SQL);
CREATE EXTENSION payment_sync;
CREATE FOREIGN DATA WRAPPER probe OPTIONS (library 'payment_sync_probe');
CREATE SERVER s FOREIGN DATA WRAPPER probe OPTIONS (directory '$dir');
CREATE USER MAPPING FOR CURRENT_USER SERVER s;
CREATE FUNCTION fine(text) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE DOMAIN code AS text CHECK (fine(VALUE));
CREATE TYPE span AS RANGE (subtype = code);
CREATE TABLE plain (id code PRIMARY KEY, t text);
CREATE TABLE nested (id span PRIMARY KEY, t text);
CREATE TABLE other (id int PRIMARY KEY);
SELECT payment_sync.capture_table(t) FROM unnest('{plain,nested,other}'::regclass[]) t;
INSERT INTO plain SELECT i, repeat('x', 100000) FROM generate_series(100, 199) i;
INSERT INTO nested SELECT span(i::text, i::text, '[]'), repeat('x', 100000) FROM generate_series(100, 199) i;
CREATE OR REPLACE FUNCTION fine(text) RETURNS bool LANGUAGE plpgsql AS \$\$
BEGIN
	IF current_setting('application_name') ~ 'payment_sync' THEN PERFORM pg_sleep(600); END IF;
	RETURN true;
END \$\$;
SELECT payment_sync.create_sync('other', '{other}', 's');
SELECT payment_sync.create_sync('plain', '{plain}', 's', batch => true);
SQL
wait_for(q(SELECT state = 'done' AND chunks > 1 FROM payment_sync.progress_batch WHERE sync = 'plain'), 'the batch is not done');
is(q1("SELECT errors FROM payment_sync.stat_sync WHERE name = 'plain'"), '0', 'a key of the domain: the batch goes on at it');

my ($worker) = worker_pids($node);
q1("SELECT payment_sync.create_sync('nested', '{nested}', 's', batch => true)");
wait_for("SELECT failures > 0 AND last_error LIKE 'functions of user-defined types took longer than 400 ms%' FROM payment_sync.stat_sync WHERE name = 'nested'",
	'the batch does not fail');
q1('INSERT INTO other VALUES (1)');
wait_delivered($node, 'other');
is(join(',', worker_pids($node)), $worker, 'a key with the domain within: its sync fails, the worker serves others');
q1("CREATE OR REPLACE FUNCTION fine(text) RETURNS bool LANGUAGE sql AS 'SELECT true'");
wait_for(q(SELECT state = 'done' FROM payment_sync.progress_batch WHERE sync = 'nested'), 'the batch does not go on');
pass('and goes on when the check is mended');

# ---------------------------------------------------------- casts that fail

# The cast is an SQL function, which needs a snapshot, and fails in its middle.
my $target = start_target('target');
connect_target($node, $target);
q1("ALTER SERVER target OPTIONS (ADD lossy_casts 'true')");
my $create = 'CREATE TABLE shapes (id int PRIMARY KEY, c %s)';
q1(sprintf($create, 'circle') . "; SELECT payment_sync.capture_table('shapes')");
$target->safe_psql('postgres', sprintf($create, 'polygon'));
q1("SELECT payment_sync.create_sync('shapes', '{shapes}', 'target', enabled => false)");
q1("SELECT payment_sync.enable_sync('shapes')");
q1("INSERT INTO shapes VALUES (0, '<(0,0),1>')");
wait_delivered($node, 'shapes');
is($target->safe_psql('postgres', 'SELECT npoints(c) FROM shapes'), '12', 'a cast that is an SQL function works');
q1("INSERT INTO shapes VALUES (1, '<(0,0),0>')");
wait_for("SELECT failures > 1 FROM payment_sync.stat_sync WHERE name = 'shapes'", 'the value is not refused');
my $error = q1("SELECT concat_ws(' ', last_error, last_error_detail) FROM payment_sync.stat_sync WHERE name = 'shapes'");
unlike($error, qr/radius|snapshot|leak/, 'a value that cannot be converted is refused by our own error');
like($error, qr/column "?c/, 'which names the column');
unlike(slurp_file($node->logfile), qr/leak|snapshot .*still active|outer snapshot/, 'nothing is left behind');
q1('INSERT INTO other VALUES (2)');
wait_delivered($node, 'other');
is(join(',', worker_pids($node)), $worker, 'the worker lives');

$node->stop;
$target->stop;
done_testing();
