# 900_reference.pl
#
# Code and reference name the same things: each setting, function, procedure,
# view, column and option of the catalog is in doc/reference, with the same
# type, default and range, and nothing else is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::Bin/../..";
my $source = start_source('source');
$source->safe_psql('postgres', 'CREATE EXTENSION payment_sync');

# The entries of a page: heading => text up to the next one, in order.
sub entries
{
	my ($file) = @_;
	my (@order, %text);
	my ($chapter, $entry) = ('', '');
	for my $line (split /\n/, slurp_file("$root/doc/reference/$file"))
	{
		($chapter, $entry) = ($1, '') if $line =~ /^## (.+)/;
		if ($line =~ /^### (.+)/)
		{
			$entry = $1;
			push @order, [ $chapter, $entry ];
		}
		$text{ $entry || "## $chapter" } .= "$line\n";
	}
	return (\@order, \%text);
}

# The rows of the tables in a text whose head begins with a column name.
sub table_rows
{
	my ($text, $head) = @_;
	my ($inside, @rows);
	for my $line (split /\n/, $text)
	{
		if ($line !~ /^\|/)
		{
			$inside = 0;
			next;
		}
		my @cells = map { s/^\s+|\s+$//gr } split /(?<!\\)\|/, $line =~ s/^\||\|\s*$//gr, -1;
		if ($cells[0] eq $head) { $inside = 1; next; }
		next if !$inside || $cells[0] =~ /^-+$/;
		push @rows, [@cells];
	}
	return @rows;
}

# Rows of a query, as lists.
sub query
{
	my ($sql) = @_;
	return map { [ split /\t/, $_, -1 ] }
	  split /\n/, $source->safe_psql('postgres', "COPY ($sql) TO STDOUT");
}

sub plain { return $_[0] =~ s/`//gr; }

# without the casts that the catalog adds to defaults, and in one line
sub normal
{
	my ($text) = @_;
	$text =~ s/::[\w ]+?(\[\])?(?=,|$|\))//g;
	$text =~ s/\s+/ /g;
	$text =~ s/\( /(/g;
	return $text =~ s/^ | $//gr;
}

my ($order, $text) = entries('sql.md');
my %chapter_of = map { $_->[1] => $_->[0] } @$order;

# ------------------------------------------------------------- functions

my @internal = map { plain($_->[0]) =~ s/\(.*//r } table_rows($text->{'## Internal'}, 'function');
my @public = map { $_->[1] }
  grep { $text->{ $_->[1] } =~ /^```\n(?:CALL )?payment_sync\.\Q$_->[1]\E\(/m } @$order;

is_deeply(
	[ sort @public, @internal ],
	[ map { $_->[0] } query(<<'SQL') ],
SELECT proname FROM pg_proc WHERE pronamespace = 'payment_sync'::regnamespace
ORDER BY proname COLLATE "C"
SQL
	'each function is in the reference, public or internal');

for my $name (@public)
{
	my ($row) = query(<<"SQL");
SELECT prokind, pg_get_function_arguments(oid), pg_get_function_result(oid),
	array_to_string(proargnames, ' ')
FROM pg_proc WHERE pronamespace = 'payment_sync'::regnamespace AND proname = '$name'
SQL
	my ($kind, $arguments, $result) = @$row;
	my @in = grep { !/^OUT / } split /, (?![^']*',)/, $arguments;
	s/^IN // for @in;
	my $expected = normal("payment_sync.$name(" . join(', ', @in) . ')');
	$expected = $kind eq 'p' ? "CALL $expected" : "$expected RETURNS $result";

	my ($synopsis) = $text->{$name} =~ /^```\n(.*?)^```/ms;
	is(normal($synopsis), $expected, "$name: synopsis");

	my @sections = $text->{$name} =~ /^\*\*(\w+)\*\*/mg;
	is("@sections", 'Description Arguments Returns Errors Example', "$name: order of sections");

	my @names = map { /^"?(\w+)"? / ? $1 : $_ } @in;
	is_deeply([ map { plain($_->[0]) } table_rows($text->{$name}, 'argument') ],
		\@names, "$name: arguments");
	my @defaults = map { normal($_) =~ / DEFAULT (.*)/ ? $1 : '' } @in;
	is_deeply([ map { plain($_->[1]) } table_rows($text->{$name}, 'argument') ],
		\@defaults, "$name: defaults");

	my @out = map { /^OUT "?(\w+)"? (.*)/ ? "$1 $2" : () } split /, /, $arguments;
	is_deeply([ map { s/timestamp with time zone/timestamptz/r } @out ],
		[ map { plain("$_->[0] $_->[1]") } table_rows($text->{$name}, 'column') ],
		"$name: columns returned") if @out;
}

# ----------------------------------------------------------------- views

my @views = map { $_->[0] } query(<<'SQL');
SELECT relname FROM pg_class WHERE relnamespace = 'payment_sync'::regnamespace
AND relkind = 'v' ORDER BY relname COLLATE "C"
SQL
my %function = map { $_ => 1 } @public;
is_deeply([ sort grep { !$function{$_} && $chapter_of{$_} ne 'Settings' } map { $_->[1] } @$order ],
	\@views, 'each view is in the reference');
for my $view (@views)
{
	my @columns = map { [ @$_[ 0, 1 ], $_->[2] ] } query(<<"SQL");
SELECT attname, replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz'),
	replace(col_description(attrelid, attnum), '  ', ' ')
FROM pg_attribute WHERE attrelid = 'payment_sync.$view'::regclass AND attnum > 0 ORDER BY attnum
SQL
	is_deeply([ map { [ map { plain($_) } @$_[ 0 .. 2 ] ] } table_rows($text->{$view}, 'column') ],
		\@columns, "$view: columns, types and comments");
	like($text->{$view}, qr/^\*\*Example\*\*/m, "$view: has an example");
}

# -------------------------------------------------------------- settings

my %set_by = (postmaster => 'restart', sighup => 'reload', user => 'session');
my @settings = query(<<'SQL');
SELECT name, concat_ws(' ', NULLIF(boot_val, ''), unit),
	COALESCE(min_val || ' .. ' || max_val, ''), context
FROM pg_settings WHERE name LIKE 'payment\_sync.%' ORDER BY name COLLATE "C"
SQL
is_deeply(
	[ map { [ $_->[0] =~ /\[(.*?)\]/, @$_[ 1 .. 3 ] ] } table_rows($text->{'## Settings'}, 'setting') ],
	[ map { [ @$_[ 0 .. 2 ], $set_by{ $_->[3] } ] } @settings ],
	'settings: names, defaults, ranges, contexts');
is_deeply([ map { $_->[1] } grep { $_->[0] eq 'Settings' } @$order ],
	[ map { $_->[0] } @settings ], 'each setting has an entry');

# --------------------------------------------------------------- options

my $by_name = sub { $a->[0] cmp $b->[0] };
for my $transport (qw(postgres http))
{
	my ($option_order, $option_text) = entries("$transport.md");
	my @documented;
	push @documented, table_rows($_, 'option') for values %$option_text;
	# what is said once holds for each of four signers
	@documented = map { my $row = $_; $row->[0] =~ /^`signer(_\w+)?`$/
		  ? map { [ "`signer$_" . ($1 // '') . '`', @$row[ 1 .. $#$row ] ] } '', 2 .. 4 : $row } @documented;
	is_deeply(
		[ sort $by_name map { [ map { plain(s/\\\|/|/gr) } @$_ ] } @documented ],
		[ sort $by_name query(<<"SQL") ],
SELECT option || CASE WHEN superuser THEN ' (superuser)' ELSE '' END,
	array_to_string(places, ', '), COALESCE(replace(valid, '|', ', '), 'string'),
	meaning || CASE WHEN secret THEN '; secret' ELSE '' END
FROM payment_sync.transport_options WHERE wrapper = 'payment_sync_$transport'
SQL
		"options of payment_sync_$transport: places, values, meanings");
}

# links within the pages lead somewhere
for my $file (qw(README.md CONTRIBUTING.md doc/reference/sql.md doc/reference/postgres.md
	doc/reference/http.md doc/reference/messages.md doc/operating/README.md doc/concepts/README.md doc/internals/README.md))
{
	my $page = slurp_file("$root/$file");
	my ($folder) = $file =~ m{^(.*/)?};
	my @broken;
	for my $link ($page =~ /\]\(([^)\s]+)\)/g)
	{
		next if $link =~ /^https?:/;
		my ($path, $anchor) = $link =~ /^([^#]*)#?(.*)/;
		my $target = $path eq '' ? "$root/$file" : "$root/" . ($folder // '') . $path;
		if (!-e $target) { push @broken, $link; next; }
		next if $anchor eq '';
		my %count;
		my %anchors = map {
			my $a = lc(s/[^\w\- ]//gr) =~ s/ /-/gr;
			($count{$a}++ ? $a . '-' . ($count{$a} - 1) : $a) => 1
		} slurp_file($target) =~ /^#+ (.+)$/mg;
		push @broken, $link if !$anchors{$anchor};
	}
	is("@broken", '', "$file: links lead somewhere");
}

# the messages that doc/operating explains are those of the source
{
	my $source_text = join '', map { slurp_file($_) } glob("$root/src/*/*.c $root/src/*/*/*.c");
	$source_text =~ s/\\"%s\\"|%s|%ld/\x{1}/g;
	my @strange;
	for my $row (table_rows(slurp_file("$root/doc/operating/README.md"), 'error'))
	{
		for my $message (split /, (?=permission)/, $row->[0] =~ s/^in the log: //r)
		{
			next if $message =~ /^user mapping not found/;    # the server's own
			my ($ours) = $message =~ /^([^:]*)/;
			my $pattern = join "\x{1}", map { quotemeta } split /"…"|…/, $ours, -1;
			push @strange, $message if $source_text !~ /$pattern/;
		}
	}
	is("@strange", '', 'doc/operating explains messages that exist');
}

# commands that CONTRIBUTING names exist
{
	my $page = slurp_file("$root/CONTRIBUTING.md");
	my @missing = grep { !-x "$root/$_" } $page =~ m{^sudo (\w+/\w+)}mg;
	for my $test ($page =~ m{^sudo test/run ([\w./]+)}mg)
	{
		my $file = $test =~ m{^sql/} ? "$test.sql"
		  : $test =~ m{^isolation/(.*)} ? "test/isolation/specs/$1.spec"
		  : "test/$test";
		push @missing, $test if !-e "$root/$file";
	}
	is("@missing", '', 'the commands of CONTRIBUTING.md exist');
}

done_testing();
