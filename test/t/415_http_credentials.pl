# 415_http_credentials.pl
#
# As whom requests are made: AWS signature version 4, verified by AWS's rules
# with node:crypto (test/receiver/aws.js); basic authentication; OAuth tokens
# that run out; a client certificate with an encrypted key.  Each target is
# judged by its receiver, and shows none of its secrets.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
my $node = start_source('source',
	conf => "payment_sync.http_allowed_hosts = 'localhost'\nlog_statement = none\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id text PRIMARY KEY, amount numeric);
SELECT payment_sync.capture_table('payments');
SQL

# A sync to the receiver; rows are created, replaced, deleted.
sub deliver
{
	my ($name, $receiver, $server, $user) = @_;
	create_target($node, $name,
		{ url => "$receiver->{base}/", retry_delay_min => 20, retry_delay_max => 200, %$server }, $user);
	$node->safe_psql('postgres', <<SQL);
SELECT payment_sync.create_sync('$name', '{payments}', server => '$name');
INSERT INTO payments SELECT 'p' || i, i FROM generate_series(1, 5) i;
UPDATE payments SET amount = amount + 1;
DELETE FROM payments;
SQL
	return;
}

sub drop
{
	my ($name) = @_;
	$node->safe_psql('postgres', "SELECT payment_sync.drop_sync('$name'); DROP SERVER $name CASCADE");
	return;
}

# The sync says why it waits.
sub waits
{
	my ($name, $reason, $what) = @_;
	becomes_like(sub { $node->safe_psql('postgres',
		"SELECT concat_ws(' ', last_error, last_error_detail) FROM payment_sync.stat_sync WHERE name = '$name'") },
		$reason, "$what: the sync says so");
	is(stat($node, $name, 'lag_changes'), 15, "$what: nothing is lost");
	return;
}

# -------------------------------------------------------------------- AWS

my %aws = (region => 'eu-central-1', service => 'sqs', key => 'AKIDEXAMPLE',
	secret => 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY', token => 'IQoJb3JpZ2luX2VjEXAMPLETOKEN==');
my %aws_server = (aws_region => $aws{region}, aws_service => $aws{service});
my %aws_user = (aws_access_key => $aws{key}, aws_secret_key => $aws{secret});
my %aws_token = (aws_session_token => $aws{token});

for my $case (
	[ aws_root => {}, {} ],
	[ aws_token => {}, \%aws_token ],
	[ aws_batch => { max_batch => 10, linger => 20, compression => 'gzip' }, \%aws_token ],
	[ aws_query => { url => '/?Action=SendMessage&Version=2012-11-05&Xtra=' }, {} ],
	[ aws_unsorted => { url => '/?Version=2012-11-05&Action=SendMessage&a=%2f&Tag=b&Tag=a&lone' }, \%aws_token ],
	[ aws_rest => { url => '/prod/{table}', insert_method => 'PUT', update_method => 'PATCH', delete_method => 'DELETE',
		update_url => '/prod/{table}/{key}', delete_url => '/prod/{table}/{key}' }, {} ],
	[ aws_headers => { headers => "X-Amz-Target: AmazonSQS.SendMessage\nX-Shop:  two  blanks " }, \%aws_token ])
{
	my ($name, $server, $user) = @$case;
	my $receiver = start_receiver(aws => { %aws, token => $user->{aws_session_token} });
	my %server = map { $_ => $_ =~ /url$/ ? "$receiver->{base}$server->{$_}" : $server->{$_} } keys %$server;
	deliver($name, $receiver, { %aws_server, %server }, { %aws_user, %$user });
	wait_until("$name: requests", sub { receiver_state($receiver)->{requests} >= ($server->{max_batch} ? 1 : 15) });
	judged_well($receiver, $name);
	wait_delivered($node, $name) if !@{ receiver_state($receiver)->{problems} };
	drop($name);
}

my $aws_bad = start_receiver(aws => \%aws);
deliver('aws_bad', $aws_bad, \%aws_server, { %aws_user, %aws_token, aws_secret_key => 'not-the-secret-key' });
wait_until('a wrong key is refused', sub { @{ receiver_state($aws_bad)->{problems} } > 0 });
like(receiver_state($aws_bad)->{problems}[0], qr/signature does not match/, 'the judge tells a wrong key');
drop('aws_bad');

# --------------------------------------------------- basic authentication

my $basic = start_receiver(basic => 'shop user:pass:wörd' =~ s/ö/o/r);
deliver('basic', $basic, {}, { user => 'shop user', password => 'pass:word', api_key => 'an-api-key' });
wait_delivered($node, 'basic');
judged_well($basic, 'basic authentication');
is(receiver_state($basic)->{unauthorized} // 0, 0, 'basic authentication: never refused');
is(receiver_requests($basic)->[0]{headers}{'x-api-key'}, 'an-api-key', 'and an API key besides');
drop('basic');
deliver('badbasic', $basic, {}, { user => 'shop user', password => 'another-password' });
waits('badbasic', qr/status 401/, 'wrong password');
like($node->safe_psql('postgres', "SELECT last_excerpt FROM payment_sync.stat_target WHERE sync = 'badbasic'"),
	qr/^no: Basic \*+$/, 'credentials that the target repeats are masked');
$node->safe_psql('postgres', "ALTER USER MAPPING FOR CURRENT_USER SERVER badbasic OPTIONS (SET password 'pass:word')");
wait_delivered($node, 'badbasic');
pass('with the right password it goes on');
drop('badbasic');

# ------------------------------------------------------------------ tokens

# A token that lives for two seconds is renewed before that; none is refused.
my $oauth = start_receiver(oauth => { id => 'my client', secret => 'its s:cret', life => 2, inBody => 1 });
deliver('oauth', $oauth, { oauth_token_url => "$oauth->{base}/token", oauth_auth => 'body',
	oauth_scope => 'payments:write a', oauth_audience => 'https://shop.example.com/' },
	{ oauth_client_id => 'my client', oauth_client_secret => 'its s:cret' });
wait_until('tokens are renewed', sub {
	$node->safe_psql('postgres', "INSERT INTO payments VALUES ('again', 1); DELETE FROM payments");
	receiver_state($oauth)->{tokens} >= 3;
});
wait_delivered($node, 'oauth');
my $state = receiver_state($oauth);
is_deeply($state->{tokenForm}, { scope => 'payments:write a', audience => 'https://shop.example.com/' },
	'scope and audience are asked for; credentials travel in the body');
is($state->{unauthorized} // 0, 0, 'a token is renewed before it ends');
judged_well($oauth, 'OAuth');

# Refused tokens are replaced, also while many requests are in flight.
for my $round (1 .. 3)
{
	set_receiver($oauth, revoke => JSON::PP::true);
	$node->safe_psql('postgres', "INSERT INTO payments SELECT 'r$round-' || i FROM generate_series(1, 100) i");
	wait_delivered($node, 'oauth');
}
is(stat($node, 'oauth', 'errors'), 0, 'a refused token is no failure');
is($node->safe_psql('postgres', "SELECT retries FROM payment_sync.stat_target WHERE sync = 'oauth'"), 0,
	'and no retry of an event');
judged_well($oauth, 'OAuth with revoked tokens');
$node->safe_psql('postgres', 'DELETE FROM payments');
wait_delivered($node, 'oauth');
drop('oauth');

# ------------------------------------------------------ client certificate

certify_http($dir);
system("openssl pkcs8 -topk8 -in $dir/client.key -out $dir/locked.key -v2 aes-256-cbc -passout pass:unlock-it") == 0
  or die 'openssl';
my $mtls = start_receiver(cert => "$dir/server.crt", key => "$dir/server.key", ca => "$dir/ca.crt");
$mtls->{config}{client_cert} = "$dir/client.crt";
$mtls->{config}{client_key} = "$dir/client.key";
my %client = (client_cert => slurp_file("$dir/client.crt"), client_key => slurp_file("$dir/locked.key"));
deliver('mtls', $mtls, { ca_file => "$dir/ca.crt" }, { %client, client_key_password => 'unlock-it' });
wait_delivered($node, 'mtls');
judged_well($mtls, 'a client certificate with an encrypted key');
drop('mtls');
deliver('nokey', $mtls, { ca_file => "$dir/ca.crt" }, { %client, client_key_password => 'lock-it-up' });
waits('nokey', qr/private key|certificate/, 'a key that cannot be decrypted');
drop('nokey');

# ----------------------------------------------------------------- secrets

my $seen = $node->safe_psql('postgres', <<'SQL') . slurp_file($node->logfile);
SELECT * FROM payment_sync.stat_sync; SELECT * FROM payment_sync.stat_target; SELECT * FROM payment_sync.dead_letters
SQL
unlike($seen, qr/\Q$aws{secret}\E|\Q$aws{token}\E|not-the-secret|pass:word|another-password|an-api-key|its s:cret|token-\d+-of|unlock-it|lock-it-up|PRIVATE/,
	'no secret is shown');

$node->stop;
done_testing();
