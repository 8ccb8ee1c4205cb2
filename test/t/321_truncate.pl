# 321_truncate.pl
#
# TRUNCATE among other changes, alone and with CASCADE; rows of several MB;
# triggers at the target.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncApply;
use PaymentSyncTest;
use Test::More;

my $source = start_source('source');
my $target = start_target('target');

both($source, $target, <<'SQL');
CREATE TABLE pay (id int PRIMARY KEY, v text, big text, n int);
CREATE TABLE child (id int PRIMARY KEY, pay int REFERENCES pay);
CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (100) TO (10000);
SQL
make_sync($source, $target, [qw(pay child part)]);
my @queries = map { "SELECT * FROM $_" } qw(pay child part);
my $some = <<'SQL';
TRUNCATE pay, child, part;
INSERT INTO pay SELECT i, 'v' FROM generate_series(1, 20) i;
INSERT INTO child SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO part SELECT i, 'v' FROM generate_series(90, 110) i
SQL

sub windows
{
	my ($topic, $sql) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	each_window($source, $target, 'pay', $topic, $some, $sql, @queries);
	return;
}

windows('in the middle of a window', <<'SQL');
INSERT INTO pay VALUES (21), (22);
UPDATE pay SET v = 'changed';
DELETE FROM child;
TRUNCATE child;
INSERT INTO child VALUES (1, 21), (2, 22);
UPDATE child SET pay = 22 WHERE id = 1;
TRUNCATE part;
INSERT INTO part VALUES (95, 'new'), (105, 'new')
SQL
windows('CASCADE', <<'SQL');
INSERT INTO pay VALUES (21), (22);
TRUNCATE pay CASCADE;
INSERT INTO pay VALUES (1, 'new');
INSERT INTO child VALUES (1, 1);
TRUNCATE pay, child;
INSERT INTO pay VALUES (2, 'new'), (3, 'new');
INSERT INTO child VALUES (2, 2);
DELETE FROM pay WHERE id = 3
SQL
windows('of a partition and of a partitioned table', <<'SQL');
UPDATE part SET v = 'changed';
TRUNCATE part_low;
INSERT INTO part VALUES (91, 'new');
UPDATE part SET id = id - 100 WHERE id = 105
SQL
windows('twice, and nothing but that', 'TRUNCATE child; TRUNCATE child; TRUNCATE part');
windows('in a savepoint that is rolled back', <<'SQL');
SAVEPOINT s;
TRUNCATE pay CASCADE;
INSERT INTO pay VALUES (1, 'gone');
ROLLBACK TO s;
UPDATE pay SET v = 'stays'
SQL

# where a small window ends: tables truncated together stay together
for my $n (998 .. 1001)
{
	wait_applied($target, 'pay', small_window($source, $some));
	wait_applied($target, 'pay', small_window($source, <<SQL));
INSERT INTO pay SELECT i, 'v' FROM generate_series(1001, 1000 + $n) i;
TRUNCATE pay CASCADE;
INSERT INTO pay VALUES (1, 'after $n')
SQL
	is(differing_rows($source, $target, 'SELECT * FROM pay'), '', "CASCADE after $n changes");
}

# a table that only the target has, and that refers to ours
$target->safe_psql('postgres', 'CREATE TABLE stranger (pay int REFERENCES pay)');
my $xid = small_window($source, 'TRUNCATE pay CASCADE; INSERT INTO pay VALUES (7, \'seven\')');
like(failure_like($source, 'pay', qr/cannot truncate/),
	qr/cannot truncate a table referenced in a foreign key constraint.*"stranger" references "pay"/s,
	'a table of others is not emptied along');
$target->safe_psql('postgres', 'DROP TABLE stranger');
mended($source, 'pay');
wait_applied($target, 'pay', $xid);
same_rows($source, $target, "SELECT * FROM pay", 'once it is gone, it goes on');

# --- rows of several MB, toasted

my $big = "(SELECT string_agg(md5((i * %d)::text), '') FROM generate_series(1, 200000) i)";
each_window($source, $target, 'pay', 'rows of 6 MB', 'TRUNCATE pay CASCADE; INSERT INTO pay VALUES (0)', sprintf(<<"SQL", 1, 2), 'SELECT id, v, md5(big), length(big), n FROM pay');
INSERT INTO pay VALUES (1, 'new', $big), (2, 'new', $big), (3, 'small', 'x')
SQL
each_window($source, $target, 'pay', 'which change beside the large value', undef,
	"UPDATE pay SET n = COALESCE(n, 0) + 1; UPDATE pay SET v = 'changed' WHERE id = 1; UPDATE pay SET id = id + 100 WHERE id = 2",
	'SELECT id, v, md5(big), length(big), n FROM pay');
each_window($source, $target, 'pay', 'and in it', undef,
	sprintf("UPDATE pay SET big = $big WHERE id = 1; UPDATE pay SET big = NULL WHERE id > 100", 3),
	'SELECT id, v, md5(big), length(big), n FROM pay');

# --- triggers at the target: they fire, unless the server's
# session_replication_role says otherwise

$target->safe_psql('postgres', <<'SQL');
CREATE TABLE fired (how text, id int, op text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO public.fired VALUES (TG_NAME, NEW.id, TG_OP); RETURN NULL; END$$;
CREATE TRIGGER usual AFTER INSERT OR UPDATE ON pay FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER replica AFTER INSERT OR UPDATE ON pay FOR EACH ROW EXECUTE FUNCTION note();
ALTER TABLE pay ENABLE REPLICA TRIGGER replica;
SQL
sub fired
{
	my ($from, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $seen = '';
	for my $size (\&small_window, \&large_window)
	{
		$target->safe_psql('postgres', 'TRUNCATE fired');
		wait_applied($target, 'pay', $size->($source, "INSERT INTO pay VALUES ($from); UPDATE pay SET n = 9 WHERE id = $from"));
		wait_applied($target, 'pay', $size->($source, "UPDATE pay SET n = 10 WHERE id = $from"));
		$from++;
		$seen .= $target->safe_psql('postgres', "SELECT string_agg(DISTINCT how || ' ' || op, ', ' ORDER BY how || ' ' || op) FROM fired") . '; ';
	}
	return $seen;
}

is(fired(500), 'usual INSERT, usual UPDATE; usual INSERT, usual UPDATE; ', 'triggers fire as for any session');
$source->safe_psql('postgres', "ALTER SERVER target OPTIONS (ADD session_replication_role 'replica')");
$target->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'payment_sync'");
is(fired(600), 'replica INSERT, replica UPDATE; replica INSERT, replica UPDATE; ',
	'session_replication_role of the server decides');

done_testing();
