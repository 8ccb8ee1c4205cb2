/*
 * http_probe.c
 *		How long after a commit does a webhook arrive?
 *
 *		http_probe PORT CONNINFO COUNT RATE FIRST
 *
 * Listens on 127.0.0.1:PORT for webhooks of the table payments, and commits
 * COUNT rows at the source, RATE a second (0: one after the other, 25 ms
 * apart), with ids from FIRST on.  Prints a line per row: milliseconds from the
 * source's acknowledgement of the commit until the request with the row has
 * been received.  A request may well be there before the acknowledgement has
 * reached this process; that counts as 0.
 *
 * One thread serves, with epoll; eight commit.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define COMMITTERS		8
#define GAP_MS			25.0
#define TIMEOUT_MS		60000.0
#define CONNECTION_MAX	1024
#define BUFFER_SIZE		(1 << 20)

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

static long count;
static long first;
static double rate;
static const char *conninfo;
static volatile double *committed;	/* per row, ms; 0: not yet */
static volatile double *received;
static char *buffers[CONNECTION_MAX];
static size_t filled[CONNECTION_MAX];

static double
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static void
sleep_until(double at)
{
	struct timespec ts = {.tv_sec = (time_t) (at / 1e3)};

	ts.tv_nsec = (long) ((at - ts.tv_sec * 1e3) * 1e6);
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

/* Note the time for each row of a body: "id":"N" of the new row's key. */
static void
note_rows(const char *body, double at)
{
	const char *key = body;

	while ((key = strstr(key, "\"key\":{\"id\":")) != NULL)
	{
		long		id;

		key += strlen("\"key\":{\"id\":");
		id = atol(*key == '"' ? key + 1 : key) - first;
		if (id >= 0 && id < count && received[id] == 0)
			received[id] = at;
	}
}

/* Answer each complete request in the connection's buffer. */
static void
take_requests(int fd, double at)
{
	for (;;)
	{
		char	   *buffer = buffers[fd];
		char	   *end;
		char	   *length;
		size_t		size;
		char		saved;

		buffer[filled[fd]] = '\0';
		end = strstr(buffer, "\r\n\r\n");
		length = strcasestr(buffer, "content-length:");
		if (end == NULL || length == NULL)
			return;
		size = (size_t) (end - buffer) + 4 + strtoul(length + 15, NULL, 10);
		if (filled[fd] < size)
			return;
		saved = buffer[size];
		buffer[size] = '\0';
		note_rows(end, at);
		buffer[size] = saved;
		if (write(fd, answer, sizeof(answer) - 1) < 0)
			return;
		memmove(buffer, buffer + size, filled[fd] - size);
		filled[fd] -= size;
	}
}

static void
read_connection(int fd)
{
	ssize_t		n = read(fd, buffers[fd] + filled[fd], BUFFER_SIZE - 1 - filled[fd]);

	if (n <= 0)
	{
		close(fd);
		return;
	}
	filled[fd] += (size_t) n;
	take_requests(fd, now_ms());
}

static void
accept_connection(int epoll, int listener)
{
	int			on = 1;
	int			fd = accept(listener, NULL, NULL);
	struct epoll_event event = {.events = EPOLLIN,.data.fd = fd};

	if (fd < 0 || fd >= CONNECTION_MAX)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (buffers[fd] == NULL)
		buffers[fd] = malloc(BUFFER_SIZE);
	filled[fd] = 0;
	epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void *
serve(void *arg)
{
	int			listener = *(int *) arg;
	int			epoll = epoll_create1(0);
	struct epoll_event event = {.events = EPOLLIN,.data.fd = listener};

	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	for (;;)
	{
		struct epoll_event events[64];
		int			n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++)
		{
			if (events[i].data.fd == listener)
				accept_connection(epoll, listener);
			else
				read_connection(events[i].data.fd);
		}
	}
	return NULL;
}

static void
commit_row(PGconn *conn, long row)
{
	char		id[32];
	const char *values[1] = {id};
	PGresult   *result;

	snprintf(id, sizeof(id), "%ld", first + row);
	result = PQexecPrepared(conn, "probe", 1, values, NULL, NULL, 0);
	committed[row] = now_ms();
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
	{
		fprintf(stderr, "http_probe: %s", PQerrorMessage(conn));
		exit(1);
	}
	PQclear(result);
}

/* Rows number, number + COMMITTERS, …, each at its time. */
static void *
commit_rows(void *arg)
{
	long		number = (long) arg;
	long		step = rate > 0 ? COMMITTERS : 1;
	double		gap = rate > 0 ? 1e3 / rate : GAP_MS;
	double		began = now_ms() + 100;
	PGconn	   *conn = PQconnectdb(conninfo);

	PQclear(PQprepare(conn, "probe",
					  "INSERT INTO payments VALUES ($1::bigint, 1, 9.99, 'EUR', 'authorized', "
					  "'order', NULL, now(), now())", 0, NULL));
	for (long row = number; row < count; row += step)
	{
		sleep_until(began + row * gap);
		commit_row(conn, row);
	}
	PQfinish(conn);
	return NULL;
}

static int
listen_on(int port)
{
	int			on = 1;
	int			fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in address = {.sin_family = AF_INET,.sin_port = htons((uint16_t) port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *) &address, sizeof(address)) != 0 || listen(fd, 128) != 0)
	{
		perror("http_probe: cannot listen");
		exit(1);
	}
	return fd;
}

static void
print_rows(void)
{
	double		deadline = now_ms() + TIMEOUT_MS;

	for (long row = 0; row < count; row++)
	{
		double		ms;

		while (received[row] == 0 && now_ms() < deadline)
			usleep(10000);
		if (received[row] == 0)
		{
			fprintf(stderr, "http_probe: row %ld did not arrive\n", first + row);
			exit(1);
		}
		ms = received[row] - committed[row];
		printf("%.3f\n", ms > 0 ? ms : 0.0);
	}
}

int
main(int argc, char **argv)
{
	pthread_t	server;
	pthread_t	committers[COMMITTERS];
	int			listener;
	long		n;

	if (argc != 6)
		return 2;
	listener = listen_on(atoi(argv[1]));
	conninfo = argv[2];
	count = atol(argv[3]);
	rate = atof(argv[4]);
	first = atol(argv[5]);
	committed = calloc((size_t) count, sizeof(double));
	received = calloc((size_t) count, sizeof(double));
	n = rate > 0 ? COMMITTERS : 1;
	pthread_create(&server, NULL, serve, &listener);
	for (long i = 0; i < n; i++)
		pthread_create(&committers[i], NULL, commit_rows, (void *) i);
	for (long i = 0; i < n; i++)
		pthread_join(committers[i], NULL);
	print_rows();
	return 0;
}
