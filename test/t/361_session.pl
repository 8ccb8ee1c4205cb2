# 361_session.pl
#
# The session at the target: errors in other languages show no values, a quiet
# connection that was closed is no failure, names without a schema, the privilege
# TEMPORARY, and the row of the position: what its update costs while a snapshot
# is held, and tables that version 1.0 has made.

use strict;
use warnings;
use utf8;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncSession;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = start_source('source', conf => "payment_sync.retry_delay_max = '100ms'\n");
my $target = start_target('target', conf => "autovacuum = off\n");

both($source, $target, <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, card text);
CREATE TABLE second (id int PRIMARY KEY);
SQL
$target->safe_psql('postgres', <<'SQL');
CREATE ROLE feeder LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON pay, second TO feeder;
-- as version 1.0 has it made by hand
CREATE SCHEMA payment_sync_target;
CREATE TABLE payment_sync_target.position (
    log_id uuid NOT NULL, sync_id uuid NOT NULL, sync_name text NOT NULL,
    position text NOT NULL, updated timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sync_id, log_id));
GRANT USAGE ON SCHEMA payment_sync_target TO feeder;
GRANT SELECT, INSERT, UPDATE ON payment_sync_target.position TO feeder;
SQL
make_sync($source, $target, [ 'pay', 'second' ], user => 'feeder');
$target->safe_psql('postgres', 'GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ballast TO feeder');
my $id = 0;
my $hang_up = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE application_name = 'payment_sync'";

sub insert
{
	my ($card) = @_;
	$id++;
	$source->safe_psql('postgres', "INSERT INTO pay VALUES ($id, '" . ($card // 'x') . "')");
	return;
}

# --- a position table of version 1.0

sub versioned
{
	return $target->safe_psql('postgres', <<'SQL');
SELECT string_agg(a.attname, ',' ORDER BY a.attnum) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indexrelid
WHERE i.indrelid = 'payment_sync_target.position'::regclass AND i.indisprimary
SQL
}

insert();
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'delivered with the table that was made by hand');
is(versioned(), 'sync_id,log_id', 'which is used as it is: it is not ours');
my $before = $target->safe_psql('postgres', 'SELECT position FROM payment_sync_target.position');

# a transaction that has looked at the table holds up nobody
$target->safe_psql('postgres', "ALTER TABLE payment_sync_target.position OWNER TO feeder; GRANT CREATE ON SCHEMA payment_sync_target TO feeder");
my $held = PaymentSyncSession->new($target, 'postgres');
$held->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM payment_sync_target.position');
$target->safe_psql('postgres', $hang_up);
insert();
goes_on($source, 'pay');
is(versioned(), 'sync_id,log_id', 'a table that somebody reads stays as it is');
$held->query('COMMIT');
$target->safe_psql('postgres', $hang_up);
insert();
goes_on($source, 'pay');
is(versioned(), 'sync_id,log_id,version', 'then it is brought up to date in place');
is($target->safe_psql('postgres', 'SELECT count(*) FROM payment_sync_target.position'), 1, 'with the row that was there');
isnt($target->safe_psql('postgres', 'SELECT position FROM payment_sync_target.position'), $before, 'which goes on');

# --- a held snapshot: what is counted is work, not time

# Blocks of table and index that so many windows touch at the target.
sub blocks
{
	my ($windows) = @_;
	my $query = <<'SQL';
SELECT pg_stat_clear_snapshot(), heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read
FROM pg_statio_user_tables WHERE relid = 'payment_sync_target.position'::regclass
SQL
	$target->safe_psql('postgres', $hang_up);
	my ($start) = $target->safe_psql('postgres', $query) =~ /(\d+)$/;
	for (1 .. $windows)
	{
		insert();
		$target->poll_query_until('postgres', "SELECT count(*) = 1 FROM pay WHERE id = $id") or die 'does not arrive';
	}
	goes_on($source, 'pay');
	# the session reports what it did when it ends
	$target->safe_psql('postgres', $hang_up);
	my ($end) = $target->safe_psql('postgres', $query) =~ /(\d+)$/;
	return ($end - $start) / $windows;
}

my $alone = blocks(60);
$held->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pay');

# twenty thousand versions behind it, made as the transport makes them
$target->safe_psql('postgres', <<'SQL');
DO $$BEGIN
FOR i IN 1 .. 20000 LOOP
	UPDATE payment_sync_target.position SET version = version + CASE WHEN i % 32 = 0 THEN 1 ELSE 0 END;
	IF i % 10 = 0 THEN COMMIT; END IF;
END LOOP;
END$$
SQL
my $behind = blocks(60);
note "blocks per window: $alone without, $behind with 20,000 versions behind a held snapshot";
cmp_ok($behind, '<', 3 * $alone + 20, 'a held snapshot does not make the position dearer');
$held->query('COMMIT');
$held->quit;

# --- quiet connections

my $errors = stat($source, 'pay', 'errors');
for my $how ("ALTER ROLE feeder SET idle_session_timeout = '100ms'", $hang_up, "ALTER ROLE feeder RESET idle_session_timeout; $hang_up")
{
	goes_on($source, 'pay');
	$target->safe_psql('postgres', $_) for split /; /, $how;
	insert();
	goes_on($source, 'pay');
}
is(stat($source, 'pay', 'errors'), $errors, 'a connection that was closed while it was quiet is no failure');
same_rows($source, $target, 'SELECT * FROM pay', 'and nothing is lost');

# --- values in errors, in languages and quotes of all kinds

my $card = '4111-1111';
my @words = (
	[ '22P02', "ungültige Eingabesyntax für Typ integer: »$card«" ],
	[ '22P02', "syntaxe en entrée invalide pour le type integer : « $card »" ],
	[ '22P02', "la sintaxis de entrada no es válida para tipo integer: «$card»" ],
	[ '22P02', "sintassi di input non valida per il tipo integer: \"$card\"" ],
	[ '22P02', "\"integer\"型の入力構文が不正です: \"$card\"" ],
	[ '22003', "Wert „$card“ ist außerhalb des gültigen Bereichs für Typ integer" ],
	[ '22003', "value \"$card\" is out of range for type integer" ],
	[ '22007', "`$card' is no date" ],
	[ '22023', "bad card $card" ],
	[ '42601', "syntax error in tsquery: \"$card\"" ],
	[ '22P02', "invalid input syntax for type integer: \"$card\"" ]);
for my $size (\&small_window, \&large_window)
{
	for my $word (@words)
	{
		my ($state, $message) = @$word;
		$message =~ s/'/''/g;
		$target->safe_psql('postgres', <<SQL);
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
\$\$BEGIN RAISE EXCEPTION USING ERRCODE = '$state', MESSAGE = '$message', DETAIL = 'It was $card.', HINT = 'Look at $card.'; END\$\$;
CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON pay FOR EACH ROW EXECUTE FUNCTION refuse();
SQL
		$id++;
		$size->($source, "INSERT INTO pay VALUES ($id, '$card')");
		my $error = failure_of($source, 'pay');
		unlike($error, qr/4111/, "$state: no value is shown: $error");
		like($error, qr/^\Q$state\E \| .*table public\.pay: \S/, 'but what and where');
		$target->safe_psql('postgres', 'DROP TRIGGER refuse ON pay');
		goes_on($source, 'pay');
	}
}
like(last_failure($source, 'pay'), qr/invalid input syntax for type integer/, 'what is no value is shown');
my @leaks = grep { /4111/ && !/statement: |STATEMENT: |^\t/ } split /\n/, slurp_file($source->logfile);
is("@leaks", '', 'nor is any in the log');

# --- names without a schema

$target->safe_psql('postgres', <<'SQL');
CREATE FUNCTION fine(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION check_card() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF fine(NEW.card) THEN RETURN NEW; END IF; RETURN NEW; END';
CREATE TRIGGER check_card BEFORE INSERT ON pay FOR EACH ROW EXECUTE FUNCTION check_card();
SQL
insert();
like(failure_like($source, 'pay', qr/fine/), qr/function fine\(text\) does not exist/, 'a function by its bare name is not found');
like(slurp_file($source->logfile), qr/HINT: .*set option "search_path" of the server/, 'and the hint says why');
$source->safe_psql('postgres', "ALTER SERVER target OPTIONS (ADD search_path 'public')");
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'with the option search_path it is');

# --- TEMPORARY

$target->safe_psql('postgres', "REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC; $hang_up");
insert();
like(failure_like($source, 'pay', qr/temporary/), qr/may not create temporary tables/, 'without TEMPORARY, found before a large window');
like(slurp_file($source->logfile), qr/HINT: .*GRANT TEMPORARY ON DATABASE postgres TO feeder;/, 'with what to do');
$target->safe_psql('postgres', 'GRANT TEMPORARY ON DATABASE postgres TO feeder');
goes_on($source, 'pay');
same_rows($source, $target, 'SELECT * FROM pay', 'granted, it goes on');

done_testing();
