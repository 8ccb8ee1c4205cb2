# 421_http_signers.pl
#
# Several signers at once: one target whose requests bear the signatures of
# Standard Webhooks, Stripe, GitHub, Adyen and a scheme of one's own, each with
# secrets of its own.  Standard Webhooks is judged by the package
# standardwebhooks, the others by node:crypto (test/receiver).  And secrets that
# expire: a scheme without a live one stops the sync.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use MIME::Base64;
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\n");
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION payment_sync;
CREATE TABLE payments (id int PRIMARY KEY, note text);
SELECT payment_sync.capture_table('payments');
SQL

my $standard = 'whsec_' . encode_base64('a secret for the judges, ok', '');
my $adyen = '44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056';
my $custom = encode_base64(join('', map { chr(255 - $_) } 1 .. 48), '');
my $receiver = start_receiver(secret => $standard, signers => [
	{ scheme => 'stripe', secret => 'new stripe secret' },
	{ scheme => 'stripe', secret => 'old stripe secret' },
	{ scheme => 'github', secret => 'new github secret' },
	{ scheme => 'adyen', secret => $adyen },
	{ scheme => 'custom', secret => $custom } ]);
create_target($node, 'hook', {
		url => "$receiver->{base}/hook", compression => 'gzip',
		signer => 'stripe', signer2 => 'github', signer3 => 'adyen',
		signer4 => 'custom', signer4_header => 'X-Signature', signer4_hash => 'sha512',
		signer4_content => '{id}:{timestamp}:{body}', signer4_value => '{timestamp};{id};{base64}',
		signer4_key_encoding => 'base64' },
	{ signing_secret => $standard,
		signer_secret => 'new stripe secret, old stripe secret@2999-01-01T00:00:00Z, ended@2020-01-01T00:00:00Z',
		signer2_secret => 'ended github secret@2020-01-01T00:00:00Z, new github secret, old github secret',
		signer3_secret => $adyen, signer4_secret => $custom });
$node->safe_psql('postgres', <<'SQL');
SELECT payment_sync.create_sync('s', '{payments}', server => 'hook');
INSERT INTO payments SELECT i, repeat('ümläut ', i) FROM generate_series(1, 20) i;
SQL
wait_delivered($node, 's');
judged_well($receiver, 'five signers');
is(receiver_state($receiver)->{events}, 20, 'all events have come');
my $headers = receiver_requests($receiver)->[0]{headers};
like($headers->{'stripe-signature'}, qr/^t=\d+,v1=[0-9a-f]{64},v1=[0-9a-f]{64}$/,
	'what is in brackets is there for each secret that has not expired');
like($headers->{'x-hub-signature-256'}, qr/^sha256=[0-9a-f]{64}$/,
	'without brackets the newest secret that has not expired signs');

my $preview = $node->safe_psql('postgres', q{SELECT payment_sync.preview_event('s', '{"id": 1}')});
like($preview, qr/Stripe-Signature: .*\*\*\*/, 'the preview masks signatures');
unlike($preview, qr/v1=[0-9a-f]{64}|sha256=[0-9a-f]{64}/, 'of all signers');
like($preview, qr/\n\n\{"id":"\w+","type":"payments\.insert",.*"new":\{"id":1,"note":.*\}$/s,
	'and shows the body as it is before compression');

# one signer is taken away; nothing else changes
$node->safe_psql('postgres', <<'SQL');
SELECT payment_sync.drop_sync('s');
ALTER SERVER hook OPTIONS (DROP signer2);
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (DROP signer2_secret);
SQL
$preview = $node->safe_psql('postgres', <<'SQL');
DO $$ BEGIN PERFORM payment_sync.create_sync('s', '{payments}', server => 'hook', enabled => false); END $$;
SELECT payment_sync.preview_event('s', '{"id": 1}');
SQL
like($preview, qr/Stripe-Signature.*HmacSignature.*X-Signature/s, 'the others stay');
unlike($preview, qr/X-Hub-Signature/, 'a signer can be taken away by itself');

# what only shows when server and mapping come together
my ($code, $out, $err) = $node->psql('postgres', <<'SQL');
ALTER SERVER hook OPTIONS (ADD signer2 'github', ADD signer2_header 'hmacsignature');
ALTER USER MAPPING FOR CURRENT_USER SERVER hook OPTIONS (ADD signer2_secret 'sesame');
SELECT payment_sync.preview_event('s', '{"id": 1}');
SQL
like($err, qr/two signers of server "hook" have the header "HmacSignature"/i, 'two signers of one header are refused');
unlike($err, qr/sesame/, 'no secret is shown');
($code, $out, $err) = $node->psql('postgres', <<'SQL');
ALTER SERVER hook OPTIONS (DROP signer2, DROP signer2_header);
SELECT payment_sync.preview_event('s', '{"id": 1}');
SQL
like($err, qr/option "signer2_secret" of server "hook" needs option "signer2"/, 'a secret without a signer is refused');

# Secrets that have all expired stop the sync: nothing goes out unsigned.  With
# each scheme alone, and with one of two.
my $ended = '@2020-01-01T00:00:00Z';
my $soon = $node->safe_psql('postgres', q{SELECT to_char((now() + '3 days') AT TIME ZONE 'UTC', '"@"YYYY-MM-DD"T"HH24:MI:SS"Z"')});
my $judge = start_receiver(secret => $standard, signers => [ { scheme => 'github', secret => 'github judge' } ]);
my %expired = (
	standard => [ {}, { signing_secret => "$standard$ended" }, 'signing_secret' ],
	template => [ { signer => 'github' }, { signer_secret => "github judge$ended,old judge$ended" }, 'signer_secret' ],
	oneoftwo => [ { signer2 => 'github' }, { signing_secret => $standard, signer2_secret => "github judge$ended" }, 'signer2_secret' ]);
for my $name (sort keys %expired)
{
	my ($server, $user, $option) = @{ $expired{$name} };
	create_target($node, $name, { url => "$judge->{base}/$name", retry_delay_max => 200, %$server }, $user);
	my $steps = $node->safe_psql('postgres', qq{SELECT string_agg(step || '|' || ok, ' ') FROM payment_sync.check_target('$name')});
	is($steps, 'settings|true signature|false', "$name: check_target says so and sends nothing");
	($code, $out, $err) = $node->psql('postgres', <<"SQL");
SELECT payment_sync.create_sync('$name', '{payments}', server => '$name');
INSERT INTO payments SELECT coalesce(max(id), 0) + 1, '$name' FROM payments;
SELECT payment_sync.preview_event('$name', '{"id": 1}');
SQL
	like($err, qr/cannot be sent.*all signing secrets of server "$name" in option "$option" have expired/s, "$name: preview");
	$node->poll_query_until('postgres', qq{SELECT failures > 1 FROM payment_sync.stat_sync WHERE name = '$name'})
	  or die "sync $name does not fail";
	is($node->safe_psql('postgres', "SELECT last_error || '|' || lag_changes FROM payment_sync.stat_sync WHERE name = '$name'"),
		qq{all signing secrets of server "$name" in option "$option" have expired|1}, "$name: the sync waits and says why");
	is($node->safe_psql('postgres', "SELECT count(*) FROM payment_sync.dead_letters WHERE sync = '$name'"), 0, "$name: no event is to blame");
}
is(scalar(@{ receiver_requests($judge) }), 0, 'nothing was sent');
$node->safe_psql('postgres', <<"SQL");
ALTER USER MAPPING FOR CURRENT_USER SERVER oneoftwo OPTIONS (SET signer2_secret 'github judge$soon, older$ended');
SQL
wait_delivered($node, 'oneoftwo');
my $sent = receiver_requests($judge);
ok(@$sent > 0, 'with a new secret what waits goes out');
ok(!grep({ !$_->{headers}{'webhook-signature'} || !$_->{headers}{'x-hub-signature-256'} } @$sent), 'signed in both ways');
judged_well($judge, 'and well');
like(slurp_file($node->logfile), qr/WARNING:  the signing secrets of server "oneoftwo" expire soon.*"signer2_secret"/s,
	'that it ends in three days is said in the log');
($code, $out, $err) = $node->psql('postgres', q{SELECT step || '|' || ok || '|' || detail FROM payment_sync.check_target('oneoftwo')});
like($out, qr/^signature\|true\|the last secret in option "signer2_secret" expires at 20/m, 'and by check_target');
like($err, qr/expire soon/, 'with a warning');

my $log = slurp_file($node->logfile);
$log =~ s/^.*(?:LOG|STATEMENT): .*?(?=^\d{4}-)//gms;	# what the test itself said
unlike($log, qr/stripe secret|github secret|$adyen/, 'no secret in the log');

$node->stop;
done_testing();
