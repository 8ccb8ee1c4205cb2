/*
 * probe.c
 *		How long after a commit at a source does a target show it?
 *
 * probe -s CONNINFO -t CONNINFO [-n COUNT] [-f FIRST] [-g GAP] [-p PAUSE]
 *		STATEMENT CONDITION
 *
 * Runs STATEMENT at the source in a transaction of its own, COUNT times, and
 * after each commit asks the target CONDITION, over and over, until it gives
 * "t".  $1 in both stands for the number of the run, counted from FIRST.
 * Between runs there is a pause of GAP milliseconds, between questions one of
 * PAUSE microseconds.
 *
 * Prints a line per run: milliseconds from the source's acknowledgement of
 * the commit until the target's answer, and those the commit itself took.
 * The second connection asks with a prepared statement, so that a question
 * costs the machine little: on two processors the prober competes with what
 * it measures.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define TIMEOUT_MS	600000.0

static double
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static void
die(PGconn *conn, const char *what)
{
	fprintf(stderr, "probe: %s: %s", what, PQerrorMessage(conn));
	exit(1);
}

static PGconn *
open_prepared(const char *conninfo, const char *sql)
{
	PGconn	   *conn = PQconnectdb(conninfo);
	PGresult   *res;

	if (PQstatus(conn) != CONNECTION_OK)
		die(conn, "could not connect");
	res = PQprepare(conn, "probe", sql, 0, NULL);
	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		die(conn, "could not prepare");
	PQclear(res);
	return conn;
}

static void
command(PGconn *conn, const char *sql)
{
	PGresult   *res = PQexec(conn, sql);

	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		die(conn, sql);
	PQclear(res);
}

/* Run the prepared statement; is its first value, if it has one, "t"? */
static int
ask(PGconn *conn, const char *number, int nparams)
{
	PGresult   *res;
	int			yes;

	res = PQexecPrepared(conn, "probe", nparams, &number, NULL, NULL, 0);
	if (PQresultStatus(res) != PGRES_TUPLES_OK &&
		PQresultStatus(res) != PGRES_COMMAND_OK)
		die(conn, "could not execute");
	yes = PQntuples(res) > 0 && strcmp(PQgetvalue(res, 0, 0), "t") == 0;
	PQclear(res);
	return yes;
}

int
main(int argc, char **argv)
{
	const char *source_info = "";
	const char *target_info = "";
	long		count = 1;
	long		first = 1;
	long		gap_ms = 0;
	long		pause_us = 50;
	int			option;
	PGconn	   *source;
	PGconn	   *target;

	while ((option = getopt(argc, argv, "s:t:n:f:g:p:")) != -1)
	{
		switch (option)
		{
			case 's':
				source_info = optarg;
				break;
			case 't':
				target_info = optarg;
				break;
			case 'n':
				count = atol(optarg);
				break;
			case 'f':
				first = atol(optarg);
				break;
			case 'g':
				gap_ms = atol(optarg);
				break;
			case 'p':
				pause_us = atol(optarg);
				break;
			default:
				return 2;
		}
	}
	if (argc - optind != 2)
	{
		fprintf(stderr, "probe: needs a statement and a condition\n");
		return 2;
	}

	source = open_prepared(source_info, argv[optind]);
	target = open_prepared(target_info, argv[optind + 1]);

	for (long i = 0; i < count; i++)
	{
		char		number[32];
		double		sent;
		double		acknowledged;

		snprintf(number, sizeof(number), "%ld", first + i);
		usleep(gap_ms * 1000);
		command(source, "BEGIN");
		ask(source, number, strstr(argv[optind], "$1") != NULL);
		sent = now_ms();
		command(source, "COMMIT");
		acknowledged = now_ms();
		while (!ask(target, number, strstr(argv[optind + 1], "$1") != NULL))
		{
			if (now_ms() - acknowledged > TIMEOUT_MS)
			{
				fprintf(stderr, "probe: gave up waiting for run %s\n", number);
				return 1;
			}
			usleep(pause_us);
		}
		printf("%.3f %.3f\n", now_ms() - acknowledged, acknowledged - sent);
		fflush(stdout);
	}

	PQfinish(source);
	PQfinish(target);
	return 0;
}
