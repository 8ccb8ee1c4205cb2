/*
 * settings.c
 *		The options that servers of all transports for messages share.
 *
 * Each value by itself was checked by the validator; what only makes sense
 * together is checked here, when a delivery begins.
 */
#include "postgres.h"

#include "foreign/foreign.h"
#include "utils/builtins.h"

#include "compat.h"
#include "message/message.h"
#include "target/registry.h"

/*
 * Its value, or NULL; the user mapping's goes before the server's.
 */
static const char *
option(const PsyncTarget *target, const char *keyword)
{
	return psync_services->option(target, keyword);
}

/*
 * Validated when it was set: a number in range.
 */
static int64
int_option(const PsyncTarget *target, const char *keyword, int64 otherwise)
{
	const char *value = option(target, keyword);

	return value != NULL ? strtoll(value, NULL, 10) : otherwise;
}

/*
 * Likewise one of the words for true and false.
 */
static bool
bool_option(const PsyncTarget *target, const char *keyword, bool otherwise)
{
	const char *value = option(target, keyword);
	bool		result = otherwise;

	if (value != NULL)
		(void) parse_bool(value, &result);
	return result;
}

/*
 * Numbers that do not fit a double are strings, unless their receiver insists.
 */
static bool
is_quoted(const PsyncTarget *target, const char *keyword)
{
	const char *value = option(target, keyword);

	return value == NULL || strcmp(value, "number") != 0;
}

/*
 * The validator knows the same words.
 */
static PsyncFormat
format_option(const PsyncTarget *target)
{
	static const char *const names[] = {
		[PSYNC_FORMAT_JSON] = "json",
		[PSYNC_FORMAT_NDJSON] = "ndjson",
		[PSYNC_FORMAT_CLOUDEVENTS] = "cloudevents",
		[PSYNC_FORMAT_CLOUDEVENTS_BINARY] = "cloudevents_binary",
		[PSYNC_FORMAT_CLOUDEVENTS_BATCH] = "cloudevents_batch",
		[PSYNC_FORMAT_DEBEZIUM] = "debezium",
		[PSYNC_FORMAT_RAW] = "raw",
	};
	const char *value = option(target, "format");

	for (int i = 0; value != NULL && i < lengthof(names); i++)
		if (strcmp(value, names[i]) == 0)
			return (PsyncFormat) i;
	return PSYNC_FORMAT_JSON;
}

/*
 * Likewise.
 */
static PsyncOrdering
ordering_option(const PsyncTarget *target)
{
	const char *value = option(target, "ordering");

	if (value != NULL && strcmp(value, "strict") == 0)
		return PSYNC_ORDER_STRICT;
	if (value != NULL && strcmp(value, "none") == 0)
		return PSYNC_ORDER_NONE;
	return PSYNC_ORDER_KEY;
}

pg_noreturn static void
refuse(const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("options of the server contradict each other"),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}

/*
 * What only makes sense together: what a format can hold, and delays that are
 * in order.
 */
static void
check_together(const PsyncMessageSettings *settings, const char *transform)
{
	bool		single = settings->format == PSYNC_FORMAT_CLOUDEVENTS ||
		settings->format == PSYNC_FORMAT_CLOUDEVENTS_BINARY ||
		settings->format == PSYNC_FORMAT_RAW;

	if (single && settings->batch_max > 1)
		refuse("This format has one event per message, but max_batch is greater than 1.",
			   "Batches of CloudEvents have the format cloudevents_batch.");
	if (settings->format == PSYNC_FORMAT_RAW && transform == NULL)
		refuse("With the format raw, the sync's transform makes the body, but the sync has none.",
			   "Set one with payment_sync.alter_sync(name, transform => …).");
	if (settings->thin && (settings->format == PSYNC_FORMAT_DEBEZIUM ||
						   settings->format == PSYNC_FORMAT_RAW))
		refuse("This format has no thin events.",
			   "Set thin to false, or choose the format json or one of cloudevents.");
	if (transform != NULL && settings->format == PSYNC_FORMAT_DEBEZIUM)
		refuse("Debezium's envelope leaves no place for a transform.",
			   "Choose another format, or remove the sync's transform.");
	if (transform != NULL && settings->thin)
		refuse("A transform makes the whole of an event, so there is nothing left to be thin.",
			   "Set thin to false, or remove the sync's transform.");
	if (settings->retry_delay_min > settings->retry_delay_max)
		refuse("retry_delay_min is greater than retry_delay_max.",
			   "Raise retry_delay_max, or lower retry_delay_min.");
}

/* A copy in UTF-8, as all that is sent. */
static char *
utf8(const char *text)
{
	StringInfoData buf;

	Assert(text != NULL);
	initStringInfo(&buf);
	psync_json_plain_utf8(&buf, text);
	appendStringInfoChar(&buf, '\0');
	return buf.data;
}

/* Read in the current memory context; raises an error if they contradict. */
void
psync_message_settings(PsyncMessageSettings *settings, const PsyncTarget *target,
					   const char *transform)
{
	const char *source = option(target, "source");
	const char *refused = option(target, "on_refused");

	memset(settings, 0, sizeof(*settings));
	settings->format = format_option(target);
	settings->thin = bool_option(target, "thin", false);
	settings->previous = bool_option(target, "previous", true);
	settings->json.numeric_quoted = is_quoted(target, "numeric_as");
	settings->json.bigint_quoted = is_quoted(target, "bigint_as");
	settings->source = source != NULL ? utf8(source) :
		psprintf("urn:uuid:%s", target->log_id);
	settings->batch_max = (int) int_option(target, "max_batch", 1);
	settings->batch_bytes_max = (int) int_option(target, "max_batch_bytes", 1024 * 1024);
	settings->linger_ms = (int) int_option(target, "linger", 0);
	settings->in_flight_max = (int) int_option(target, "max_in_flight", 32);
	settings->rate_limit = (int) int_option(target, "rate_limit", 0);
	settings->ordering = ordering_option(target);
	settings->retry_delay_min = int_option(target, "retry_delay_min", 200);
	settings->retry_delay_max = int_option(target, "retry_delay_max", 60000);
	settings->retry_after_max = int_option(target, "retry_after_max", 3600000);
	settings->hold_refused = refused != NULL && strcmp(refused, "hold") == 0;
	settings->parked_max = (int) int_option(target, "max_parked", 1000);
	settings->disable_after = int_option(target, "disable_after", 432000);
	check_together(settings, transform);
	Assert(settings->batch_max >= 1 && settings->in_flight_max >= 1);
}

/*
 * What would be refused when a delivery begins, for those who define a sync:
 * by the server's options only, as no message option belongs to a user.
 */
void
psync_message_options_check(const ForeignServer *server, const char *transform)
{
	PsyncMessageSettings ignored;
	PsyncTarget target = {.log_id = ""};

	Assert(server != NULL);
	target.server_options = server->options;
	psync_message_settings(&ignored, &target, transform);
}
