# 130_decoding.pl
#
# Native logical replication of the same database: chunks of the change log are
# not decoded, so a publication FOR ALL TABLES carries each change once.  No
# publication stands in the way of any function, whatever it publishes.  A
# subscriber that has the extension as well keeps its own log and syncs, and
# makes nothing of the publisher's.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "wal_level = logical\npayment_sync.log_segment_size = '1MB'\n");
$source->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE pay (id int PRIMARY KEY, note text);
SELECT payment_sync.capture_table('pay');
INSERT INTO pay VALUES (0, 'records the shape');
CREATE PUBLICATION everything FOR ALL TABLES;
SELECT pg_create_logical_replication_slot('decoder', 'pgoutput');
INSERT INTO pay SELECT i, repeat('x', 100) FROM generate_series(1, 500) i;
INSERT INTO pay VALUES (501, repeat('large', 10000));
SQL

# pgoutput's messages: the first byte is I for an insert
my $inserts = $source->safe_psql('postgres', <<'SQL');
SELECT count(*)
FROM pg_logical_slot_get_binary_changes('decoder', NULL, NULL,
	'proto_version', '1', 'publication_names', 'everything')
WHERE get_byte(data, 0) = ascii('I')
SQL
is($inserts, 501, 'each row is decoded once');
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.changes'),
	502, 'and was captured');

# what was captured is replayed after a crash all the same
$source->stop('immediate');
$source->start;
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.changes'),
	502, 'and is there after a crash');

# ------------------------------------------------ beside any publication

my $target = start_target('target');
$target->safe_psql('postgres', 'CREATE TABLE pay (id int PRIMARY KEY, note text)');
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
CREATE SERVER hook FOREIGN DATA WRAPPER payment_sync_http OPTIONS (url 'http://127.0.0.1:1/');
CREATE USER MAPPING FOR CURRENT_USER SERVER hook;
CREATE TABLE other (id int PRIMARY KEY, note text);
CREATE TABLE extra (id int PRIMARY KEY, note text);
SQL

is($source->safe_psql('postgres', <<'SQL'), '', 'each table of the extension has a replica identity, and leaves replicated rows out');
SELECT string_agg(c.relname, ' ') FROM pg_class c
WHERE c.relnamespace = 'payment_sync'::regnamespace AND c.relkind = 'r'
	AND ((c.relreplident <> 'f' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
		OR NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled = 'R'
			AND t.tgfoid = 'payment_sync.skip_replicated'::regproc))
SQL

# All that users call, as users call it.  "\gset" because most return nothing of
# interest; what is refused must be refused for reasons of its own.
my $calls = <<'SQL';
SELECT payment_sync.version();
SELECT payment_sync.capture_table('extra');
SELECT payment_sync.release_table('extra');
SELECT payment_sync.create_sync('pg', '{pay}', server => 'target', batch => true, mirror => true);
SELECT payment_sync.create_sync('http', '{pay}', server => 'hook');
SELECT payment_sync.create_sync('pull', '{pay}');
SELECT payment_sync.alter_sync('pull', max_log_size => '1GB');
UPDATE pay SET note = note || '.' WHERE id < 10;
DELETE FROM pay WHERE id = 11;
INSERT INTO pay VALUES (11);
CALL payment_sync.batch_sync('pg', mirror => true);
CALL payment_sync.incremental_sync('pg');
SELECT payment_sync.cancel_batch('pg');
SELECT count(*) AS fetched, max(position) AS position FROM payment_sync.fetch_changes('pull', 100) \gset
SELECT payment_sync.ack_changes('pull', :'position');
SELECT count(*) FROM payment_sync.fetch_changes('pull', 100);
SELECT payment_sync.disable_sync('pg');
SELECT payment_sync.enable_sync('pg');
SELECT payment_sync.enable_sync('pull', start => 'now');
SELECT count(*) FROM payment_sync.preview_event('http', '{"id": 1}');
SELECT count(*) FROM payment_sync.check_target('hook');
SELECT payment_sync.replay('http');
SELECT payment_sync.retry_dead_letters('http');
SELECT payment_sync.discard_dead_letters('http');
SELECT count(*) FROM payment_sync.reconcile('pg');
SELECT count(*) FROM payment_sync.reconcile_with('pay', 'other');
SELECT payment_sync.start_reconciliation('pg') AS run \gset
CALL payment_sync.run_reconciliation(:run);
SELECT payment_sync.cancel_reconciliation(:run);
SELECT length(payment_sync.reconciliation_report(:run));
SELECT payment_sync.start_reconciliation_with('pay', 'other') AS run \gset
CALL payment_sync.run_reconciliation(:run);
SELECT payment_sync.accept_discrepancy(id, 'known') FROM payment_sync.discrepancies LIMIT 1;
SELECT count(*) FROM payment_sync.repair('pg');
SELECT count(*) FROM payment_sync.control_totals('pg', 'pay', sum => '{id}');
SELECT payment_sync.reconcile_every('pg', '1 day');
SELECT payment_sync.pending_changes('pull');
SELECT payment_sync.log_size() > 0;
CALL payment_sync.tidy_log();
INSERT INTO payment_sync.ledger_manual (sync, relid, day, operation, discarded, made_by)
	SELECT id, 0, '2000-01-01', 'insert', 1, current_user FROM payment_sync.sync WHERE name = 'http';
SELECT payment_sync.drop_sync(name) FROM payment_sync.syncs;
SQL
my $uncalled = join ' ', grep { $calls !~ /payment_sync\.\Q$_\E\b/ } split /\n/,
  $source->safe_psql('postgres', <<'SQL');
SELECT DISTINCT p.proname FROM pg_proc p
WHERE p.pronamespace = 'payment_sync'::regnamespace AND p.proname !~ '^(on|read|sync)_|_validator$|^capture_(change|truncate)$'
	AND p.proname NOT IN ('latency_quantile', 'log_size_limit', 'skip_replicated', 'wake_workers', 'worker_pid')
SQL
is($uncalled, '', 'no function is forgotten');

my %publication = (
	'all tables' => 'FOR ALL TABLES',
	'all tables, insert and truncate' => "FOR ALL TABLES WITH (publish = 'insert,truncate')",
);
if ($source->pg_version >= 15)
{
	$publication{'a row filter'} = 'FOR TABLE pay WHERE (id > 0), other WHERE (id > 5)';
	$publication{'our schema'} = 'FOR TABLES IN SCHEMA payment_sync, public';
}
$source->safe_psql('postgres', 'DROP PUBLICATION everything');
for my $kind (sort keys %publication)
{
	$source->safe_psql('postgres', "CREATE PUBLICATION everything $publication{$kind}");
	my ($status, $out, $err) = $source->psql('postgres', $calls, on_error_stop => 0);
	is(join("\n", grep { /ERROR/ } split /\n/, $err), '', "$kind: every function works");
	same_rows($source, $target, 'SELECT * FROM pay', "$kind: and the target is alike");
	is( $source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.sync_state'),
		0, "$kind: nothing is left behind");
	$source->safe_psql('postgres', 'DROP PUBLICATION everything');
}

# ------------------------------------- a subscriber with the extension

my $subscriber = start_source('subscriber');
$subscriber->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE pay (id int PRIMARY KEY, note text);
CREATE TABLE other (id int PRIMARY KEY, note text);
CREATE TABLE extra (id int PRIMARY KEY, note text);
CREATE TABLE own (id int PRIMARY KEY, note text);
SELECT payment_sync.capture_table(t) FROM unnest('{own,pay}'::regclass[]) t;
SELECT payment_sync.create_sync('mine', '{own,pay}');
INSERT INTO own SELECT i, repeat('o', 1000) FROM generate_series(1, 100) i;
SQL
my $mine = "SELECT (SELECT identity FROM payment_sync.log_rotation), (SELECT string_agg(name, ' ') FROM payment_sync.syncs),
	(SELECT count(*) FROM payment_sync.captured),
	(SELECT count(*) FROM payment_sync.shape WHERE relid NOT IN ('own'::regclass, 'pay'::regclass))";
my $before = $subscriber->safe_psql('postgres', $mine);
$source->safe_psql('postgres', <<'SQL');
CREATE PUBLICATION everything FOR ALL TABLES;
SELECT payment_sync.create_sync('theirs', '{pay}', server => 'target');
SELECT payment_sync.capture_table('other');
UPDATE pay SET note = 'copied' WHERE id <= 10;
SQL
my $connection = $source->connstr . ' dbname=postgres';
$subscriber->safe_psql('postgres',
	"CREATE SUBSCRIPTION all_of_it CONNECTION '$connection' PUBLICATION everything");
$subscriber->wait_for_subscription_sync($source, 'all_of_it')
  if $subscriber->can('wait_for_subscription_sync');
$subscriber->poll_query_until('postgres', "SELECT bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel")
  or die 'the tables are not copied';

# Let the publisher's log be rotated while all of it is replicated.
my $file = $source->safe_psql('postgres', "SELECT pg_relation_filenode('payment_sync.log_0')");
my $rotated = 0;
for (1 .. 60)
{
	$source->safe_psql('postgres', "UPDATE pay SET note = repeat('$_', 500)");
	wait_delivered($source, 'theirs');
	$rotated = $source->safe_psql('postgres', "SELECT pg_relation_filenode('payment_sync.log_0')") != $file;
	last if $rotated;
}
ok($rotated, 'the publisher has emptied a table of its log');
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.drop_sync('theirs');
SELECT payment_sync.create_sync('more', '{other}');
UPDATE pay SET note = 'last';
SQL
$source->wait_for_catchup('all_of_it');
same_rows($source, $subscriber, 'SELECT * FROM pay', 'the subscriber has followed');
is($subscriber->safe_psql('postgres', $mine), $before, 'it has its own log, syncs, captures and shapes');
is( $subscriber->safe_psql('postgres', <<'SQL'),
SELECT count(*) FILTER (WHERE "table" = 'own'::regclass),
	count(*) FILTER (WHERE "table" = 'pay'::regclass AND new ->> 'note' = 'last'),
	count(*) FILTER (WHERE "table" NOT IN ('own'::regclass, 'pay'::regclass))
FROM payment_sync.fetch_changes('mine', 10000000)
SQL
	'100|502|0', 'nothing was taken from its log, nor put there by the publisher');
is($subscriber->safe_psql('postgres', "SELECT count(*) FROM pg_stat_subscription_stats WHERE apply_error_count + sync_error_count > 0"),
	0, 'and the subscription has seen no error')
  if $subscriber->pg_version >= 15;
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION all_of_it');

done_testing();
