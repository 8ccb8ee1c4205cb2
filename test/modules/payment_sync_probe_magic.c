/*
 * payment_sync_probe_magic.c
 *		A transport built for another version of the contract.
 */
#include "postgres.h"

#include "fmgr.h"

#include "extension/payment_sync/payment_sync_transport.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT const PsyncTransport *payment_sync_transport_init(const PsyncServices *services);

/* Only the first member can be trusted to be where it is expected. */
static const PsyncTransport transport = {
	.magic = 0x50530001,
};

const PsyncTransport *
payment_sync_transport_init(const PsyncServices *services)
{
	return &transport;
}
