# 213_backoff.pl
#
# A sync that fails waits longer from time to time, up to
# payment_sync.retry_delay_max, with jitter; other syncs are not disturbed.
# Settings change with a reload.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source', conf => <<'CONF');
payment_sync.retry_delay_min = '50ms'
payment_sync.retry_delay_max = '800ms'
CONF
my $target = start_target('target');
my $away = start_target('away');

$_->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, v text)') for $source, $target, $away;
connect_target($source, $target);
connect_target($source, $away, server => 'away');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('good', '{pay}', server => 'target');
SELECT payment_sync.create_sync('bad ' || i, '{pay}', server => 'away', target_schema => 's' || i) FROM generate_series(1, 4) i;

-- what each failure has noted, in order
CREATE TABLE noted (at serial, name name, failures int, delay interval);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.noted (name, failures, delay)
	SELECT name, new.failures, new.retry_at - new.last_error_at FROM payment_sync.sync WHERE id = new.sync;
	RETURN new;
END $$;
CREATE TRIGGER note AFTER UPDATE ON payment_sync.sync_state FOR EACH ROW
	WHEN (new.failures > old.failures) EXECUTE FUNCTION note();
SQL
$away->safe_psql('postgres', <<'SQL');
SELECT format('CREATE SCHEMA s%s; CREATE TABLE s%s.pay (id int PRIMARY KEY, v text)', i, i) FROM generate_series(1, 4) i \gexec
SQL
$source->safe_psql('postgres', "INSERT INTO pay VALUES (0, 'before')");
wait_delivered($source, $_) for 'good', map { "bad $_" } 1 .. 4;

$away->stop('immediate');
my $offset = -s $source->logfile;
$source->safe_psql('postgres', "INSERT INTO pay VALUES (1, 'v')");
ok($source->poll_query_until('postgres',
		"SELECT count(*) = 4 FROM noted WHERE failures = 9"), 'four syncs fail again and again');

# The time noted is a moment after the delay was chosen, so never above it.
is( $source->safe_psql('postgres', <<'SQL'), '', 'each delay is within its bounds');
SELECT name, failures, delay, b.base FROM noted,
	LATERAL (SELECT LEAST(50 * 2 ^ (failures - 1), 800) * interval '1 ms' AS base) b
WHERE failures <= 9 AND NOT (delay <= b.base AND delay > b.base * 0.4)
SQL
is($source->safe_psql('postgres', "SELECT max(delay) <= interval '800 ms' FROM noted"), 't',
	'none is longer than retry_delay_max');
is( $source->safe_psql('postgres', <<'SQL'), 't', 'it grows on the way there');
SELECT avg(delay) FILTER (WHERE failures = 4) > 2 * avg(delay) FILTER (WHERE failures = 2) FROM noted
SQL
cmp_ok($source->safe_psql('postgres', 'SELECT count(DISTINCT delay) FROM noted WHERE failures BETWEEN 6 AND 9'),
	'>', 12, 'and differs from time to time and from sync to sync');
is( $source->safe_psql('postgres', <<'SQL'), 't', 'stat_sync shows error, count and next retry');
SELECT bool_and(failures >= 9 AND errors >= failures AND last_error IS NOT NULL
	AND last_error_at <= clock_timestamp() AND next_retry > last_error_at
	AND state IN ('waiting', 'running', 'pending'))
FROM payment_sync.stat_sync WHERE name LIKE 'bad%'
SQL
like(PostgreSQL::Test::Utils::slurp_file($source->logfile, $offset),
	qr/WARNING:  sync "bad 1" failed: could not connect to server "away"\n.*?DETAIL:  .*?CONTEXT:  failure 3 in a row, next attempt in \d+ ms/s,
	'the server log has each');

is(stat($source, 'good', "failures || ' ' || errors"), '0 0', 'the other sync has no failure');
$source->safe_psql('postgres', "INSERT INTO pay VALUES (2, 'v')");
wait_delivered($source, 'good');
same_rows($source, $target, 'SELECT * FROM pay', 'and is delivered meanwhile');
is(stat($source, 'good', 'next_retry'), '', 'it has no next retry');

# ------------------------------------------------------------------ a reload

$source->append_conf('postgresql.conf', "payment_sync.retry_delay_max = '1h'\npayment_sync.retry_delay_min = '30min'\n");
$source->reload;
ok($source->poll_query_until('postgres',
		"SELECT bool_and(next_retry > clock_timestamp() + interval '10 min') FROM payment_sync.stat_sync WHERE name LIKE 'bad%'"),
	'a reload changes the delays');
is( $source->safe_psql('postgres', "SELECT count(*) FROM payment_sync.stat_sync WHERE name LIKE 'bad%' AND state = 'waiting'"),
	4, 'now they are waiting');
$away->start;

# Nobody has to wait for the delay: enabling a sync clears it.
$source->safe_psql('postgres', "SELECT payment_sync.enable_sync('bad 1')");
wait_delivered($source, 'bad 1');
same_rows($source, $away, 'SELECT * FROM pay', 'enable_sync() tries at once',
	target_query => 'SELECT * FROM s1.pay');
is(stat($source, 'bad 1', "failures || COALESCE(next_retry::text, '')"), '0', 'a success ends it');
isnt(stat($source, 'bad 1', 'last_error'), '', 'the last error can still be read');

# So does delivering by hand.
$source->safe_psql('postgres', "CALL payment_sync.incremental_sync('bad 2')");
same_rows($source, $away, 'SELECT * FROM pay', 'incremental_sync() does not wait',
	target_query => 'SELECT * FROM s2.pay');
is(stat($source, 'bad 3', 'state'), 'waiting', 'others still wait');

# ------------------------------------------- a failure that cannot be recorded

# Then the worker remembers it, and the delays grow all the same, whatever else
# makes it read the definitions again.
$away->stop('immediate');
$source->append_conf('postgresql.conf', "payment_sync.retry_delay_max = '2s'\npayment_sync.retry_delay_min = '10ms'\n");
$source->reload;
$source->safe_psql('postgres', <<'SQL');
CREATE OR REPLACE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'disk full';
END $$;
SELECT payment_sync.enable_sync('bad ' || i) FROM generate_series(1, 4) i;
INSERT INTO pay VALUES (3, 'v');
SQL
$source->wait_for_log(qr/sync "bad $_" failed: disk full\n.*CONTEXT:  failure 6 in a row, next attempt in \d{3} ms/, $offset) for 1 .. 4;
pass('failures that cannot be recorded are followed by longer and longer delays');
$source->safe_psql('postgres', 'DROP TRIGGER note ON payment_sync.sync_state');
$away->start;
wait_delivered($source, "bad $_") for 1 .. 4;
same_rows($source, $away, 'SELECT * FROM pay', 'and in the end it is delivered',
	target_query => 'SELECT * FROM s4.pay');

done_testing();
