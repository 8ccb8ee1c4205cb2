/*
 * payment_sync_probe_lacking.c
 *		A transport for messages that cannot submit any.
 */
#include "postgres.h"

#include "fmgr.h"

#include "extension/payment_sync/payment_sync_transport.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const PsyncTransport *payment_sync_transport_init(const PsyncServices *services);

static void
open_nothing(PsyncTarget *target)
{
}

static void
poll_nothing(PsyncTarget *target, long timeout_ms)
{
}

static const PsyncMessageTransport messages = {
	.poll = poll_nothing,
};

static const PsyncTransport transport = {
	.magic = PSYNC_TRANSPORT_MAGIC,
	.name = "lacking",
	.open = open_nothing,
	.close = open_nothing,
	.messages = &messages,
};

const PsyncTransport *
payment_sync_transport_init(const PsyncServices *services)
{
	return &transport;
}
