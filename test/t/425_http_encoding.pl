# 425_http_encoding.pl
#
# Databases whose encoding is not UTF-8.  Method: a table whose names, keys and
# values need most of what the encoding has goes to a receiver in several
# formats, with options beyond ASCII as well; all that comes must be valid
# UTF-8 and mean what the database means.  Then a target answers with bytes
# that are text in no encoding: what views show of it must be valid, and
# without secrets.

use strict;
use warnings;
use utf8;

use FindBin;
use lib "$FindBin::Bin/../perl";
use Encode qw(decode encode FB_CROAK);
use JSON::PP;
use MIME::Base64;
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = start_source('source', conf => "payment_sync.http_allowed_hosts = 'localhost'\n");
$ENV{PGCLIENTENCODING} = 'UTF8';
my $db;

# SQL and its result are characters here.
sub sql { return decode('UTF-8', $node->safe_psql($db, encode('UTF-8', $_[0])), FB_CROAK); }

sub percent { return join '', map { /[A-Za-z0-9\-._~]/ ? $_ : sprintf '%%%02X', ord } split //, encode('UTF-8', $_[0]); }

# The events that came, as pairs of request and strictly decoded body.
sub received
{
	my ($receiver) = @_;
	return map { [ $_, decode('UTF-8', decode_base64($_->{body}), FB_CROAK) ] } @{ receiver_requests($receiver) };
}

# A target of the format with the sync's own options; its receiver judges.
sub target
{
	my ($name, $case, $options, %sync) = @_;
	my $password = "$case->{text} pass";
	my $receiver = start_receiver(basic => "$case->{word}:$password",
		signers => [ { scheme => 'github', secret => "$case->{word}-key" } ]);
	set_receiver($receiver, body => "  $case->{word}\n");
	create_target($node, $name, { url => "$receiver->{base}/{schema}/{table}/{key}", signer => 'github',
			retry_delay_min => 50, success_body => encode('UTF-8', $case->{word}), %$options },
		{ user => encode('UTF-8', $case->{word}), password => encode('UTF-8', $password),
			signer_secret => encode('UTF-8', "$case->{word}-key") }, db => $db);
	my $transform = $sync{transform} ? ", transform => \$t\$$sync{transform}\$t\$" : '';
	sql("SELECT payment_sync.create_sync('$name', ARRAY['\"$case->{table}\"']::regclass[], server => '$name'$transform)");
	return $receiver;
}

my %case = (
	LATIN1 => { word => 'süß', table => 'zahlung für', key => 'größe/ÿ', column => "\x{a0}b\"ñ",
		text => 'Straße £ ± ÀÿÐ', long => 'aé' },
	# a character of each length: JIS X 0201 kana, JIS X 0208, JIS X 0212
	EUC_JP => { word => '了解', table => '支払い', key => '鍵/丂ｱ', column => '金"額',
		text => '日本語 ｶﾅ 丂 表示ソ', long => 'a丂ｱ日' },
);

# ------------------------------------------------------- what is sent

sub bodies
{
	my ($case) = @_;
	my $long = $case->{long} x 1500;
	my $quoted = $case->{column} =~ s/"/""/gr;
	sql(<<SQL);
CREATE EXTENSION payment_sync;
CREATE TYPE pair AS (a text, b int);
CREATE TYPE mood AS ENUM ('$case->{word}', 'plain');
CREATE TABLE "$case->{table}" ("$quoted" text PRIMARY KEY, t text, j json, b jsonb, a text[], m mood, n name, r daterange, c pair);
SELECT payment_sync.capture_table('"$case->{table}"');
SQL
	my %receiver = (
		json => target('json', $case, { source => encode('UTF-8', "urn:$case->{word}") }),
		events => target('events', $case, { format => 'cloudevents' }),
		attributes => target('attributes', $case, { format => 'cloudevents_binary', source => encode('UTF-8', "urn:$case->{word}") }),
		debezium => target('debezium', $case, { format => 'debezium' }),
		raw => target('raw', $case, { format => 'raw' },
			transform => qq{jsonb_build_object('$case->{word}', (event->'new'->>'t') || ' $case->{word}')}));
	sql(<<SQL);
INSERT INTO "$case->{table}" VALUES ('$case->{key}', '$long', '{"$case->{word}": "$case->{text} \\u00e9"}',
	'{"$case->{word}": "$case->{text}"}', ARRAY['$case->{text}', NULL], '$case->{word}', '$case->{word}', NULL, ROW('$case->{text}', 1))
SQL
	wait_delivered($node, $_, db => $db) for sort keys %receiver;

	my %new = ($case->{column} => $case->{key}, t => $long, j => { $case->{word} => "$case->{text} é" },
		b => { $case->{word} => $case->{text} }, a => [ $case->{text}, undef ], m => $case->{word},
		n => $case->{word}, r => undef, c => { a => $case->{text}, b => 1 });
	my $path = '/public/' . percent($case->{table}) . '/' . percent($case->{key});
	for my $format (sort keys %receiver)
	{
		my @received = received($receiver{$format});
		is(scalar @received, 1, "$db, $format: the body that acknowledges was understood");
		my ($request, $body) = @{ $received[0] };
		is($request->{url}, $path, "$db, $format: address");
		my $event = JSON::PP->new->decode($body);
		if ($format eq 'raw')
		{
			is_deeply($event, { $case->{word} => "$long $case->{word}" }, "$db, raw: what the transform says");
			next;
		}
		my $data = $format eq 'events' ? $event->{data} : $event;
		is_deeply($format eq 'debezium' ? $data->{after} : $data->{new}, \%new, "$db, $format: the row");
		is($format eq 'debezium' ? $data->{source}{table} : $data->{table}, $case->{table}, "$db, $format: the table")
		  if $format ne 'attributes';
		is_deeply($data->{key}, { $case->{column} => $case->{key} }, "$db, $format: the key") if $format ne 'debezium';
		my %source = (attributes => $request->{headers}{'ce-source'});
		is($source{$format}, 'urn:' . percent($case->{word}),
			"$db, $format: the source") if defined $source{$format};
		is($format eq 'attributes' ? $request->{headers}{'ce-subject'} : $event->{subject},
			$format eq 'attributes' ? percent($case->{key}) =~ s/%2F/\//r : $case->{key},
			"$db, $format: the subject") if $format eq 'events' || $format eq 'attributes';
	}
	judged_well($receiver{$_}, "$db, $_") for qw(json events debezium);

	# the same is shown in the database's encoding
	sql(qq{ALTER SERVER json OPTIONS (ADD headers 'X-Word: $case->{word}')});
	my $key = JSON::PP->new->encode({ $case->{column} => $case->{key} });
	my $shown = sql("SELECT payment_sync.preview_event('json', \$k\$$key\$k\$)");
	like($shown, qr/^X-Word: \Q$case->{word}\E$/m, "$db: headers in a preview");
	like($shown, qr/\Q$case->{text}\E/, "$db: values in a preview");
	sql("SELECT payment_sync.drop_sync('$_')") for sort keys %receiver;
	return;
}

# ------------------------------------------------- what is shown of answers

# Valid in the database's encoding, and without control characters; returned.
sub shown
{
	my ($query, $name) = @_;
	my $text = sql("SELECT concat_ws(' | ', $query)");
	my $valid = sql("SELECT convert_from(convert_to(t, '$db'), '$db') = t FROM concat_ws(' | ', $query) AS t");
	is($valid, 't', "$db: $name is valid");
	unlike($text, qr/[\x00-\x1f\x7f-\x9f]/, "$db: $name has no control characters");
	unlike($text, qr/ pass|secret/, "$db: $name has no secret");
	return $text;
}

sub answers
{
	my ($case) = @_;
	my $hostile = start_hostile();
	create_target($node, 'hostile', { url => "$hostile->{base}/hook", retry_delay_min => 20, retry_delay_max => 100,
			items_path => 'Failed', items_index => 'Id', items_code => 'Code' },
		{ user => 'payments', password => encode('UTF-8', "$case->{text} pass") }, db => $db);
	sql(qq{SELECT payment_sync.create_sync('hostile', ARRAY['"$case->{table}"']::regclass[], server => 'hostile')});

	control($hostile, '/_mode/illegal');
	sql(qq{UPDATE "$case->{table}" SET t = '1'});
	my $node_db = $db;
	$node->poll_query_until($node_db, "SELECT last_excerpt ~ 'no: ' FROM payment_sync.stat_target WHERE sync = 'hostile'")
	  or die 'no excerpt';
	$node->poll_query_until($node_db, "SELECT failures > 0 FROM payment_sync.stat_sync WHERE name = 'hostile'")
	  or die 'no failure';
	shown("(SELECT row_to_json(s)::text FROM payment_sync.stat_target s WHERE sync = 'hostile')", 'stat_target');
	shown("(SELECT row_to_json(s)::text FROM payment_sync.stat_sync s WHERE name = 'hostile')", 'stat_sync');
	like(sql("SELECT last_excerpt FROM payment_sync.stat_target WHERE sync = 'hostile'"),
		qr/no: \?.*payments:\*+\?/, "$db: the answer can be seen, with the password masked");

	control($hostile, '/_mode/refusal');
	wait_delivered($node, 'hostile', db => $db);
	control($hostile, '/_mode/items');
	sql(qq{UPDATE "$case->{table}" SET t = '2'});
	wait_delivered($node, 'hostile', db => $db);
	is(sql("SELECT count(*) FROM payment_sync.dead_letters"), 2, "$db: refused by status, and by result");
	my $letters = shown("(SELECT string_agg(concat_ws(' ', key, type, \"table\", reason, excerpt), ' | ') FROM payment_sync.dead_letters)",
		'dead_letters');
	like($letters, qr/\Q$case->{key} $case->{table}.update $case->{table}\E/, "$db: key and table are as they were");
	like($letters, qr/error for the event: Bad\?/, "$db: the code of a result can be seen");

	# what was kept goes out as it was, also after a restart
	$node->restart;
	control($hostile, '/_mode/taken');
	sql("SELECT payment_sync.retry_dead_letters('hostile')");
	$node->poll_query_until($db, "SELECT count(*) = 0 FROM payment_sync.dead_letters") or die 'still dead';
	wait_until('they have come', sub { @{ decode_json(control($hostile, '/_count'))->{acknowledged} } == 2 });
	my @bodies = map { JSON::PP->new->decode($_) } @{ decode_json(control($hostile, '/_count'))->{acknowledged} };
	is_deeply([ map { $_->{key}{ $case->{column} } } @bodies ], [ ($case->{key}) x 2 ], "$db: dead letters come as they were");
	unlike(slurp_file($node->logfile), qr/ pass\b.*no: |no: .* pass\b/, "$db: no secret in the log");
	return;
}

for my $encoding (sort keys %case)
{
	$db = lc $encoding;
	$node->safe_psql('postgres',
		"CREATE DATABASE $db TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	bodies($case{$encoding});
	answers($case{$encoding});
}

$node->stop;
done_testing();
