# 512_reconcile_condition.pl
#
# A condition is an expression, at the target as here: it cannot end the
# statement that it is part of and begin another one, and the functions that it
# calls can write on neither side.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');
my $schema = 'CREATE TABLE pay (id int PRIMARY KEY, note text)';
$source->safe_psql('postgres', $schema);
$target->safe_psql('postgres', $schema);
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('pay');
SELECT payment_sync.create_sync('pay', '{pay}', server => 'target');
INSERT INTO pay SELECT i, 'x' FROM generate_series(1, 10) i;
SQL
wait_delivered($source, 'pay');

is($source->safe_psql('postgres',
		"SELECT matched, missing FROM payment_sync.reconcile('pay', condition => 'id > 5')"),
	'5|0', 'a condition holds on both sides');

# closes the query for checksums, leaves the read-only mode, and closes again
my ($status) = $source->psql('postgres', <<'SQL');
SELECT * FROM payment_sync.reconcile('pay', condition =>
	'true) OFFSET 0) s(i, x) GROUP BY i; COMMIT; BEGIN READ WRITE;'
	' CREATE TABLE public.smuggled (); COMMIT; SELECT 1 FROM (SELECT 1, 1 WHERE (true')
SQL
isnt($status, 0, 'one that ends the statement is an error');
is($target->safe_psql('postgres', "SELECT to_regclass('public.smuggled') IS NULL"),
	't', 'nothing else was run at the target');

# ------------------------------------------------------ what is no condition
my %wrong = (
	'id > (5' => qr/syntax error/, 'id > 5)' => qr/syntax error/, 'true) OR (true' => qr/syntax error/,
	'id > 5; SELECT 1' => qr/syntax error/, 'true FROM pay' => qr/must be one expression/,
	'true, false' => qr/must be one expression/, 'true LIMIT 1' => qr/must be one expression/,
	'true AS x' => qr/must be one expression/, "'" => qr/unterminated/, '' => qr/syntax error|must be one/,
	'true /*' => qr/unterminated/);
for my $condition (sort keys %wrong)
{
	(my $quoted = $condition) =~ s/'/''/g;
	for my $call ("payment_sync.reconcile('pay', condition => '$quoted')",
		"payment_sync.reconcile_with('pay', 'pay', condition => '$quoted')",
		"payment_sync.start_reconciliation('pay', condition => '$quoted')",
		"payment_sync.control_totals('pay', 'pay', '{}', '{id}', condition => '$quoted')")
	{
		my ($rc, $out, $err) = $source->psql('postgres', "SELECT * FROM $call");
		my ($function) = $call =~ /\.(\w+)/;
		like($err, qr/$wrong{$condition}.*condition of a reconciliation/s, "$function: $condition");
	}
}
is($source->safe_psql('postgres', 'SELECT count(*) FROM payment_sync.reconciliation WHERE condition <> $$id > 5$$'), 0,
	'no run is left of them');
is($source->safe_psql('postgres', "SELECT matched FROM payment_sync.reconcile('pay', condition => 'id > 5 -- large ones')"),
	5, 'a comment does no harm');
for my $case ([ "rows_per_second => 0", qr/"rows_per_second" must be greater than zero/ ],
	[ "rows_per_second => -1", qr/"rows_per_second" must be greater than zero/ ],
	[ "max_wait => '-1 s'", qr/"max_wait" must not be negative/ ])
{
	my ($rc, $out, $err) = $source->psql('postgres', "SELECT * FROM payment_sync.reconcile('pay', $case->[0])");
	like($err, $case->[1], "$case->[0] is refused");
}

# -------------------------------------------------------------- settings hold
for my $setting ([ enable_seqscan => 'off', '' ], [ statement_timeout => '77s', "SET statement_timeout = '77s';" ])
{
	my ($name, $value, $set) = @$setting;
	# where it is another value the condition hides all rows
	is($source->safe_psql('postgres', "$set SELECT target_rows FROM payment_sync.reconcile('pay', condition => 'current_setting(''$name'') = ''$value''')"),
		10, "$name at the target is $value");
}
$target->safe_psql('postgres', "ALTER SYSTEM SET statement_timeout = '55s'");
$target->reload;
$target->poll_query_until('postgres', "SELECT current_setting('statement_timeout') = '55s'") or die 'not reloaded';
is($source->safe_psql('postgres', "SET statement_timeout = '77s'; SELECT target_rows FROM payment_sync.reconcile('pay', condition => 'current_setting(''statement_timeout'') = ''55s''')"),
	10, 'a shorter one of the target stays');
$target->safe_psql('postgres', 'ALTER SYSTEM RESET statement_timeout');
$target->reload;

# ------------------------------------------------- functions in a condition
# One that writes, one that makes the next transactions read-write first, and
# one that tries to make its own so.  The owner of the sync may do all of that
# on both sides.
for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE noted (id int);
CREATE SEQUENCE counted;
CREATE FUNCTION note(id int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.noted VALUES (id);
	RETURN true;
END $$;
CREATE FUNCTION open_up(id int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('default_transaction_read_only', 'off', false);
	RETURN true;
END $$;
CREATE FUNCTION open_now(id int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('transaction_read_only', 'off', false);
	INSERT INTO public.noted VALUES (id);
	RETURN true;
END $$;
CREATE FUNCTION note_once_open(id int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('default_transaction_read_only') = 'off'
		AND current_setting('transaction_read_only') = 'off' THEN
		INSERT INTO public.noted VALUES (id);
	END IF;
	PERFORM set_config('default_transaction_read_only', 'off', false);
	RETURN true;
END $$;
SQL
}
# the same function does nothing on the other side
sub only_on
{
	my ($node) = @_;
	for my $name (qw(note open_up open_now note_once_open))
	{
		$node->safe_psql('postgres',
			"ALTER FUNCTION public.$name(int) RENAME TO ${name}_real; " .
			"CREATE FUNCTION public.$name(int) RETURNS boolean LANGUAGE sql AS 'SELECT true'");
	}
	return;
}
sub nothing_noted
{
	my ($name) = @_;
	is($_->safe_psql('postgres', 'SELECT count(*) FROM noted'), '0', "$name: nothing is written at " . $_->name)
	  for ($source, $target);
	return;
}
for my $condition ('public.note(id)', 'public.open_now(id)', q{nextval('public.counted') > 0})
{
	my ($ret, $out, $err) = $source->psql('postgres',
		'SELECT * FROM payment_sync.reconcile(\'pay\', condition => $$' . $condition . '$$)');
	like($err, qr/read-only transaction|transaction read-write mode/, "$condition is refused");
	($ret, $out, $err) = $source->psql('postgres',
		'SELECT * FROM payment_sync.control_totals(\'pay\', \'pay\', condition => $$' . $condition . '$$)');
	like($err, qr/read-only transaction|transaction read-write mode/, "$condition is refused by control_totals");
	nothing_noted($condition);
}
# many statements, in the session at the target: ranges, then rows, then keys
$target->safe_psql('postgres', "UPDATE pay SET note = 'y' WHERE id = 7");
is($source->safe_psql('postgres',
		"SELECT matched, different FROM payment_sync.reconcile('pay', condition => 'public.note_once_open(id)')"),
	'9|1', 'settings that a condition makes');
nothing_noted('a default that was changed before');
only_on($source);
for my $condition ('public.note(id)', 'public.open_now(id)')
{
	my ($ret, $out, $err) = $source->psql('postgres',
		"SELECT * FROM payment_sync.reconcile('pay', condition => '$condition')");
	like($err, qr/read-only transaction|transaction read-write mode/, "$condition is refused at the target");
}
nothing_noted('the target alone');

# a transaction that may write may go on to do so
is($source->safe_psql('postgres', <<'SQL'), "1\n1", 'what comes after may write');
BEGIN;
SELECT different FROM payment_sync.reconcile('pay');
INSERT INTO noted VALUES (1);
SELECT count(*) FROM noted;
ROLLBACK;
SQL

done_testing();
