# The report of a reconciliation, as a real browser sees it.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../perl";
use File::Temp qw(tempdir);
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my ($chromium) = grep { -x } map { "$_/chromium" } split /:/, "$ENV{PATH}:/usr/bin";
plan skip_all => 'chromium is not installed' if !$chromium;

my $source = start_source('source', preload => 0);
my $target = start_target('target');
my $attack = q{<script>document.title = "owned"</script><img src=x onerror="document.title='owned'"> & "quoted" 'too'};
for my $node ($source, $target)
{
	$node->safe_psql('postgres', <<'SQL');
CREATE TABLE "<b>pay</b>" (id bigint PRIMARY KEY, "a&b" text);
INSERT INTO "<b>pay</b>" SELECT i, 'v ' || i FROM generate_series(1, 300) i;
SQL
}
connect_target($source, $target);
$source->safe_psql('postgres', <<'SQL');
SELECT payment_sync.capture_table('"<b>pay</b>"');
SELECT payment_sync.create_sync('<i>sync</i>', '{"\"<b>pay</b>\""}', server => 'target');
SQL

sub report
{
	my ($breaks, $run) = @_;
	$breaks //= 100;
	$run //= $source->safe_psql('postgres', q{SELECT run FROM payment_sync.reconcile('<i>sync</i>')});
	my $file = "$PostgreSQL::Test::Utils::tmp_check/report_$run.html";
	# as the documentation says
	command_ok(
		[ 'psql', '-X', '-A', '-t', '-d', $source->connstr('postgres'), '-o', $file,
			'-c', "SELECT payment_sync.reconciliation_report($run, $breaks)" ],
		"report of run $run is saved");
	return $file;
}

sub browse
{
	my ($file, @arguments) = @_;
	my $profile = tempdir(CLEANUP => 1);
	my ($out, $err) = ('', '');
	IPC::Run::run(
		[ $chromium, '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
			'--no-first-run', '--disable-background-networking', '--disable-component-update',
			'--disable-sync', "--user-data-dir=$profile", @arguments, "file://$file" ],
		'>', \$out, '2>', \$err, IPC::Run::timeout(120));
	return $out;
}

my $dom = browse(report(), '--dump-dom');
like($dom, qr{<b class="good" id="verdict">both sides agree</b>}, 'both sides agree');
like($dom, qr{<td class="n">300</td>}, 'rows are counted');
unlike($dom, qr{id="breaks"}, 'no breaks');

$target->safe_psql('postgres', q{UPDATE "<b>pay</b>" SET "a&b" = 'other' WHERE id = 7; DELETE FROM "<b>pay</b>" WHERE id <= 2});
$target->safe_psql('postgres', qq{INSERT INTO "<b>pay</b>" VALUES (1000, \$x\$$attack\$x\$)});
my $file = report();
$dom = browse($file, '--dump-dom');
like($dom, qr{id="verdict">4 discrepancies<}, 'discrepancies are counted');
like($dom, qr{<title>Reconciliation \d+</title>}, 'no value has become script');
my $body = $dom =~ s{.*<body>}{}sr;
unlike($body, qr{<script|<img|<i>|<b>pay}, 'nor markup');
like($body, qr{&lt;b&gt;pay&lt;/b&gt;}, 'names are shown as they are');
like($body, qr{&lt;script&gt;document\.title}, 'so are values');
is(() = $body =~ m{<svg }g, 2, 'two charts');
is(() = $body =~ m{<rect }g, 7, 'a bar per kind and age');
like($body, qr{>unexpected</text><rect x="160" y="\d+" width="180"}, 'bars are in proportion');
is(() = ($body =~ m{<table id="breaks">(.*?)</table>}s)[0] =~ m{<tr><td}g, 4, 'a row per discrepancy');
like($body, qr{<td class="v">a&amp;b: v 7</td><td class="v">a&amp;b: other</td>}, 'columns that differ, side by side');

$body = browse(report(2), '--dump-dom');
like($body, qr{The first 2 of 4 discrepancies}, 'the first N');
like($body, qr{new in this run</text><rect[^>]*></rect><text[^>]*>0</text>}, 'the same ones are not new again');

# what is green is proven: not what is in flight, in part, or has failed
sub verdict
{
	my ($run) = @_;
	return browse(report(undef, $run), '--dump-dom') =~ m{(<b class="[a-z]+" id="verdict">.*?</b>)} ? $1 : '';
}
sub run { return $source->safe_psql('postgres', "SELECT run FROM payment_sync.reconcile('<i>sync</i>'$_[0])") }
$body = browse(report(undef, run(q{, condition => 'id > 10 AND id < 20'})), '--dump-dom');
like($body, qr{<b class="good" id="verdict">both sides agree in the part that was compared</b>}, 'agreement in part');
like($body, qr{only rows where: id &gt; 10 AND id &lt; 20}, 'which part, is said');
like(browse(report(undef, run(q{, key_after => '{10}', key_upto => '{20}'})), '--dump-dom'),
	qr{only keys after: \{10\}.*only keys up to: \{20\}}s, 'likewise of a range');
$source->safe_psql('postgres', q{UPDATE "<b>pay</b>" SET "a&b" = 'on its way' WHERE id = 20});
is(verdict(run(q{, condition => 'id = 20', max_wait => '0'})),
	'<b class="note" id="verdict">no discrepancy, but of 1 keys in flight nothing can be said</b>', 'keys in flight');
my $cancelled = $source->safe_psql('postgres', q{SELECT payment_sync.start_reconciliation('<i>sync</i>')});
is(verdict($cancelled), '<b class="note" id="verdict">no discrepancy so far</b>', 'a run that has not begun');
$source->safe_psql('postgres', "SELECT payment_sync.cancel_reconciliation($cancelled)");
is(verdict($cancelled), '<b class="bad" id="verdict">no discrepancy so far, but not all was compared</b>', 'one that was cancelled');

# whatever encoding the page is saved in
$target->safe_psql('postgres', qq{UPDATE "<b>pay</b>" SET "a&b" = E'\\u20ac \\U0001f4b6 \\u202e' WHERE id = 30});
$source->safe_psql('postgres', q{ALTER DATABASE postgres SET client_encoding = 'SQL_ASCII'});
$file = report();
$source->safe_psql('postgres', 'ALTER DATABASE postgres RESET client_encoding');
like(slurp_file($file), qr{a&amp;b: &#x20AC; &#x1F4B6; &#x202E;}, 'characters beyond ASCII, by their numbers');

# on paper
my $pdf = "$PostgreSQL::Test::Utils::tmp_check/report.pdf";
browse($file, "--print-to-pdf=$pdf");
like(slurp_file($pdf), qr/^%PDF-/, 'it can be printed');

done_testing();
