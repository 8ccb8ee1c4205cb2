# 427_unmade.pl
#
# Changes of which no event can be made: a transform raises an error, the key
# cannot be read, the text is too large, or the code takes too long.  What is
# before and behind such a change is delivered, the change itself is a dead
# letter (or holds its key), is made anew when it is retried, also by another
# transform and after the log was emptied, and the ledger adds up.  Errors that
# are not about the change stop the sync behind all that is before it.
#
# Targets are those of the test transport (test/modules).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source', conf => <<CONF);
payment_sync.log_segment_size = '1MB'
payment_sync.transform_timeout = '300ms'
restart_after_crash = on
CONF
my $dir = PostgreSQL::Test::Utils::tempdir();

sub q1 { return $node->safe_psql('postgres', $_[0]) }

sub wait_for
{
	my ($query, $what) = @_;
	local $PostgreSQL::Test::Utils::timeout_default = 60;
	$node->poll_query_until('postgres', $query)
	  or die "$what: " . q1('SELECT row_to_json(s) FROM payment_sync.stat_sync s')
	  . q1('SELECT row_to_json(d) FROM payment_sync.dead_letters d');
	return;
}

# begin(OPTIONS, ARGUMENTS, TABLE): a target and a sync, both of name s
my $begun = 0;
sub begin
{
	my ($options, $arguments, $table) = @_;
	$table //= 'pay';
	$begun++;
	mkdir "$dir/$begun";
	q1(<<SQL);
CREATE SERVER s FOREIGN DATA WRAPPER probe
	OPTIONS (directory '$dir/$begun', retry_delay_min '20', retry_delay_max '100' $options);
CREATE USER MAPPING FOR CURRENT_USER SERVER s;
SELECT payment_sync.create_sync('s', '{$table}', 's', $arguments);
SQL
	return;
}

# What the target has, one "TYPE KEY" each.
sub received
{
	my $file = "$dir/$begun/received";
	return map { (split /\t/, $_, -1)[3] . ' ' . (split /\t/, $_, -1)[4] }
	  split /\n/, -e $file ? slurp_file($file) : '';
}
sub received_ids
{
	my ($key) = @_;
	return map { (split /\t/, $_, -1)[0] } grep { (split /\t/, $_, -1)[4] eq $key }
	  split /\n/, slurp_file("$dir/$begun/received");
}

sub letters
{
	return q1(<<SQL);
SELECT state, "table", operation, key, error_state, reason, body IS NULL FROM payment_sync.dead_letters ORDER BY id
SQL
}
sub ledger
{
	return q1("SELECT " . join(', ', map { "sum($_)" } split /, /, $_[0])
		. ", bool_and(balanced) FROM payment_sync.ledger WHERE sync = 's'");
}
sub wait_settled
{
	wait_delivered($node, 's');
	wait_for("SELECT COALESCE(sum(pending + parked), 0) = 0 FROM payment_sync.ledger WHERE sync = 's'", 'not settled');
	return;
}
sub finish
{
	q1("SELECT payment_sync.drop_sync('s'); DROP SERVER s CASCADE; TRUNCATE pay, typed, big");
	return;
}

q1(<<'SQL');
CREATE EXTENSION payment_sync;
CREATE FOREIGN DATA WRAPPER probe OPTIONS (library 'payment_sync_probe');
CREATE ROLE watcher;
GRANT pg_monitor TO watcher;
CREATE TABLE pay (id int PRIMARY KEY, amount int, note text);
CREATE FUNCTION even(text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	IF $1 ~ '[13579]' AND current_setting('application_name') ~ 'payment_sync' THEN RAISE 'odd: %', $1; END IF;
	RETURN true;
END $$;
CREATE TABLE typed (id int PRIMARY KEY);
CREATE TABLE big (id int PRIMARY KEY, t text);
SELECT payment_sync.capture_table(t) FROM unnest('{pay,typed,big}'::regclass[]) t;
SQL
my $divide = "transform => \$\$jsonb_build_object('id', event->'id', 'share', 100 / (event #>> '{new,amount}')::int)\$\$";

# ------------------------------------------------------ a transform that raises

begin('', $divide);
q1('INSERT INTO pay SELECT i, CASE WHEN i = 21 THEN 0 ELSE i END FROM generate_series(1, 40) i');
wait_settled();
is(scalar(grep { $_ ne 'pay.insert 21' } received()), 40 - 1, 'what is before and behind it is delivered, once');
is(scalar(grep { $_ eq 'pay.insert 21' } received()), 0, 'it is not');
is(letters(), 'dead|pay|insert|21|22012|could not make the event: division by zero|t', 'it is a dead letter');
is(q1(<<'SQL'), '||could not make the event|', 'others see neither its key nor what the error says');
SET ROLE watcher; SELECT key, body, reason, excerpt FROM payment_sync.dead_letters
SQL
is(ledger('captured, delivered, dead'), '40|39|1|t', 'the ledger knows it');
is(PaymentSyncTest::stat($node, 's', 'errors'), '0', 'the sync has not failed');
is(q1('SELECT dead, refused, events FROM payment_sync.stat_target'), '1|1|39', 'stat_target counts it');

# retried, it fails again
is(q1("SELECT payment_sync.retry_dead_letters('s')"), '1', 'it is retried');
wait_for("SELECT state = 'dead' AND failures = 2 FROM payment_sync.dead_letters", 'not dead again');
is(ledger('captured, delivered, dead'), '40|39|1|t', 'and is dead again');

# The log forgets it; another transform can make its event.
q1('INSERT INTO pay SELECT i, 1, repeat(md5(i::text), 20) FROM generate_series(1001, 8000) i');
wait_settled();
for my $round (1 .. 4)
{
	q1("UPDATE pay SET note = repeat(md5(id::text || $round), 20) WHERE id > 1000");
	wait_settled();
	q1('CALL payment_sync.tidy_log()');
}
is(q1('SELECT count(*) FROM payment_sync.changes WHERE key = $${"id": 21}$$'), '0', 'the log has forgotten it');
my ($id) = q1('SELECT event_id FROM payment_sync.dead_letters');
q1(q(SELECT payment_sync.alter_sync('s', transform => $$jsonb_build_object('id', event->'id', 'amount', event #> '{new,amount}')$$)));
q1("SELECT payment_sync.retry_dead_letters('s')");
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
is(join(',', received_ids('21')), $id, 'it is delivered, with the id that it had');
wait_settled();
is(ledger('dead, parked'), '0|0|t', 'and is counted as that');
finish();

# ------------------------------- left out, or without its table, when retried

begin('', $divide);
q1('INSERT INTO pay VALUES (1, 0), (2, 0), (3, 1)');
wait_for("SELECT count(*) = 2 FROM payment_sync.dead_letters WHERE state = 'dead'", 'no dead letters');
q1(q(SELECT payment_sync.alter_sync('s', transform => $$CASE WHEN event #>> '{key,id}' <> '1' THEN event END$$)));
q1("SELECT payment_sync.retry_dead_letters('s', ARRAY[(SELECT id FROM payment_sync.dead_letters WHERE key = '1')])");
wait_settled();
is(ledger('captured, delivered, dead, left_out'), '3|1|1|1|t', 'made anew, one is left out');
q1("SELECT payment_sync.alter_sync('s', add_tables => '{typed}', drop_tables => '{pay}')");
q1("SELECT payment_sync.retry_dead_letters('s')");
wait_for("SELECT state = 'dead' AND reason = 'could not make the event: the table has left the sync' FROM payment_sync.dead_letters",
	'its table has left');
is(q1("SELECT payment_sync.discard_dead_letters('s')"), '1', 'it can be discarded');
is(ledger('captured, delivered, dead, discarded, left_out'), '3|1|0|1|1|t', 'and is counted as that');
finish();

# ----------------------------------------------------------- it holds its key

begin(", on_refused 'hold'", $divide);
q1('INSERT INTO pay VALUES (1, 0), (2, 2)');
q1('UPDATE pay SET amount = 5');
wait_for("SELECT array_agg(state ORDER BY id) = '{held,parked}' FROM payment_sync.dead_letters", 'does not hold');
wait_delivered($node, 's');
is(join(',', received()), 'pay.insert 2,pay.update 2', 'other keys go on');
q1("SELECT payment_sync.alter_sync('s', transform => 'event')");
q1("SELECT payment_sync.retry_dead_letters('s')");
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
is(join(',', grep { / 1$/ } received()), 'pay.insert 1,pay.update 1', 'then the key goes on, in order');
wait_settled();
is(ledger('captured, delivered'), '4|4|t', 'the ledger agrees');
finish();

# No room to hold more: the line waits for some.
begin(", on_refused 'hold', max_parked '2'", $divide);
q1('INSERT INTO pay SELECT i, 0 FROM generate_series(1, 4) i; INSERT INTO pay VALUES (5, 5)');
wait_for("SELECT count(*) = 2 FROM payment_sync.dead_letters WHERE state = 'held'", 'does not hold');
is(q1("SELECT payment_sync.discard_dead_letters('s', ARRAY[(SELECT min(id) FROM payment_sync.dead_letters)])"), '1', 'one is discarded');
wait_for("SELECT count(*) = 2 AND min(key) = '2' FROM payment_sync.dead_letters WHERE state = 'held'", 'the next one does not hold');
q1("SELECT payment_sync.discard_dead_letters('s')");
wait_for("SELECT count(*) = 1 AND min(key) = '4' FROM payment_sync.dead_letters WHERE state = 'held'", 'the last one does not hold');
q1("SELECT payment_sync.discard_dead_letters('s')");
wait_settled();
is(ledger('captured, delivered, discarded'), '5|1|4|t', 'each is held in its turn');
finish();

# Nothing may overtake it: the sync stops behind what is before it.
begin(", on_refused 'hold', ordering 'strict'", $divide);
q1('INSERT INTO pay VALUES (1, 1), (2, 0), (3, 3)');
wait_for("SELECT failures > 0 AND last_error = 'division by zero' FROM payment_sync.stat_sync", 'does not fail');
is(join(',', received()), 'pay.insert 1', 'strict: what is before it is delivered, what is behind is not');
q1("SELECT payment_sync.alter_sync('s', transform => 'event')");
wait_settled();
is(join(',', received()), 'pay.insert 1,pay.insert 2,pay.insert 3', 'strict: it goes on in order');
finish();

# ------------------------------------------------------- truncations and batches

begin('', q(transform => $$CASE WHEN event->>'operation' = 'truncate' THEN (1 / 0)::text::jsonb ELSE event END$$));
q1('INSERT INTO pay VALUES (1, 1); TRUNCATE pay; INSERT INTO pay VALUES (1, 2)');
wait_settled();
is(join(',', received()), 'pay.insert 1,pay.insert 1', 'a truncation of which no event can be made');
like(letters(), qr/^dead\|pay\|truncate\|\|22012\|/, 'is a dead letter');
q1("SELECT payment_sync.alter_sync('s', transform => 'event')");
q1("SELECT payment_sync.retry_dead_letters('s')");
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
like(join(',', received()), qr/,pay.truncate $/, 'and can be retried');
finish();

q1('INSERT INTO pay SELECT i, i % 5 FROM generate_series(1, 20) i');
begin('', $divide . ', batch => true');
wait_for(q(SELECT state = 'done' FROM payment_sync.progress_batch), 'the batch is not done');
wait_for("SELECT count(*) = 4 AND bool_and(operation = 'read' AND state = 'dead') FROM payment_sync.dead_letters", 'no dead letters');
is(scalar(received()), 16, 'the other rows of a batch are delivered');
q1("SELECT payment_sync.alter_sync('s', transform => 'event')");
q1("SELECT payment_sync.retry_dead_letters('s')");
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
is(scalar(received()), 20, 'and they, when they are retried');
finish();

# ------------------------------------------------------- a key that is not read

q1(<<'SQL');
CREATE DOMAIN even AS text CHECK (even(VALUE));
CREATE TYPE holder AS RANGE (subtype = even);
CREATE TABLE odd (k holder PRIMARY KEY, n int);
SELECT payment_sync.capture_table('odd');
SQL
begin('', 'transform => NULL', 'odd');
q1(q(INSERT INTO odd SELECT holder(i::text::even, i::text::even, '[]'), i FROM generate_series(0, 9) i));
wait_settled();
is(scalar(received()), 5, 'keys that cannot be read: the others are delivered');
is(q1('SELECT count(*), min(key), min(reason) FROM payment_sync.dead_letters'), '5||could not make the event: odd: 1', 'they are dead letters');
q1('CREATE OR REPLACE FUNCTION even(text) RETURNS bool LANGUAGE sql AS $$SELECT true$$');
q1("SELECT payment_sync.retry_dead_letters('s')");
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
is(join(',', sort(received())), join(',', map { "odd.insert [$_,$_]" } 0 .. 9), 'and delivered when they can be');
finish();

# ---------------------------------------------------------- a text too large

begin('', 'transform => NULL', 'big');
q1(q(INSERT INTO big SELECT i, CASE WHEN i = 4 THEN repeat(E'\x01', 190000000) ELSE 'small' END FROM generate_series(1, 8) i));
wait_settled();
is(join(',', sort(received())), join(',', map { "big.insert $_" } 1 .. 3, 5 .. 8), 'an event that would be too large: the others are delivered');
is(letters(), 'dead|big|insert|4|54000|could not make the event: change is too large for an event|t', 'it is a dead letter');
q1("SELECT payment_sync.alter_sync('s', transform => '(event - ''new'') || ''{\"new\": null}''')");
is(q1("SELECT payment_sync.discard_dead_letters('s')"), '1', 'it can be discarded');
is(ledger('captured, delivered, discarded'), '8|7|1|t', 'the ledger agrees');
finish();

# ---------------------------------------------- errors that are about the sync

q1('CREATE FUNCTION mine(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$BEGIN RETURN yours($1); END$$');
q1('CREATE FUNCTION yours(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT $1$$');
q1('ALTER FUNCTION mine(jsonb) SET search_path = public');
begin(", max_in_flight '1'", 'transform => $$public.mine(event)$$');
q1('INSERT INTO pay VALUES (1, 1)');
wait_settled();
q1(<<'SQL');
BEGIN;
SELECT payment_sync.disable_sync('s');
INSERT INTO pay SELECT i, i FROM generate_series(2, 6) i;
CREATE OR REPLACE FUNCTION yours(jsonb) RETURNS jsonb LANGUAGE plpgsql AS
$$BEGIN IF $1 #>> '{new,id}' = '5' THEN RETURN theirs($1); END IF; RETURN $1; END$$;
COMMIT;
SELECT payment_sync.enable_sync('s');
SQL
wait_for("SELECT failures > 0 AND last_error_state = '42883' FROM payment_sync.stat_sync", 'does not fail');
is(join(',', sort(received())), join(',', map { "pay.insert $_" } 1 .. 4), 'what is before it is delivered');
is(letters(), '', 'it is no dead letter');
q1('CREATE FUNCTION theirs(jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT $1$$');
wait_settled();
is(join(',', sort(received())), join(',', map { "pay.insert $_" } 1 .. 6), 'all is delivered, once, when the function is there');
finish();

# ------------------------------------------------------ code that takes too long

q1(<<'SQL');
CREATE FUNCTION slow(jsonb) RETURNS jsonb LANGUAGE plpgsql AS
$$BEGIN IF $1 #>> '{new,id}' = '3' THEN PERFORM pg_sleep(600); END IF; RETURN $1; END$$;
SQL
begin('', 'transform => $$public.slow(event)$$');
q1('INSERT INTO pay SELECT i, i FROM generate_series(1, 5) i');
wait_for("SELECT failures > 0 AND last_error_state = '57014' FROM payment_sync.stat_sync", 'does not fail');
is(join(',', grep { !/[45]$/ } sort(received())), 'pay.insert 1,pay.insert 2', 'what is before it is delivered');
wait_settled();
is(join(',', sort(received())), 'pay.insert 1,pay.insert 2,pay.insert 4,pay.insert 5', 'after some failures it is passed over');
is(letters(), 'dead|pay|insert|3|57014|could not make the event: transform took longer than 300 ms|t', 'and is a dead letter');
q1("SELECT payment_sync.alter_sync('s', transform => 'event')");
q1("SELECT payment_sync.retry_dead_letters('s')");
wait_for('SELECT count(*) = 0 FROM payment_sync.dead_letters', 'not delivered');
wait_settled();
is(ledger('captured, delivered'), '5|5|t', 'which can be delivered');
finish();

# ------------------------------------------------- in a session, and kill -9

begin('', "$divide, enabled => false");
q1('INSERT INTO pay SELECT i, i % 4 FROM generate_series(1, 40) i');
q1("SELECT payment_sync.enable_sync('s')");
$node->psql('postgres', "CALL payment_sync.incremental_sync('s')");
wait_settled();
is(ledger('captured, delivered, dead'), '40|30|10|t', 'a session does the same');
for my $round (1 .. 3)
{
	q1("UPDATE pay SET note = '$round'");
	my ($pid) = worker_pids($node);
	kill 'KILL', $pid if $pid;
	$node->poll_query_until('postgres', 'SELECT true') or die 'the server does not come back';
}
wait_settled();
is(ledger('captured, delivered, dead'), '160|120|40|t', 'nothing is lost or counted twice after kill -9');
finish();

$node->stop;
done_testing();
