# 910_docs.pl
#
# The SQL examples of the documentation do what it says.  Each page is run
# from top to bottom as a superuser would, in a fresh database "shop", with
# the target in the database "ledger" of another server, over TLS and with a
# password.  A block that is followed by a block without language must print
# just that.  Comments in the page, which readers do not see, say what is
# peculiar:
#
#	<!-- test setup                      data to make at the source; end of the
#	…                                    comment ends it
#	-->
#	<!-- test target                     the same at the target
#	<!-- test: delivered NAME -->        wait until the sync is idle
#	<!-- test: shell -->                 the next block is a shell's, run it
#	<!-- test: needs EXTENSION -->       run the next block if that is installed
#	<!-- test: not run, REASON -->       do not run the next block
#
# A block that begins with "-- at the target" runs there.  Roles, privileges
# and all else but tables and rows must be in blocks that readers see.
#
# All that is put in place of what a page says is where the targets listen:
# the ledger's host gets an address, a port and a certificate authority, and
# each https host of the examples is a receiver that verifies signatures and
# credentials.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/../perl";
use File::Temp qw(tempdir);
use PaymentSyncHttp;
use PaymentSyncTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $root = "$FindBin::Bin/../..";
my @pages = qw(README.md doc/reference/sql.md doc/reference/postgres.md
  doc/reference/http.md doc/reference/messages.md doc/operating/README.md);
my $scratch = tempdir(CLEANUP => 1);

# ------------------------------------------------------------ the servers

my $sharedir = `pg_config --sharedir`;
chomp $sharedir;
sub is_installed { return -e "$sharedir/extension/$_[0].control" }

my $preload = is_installed('pg_cron') ? 'payment_sync, pg_cron' : 'payment_sync';
my $source = start_source('source', preload => 0, conf => <<CONF);
shared_preload_libraries = '$preload'
payment_sync.http_allowed_hosts = 'localhost'
cron.database_name = 'shop'
cron.use_background_workers = on
max_worker_processes = 32
CONF

my $target = PostgreSQL::Test::Cluster->new('target');
$target->init;
certify($target->data_dir, 'ledger.example.com');
$target->append_conf('postgresql.conf', <<CONF);
listen_addresses = '127.0.0.1'
ssl = on
password_encryption = 'scram-sha-256'
CONF
my $hba = slurp_file($target->data_dir . '/pg_hba.conf');
unlink $target->data_dir . '/pg_hba.conf';
append_to_file($target->data_dir . '/pg_hba.conf',
	"hostssl ledger payment_sync 127.0.0.1/32 scram-sha-256\n$hba");
$target->start;

my %receiver = (
	'shop.example.com' => start_receiver(secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'),
	'api.example.com' => start_receiver(bearer => 'a-token-of-theirs'),
	'sqs.eu-central-1.amazonaws.com' => start_receiver(aws => { region => 'eu-central-1', service => 'sqs',
		key => 'AKIDEXAMPLE', secret => 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY' }),
	'partner.example.com' => start_receiver(signers => [ { scheme => 'stripe', secret => 'whsec_of_the_partner' } ]),
	'bank.example.com' => start_receiver(oauth => { id => 'shop', secret => 'secret' }),
	'bulk.example.com' => start_receiver(),
);
set_receiver($receiver{'bulk.example.com'}, items => { style => 'failed', codes => {} });

# A certificate authority in $scratch, and a server certificate of it.
sub certify
{
	my ($dir, $name) = @_;
	append_to_file("$scratch/names", "subjectAltName=DNS:$name\n");
	my @new = qw(openssl req -new -nodes -newkey rsa:2048);
	system_or_bail(@new, '-x509', '-days', 10, '-subj', '/CN=regress ca',
		'-keyout', "$scratch/ca.key", '-out', "$scratch/ca.crt");
	system_or_bail(@new, '-subj', "/CN=$name",
		'-keyout', "$dir/server.key", '-out', "$scratch/server.csr");
	system_or_bail(qw(openssl x509 -req -CAcreateserial -days 10), '-in', "$scratch/server.csr",
		'-CA', "$scratch/ca.crt", '-CAkey', "$scratch/ca.key", '-extfile', "$scratch/names",
		'-out', "$dir/server.crt");
	chmod 0600, "$dir/server.key";
	return;
}

# ------------------------------------------------------------- the pages

# A page as a list of steps: { do, text, line, … }, in order.
sub steps
{
	my ($file) = @_;
	my @lines = split /\n/, slurp_file("$root/$file");
	my (@steps, %next);
	for (my $i = 0; $i < @lines; $i++)
	{
		my ($line, $at) = ($lines[$i], $i + 1);
		if ($line =~ /^<!-- test (setup|target)$/)
		{
			my $text = '';
			$text .= "$lines[$i]\n" while $lines[ ++$i ] ne '-->';
			my @strange = grep { !/^\s*(CREATE (TABLE|SCHEMA)|INSERT|UPDATE)\b/ } split /;\n/, $text;
			die "$file:$at: readers must see what is no data: @strange" if @strange;
			push @steps, { do => 'sql', on => $1, text => $text, line => $at, hidden => 1 };
		}
		elsif ($line =~ /^<!-- test: delivered (\S+) -->$/)
		{
			push @steps, { do => 'wait', sync => $1, line => $at };
		}
		elsif ($line =~ /^<!-- test: (.*) -->$/)
		{
			$next{what} = $1;
		}
		elsif ($line =~ /^<!-- test/)
		{
			die "$file:$at: unknown mark";
		}
		elsif ($line =~ /^```(\w*)$/)
		{
			my ($language, $text) = ($1, '');
			$text .= "$lines[$i]\n" while $lines[ ++$i ] ne '```';
			my $what = delete $next{what} // '';
			if ($language eq 'sql')
			{
				push @steps, { do => 'sql', on => $text =~ /^-- at the target\b/ ? 'target' : 'setup',
					text => $text, line => $at, what => $what };
			}
			elsif ($language eq 'sh' && $what eq 'shell')
			{
				push @steps, { do => 'shell', text => $text, line => $at, what => $what };
			}
			elsif ($language eq '' && @steps && $lines[ $at - 3 ] eq '```' && $text !~ /^(CALL )?payment_sync\./)
			{
				$steps[-1]{result} = $text;
			}
		}
	}
	return @steps;
}

sub located
{
	my ($text) = @_;
	my $port = $target->port;
	$text =~ s/host 'ledger\.example\.com'/host 'ledger.example.com', hostaddr '127.0.0.1', port '$port', sslrootcert '$scratch\/ca.crt'/g;
	$text =~ s/https:\/\/\Q$_\E/$receiver{$_}{base}/g for keys %receiver;
	return $text;
}

sub trimmed { return join "\n", map { s/\s+$//r } split /\n/, $_[0] =~ s/\n+\z//r }

sub run_sql
{
	my ($step, $name) = @_;
	my $node = $step->{on} eq 'target' ? $target : $source;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run(
		[ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-P', 'format=aligned', '-P', 'tuples_only=off',
			'-h', $node->host, '-p', $node->port, '-d', $step->{on} eq 'target' ? 'ledger' : 'shop' ],
		'<', \located($step->{text}), '>', \$out, '2>', \$err);
	if ($step->{hidden})
	{
		die "$name: $err" if !$ok;
		return;
	}
	ok($ok, $name) or diag($err);
	is(trimmed($out), trimmed($step->{result}), "$name: result") if defined $step->{result};
	return;
}

sub run_shell
{
	my ($step, $name) = @_;
	local $ENV{PGHOST} = $source->host;
	local $ENV{PGPORT} = $source->port;
	local $ENV{PGDATABASE} = 'postgres';
	my $script = "$scratch/step.sh";
	unlink $script;
	append_to_file($script, "set -e\ncd $scratch\n$step->{text}");
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ 'sh', $script ], '>', \$out, '2>', \$err);
	ok($ok, $name) or diag("$out$err");
	return;
}

sub run_step
{
	my ($page, $step) = @_;
	my $name = "$page:$step->{line}";
	my $what = $step->{what} // '';
	if ($what =~ /^not run, (.+)/)
	{
		note("$name: not run, $1");
	}
	elsif ($what =~ /^needs (\w+)$/ && !is_installed($1))
	{
	  SKIP: { skip "$name: $1 is not installed", 1 }
	}
	elsif ($step->{do} eq 'wait')
	{
		wait_delivered($source, $step->{sync}, db => 'shop');
		pass("$name: sync $step->{sync} has delivered");
	}
	elsif ($step->{do} eq 'shell')
	{
		run_shell($step, $name);
	}
	else
	{
		run_sql($step, $name);
	}
	return;
}

for my $page (@pages)
{
	$source->safe_psql('postgres', 'CREATE DATABASE shop');
	$target->safe_psql('postgres', 'CREATE DATABASE ledger');
	my @steps = steps($page);
	cmp_ok(scalar(grep { $_->{do} eq 'sql' && !$_->{hidden} } @steps), '>=', 3, "$page has examples");
	run_step($page, $_) for @steps;

	# to the next page; pg_cron keeps a connection to its database
	$source->safe_psql('postgres', $_)
	  for 'DROP DATABASE shop WITH (FORCE)', 'ALTER SYSTEM RESET ALL', 'SELECT pg_reload_conf()';
	$target->safe_psql('postgres', $_)
	  for 'DROP DATABASE ledger WITH (FORCE)', 'DROP ROLE IF EXISTS payment_sync';
}

judged_well($receiver{$_}, $_) for sort keys %receiver;

done_testing();
