# 423_http_ping.pl
#
# check_target() pings a target in its own format, signed as all events are:
# the receivers' judges have nothing against it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use MIME::Base64;
use PaymentSyncHttp;
use PaymentSyncTest;
use Test::More;

my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\n");
$node->safe_psql('postgres', 'CREATE EXTENSION payment_sync');

my $secret = 'whsec_' . encode_base64('a secret for the judges, ok', '');
my %formats = (
	json => [ {}, 'application/json', qr/^\{"id":"[0-9a-f]+_ping_[0-9a-f]+","type":"payment_sync\.ping",.*"new":\{"id":/ ],
	thin => [ { thin => 'true' }, 'application/json', qr/^\{"id":"[^"]+","type":"payment_sync\.ping","key":\{"id":"[0-9a-f]+"\}\}$/ ],
	json_batch => [ { max_batch => 10 }, 'application/json', qr/^\[\{"id":.*\}\]$/ ],
	ndjson => [ { format => 'ndjson', max_batch => 10 }, 'application/x-ndjson', qr/^\{.*\}\n$/ ],
	cloudevents => [ { format => 'cloudevents' }, 'application/cloudevents+json',
		qr/"type":"payment_sync\.ping".*"datacontenttype":"application\/json"/ ],
	cloudevents_binary => [ { format => 'cloudevents_binary' }, 'application/json', qr/^\{"schema":"payment_sync"/ ],
	cloudevents_batch => [ { format => 'cloudevents_batch' }, 'application/cloudevents-batch+json', qr/^\[\{"specversion"/ ],
	debezium => [ { format => 'debezium' }, 'application/json', qr/"table":"ping".*"op":"c"/ ],
	raw => [ { format => 'raw' }, 'application/json', qr/^\{"id":"[^"]+","type":"payment_sync\.ping","at":"[^"]+"\}$/ ],
);

for my $name (sort keys %formats)
{
	my ($options, $type, $body) = @{ $formats{$name} };
	my $receiver = start_receiver(secret => $secret);
	create_target($node, $name, { url => "$receiver->{base}/hook", %$options }, { signing_secret => $secret });
	is($node->safe_psql('postgres', "SELECT string_agg(step, ', ') FROM payment_sync.check_target('$name') WHERE NOT ok"),
		'', "$name: every step is well");
	judged_well($receiver, $name);
	my @requests = @{ receiver_requests($receiver) };
	is(scalar(@requests), 1, "$name: one ping");
	is($requests[0]{headers}{'content-type'}, $type, "$name: media type");
	like(decode_base64($requests[0]{body}), $body, "$name: format");
	is($requests[0]{headers}{'ce-type'}, $name eq 'cloudevents_binary' ? 'payment_sync.ping' : undef,
		"$name: attributes");
}

$node->stop;
done_testing();
