/*
 * payment_sync_probe.c
 *		A transport for messages that writes them to files: for tests of the
 *		core, and the smallest complete transport.
 *
 * The server's option "directory" names a directory that holds:
 *
 *	received		written: a line per attempt, with what tests look at
 *	answer			read: the answer to all messages
 *	answer.KEY		read: the answer to messages with that key, goes first
 *	poison			read: a text; bodies that hold it are refused
 *
 * An answer is a word and a number, such as "retry 503": delivered, retry,
 * refused, target, gone, again, hang (never answers), part (refuses the
 * message's first event only), later (the same, but to be sent again), crash (the
 * process aborts), fatal (it ends with FATAL).  Without a file the answer is "delivered 200".
 * A third word "once" removes the file, a fourth one is Retry-After in ms.
 */
#include "postgres.h"

#include <unistd.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "extension/payment_sync/payment_sync_transport.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const PsyncTransport *payment_sync_transport_init(const PsyncServices *services);

#define IN_FLIGHT_MAX	1024

typedef struct Attempt
{
	uint64		handle;
	int			nevents;
	char		word[16];
	int			status;
	long		retry_after;
	instr_time	begun;
} Attempt;

typedef struct Probe
{
	const char *directory;
	FILE	   *received;
	int			nattempts;
	Attempt		attempts[IN_FLIGHT_MAX];
} Probe;

static const PsyncServices *services;

static void
probe_open(PsyncTarget *target)
{
	Probe	   *probe = MemoryContextAllocZero(target->context, sizeof(Probe));
	char		path[MAXPGPATH];

	probe->directory = services->option(target, "directory");
	if (probe->directory == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"directory\" is missing")));
	snprintf(path, sizeof(path), "%s/received", probe->directory);
	probe->received = fopen(path, "a");
	if (probe->received == NULL)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	setvbuf(probe->received, NULL, _IOLBF, 0);
	target->private_data = probe;
}

static void
probe_close(PsyncTarget *target)
{
	Probe	   *probe = target->private_data;

	if (probe != NULL && probe->received != NULL)
		fclose(probe->received);
}

/* What the files say of this message. */
static bool
read_answer(Probe *probe, const char *name, Attempt *attempt)
{
	char		path[MAXPGPATH];
	char		once[16] = "";
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/%s", probe->directory, name);
	file = fopen(path, "r");
	if (file == NULL)
		return false;
	if (fscanf(file, "%15s %d %15s %ld", attempt->word, &attempt->status, once,
			   &attempt->retry_after) < 2)
		strlcpy(attempt->word, "delivered", sizeof(attempt->word));
	fclose(file);
	if (strcmp(once, "once") == 0)
		unlink(path);
	return true;
}

/* Does the body hold what the file "poison" says? */
static bool
is_poisoned(Probe *probe, const PsyncMessage *message)
{
	char		path[MAXPGPATH];
	char		word[64] = "";
	FILE	   *file;

	snprintf(path, sizeof(path), "%s/poison", probe->directory);
	file = fopen(path, "r");
	if (file == NULL)
		return false;
	if (fscanf(file, "%63s", word) != 1)
		word[0] = '\0';
	fclose(file);
	return word[0] != '\0' && memmem(message->body, message->size, word, strlen(word)) != NULL;
}

static void
write_received(Probe *probe, const PsyncMessage *message)
{
	fprintf(probe->received, "%s\t%d\t%d\t%s\t%s\t%s\t", message->id,
			message->attempt, message->nevents, message->type, message->key,
			message->content_type);
	for (int i = 0; i < message->nattributes; i++)
		fprintf(probe->received, "%s%s=%s", i > 0 ? ";" : "",
				message->attributes[i].name, message->attributes[i].value);
	fputc('\t', probe->received);
	for (size_t i = 0; i < message->size; i++)
	{
		char		c = message->body[i];

		fputs(c == '\n' ? "<LF>" : c == '\t' ? "<TAB>" : (char[]) {c, 0}, probe->received);
	}
	fputc('\n', probe->received);
}

static bool
probe_submit(PsyncTarget *target, const PsyncMessage *message)
{
	Probe	   *probe = target->private_data;
	Attempt    *attempt;
	char		name[MAXPGPATH];

	if (probe->nattempts == IN_FLIGHT_MAX)
		return false;
	attempt = &probe->attempts[probe->nattempts++];
	memset(attempt, 0, sizeof(*attempt));
	attempt->handle = message->handle;
	attempt->nevents = message->nevents;
	attempt->status = 200;
	attempt->retry_after = -1;
	strlcpy(attempt->word, "delivered", sizeof(attempt->word));
	INSTR_TIME_SET_CURRENT(attempt->begun);
	snprintf(name, sizeof(name), "answer.%s", message->key);
	if (!read_answer(probe, name, attempt))
		(void) read_answer(probe, "answer", attempt);
	if (is_poisoned(probe, message))
	{
		strlcpy(attempt->word, "refused", sizeof(attempt->word));
		attempt->status = 422;
	}
	write_received(probe, message);
	if (strcmp(attempt->word, "crash") == 0)
		abort();
	if (strcmp(attempt->word, "fatal") == 0)
		ereport(FATAL,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("the probe was told to end the process")));
	return true;
}

static PsyncOutcomeKind
kind_of(const char *word)
{
	if (strcmp(word, "retry") == 0)
		return PSYNC_OUTCOME_RETRY;
	if (strcmp(word, "refused") == 0)
		return PSYNC_OUTCOME_REFUSED;
	if (strcmp(word, "target") == 0)
		return PSYNC_OUTCOME_TARGET;
	if (strcmp(word, "gone") == 0)
		return PSYNC_OUTCOME_GONE;
	if (strcmp(word, "again") == 0)
		return PSYNC_OUTCOME_AGAIN;
	return PSYNC_OUTCOME_DELIVERED;
}

static void
settle(PsyncTarget *target, const Attempt *attempt)
{
	PsyncOutcome outcome = {0};
	uint8	   *items = palloc0(attempt->nevents);
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, attempt->begun);
	outcome.kind = kind_of(attempt->word);
	outcome.status = attempt->status;
	outcome.retry_after_ms = attempt->retry_after;
	outcome.elapsed_us = INSTR_TIME_GET_MICROSEC(now);
	if (strcmp(attempt->word, "part") == 0 || strcmp(attempt->word, "later") == 0)
	{
		items[0] = attempt->word[0] == 'p' ? PSYNC_ITEM_REFUSED : PSYNC_ITEM_RETRY;
		outcome.items = items;
	}
	if (outcome.kind != PSYNC_OUTCOME_DELIVERED)
	{
		outcome.sqlerrcode = ERRCODE_CONNECTION_EXCEPTION;
		outcome.reason = psprintf("the probe answered %d", attempt->status);
		outcome.excerpt = "an excerpt";
	}
	services->settle(target, attempt->handle, &outcome);
	pfree(items);
}

/* Answers all at once, but for those that hang. */
static void
probe_poll(PsyncTarget *target, long timeout_ms)
{
	Probe	   *probe = target->private_data;
	int			hanging = 0;
	int			n = probe->nattempts;

	for (int i = 0; i < n; i++)
	{
		if (strcmp(probe->attempts[i].word, "hang") == 0)
			probe->attempts[hanging++] = probe->attempts[i];
		else
			settle(target, &probe->attempts[i]);
	}
	probe->nattempts = hanging;
	if (hanging == n && timeout_ms != 0)
		(void) services->wait(PGINVALID_SOCKET, 0, timeout_ms);
}

static char *
probe_preview(PsyncTarget *target, const PsyncMessage *message)
{
	return psprintf("%s %s\n\n%s", message->content_type, message->key,
					message->body);
}

static void
probe_check(PsyncTarget *target, const PsyncMessage *ping,
			PsyncCheckReport report, void *arg)
{
	const char *directory = services->option(target, "directory");

	report(arg, "directory", directory != NULL && access(directory, W_OK) == 0,
		   directory, 0);
	report(arg, "ping", ping->size > 0, ping->type, 0);
}

static const PsyncMessageTransport messages = {
	.submit = probe_submit,
	.poll = probe_poll,
	.preview = probe_preview,
	.check = probe_check,
};

static const PsyncTransport transport = {
	.magic = PSYNC_TRANSPORT_MAGIC,
	.name = "probe",
	.open = probe_open,
	.close = probe_close,
	.messages = &messages,
};

const PsyncTransport *
payment_sync_transport_init(const PsyncServices *given)
{
	if (given->magic != PSYNC_TRANSPORT_MAGIC)
		return NULL;
	services = given;
	return &transport;
}
