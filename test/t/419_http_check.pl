# 419_http_check.pl
#
# Trying a target: check_target() tells step by step how far a ping came, and
# names what fails; preview_event() shows the request that a row would cause,
# and what is delivered is that.  Neither shows a secret.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use JSON::PP;
use MIME::Base64;
use POSIX ();
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
certify_http($dir);
my $secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost, nowhere.invalid'\nlog_statement = none\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id int PRIMARY KEY, amount numeric, note text);
SELECT payment_sync.capture_table('payments');
SQL

my $shown = '';
sub sql { my $out = $node->safe_psql('postgres', $_[0]); $shown .= $out; return $out; }

my $n = 0;
# The steps of a check as "step|ok|detail" lines.
sub check
{
	my ($server, $user) = @_;
	my $name = 'try' . ++$n;
	create_target($node, $name, { connect_timeout => 2, timeout => 2, %$server },
		{ signing_secret => $secret, %{ $user // {} } });
	return sql("SELECT string_agg(concat_ws('|', step, ok, detail), E'\\n') FROM payment_sync.check_target('$name')");
}

sub steps_are
{
	my ($rows, $what, @expected) = @_;
	my @rows = split /\n/, $rows;
	is(scalar(@rows), scalar(@expected), "$what: steps") or diag($rows);
	for my $i (0 .. $#expected)
	{
		like($rows[$i] // '', $expected[$i], "$what: step " . ($i + 1));
	}
	return;
}

# ---------------------------------------------------------------- it works

my $receiver = start_receiver(secret => $secret);
my @reached = (qr/^settings\|t\|http:\/\/127\.0\.0\.1:$receiver->{port}$/, qr/^name resolution\|t\|127\.0\.0\.1$/,
	qr/^address policy\|t\|allowed$/, qr/^connection\|t\|127\.0\.0\.1 port $receiver->{port}$/, qr/^TLS\|t\|not used$/);
my $url = "$receiver->{base}/secret-path";
steps_are(check({ url => $url }), 'all is well', @reached, qr/^authentication\|t\|not refused$/,
	qr/^ping\|t\|acknowledged with status 200$/, qr/^clock\|t\|this server's clock is \d+ s (ahead of|behind) that of the target$/);
judged_well($receiver, 'the ping is signed');
is(sql('SELECT min(elapsed) >= 0 AND max(elapsed) > 0 FROM payment_sync.check_target($$try1$$)'), 't', 'each step tells its time');

my $tls = start_receiver(secret => $secret, cert => "$dir/server.crt", key => "$dir/server.key");
my $until = `openssl x509 -in $dir/server.crt -noout -enddate -dateopt iso_8601 2>/dev/null`;
my ($date) = $until =~ /(\d{4}-\d\d-\d\d)/;
like(check({ url => "$tls->{base}/", ca_file => "$dir/ca.crt" }),
	defined $date ? qr/^TLS\|t\|TLSv1\.3, certificate valid until $date$/m : qr/^TLS\|t\|TLSv1\.3, certificate valid until \d/m,
	'TLS: version, and the end of the certificate');

# ------------------------------------------------------- each step can fail

steps_are(check({ url => 'https://nowhere.invalid/' }), 'no such name', qr/^settings\|t/,
	qr/^name resolution\|f\|no answer from https:\/\/nowhere\.invalid: .*[Rr]esolv/);
steps_are(check({ url => 'https://10.1.2.3/' }), 'an address that is not allowed', qr/^settings\|t/,
	qr/^name resolution\|t\|10\.1\.2\.3$/,
	qr/^address policy\|f\|the address is not public and not listed in payment_sync\.http_allowed_hosts$/);
my $nobody = free_port();
steps_are(check({ url => "http://127.0.0.1:$nobody/" }), 'nobody listens', qr/^settings\|t/,
	qr/^name resolution\|t/, qr/^address policy\|t/, qr/^connection\|f\|no answer from .*(refused|connect)/);
for my $case ([ expired => qr/certificate has expired/ ], [ wrong => qr/does not match|no alternative certificate/ ],
	[ self => qr/self-signed|self signed/ ])
{
	my ($certificate, $reason) = @$case;
	my $bad = start_hostile(cert => "$dir/$certificate.crt", key => "$dir/$certificate.key");
	steps_are(check({ url => "$bad->{base}/", ca_file => "$dir/ca.crt" }), "certificate: $certificate", qr/^settings\|t/,
		qr/^name resolution\|t/, qr/^address policy\|t/, qr/^connection\|t/, qr/^TLS\|f\|.*$reason/);
}
for my $status (401, 403)
{
	set_receiver($receiver, status => $status);
	steps_are(check({ url => $url }, { bearer_token => 'a-bearer-token' }), "status $status", @reached,
		qr/^authentication\|f\|.* answered with status $status$/, qr/^ping\|f\|.* answered with status $status$/, qr/^clock\|t/);
}
set_receiver($receiver, status => 500, body => "oops $secret");
steps_are(check({ url => $url }), 'status 500', @reached, qr/^authentication\|t/,
	qr/^ping\|f\|.* answered with status 500$/, qr/^clock\|t/);
set_receiver($receiver, headers => { Date => POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time - 600)) });
like(check({ url => $url }), qr/^clock\|f\|this server's clock is (59\d|60\d) s ahead of that of the target$/m, 'clock ahead');
set_receiver($receiver, headers => { Date => POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time + 600)) });
like(check({ url => $url }), qr/^clock\|f\|this server's clock is (59\d|60\d) s behind that of the target$/m, 'clock behind');
set_receiver($receiver);
my $hostile = start_hostile();
for my $mode (qw(silent reset headers garbage))
{
	control($hostile, "/_mode/$mode");
	like(check({ url => "$hostile->{base}/" }), qr/^ping\|f\|/m, "a target that does worse: $mode");
}
my $oauth = start_receiver(oauth => { id => 'me', secret => 'client-secret' });
my %oauth = (oauth_client_id => 'me', oauth_client_secret => 'client-secret');
like(check({ url => "$oauth->{base}/hook", oauth_token_url => "$oauth->{base}/token" }, \%oauth),
	qr/^token\|t\|received\nname resolution\|t.*^ping\|t/ms, 'a token is fetched first');
steps_are(check({ url => "$oauth->{base}/hook", oauth_token_url => "$oauth->{base}/token" },
	{ %oauth, oauth_client_secret => 'open sesame' }), 'no token', qr/^settings\|t/, qr/^token\|f\|could not get a token: .*status 401/);

# Who may not use the server may not try it.
sql('CREATE ROLE shopkeeper');
my ($code, $out, $err) = $node->psql('postgres', "SET ROLE shopkeeper; SELECT * FROM payment_sync.check_target('try1')");
isnt($code, 0, 'only who may use the server may try it');
like($err, qr/permission denied/, 'and is told so');

# ----------------------------------------------------------------- preview

create_target($node, 'hooks', { url => "$receiver->{base}/{table}/{key}", signer => 'stripe', headers => "X-Shop: one",
	compression => 'gzip' }, { signing_secret => $secret, signer_secret => 'stripe-secret', bearer_token => 'a-bearer-token',
	api_key => 'an-api-key', secret_headers => 'X-Tenant: tenant-seven' });
sql("SELECT payment_sync.create_sync('hooks', '{payments}', server => 'hooks')");
sql("INSERT INTO payments VALUES (7, 12.50, E'ümläut \"quoted\"\\nline')");
wait_delivered($node, 'hooks');
my $preview = sql(q{SELECT payment_sync.preview_event('hooks', '{"id": 7}')});
my ($head, $body) = split /\n\n/, $preview, 2;
my ($request) = grep { $_->{url} eq '/payments/7' } @{ receiver_requests($receiver) };
my ($first, @lines) = split /\n/, $head;
is($first, 'POST /payments/7 HTTP/1.1', 'preview: the request line');
my %previewed = map { /^([^:]+): ?(.*)$/ ? (lc $1 => $2) : () } @lines;
is_deeply([ sort keys %previewed ], [ sort grep { $_ !~ /^(connection)$/ } keys %{ $request->{headers} } ],
	'preview: the very headers that are sent');
is($previewed{$_}, $request->{headers}{$_}, "preview: $_") for qw(host content-type content-encoding x-shop user-agent);
like($previewed{$_}, qr/^(Bearer )?\*\*\*$/, "preview: $_ is masked")
  for qw(authorization x-api-key x-tenant webhook-signature stripe-signature);
my ($would, $did) = (decode_json(defined $body ? $body : '{}'), decode_json(do {
	require IO::Uncompress::Gunzip;
	my $raw = decode_base64($request->{body});
	my $plain;
	IO::Uncompress::Gunzip::gunzip(\$raw => \$plain);
	$plain; }));
is_deeply([ sort keys %$would ], [ sort keys %$did ], 'preview: the body has the same members');
is_deeply({ map { $_ => $would->{$_} } qw(type schema table operation key new) },
	{ map { $_ => $did->{$_} } qw(type schema table operation key new) }, 'preview: and the same row');

create_target($node, 'hidden', { method => 'POST' }, { url => "$receiver->{base}/T0KEN-in-path", signing_secret => $secret });
sql("SELECT payment_sync.create_sync('hidden', '{payments}', server => 'hidden')");
like(sql(q{SELECT payment_sync.preview_event('hidden', '{"id": 7}')}), qr/^POST \/\*\*\* HTTP/, 'preview: a secret address');
wait_delivered($node, 'hidden');

$shown .= $node->safe_psql('postgres', 'SELECT * FROM payment_sync.stat_sync; SELECT * FROM payment_sync.stat_target');
unlike($shown . slurp_file($node->logfile),
	qr/\Q$secret\E|stripe-secret|a-bearer-token|an-api-key|tenant-seven|client-secret|open sesame|T0KEN|secret-path/,
	'no secret is shown');

# different keys have different addresses
$node->safe_psql('postgres', <<"SQL");
CREATE TABLE pairs (a text, b text, PRIMARY KEY (a, b));
INSERT INTO pairs VALUES ('a', 'b,c'), ('a,b', 'c'), ('a\\', 'b'), ('a', '\\,b');
SELECT payment_sync.capture_table('pairs');
CREATE SERVER pairs FOREIGN DATA WRAPPER payment_sync_http OPTIONS (url 'http://127.0.0.1:1/{key}');
CREATE USER MAPPING FOR CURRENT_USER SERVER pairs;
SELECT payment_sync.create_sync('pairs', '{pairs}', server => 'pairs');
SQL
is(sql(q{SELECT string_agg((regexp_match(payment_sync.preview_event('pairs', to_jsonb(p)), '^POST (\S+)'))[1], ' ' ORDER BY a, b) FROM pairs p}),
	'/a%2C%5C%5C%5C%2Cb /a%2Cb%5C%2Cc /a%5C%2Cb%2Cc /a%5C%5C%2Cb',
	'different keys have different addresses');

$node->stop;
done_testing();
