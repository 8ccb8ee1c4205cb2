/*
 * message_options.h
 *		Options that servers of all transports for messages have in common.
 *
 * What they mean is the core's business (message/), which reads
 * them through its own services; a transport only lists them among its own:
 *
 *		const PsyncOption psync_NAME_options[] = {
 *			...
 *			PSYNC_MESSAGE_OPTIONS,
 *			{NULL}
 *		};
 *
 * Times are in milliseconds unless the meaning says otherwise.  Defaults are
 * in message/settings.c, which checks that they agree with each other.
 */
#ifndef PSYNC_MESSAGE_OPTIONS_H
#define PSYNC_MESSAGE_OPTIONS_H

#include "transport/payment_sync_transport.h"

#define PSYNC_MESSAGE_ENUM(keyword, values, meaning) \
	{keyword, PSYNC_ON_SERVER, PSYNC_OPT_ENUM, false, 0, 0, values, meaning}
#define PSYNC_MESSAGE_INT(keyword, min, max, meaning) \
	{keyword, PSYNC_ON_SERVER, PSYNC_OPT_INT, false, min, max, NULL, meaning}
#define PSYNC_MESSAGE_BOOL(keyword, meaning) \
	{keyword, PSYNC_ON_SERVER, PSYNC_OPT_BOOL, false, 0, 0, NULL, meaning}
#define PSYNC_MESSAGE_STRING(keyword, meaning) \
	{keyword, PSYNC_ON_SERVER, PSYNC_OPT_STRING, false, 0, 0, NULL, meaning}

#define PSYNC_MESSAGE_FORMATS \
	"json|ndjson|cloudevents|cloudevents_binary|cloudevents_batch|debezium|raw"

#define PSYNC_MESSAGE_OPTIONS \
	/* what a body looks like */ \
	PSYNC_MESSAGE_ENUM("format", PSYNC_MESSAGE_FORMATS, \
		"how events become bodies (default json)"), \
	PSYNC_MESSAGE_BOOL("thin", \
		"events bear id, type and key only (default false)"), \
	PSYNC_MESSAGE_BOOL("previous", \
		"events bear the position of the same key's previous event, where known (default true)"), \
	PSYNC_MESSAGE_ENUM("numeric_as", "string|number", \
		"how numeric values are written in JSON (default string)"), \
	PSYNC_MESSAGE_ENUM("bigint_as", "string|number", \
		"how bigint values are written in JSON (default string)"), \
	PSYNC_MESSAGE_STRING("source", \
		"who sends, in CloudEvents' source and Debezium's name (default: urn:uuid: and the change log's identity)"), \
	/* how many at once */ \
	PSYNC_MESSAGE_INT("max_batch", 1, 10000, \
		"events per message at most (default 1)"), \
	PSYNC_MESSAGE_INT("max_batch_bytes", 1024, 64 * 1024 * 1024, \
		"bytes after which a message takes no further event (default 1048576)"), \
	PSYNC_MESSAGE_INT("linger", 0, 60000, \
		"milliseconds that a message that is not full waits for more events (default 0)"), \
	PSYNC_MESSAGE_INT("max_in_flight", 1, 1024, \
		"messages without an answer at most (default 32)"), \
	PSYNC_MESSAGE_INT("rate_limit", 0, 1000000, \
		"messages per second at most (default 0: no limit)"), \
	PSYNC_MESSAGE_ENUM("ordering", "key|strict|none", \
		"what must wait for its predecessors: events of the same key, all, none (default key)"), \
	/* what if it fails */ \
	PSYNC_MESSAGE_INT("retry_delay_min", 1, 3600000, \
		"milliseconds before the first retry; each further one doubles it (default 200)"), \
	PSYNC_MESSAGE_INT("retry_delay_max", 1, 86400000, \
		"milliseconds before a retry at most (default 60000)"), \
	PSYNC_MESSAGE_INT("retry_after_max", 0, 86400000, \
		"milliseconds that the target may ask to wait at most (default 3600000)"), \
	PSYNC_MESSAGE_ENUM("on_refused", "dead_letter|hold", \
		"a refused event becomes a dead letter, or also holds later events of its key (default dead_letter)"), \
	PSYNC_MESSAGE_INT("max_parked", 0, 10000, \
		"events at most that are retried while others go on (default 1000)"), \
	PSYNC_MESSAGE_INT("disable_after", 0, 31536000, \
		"seconds of failure after which the sync is disabled (default 432000, 0: never)")

#endif							/* PSYNC_MESSAGE_OPTIONS_H */
