/*
 * items.c
 *		Results per event, from the body of an answer to several.
 *
 * As SQS and EventBridge give them: the status says 200, and a list in the
 * body how each event fared, either an entry per event, in their order, or an
 * entry per failure, with the number of its event.  A list of failures must be
 * there, if only an empty one; else what items_success leads to has to say
 * that the events were taken.  A 200 with "internal failure" lists no failure
 * of an event either.
 *
 * A failure may pass (throttled, internal error) or is a refusal.  Which of
 * them it is its code tells, by the list of the option items_retry.  A code
 * that is not in the list is a refusal: a dead letter is kept and seen, while
 * an event that is retried for ever for a reason that never passes is neither.
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "transport/http/http_transport.h"

/* Codes that are longer match nothing but "*". */
#define PSYNC_HTTP_CODE_BYTES_MAX	128

/* ------------------------------------------------------------------ codes */

/*
 * Does the code match the pattern, which may begin or end with "*"?  Letters'
 * case does not count.
 */
static bool
matches(const char *pattern, size_t size, const char *code)
{
	size_t		length = strlen(code);
	bool		open_begin = size > 0 && pattern[0] == '*';
	bool		open_end;

	if (open_begin)
	{
		pattern++;
		size--;
	}
	open_end = size > 0 && pattern[size - 1] == '*';
	size -= open_end ? 1 : 0;
	if (length < size || (!open_begin && !open_end && length != size))
		return false;
	if (!open_begin)
		return pg_strncasecmp(pattern, code, size) == 0;
	if (!open_end)
		return pg_strncasecmp(pattern, code + length - size, size) == 0;
	for (size_t i = 0; i + size <= length; i++)
		if (pg_strncasecmp(pattern, code + i, size) == 0)
			return true;
	return false;
}

/* Is the code one of the list's?  Its items are by commas. */
static bool
is_listed(const char *list, const char *code)
{
	while (*list != '\0')
	{
		size_t		size;
		size_t		item;

		list += strspn(list, " \t\n");
		item = size = strcspn(list, ",");
		while (size > 0 && strchr(" \t\n", list[size - 1]) != NULL)
			size--;
		if (size > 0 && matches(list, size, code))
			return true;
		list += item;
		if (*list == ',')
			list++;
	}
	return false;
}

/*
 * The code of a failure: what items_code leads to; else the error itself, or
 * its member "code".  Empty if there is none, or none that is a word.
 */
static const char *
code_of(const PsyncHttpSettings *settings, PsyncHttpJson item)
{
	PsyncHttpJson code;
	PsyncHttpJson member;

	if (settings->items_code != NULL)
	{
		if (!psync_http_json_path(item, settings->items_code, &code))
			return "";
	}
	else if (settings->items_error == NULL ||
			 !psync_http_json_path(item, settings->items_error, &code))
		code = item;
	if (psync_http_json_member(code, "code", &member) ||
		psync_http_json_member(code, "Code", &member))
		code = member;
	Assert(code.at <= code.end);
	if (code.at == code.end || *code.at == '{' || *code.at == '[' ||
		code.end - code.at > PSYNC_HTTP_CODE_BYTES_MAX)
		return "";
	return psync_http_json_string(code);
}

/* --------------------------------------------------------------- entries */

/* Does this entry speak of a failure? */
static bool
is_failure(const PsyncHttpSettings *settings, PsyncHttpJson item)
{
	PsyncHttpJson error;

	if (settings->items_error == NULL)
		return true;
	return psync_http_json_path(item, settings->items_error, &error) &&
		psync_http_json_truthy(error);
}

/* The number of the event that an entry speaks of; -1 if it says none. */
static int
index_of(const PsyncHttpSettings *settings, PsyncHttpJson item, int position)
{
	PsyncHttpJson index;
	char	   *text;
	char	   *end;
	long		number;

	if (settings->items_index == NULL)
		return position;
	if (!psync_http_json_member(item, settings->items_index, &index))
		return -1;
	text = psync_http_json_string(index);
	number = strtol(text, &end, 10);
	return end == text || *end != '\0' || number < 0 || number > INT_MAX ? -1 : (int) number;
}

/* What is said of a failure: the code is the target's, so it is cleaned. */
static const char *
reason_of(const PsyncHttpTransfer *transfer, const char *code)
{
	Assert(code != NULL);
	return psprintf("%s answered with status %d, but with an error for the event%s%s",
					transfer->request->route->origin, transfer->answer.status,
					code[0] != '\0' ? ": " : "",
					psync_http_excerpt(transfer->session->settings, code, strlen(code)));
}

/* ------------------------------------------------------------- success */

/* How many entries has the list? None if it is not there; -1 if it is no list. */
static int
count_entries(PsyncHttpJson root, const char *path)
{
	PsyncHttpJson list;
	PsyncHttpJson item;
	const char *cursor = NULL;
	int			n = 0;

	if (!psync_http_json_path(root, path, &list))
		return 0;
	while (psync_http_json_element(list, &cursor, &item))
		n++;
	return psync_http_json_is_read(list, cursor) ? n : -1;
}

/* Does the answer have the value that follows the path, as "errors=false"? */
static bool
has_value(PsyncHttpJson root, const char *path, const char *value)
{
	PsyncHttpJson member;

	return psync_http_json_path(root, path, &member) &&
		strcmp(psync_http_json_string(member), value) == 0;
}

/*
 * Were all events taken that are not among the failures?  "listed" says that
 * the list of failures was there.
 */
static bool
says_success(const PsyncHttpSettings *settings, PsyncHttpJson root, bool listed,
			 int nexpected)
{
	const char *success = settings->items_success;
	const char *value;

	Assert(settings->items_index != NULL);
	if (success == NULL)
		return listed;
	value = strchr(success, '=');
	if (value == NULL)
		return count_entries(root, success) == nexpected;
	return listed ||
		has_value(root, pnstrdup(success, value - success), value + 1);
}

/*
 * Results per event, in outcome->items if any has failed.  False if the answer
 * does not have them as it should: what is not understood is no
 * acknowledgement.
 */
bool
psync_http_read_items(const PsyncHttpTransfer *transfer, PsyncOutcome *outcome)
{
	const PsyncHttpSettings *settings = transfer->session->settings;
	const PsyncHttpAnswer *answer = &transfer->answer;
	int			nevents = transfer->message->nevents;
	uint8	   *items = palloc0(Max(nevents, 1));
	const char **reasons = palloc0(Max(nevents, 1) * sizeof(char *));
	const char *cursor = NULL;
	const char *failed = NULL;
	bool		listed;
	PsyncHttpJson root,
				list,
				item;
	int			n = 0;
	int			nfailed = 0;

	Assert(outcome->items == NULL && outcome->reason == NULL);
	if (!psync_http_json_parse(answer->body, answer->body_size, &root))
		return false;
	listed = psync_http_json_path(root, settings->items_path, &list) && *list.at == '[';
	while (listed && psync_http_json_element(list, &cursor, &item))
	{
		int			index = index_of(settings, item, n++);

		if (index < 0 || index >= nevents)
			return false;
		if (is_failure(settings, item))
		{
			const char *code = code_of(settings, item);

			nfailed += reasons[index] == NULL ? 1 : 0;
			items[index] = is_listed(settings->items_retry, code) ?
				PSYNC_ITEM_RETRY : PSYNC_ITEM_REFUSED;
			failed = reasons[index] = reason_of(transfer, code);
		}
	}
	if (listed && !psync_http_json_is_read(list, cursor))
		return false;
	if (settings->items_index == NULL ? n != nevents :
		!says_success(settings, root, listed, nevents - nfailed))
		return false;
	if (failed != NULL)
	{
		outcome->items = items;
		outcome->item_reasons = reasons;
		outcome->reason = failed;
	}
	return true;
}
