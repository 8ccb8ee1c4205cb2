# PaymentSyncLying.pm
#
# A server between source and target that lies when it is told to
# (test/receiver/lying.pl), for the tests of what a target may answer.

package PaymentSyncLying;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Time::HiRes;

our @EXPORT = qw(start_lying stop_lying spread most_memory);

my ($process, $target, $rulefile);

# start_lying(SOURCE, TARGET): the server "lying" of the source, by which the
# target is reached.  The source must have the extension.
sub start_lying
{
	my ($source, $node) = @_;
	my $tmp = PostgreSQL::Test::Utils::tempdir();
	$target = $node;
	$rulefile = "$tmp/rule";
	append_to_file($rulefile, '');
	$process = IPC::Run::start([ 'perl', "$FindBin::Bin/../receiver/lying.pl", $rulefile, "$tmp/port",
			$target->host . '/.s.PGSQL.' . $target->port ]);
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		last if -e "$tmp/port";
		Time::HiRes::usleep(100_000);
	}
	my $port = slurp_file("$tmp/port");
	my $user = $target->safe_psql('postgres', 'SELECT current_user');
	$source->safe_psql('postgres', <<SQL);
CREATE SERVER lying FOREIGN DATA WRAPPER payment_sync_postgres
	OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres', sslmode 'disable', gssencmode 'disable', connect_timeout '3');
CREATE USER MAPPING FOR CURRENT_USER SERVER lying OPTIONS (user '$user');
SQL
	return;
}

sub stop_lying
{
	unlink $rulefile;
	$process->finish;
	return;
}

# spread(RULE): the lie that is told from now on, in connections that begin
# now; none if it is empty.
sub spread
{
	my ($rule) = @_;
	open my $file, '>', "$rulefile.new" or die "cannot write $rulefile.new: $!";
	print $file $rule;
	close $file;
	rename "$rulefile.new", $rulefile or die "cannot rename $rulefile.new: $!";
	$target->safe_psql('postgres',
		"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'payment_sync' AND backend_type = 'client backend'");
	return;
}

# The largest that any of the processes has been, in MB; those that have ended
# do not count.
sub most_memory
{
	my $most = 0;
	for my $pid (@_)
	{
		my ($kb) = (-r "/proc/$pid/status" ? slurp_file("/proc/$pid/status") : '') =~ /^VmHWM:\s+(\d+) kB/m;
		$most = $kb / 1024 if defined $kb && $kb / 1024 > $most;
	}
	return $most;
}

1;
