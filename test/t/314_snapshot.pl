# 314_snapshot.pl
#
# At every moment the target shows a state that the source had at some
# snapshot (P5).  Transfers between accounts keep the sum of balances, the
# number of entries in the journal and the accounts' own counters in step; a
# reader at the target looks all the time, while small windows, large ones and
# a batch arrive.
#
# Also: what one transaction has done is seen whole or not at all, and the
# reader never sees time run backwards.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use IPC::Run qw(start);
use PaymentSyncApply;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = $ENV{PSYNC_SECONDS} // 10;
my $accounts = 2000;
my $source = start_source('source');
my $target = start_target('target');

both($source, $target, <<'SQL');
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, transfers bigint NOT NULL DEFAULT 0);
CREATE TABLE journal (id bigserial PRIMARY KEY, payer int NOT NULL, payee int NOT NULL, amount bigint NOT NULL);
SQL
$source->safe_psql('postgres',
	"INSERT INTO account SELECT i, 1000 FROM generate_series(1, $accounts) i");
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table(t) FROM unnest('{account,journal}'::regclass[]) t;
SELECT payment_sync.create_sync('pay', '{account,journal}', server => 'target', batch => true);
SQL
wait_delivered($source, 'pay');

my $tmp = PostgreSQL::Test::Utils::tempdir();

sub script
{
	my ($name, $text) = @_;
	open my $f, '>', "$tmp/$name.sql" or die;
	print $f $text;
	close $f;
	return "$tmp/$name.sql";
}

# a transfer: the lower id first, so that there are no deadlocks
my $transfer = script('transfer', <<SQL);
\\set a random(1, $accounts - 1)
\\set b random(:a + 1, $accounts)
\\set amount random(-50, 50)
BEGIN;
UPDATE account SET balance = balance - :amount, transfers = transfers + 1 WHERE id = :a;
UPDATE account SET balance = balance + :amount, transfers = transfers + 1 WHERE id = :b;
INSERT INTO journal (payer, payee, amount) VALUES (:a, :b, :amount);
COMMIT;
SQL

# now and then all accounts are moved around at once: a large window
my $shift = script('shift', <<SQL);
BEGIN;
LOCK account IN EXCLUSIVE MODE;
UPDATE account SET balance = balance + CASE WHEN id % 2 = 0 THEN 7 ELSE -7 END, transfers = transfers + 1;
INSERT INTO journal (payer, payee, amount) SELECT 2 * i - 1, 2 * i, 7 FROM generate_series(1, $accounts / 2) i;
COMMIT;
SQL

# All in one statement, hence one snapshot.  The journal explains each balance.
my $look = <<SQL;
SELECT a.n || ' ' || a.sum || ' ' || (a.transfers - 2 * j.n) || ' ' || w.wrong || ' ' || j.n
FROM (SELECT count(*) AS n, sum(balance) AS sum, sum(transfers) AS transfers FROM account) a,
	(SELECT count(*) AS n FROM journal) j,
	(SELECT count(*) AS wrong FROM account
	 LEFT JOIN (SELECT id, sum(amount) AS amount FROM (
		SELECT payer AS id, -amount AS amount FROM journal
		UNION ALL SELECT payee, amount FROM journal) e GROUP BY id) e USING (id)
	 WHERE balance <> 1000 + COALESCE(e.amount, 0)) w
SQL
my $expected = qr/^$accounts @{[$accounts * 1000]} 0 0 (\d+)$/;

my ($out, $err) = ('', '');
my @common = ('pgbench', '-n', '-h', $source->host, '-p', $source->port);
my $load = start [ @common, '-c', 3, '-T', $seconds, '-f', "$transfer\@400", '-f', "$shift\@1", 'postgres' ],
  '>', \$out, '2>', \$err;

my ($looks, $states, $last, @wrong) = (0, 0, 0);
my $batches = 0;
while ($load->pumpable)
{
	my $seen = $target->safe_psql('postgres', $look);
	$looks++;
	if ($seen !~ $expected) { push @wrong, $seen }
	else
	{
		push @wrong, "$1 after $last" if $1 < $last;
		$states++ if $1 > $last;
		$last = $1;
	}
	# batches ride along
	if ($looks % 20 == 10)
	{
		$source->safe_psql('postgres', "CALL payment_sync.batch_sync('pay', mirror => true)");
		$batches++;
	}
	$load->pump_nb;
}
$load->finish;
is("@wrong", '', 'each look at the target saw a state of the source');
cmp_ok($looks, '>', 10, "there were $looks looks");
cmp_ok($states, '>', 5, "$states of them saw something new");
cmp_ok($batches, '>', 0, "batches ran meanwhile: $batches");

wait_delivered($source, 'pay');
same_rows($source, $target, "SELECT * FROM $_", "at the end: $_") for qw(account journal);
like($target->safe_psql('postgres', $look), $expected, 'and all is in step');

done_testing();
