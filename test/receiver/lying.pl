#!/usr/bin/perl
# lying.pl RULEFILE PORTFILE SOCKET
#
# A PostgreSQL server that lies: the counterpart of hostile.js.  It passes on
# what client and a real server (at the Unix-domain socket) say to each other until the
# client sends something that fits the rule; then it tells the client a lie
# instead, and passes on nothing more.
#
# The rule file is read for each connection: a line with a pattern (of what the
# client sends; "startup" for its first packet) and the name of a lie.  If it
# is empty, nothing but the truth is told.  The port that it listens on is
# written to PORTFILE.  It ends when the rule file is gone.

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;

my ($rulefile, $portfile, $socket) = @ARGV;

# --- messages of the server

sub message
{
	my ($type, $body) = @_;
	return $type . pack('N', length($body // '') + 4) . ($body // '');
}

sub row_description
{
	my ($n) = @_;
	return message('T', pack('n', $n) . join '', map { "c$_\0" . pack('NnNnNn', 0, 0, 25, 65535, 4294967295, 0) } 1 .. $n);
}

sub row
{
	my (@values) = @_;
	return message('D', pack('n', scalar @values) . join '',
		map { defined $_ ? pack('N', length $_) . $_ : pack('N', 4294967295) } @values);
}

my $parsed = message('1') . message('2');
my $selected = message('C', "SELECT 1\0");
my $ready = message('Z', 'I');

# Rows of an answer, with all that stands around them.
sub answer
{
	my ($columns, @rows) = @_;
	return $parsed . row_description($columns) . join('', @rows) . $selected . $ready;
}

sub error
{
	my (%fields) = @_;
	return message('E', join('', map { "$_$fields{$_}\0" } sort keys %fields) . "\0");
}

# A lie is what is told once, and what is told for ever after.
my %lies = (
	silence => [''],
	ready => [$ready],
	no_rows => [ answer(8) ],
	no_rows_of_6 => [ answer(6) ],
	few_columns => [ answer(1, row('1')) ],
	many_columns => [ answer(1600, row(('1') x 1600)) ],
	many_rows => [ answer(1, (row('1')) x 1000) ],
	nulls_of_1 => [ answer(1, row(undef)) ],
	nulls_of_3 => [ answer(3, row((undef) x 3)) ],
	nulls_of_4 => [ answer(4, row((undef) x 4)) ],
	nulls_of_6 => [ answer(6, row((undef) x 6)) ],
	nulls_of_8 => [ answer(8, row((undef) x 8)) ],
	empty_of_8 => [ answer(8, map { row($_, ('') x 7) } qw(t c i u f)) ],
	bad_bytes => [ answer(6, row("\xff\xfe", ('x') x 5)) ],
	zero_bytes => [ answer(6, row("a\0b", ('x') x 5)) ],
	copy_out => [ $parsed . message('H', pack('Cn', 0, 0)) ],
	copy_in => [ $parsed . message('G', pack('Cn', 0, 0)) ],
	copy_both => [ $parsed . message('W', pack('Cn', 0, 0)) ],
	copy_many => [ message('G', pack('Cn', 1, 0)) x 50 . message('C', "COPY 1\0") x 50 . $ready ],
	done_many => [ $parsed . message('n') . message('C', "INSERT 0 1\0") x 500 . $ready x 3 ],
	prepared_many => [ ($parsed . message('n') . message('C', "COMMIT\0")) x 500 . $ready ],
	errors_many => [ error(S => 'ERROR', C => 'XX000', M => 'one') x 100 . $ready x 100 ],
	no_fields => [ message('E', "\0") . $ready ],
	no_error => [ error(S => 'ERROR', C => '00000', M => 'all is well') . $ready ],
	odd_state => [ error(S => 'ERROR', C => "\x80\xff..", M => "\xff\xfe") . $ready ],
	long_error => [ error(S => 'ERROR', C => '22023', M => 'x' x 3_000_000, D => 'y' x 3_000_000) . $ready ],
	no_protocol => [ "HTTP/1.1 400 Bad Request\r\n\r\n" x 100 ],
	endless_rows => [ $parsed . row_description(8), row(('v' x 100) x 8) x 500 ],
	endless_rows_of_4 => [ $parsed . row_description(4), row('0', '1', 'v' x 1_000_000, '1') ],
	huge_row => [ $parsed . row_description(1) . 'D' . pack('NnN', 1_000_000_010, 1, 1_000_000_000), "\0" x 1_000_000 ],
	huge_error => [ 'E' . pack('N', 1_000_000_000) . 'M', 'm' x 1_000_000 ],
	notices => [ '', message('N', "SNOTICE\0C00000\0M" . 'n' x 5000 . "\0\0") x 100 ],
	notifications => [ '', message('A', pack('N', 1) . "channel\0" . 'p' x 5000 . "\0") x 100 ],
	parameters => [ '', undef ],
	# after the word that all is well with the password
	parameters_early => [ message('R', pack('N', 0)), undef ],
	notices_early => [ message('R', pack('N', 0)), message('N', "SNOTICE\0C00000\0M" . 'n' x 5000 . "\0\0") x 100 ],
	silence_early => [ message('R', pack('N', 0)) ],
);
my $told = 0;

# Some other parameters each time.
sub parameters
{
	return join '', map { message('S', 'p' . $told++ . "\0" . 'v' x 5000 . "\0") } 1 .. 100;
}

sub rule
{
	open my $file, '<', $rulefile or return '';
	my $line = <$file> // '';
	close $file;
	return $line;
}

sub lie
{
	my ($client, $name, $rule) = @_;
	my ($once, $ever) = @{ $lies{$name} // die "there is no lie $name" };
	syswrite $client, $once if length $once;
	if (@{ $lies{$name} } > 1)
	{
		while (1)
		{
			my $text = $ever // parameters();
			for (my $at = 0; $at < length $text;)
			{
				my $n = syswrite $client, $text, length($text) - $at, $at;
				return if !$n;
				$at += $n;
			}
		}
	}

	# Silence lasts until the client goes, or the rule.  A lie that the client has
	# swallowed must not look like silence: if it says more, the connection ends
	# soon after.
	my $select = IO::Select->new($client);
	my ($rest, $more);
	while (-e $rulefile && rule() eq $rule)
	{
		if ($select->can_read(0.3))
		{
			return if !sysread $client, $rest, 65536;
			$more = 1;
		}
		elsif ($more && $name !~ /^silence/)
		{
			return;
		}
	}
	return;
}

# --- a connection

sub serve
{
	my ($client) = @_;
	my $rule = rule();
	my ($pattern, $name) = $rule =~ /^(.*)\t(\S+)$/;
	my $server = IO::Socket::UNIX->new(Peer => $socket) or die "cannot connect: $!";
	my $select = IO::Select->new($client, $server);
	my $first = 1;
	while (1)
	{
		for my $from ($select->can_read)
		{
			my $n = sysread $from, my $data, 65536;
			return if !$n;
			if ($from == $client)
			{
				my $said = $first ? "startup" : $data;
				# TLS is asked for first, and declined
				$first = 0 if $said ne 'startup' || substr($data, 4, 4) ne pack('N', 80877103);
				$said = '' if $first;
				return lie($client, $name, $rule) if defined $name && $said =~ /$pattern/s;
			}
			syswrite $from == $client ? $server : $client, $data;
		}
	}
	return;
}

$SIG{CHLD} = 'IGNORE';
$SIG{PIPE} = 'IGNORE';
my $listen = IO::Socket::INET->new(Listen => 20, LocalAddr => '127.0.0.1') or die "cannot listen: $!";
open my $file, '>', "$portfile.new" or die "cannot write $portfile: $!";
print $file $listen->sockport;
close $file;
rename "$portfile.new", $portfile or die "cannot write $portfile: $!";
my $accepting = IO::Select->new($listen);
while (-e $rulefile)
{
	$accepting->can_read(1) or next;
	my $client = $listen->accept or next;
	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		close $listen;
		serve($client);
		exit 0;
	}
	close $client;
}
