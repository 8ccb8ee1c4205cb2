/*
 * fuzz_json.c
 *		A target's answer: looked into by path, and read for the results of a
 *		batch's events.
 */
#include "fuzz.h"

#include "../../src/transport/http/json.c"
#include "../../src/transport/http/items.c"

const bool	fuzz_terminated = true;

char *
psync_http_excerpt(const PsyncHttpSettings *settings, const char *text, size_t size)
{
	return pnstrdup(text, size);
}

void
fuzz_one(const char *data, size_t size)
{
	const char *path = fuzz_string(&data, &size);
	const char *retry = fuzz_string(&data, &size);
	PsyncHttpSettings settings = {0};
	PsyncHttpSession session = {.settings = &settings};
	PsyncHttpRoute route = {.origin = "https://example.com"};
	PsyncHttpRequest request = {.route = &route};
	PsyncMessage message = {.nevents = 3};
	PsyncHttpTransfer transfer = {.session = &session, .request = &request, .message = &message};
	PsyncHttpJson root,
				found;

	if (psync_http_json_parse(data, size, &root))
	{
		fuzz_check(root.at >= data && root.end <= data + size && root.at < root.end);
		if (psync_http_json_path(root, path, &found))
		{
			fuzz_check(found.at >= root.at && found.end <= root.end);
			fuzz_check(strlen(psync_http_json_string(found)) <= (size_t) (found.end - found.at));
			(void) psync_http_json_truthy(found);
		}
	}
	settings.items_path = path;
	settings.items_retry = retry;
	settings.items_error = "error";
	for (int i = 0; i < 4; i++)
	{
		PsyncOutcome outcome = {0};

		settings.items_index = i == 0 ? NULL : "index";
		settings.items_success = i < 2 ? NULL : i == 2 ? path : "a=false";
		transfer.answer.body = unconstify(char *, data);
		transfer.answer.body_size = size;
		if (psync_http_read_items(&transfer, &outcome) && outcome.items != NULL)
			fuzz_check(outcome.reason != NULL);
	}
}
