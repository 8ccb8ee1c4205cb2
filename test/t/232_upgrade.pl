# 232_upgrade.pl
#
# A database of 1.0, brought up by ALTER EXTENSION, has the same objects as a
# new one of 1.1: definitions, defaults, constraints, rights, comments, and
# what pg_dump keeps.  Columns that were added later may stand further right.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('node');

# One line per property of an object of the extension.
my $catalog = <<'SQL';
SET search_path = '';
WITH member AS (
	SELECT d.classid, d.objid, o.type, o.identity
	FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) o
	WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'payment_sync')),
property AS (
	SELECT type, identity, 'is there' AS property, '' AS value FROM member
	UNION ALL
	SELECT type, identity, 'comment', obj_description(objid, classid::regclass::text) FROM member
	UNION ALL
	SELECT type, identity, 'definition', pg_get_functiondef(objid) FROM member
	JOIN pg_proc p ON p.oid = objid AND p.prokind <> 'a' WHERE classid = 'pg_proc'::regclass
	UNION ALL
	SELECT type, identity, 'rights', array_to_string(ARRAY(SELECT unnest(proacl)::text ORDER BY 1), ' ')
	FROM member JOIN pg_proc p ON p.oid = objid WHERE classid = 'pg_proc'::regclass
	UNION ALL
	SELECT type, identity, 'rights', array_to_string(ARRAY(SELECT unnest(relacl)::text ORDER BY 1), ' ')
	FROM member JOIN pg_class c ON c.oid = objid WHERE classid = 'pg_class'::regclass
	UNION ALL
	SELECT type, identity, 'storage', concat_ws(' ', relkind, relpersistence, relreplident, reloptions)
	FROM member JOIN pg_class c ON c.oid = objid WHERE classid = 'pg_class'::regclass
	UNION ALL
	SELECT type, identity, 'view', pg_get_viewdef(objid)
	FROM member JOIN pg_class c ON c.oid = objid AND relkind = 'v' WHERE classid = 'pg_class'::regclass
	UNION ALL
	SELECT type, identity, 'column ' || attname, concat_ws(' ', format_type(atttypid, atttypmod), attnotnull,
		attidentity, attgenerated, attstorage, pg_get_expr(adbin, adrelid), array_to_string(attacl, ' '),
		col_description(attrelid, attnum))
	FROM member JOIN pg_attribute ON attrelid = objid AND attnum > 0 AND NOT attisdropped
	LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE classid = 'pg_class'::regclass
	UNION ALL
	SELECT type, identity, 'constraint ' || conname, pg_get_constraintdef(c.oid)
	FROM member JOIN pg_constraint c ON conrelid = objid WHERE classid = 'pg_class'::regclass
	UNION ALL
	SELECT type, identity, 'index', pg_get_indexdef(indexrelid)
	FROM member JOIN pg_index ON indrelid = objid WHERE classid = 'pg_class'::regclass
	UNION ALL
	SELECT type, identity, 'trigger', concat(t.tgenabled, ' ', pg_get_triggerdef(t.oid))
	FROM member JOIN pg_trigger t ON tgrelid = objid AND NOT tgisinternal WHERE classid = 'pg_class'::regclass
	UNION ALL
	SELECT type, identity, 'event trigger', concat_ws(' ', evtevent, evtfoid::regproc, evtenabled, evttags)
	FROM member JOIN pg_event_trigger e ON e.oid = objid WHERE classid = 'pg_event_trigger'::regclass
	UNION ALL
	SELECT type, identity, 'wrapper', concat_ws(' ', fdwhandler::regproc, fdwvalidator::regproc, fdwoptions, fdwacl)
	FROM member JOIN pg_foreign_data_wrapper w ON w.oid = objid WHERE classid = 'pg_foreign_data_wrapper'::regclass
	UNION ALL
	SELECT type, identity, 'labels', array_to_string(ARRAY(SELECT enumlabel FROM pg_enum WHERE enumtypid = objid
		ORDER BY enumsortorder), ',')
	FROM member WHERE classid = 'pg_type'::regclass
	UNION ALL
	SELECT 'extension', 'payment_sync', 'kept by pg_dump: ' || rel::regclass, condition
	FROM pg_extension, unnest(extconfig, extcondition) AS u (rel, condition) WHERE extname = 'payment_sync')
SELECT concat_ws(' | ', type, identity, property, value) FROM property
WHERE value IS NOT NULL ORDER BY concat_ws(' | ', type, identity, property, value) COLLATE "C";
SQL

$node->safe_psql('postgres', $_) for 'CREATE DATABASE upgraded', 'CREATE DATABASE fresh';
$node->safe_psql('upgraded', q(CREATE EXTENSION payment_sync VERSION '1.0'));
$node->safe_psql('upgraded', q(ALTER EXTENSION payment_sync UPDATE));
$node->safe_psql('fresh', q(CREATE EXTENSION payment_sync));
is($node->safe_psql($_, 'SELECT extversion FROM pg_extension WHERE extname = $$payment_sync$$'),
	'1.1', "$_: version")
  for 'upgraded', 'fresh';

my %seen;
$seen{$_} = { map { $_ => 1 } split /\n(?=\S[^|\n]* \| )/, $node->safe_psql($_, $catalog) }
  for 'upgraded', 'fresh';
cmp_ok(scalar keys %{ $seen{fresh} }, '>', 500, 'the catalogs are read');
my @lacking = sort grep { !$seen{upgraded}{$_} } keys %{ $seen{fresh} };
my @more = sort grep { !$seen{fresh}{$_} } keys %{ $seen{upgraded} };
is(join("\n", @lacking), '', 'the upgraded database lacks nothing');
is(join("\n", @more), '', 'the upgraded database has nothing more');

# The objects work after the update.
$node->safe_psql('upgraded', <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY);
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pull', '{pay}');
INSERT INTO pay VALUES (1);
SQL
is($node->safe_psql('upgraded', q(SELECT count(*) FROM payment_sync.fetch_changes('pull', 10))),
	'1', 'it captures and delivers');

$node->stop;
done_testing();
