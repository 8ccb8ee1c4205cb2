# PaymentSyncSession.pm
#
# A psql session that stays open beside the test, so that a test can hold a
# transaction open, or let a statement wait for a lock.  Works with any of the
# supported versions' test modules.
#
#	my $s = PaymentSyncSession->new($node, 'postgres');
#	$s->query('BEGIN');				# runs it and returns its output
#	$s->send('UPDATE …');			# does not wait for it
#	$s->wait;						# waits for what was sent
#	$s->quit;

package PaymentSyncSession;

use strict;
use warnings;

use IPC::Run qw(pump start timer);

my $seconds = 180;

# new(NODE, DATABASE, [PSQL OPTION…])
sub new
{
	my ($class, $node, $db, @options) = @_;
	my $self = { in => '', out => '', err => '', sent => 0 };
	$self->{timer} = timer($seconds);
	$self->{psql} = start(
		[
			'psql', '-XAtq', '-h', $node->host, '-p', $node->port,
			'-v', 'ON_ERROR_STOP=0', @options, '-d', $db, '-f', '-'
		],
		'<', \$self->{in}, '>', \$self->{out}, '2>', \$self->{err},
		$self->{timer});
	bless $self, $class;
	$self->{pid} = $self->query(q(SELECT pg_backend_pid()));
	return $self;
}

# Send statements; what they print is returned by the next wait().
sub send
{
	my ($self, $sql) = @_;
	my $n = ++$self->{sent};
	$self->{in} .= "$sql;\n\\echo done $n\n\\warn done $n\n";
	$self->{timer}->start($seconds);
	$self->{psql}->pump_nb;
	return;
}

# Wait for all that was sent.  Dies on an error, unless may_fail is given;
# the error text is in ->{error} then.
sub wait
{
	my ($self, %option) = @_;
	my $n = $self->{sent};
	$self->{timer}->start($seconds);
	while ($self->{out} !~ /^done $n$/m || $self->{err} !~ /^done $n$/m)
	{
		die "session ended: $self->{err}" unless $self->{psql}->pumpable;
		pump $self->{psql};
	}
	my $out = $self->{out};
	$self->{error} = $self->{err};
	$self->{out} = $self->{err} = '';
	s/^done \d+\n//mg for $out, $self->{error};
	chomp $out;
	die "session: $self->{error}"
	  if $self->{error} =~ /ERROR|FATAL/ && !$option{may_fail};
	return $out;
}

sub query
{
	my ($self, $sql, %option) = @_;
	$self->send($sql);
	return $self->wait(%option);
}

# Ask again and again, without pause, until the answer is true; dies if that
# takes too long.
sub until_true
{
	my ($self, $sql) = @_;
	my $end = time + $seconds;
	while ($self->query("SELECT ($sql)::bool::int") ne '1')
	{
		die "not true in time: $sql" if time > $end;
	}
	return;
}

sub pid
{
	my ($self) = @_;
	return $self->{pid};
}

# Has the statement sent come to wait for a lock?  Waits until it has.
sub wait_blocked
{
	my ($self, $node, $db) = @_;
	$node->poll_query_until($db // 'postgres',
		"SELECT cardinality(pg_blocking_pids($self->{pid})) > 0")
	  or die 'the session does not wait';
	return;
}

# Its server is gone, or it is to be cut off.
sub kill
{
	my ($self) = @_;
	$self->{psql}->kill_kill;
	return;
}

sub quit
{
	my ($self) = @_;
	$self->{in} .= "\\q\n";
	$self->{timer}->start($seconds);
	$self->{psql}->finish;
	return;
}

1;
