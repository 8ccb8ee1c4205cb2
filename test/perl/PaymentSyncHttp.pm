# PaymentSyncHttp.pm
#
# What the TAP tests of the http transport share: receivers in Node that judge
# what they get (test/receiver), a hostile server, nginx, and certificates.
# All are started on free ports of 127.0.0.1 and ended with the test.

package PaymentSyncHttp;

use strict;
use warnings;

use Exporter 'import';
use Fcntl ':flock';
use File::Basename;
use File::Copy;
use HTTP::Tiny;
use IO::Socket::INET;
use IPC::Run ();
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

our @EXPORT = qw(start_receiver start_hostile start_proxy start_http2 start_nginx certify_http free_port
  create_target receiver_state receiver_requests set_receiver control wait_state
  wait_until becomes_like judged_well);

my $folder = dirname(__FILE__) . '/../receiver';
my @started;

# The packages that judge and our programs, put in place once for all tests of
# a run, which may start side by side.
sub node_modules
{
	my $home = ($ENV{TMPDIR} || '/tmp') . '/payment_sync_receiver';
	open my $lock, '>', "$home.lock" or die "cannot write $home.lock: $!";
	flock $lock, LOCK_EX or die "cannot lock $home.lock: $!";
	return $home if -e "$home/ready";
	mkdir $home;
	copy("$folder/package.json", "$home/package.json");
	copy($_, "$home/" . basename($_)) for glob "$folder/*.js";
	local $ENV{npm_config_cache} = "$home/cache";
	local $ENV{HOME} = $home;
	my $output = `cd '$home' && npm install --no-audit --no-fund --no-package-lock 2>&1`;
	die "npm could not install the packages of test/receiver:\n$output" if $?;
	open my $ready, '>', "$home/ready" or die "cannot write $home/ready: $!";
	return $home;
}

# Start a program that says "listening PORT".
sub start_node
{
	my ($script, @arguments) = @_;
	my $home = node_modules();
	my ($out, $err) = ('', '');
	my $harness = IPC::Run::start([ 'node', "$home/$script", @arguments ],
		'<', \undef, '>', \$out, '2>', \$err);
	push @started, $harness;
	my $deadline = time + 30;
	while ($out !~ /^listening (\d+)$/m)
	{
		die "$script did not start: $err" if time > $deadline || !$harness->pumpable;
		$harness->pump_nb;
		Time::HiRes::usleep(10_000);
	}
	my ($port) = $out =~ /^listening (\d+)$/m;
	return { harness => $harness, port => $port, out => \$out, err => \$err };
}

# start_receiver([secret => …, publicKey => …, signers => […], cert, key, ca, http2])
sub start_receiver
{
	my (%config) = @_;
	my $receiver = start_node('receiver.js', encode_json(\%config));
	$receiver->{config} = \%config;
	$receiver->{base} = ($config{cert} ? 'https://localhost:' : 'http://127.0.0.1:') . $receiver->{port};
	return $receiver;
}

# start_hostile([cert => FILE, key => FILE])
sub start_hostile
{
	my (%config) = @_;
	my $hostile = start_node('hostile.js', $config{cert} ? ($config{cert}, $config{key}) : ());
	$hostile->{base} = ($config{cert} ? 'https://localhost:' : 'http://127.0.0.1:') . $hostile->{port};
	$hostile->{config} = \%config;
	return $hostile;
}

# start_proxy([hosts => {NAME => ADDRESS}, user => "user:password"])
sub start_proxy
{
	my (%config) = @_;
	my $proxy = start_node('proxy.js', encode_json(\%config));
	$proxy->{config} = {};
	$proxy->{base} = "http://127.0.0.1:$proxy->{port}";
	return $proxy;
}

# start_http2([cert => FILE, key => FILE]): a hostile server of HTTP/2
sub start_http2
{
	my (%config) = @_;
	my $hostile = start_node('http2.js', $config{cert} ? ($config{cert}, $config{key}) : ());
	$hostile->{config} = { %config, http2 => 1 };
	$hostile->{base} = ($config{cert} ? 'https://localhost:' : 'http://127.0.0.1:') . $hostile->{port};
	return $hostile;
}

# Ask a receiver or hostile server; the test's own way, beside the deliveries.
sub control
{
	my ($server, $path, $body) = @_;
	my $tls = $server->{config}{cert} ? 1 : 0;
	my @command = ('curl', '-sS', '--max-time', '20');
	push @command, '--http2-prior-knowledge' if $server->{config}{http2} && !$tls;
	push @command, '-k' if $tls;
	push @command, '--cert', $server->{config}{client_cert}, '--key', $server->{config}{client_key}
	  if $server->{config}{client_cert};
	push @command, '--data-binary', $body if defined $body;
	my ($out, $err) = ('', '');
	IPC::Run::run([ @command, "$server->{base}$path" ], '<', \undef, '>', \$out, '2>', \$err)
	  or die "could not ask the receiver for $path: $err";
	return $out;
}

sub receiver_state { return decode_json(control($_[0], '/_state')) }
sub receiver_requests { return decode_json(control($_[0], '/_requests')) }

sub set_receiver
{
	my ($receiver, %behaviour) = @_;
	return control($receiver, '/_set', encode_json(\%behaviour));
}

# Poll until the condition holds.
sub wait_until
{
	my ($what, $condition, $seconds) = @_;
	my $deadline = time + ($seconds // 60);
	while (time < $deadline)
	{
		my $result = $condition->();
		return $result if $result;
		Time::HiRes::usleep(50_000);
	}
	die "timed out waiting until $what";
}

sub wait_state
{
	my ($receiver, $what, $condition, $seconds) = @_;
	return wait_until($what, sub {
		my $state = receiver_state($receiver);
		return $condition->($state) ? $state : undef;
	}, $seconds);
}

# A test: what the function returns comes to match the pattern.
sub becomes_like
{
	my ($text_of, $pattern, $name, $seconds) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $deadline = time + ($seconds // 60);
	my $text = $text_of->();
	while ($text !~ $pattern && time < $deadline)
	{
		Time::HiRes::usleep(50_000);
		$text = $text_of->();
	}
	return like($text, $pattern, $name);
}

# A test: there were requests, and the judges had nothing against them.
sub judged_well
{
	my ($receiver, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $state = receiver_state($receiver);
	ok($state->{requests} > 0, "$name: there are requests");
	return is(join("\n", @{ $state->{problems} }), '', "$name: judged well");
}

sub free_port
{
	return IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1')->sockport;
}

# certify_http(DIR): a certificate authority and certificates, as files:
# ca.crt, server.*, expired.*, wrong.* (another host), self.* (self-signed),
# client.* (for mTLS)
sub certify_http
{
	my ($dir) = @_;
	my $run = sub { system("cd '$dir' && $_[0] >/dev/null 2>&1") == 0 or die "openssl: $_[0]" };
	$run->('openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj "/CN=test authority"');
	for my $spec ([ server => 'localhost', 30 ], [ expired => 'localhost', -1 ],
		[ wrong => 'elsewhere.example.com', 30 ], [ client => 'payment_sync', 30 ])
	{
		my ($name, $host, $days) = @$spec;
		$run->("openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj '/CN=$host'");
		append_to_file("$dir/$name.ext", "subjectAltName=DNS:$host\n");
		if ($days > 0)
		{
			$run->("openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days $days -extfile $name.ext -out $name.crt");
		}
		else				# only "openssl ca" takes a begin and an end
		{
			append_to_file("$dir/ca.cnf", <<CNF);
[ca]
default_ca = test
[test]
database = $dir/index.txt
serial = $dir/serial.txt
new_certs_dir = $dir
default_md = sha256
policy = any
[any]
commonName = supplied
CNF
			append_to_file("$dir/index.txt", '');
			append_to_file("$dir/serial.txt", "01\n");
			$run->("openssl ca -batch -config ca.cnf -cert ca.crt -keyfile ca.key -in $name.csr -extfile $name.ext -startdate 20200101000000Z -enddate 20200201000000Z -out $name.crt");
		}
	}
	$run->('openssl req -x509 -newkey rsa:2048 -nodes -keyout self.key -out self.crt -days 30 -subj "/CN=localhost" -addext "subjectAltName=DNS:localhost"');
	return;
}

# start_nginx(DIR, HTTP_CONFIG): nginx as the test's own user
sub start_nginx
{
	my ($dir, $config) = @_;
	my $file = "$dir/nginx.conf";
	unlink $file;
	append_to_file($file, <<CONF);
daemon off;
master_process off;
pid $dir/nginx.pid;
error_log $dir/nginx.err;
events { worker_connections 512; }
http {
	access_log $dir/access.log;
	client_body_temp_path $dir/body;
	proxy_temp_path $dir/proxy;
	fastcgi_temp_path $dir/fastcgi;
	uwsgi_temp_path $dir/uwsgi;
	scgi_temp_path $dir/scgi;
	keepalive_requests 1000000;
	client_max_body_size 64m;
$config
}
CONF
	my ($out, $err) = ('', '');
	my $nginx = -x '/usr/sbin/nginx' ? '/usr/sbin/nginx' : 'nginx';
	my $harness = IPC::Run::start([ $nginx, '-e', "$dir/nginx.err", '-c', $file ],
		'<', \undef, '>', \$out, '2>', \$err);
	push @started, $harness;
	my ($port) = $config =~ /listen 127\.0\.0\.1:(\d+)/;
	wait_until('nginx listens', sub {
		die "nginx did not start: $err" if !$harness->pumpable;
		return IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
	}, 20);
	return $harness;
}

# create_target(NODE, NAME, SERVER_OPTIONS, USER_OPTIONS): server and mapping
sub create_target
{
	my ($node, $name, $server, $user, %option) = @_;
	my $quote = sub {
		my ($options) = @_;
		return join ', ', map { my $v = $options->{$_} =~ s/'/''/gr; "$_ '$v'" } sort keys %$options;
	};
	my $mapping = %{ $user // {} } ? ' OPTIONS (' . $quote->($user) . ')' : '';
	$node->safe_psql($option{db} // 'postgres', <<SQL);
CREATE EXTENSION IF NOT EXISTS payment_sync;
CREATE SERVER $name FOREIGN DATA WRAPPER payment_sync_http OPTIONS (@{[ $quote->($server) ]});
CREATE USER MAPPING FOR CURRENT_USER SERVER $name$mapping;
SQL
	return;
}

END
{
	my $status = $?;
	for my $harness (@started)
	{
		eval { $harness->kill_kill(grace => 1) };
	}
	$? = $status;
}

1;
