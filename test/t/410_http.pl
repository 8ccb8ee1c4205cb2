# 410_http.pl
#
# What receivers get, judged by the packages that receivers use (see
# test/receiver): every format with every kind of signature, REST resources,
# compression, rotation of secrets.  One receiver per sync: the same change has
# the same id in all of them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use JSON::PP;
use MIME::Base64;
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
my $secret = 'whsec_' . encode_base64(join('', map { chr($_ * 7 % 256) } 1 .. 32), '');
my $old_secret = 'whsec_' . encode_base64('an old secret, of 24 bytes', '');

# an Ed25519 key: the last 32 bytes of either form in DER
system("openssl genpkey -algorithm ed25519 -outform DER -out $dir/key.der && "
	  . "openssl pkey -inform DER -in $dir/key.der -pubout -outform DER -out $dir/pub.der") == 0
  or die 'openssl';
my $seed = substr(slurp_file("$dir/key.der"), -32);
my $public = substr(slurp_file("$dir/pub.der"), -32);
my $ed25519 = 'whsk_' . encode_base64($seed . $public, '');

my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\nlog_statement = none\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (
	id bigint PRIMARY KEY, amount numeric(24, 4), currency char(3), note text,
	receipt bytea, paid boolean, at timestamptz);
SELECT payment_sync.capture_table('payments', old_values => 'all');
SQL

# name => [server options, user options, receiver's configuration]
my %targets = (
	json => [ {}, { signing_secret => "$secret, $ed25519" },
		{ secret => $secret, publicKey => encode_base64($public, '') } ],
	json_batch => [ { max_batch => 100, linger => 20, compression => 'gzip' },
		{ signing_secret => $secret }, { secret => $secret } ],
	ndjson => [ { format => 'ndjson', max_batch => 100, signer => 'stripe' },
		{ signer_secret => 'stripe secret', signing_secret => $secret },
		{ secret => $secret, signers => [ { scheme => 'stripe', secret => 'stripe secret' } ] } ],
	cloudevents => [ { format => 'cloudevents', signer => 'github' },
		{ signer_secret => 'github secret' },
		{ signers => [ { scheme => 'github', secret => 'github secret' } ] } ],
	cloudevents_binary => [ { format => 'cloudevents_binary', signer => 'adyen' },
		{ signer_secret => '44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056' },
		{ signers => [ { scheme => 'adyen',
			secret => '44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056' } ] } ],
	cloudevents_batch => [ { format => 'cloudevents_batch', max_batch => 50 },
		{ signing_secret => "$old_secret, $secret\@2020-01-01T00:00:00Z" },
		{ secret => $old_secret } ],
	debezium => [ { format => 'debezium' }, { signing_secret => $secret }, { secret => $secret } ],
);

my %receivers;
for my $name (sort keys %targets)
{
	my ($server, $user, $config) = @{ $targets{$name} };
	$receivers{$name} = start_receiver(%$config);
	create_target($node, $name, { url => "$receivers{$name}{base}/hook", %$server }, $user);
	$node->safe_psql('postgres',
		"SELECT payment_sync.create_sync('$name', '{payments}', server => '$name')");
}

$node->safe_psql('postgres', <<'SQL');
INSERT INTO payments
SELECT i, i * 1.25, 'EUR', 'payment ' || i, decode('00ff10', 'hex'), i % 2 = 0, '2026-01-02 03:04:05.678901+02'
FROM generate_series(1, 50) i;
INSERT INTO payments VALUES (9007199254740993, 12345678901234567890.1234, 'JPY',
	E'"quoted" \\ back, line\nbreak, ümläut, €, \u0001 and 𝄞', NULL, NULL, 'infinity');
UPDATE payments SET amount = amount + 1 WHERE id <= 10;
UPDATE payments SET note = 'twice' WHERE id <= 5;
DELETE FROM payments WHERE id = 50;
SQL
my $events = 51 + 10 + 5 + 1;

for my $name (sort keys %targets)
{
	wait_delivered($node, $name);
	my $requests = receiver_requests($receivers{$name});
	judged_well($receivers{$name}, $name);
	next if $name eq 'debezium';	# without ids of ours in the body
	my $state = receiver_state($receivers{$name});
	is($state->{events}, $events, "$name: all events");
	# a sync that another worker takes over sends again what was in flight
	is($state->{stale}, 0, "$name: in order");
	is(scalar(keys %{ $state->{table} }), 50, "$name: the rows that there are");
}

# ------------------------------------------------------------ raw bytes

my %type = (
	json => 'application/json', json_batch => 'application/json',
	ndjson => 'application/x-ndjson', cloudevents => 'application/cloudevents+json',
	cloudevents_binary => 'application/json', debezium => 'application/json',
	cloudevents_batch => 'application/cloudevents-batch+json');
for my $name (sort keys %targets)
{
	my %types = map { $_->{headers}{'content-type'} => 1 } @{ receiver_requests($receivers{$name}) };
	is_deeply([ keys %types ], [ $type{$name} ], "$name: media type, without parameters");
}

my @bodies = map { decode_base64($_->{body}) } @{ receiver_requests($receivers{json}) };
my ($big) = grep { /9007199254740993/ } @bodies;
like($big, qr/"id":"9007199254740993"/, 'bigint as a string');
like($big, qr/"amount":"12345678901234567890\.1234"/, 'numeric never passes through a double');
like($big, qr/\\"quoted\\" \\\\ back, line\\nbreak, ümläut, €, \\u0001 and 𝄞/, 'text');
like($bodies[0], qr/"receipt":"AP8Q"/, 'bytea is base64');
like($bodies[0], qr/"at":"2026-01-02T01:04:05\.678901(?:Z|\+00:00)"/, 'timestamps are RFC 3339');
like($bodies[0], qr/"type":"payments\.insert"/, 'type');

my $signature = receiver_requests($receivers{json})->[0]{headers}{'webhook-signature'};
like($signature, qr{^v1,[A-Za-z0-9+/]{43}= v1a,[A-Za-z0-9+/]{86}==$}, 'two signatures, by a space');
$signature = receiver_requests($receivers{cloudevents_batch})->[0]{headers}{'webhook-signature'};
like($signature, qr{^v1,\S+$}, 'an expired secret does not sign');

my %encodings = map { $_->{headers}{'content-encoding'} // 'none' => 1 }
  @{ receiver_requests($receivers{json_batch}) };
is_deeply([ keys %encodings ], ['gzip'], 'bodies are compressed');
cmp_ok(scalar(@{ receiver_requests($receivers{json_batch}) }), '<', $events / 2, 'batches');

my ($binary) = @{ receiver_requests($receivers{cloudevents_binary}) };
is($binary->{headers}{'ce-specversion'}, '1.0', 'binary mode: ce-specversion');
is($binary->{headers}{'ce-type'}, 'payments.insert', 'binary mode: ce-type');
ok(!exists $binary->{headers}{'ce-datacontenttype'}, 'binary mode: no ce-datacontenttype');

# ----------------------------------------------------------------- REST

my $rest = start_receiver();
create_target($node, 'rest', {
	url => "$rest->{base}/{table}/{key}", insert_url => "$rest->{base}/{table}",
	update_method => 'PUT', delete_method => 'DELETE',
	headers => "X-Shop: ümläut-free\nX-Empty:" =~ s/ü/u/gr =~ s/ä/a/gr }, {
	api_key => 'very secret key', secret_headers => 'X-Tenant: seven' });
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE codes (code text PRIMARY KEY, v int);
SELECT payment_sync.capture_table('codes');
SELECT payment_sync.create_sync('rest', '{codes}', server => 'rest');
INSERT INTO codes VALUES ('a/b ü?&#%', 1);
UPDATE codes SET v = 2;
DELETE FROM codes;
INSERT INTO codes VALUES ('..', 1);
UPDATE codes SET v = 2;
SQL
wait_state($rest, 'the resource is deleted', sub { $_[0]{requests} >= 4 });
# of the first key: others may come in between
my @requests = grep { decode_base64($_->{body}) !~ /"code":"\.\."/ } @{ receiver_requests($rest) };
is_deeply([ map { "$_->{method} $_->{url}" } @requests ], [
	'POST /codes',
	'PUT /codes/a%2Fb%20%C3%BC%3F%26%23%25',
	'DELETE /codes/a%2Fb%20%C3%BC%3F%26%23%25' ], 'created, updated, deleted; the key is percent-encoded');
is($requests[0]{headers}{'x-shop'}, 'umlaut-free', 'static header');
is($requests[0]{headers}{'x-api-key'}, 'very secret key', 'API key');
is($requests[0]{headers}{'x-tenant'}, 'seven', 'secret header');
ok(!exists $requests[2]{headers}{'content-type'}, 'DELETE has no body');
$node->poll_query_until('postgres', <<'SQL') or die 'not refused';
SELECT refused >= 1 FROM payment_sync.target_stats t JOIN payment_sync.sync s ON s.id = t.sync
WHERE s.name = 'rest'
SQL
pass('a key that would lead to another path is refused');

my $log = slurp_file($node->logfile);
unlike($log, qr/very secret key|$secret|stripe secret|github secret/, 'no secret in the log');

$node->stop;
done_testing();
