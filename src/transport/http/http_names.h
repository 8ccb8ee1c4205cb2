/*
 * http_names.h
 *		Names of options that the core's validator and the transport share,
 *		which do not link to each other; therefore in a header.
 */
#ifndef PSYNC_HTTP_NAMES_H
#define PSYNC_HTTP_NAMES_H

/* Template signers; each name begins the names of the signer's options. */
static const char *const psync_http_signer_names[] = {
	"signer", "signer2", "signer3", "signer4", NULL
};

#define PSYNC_HTTP_SIGNERS_MAX	(lengthof(psync_http_signer_names) - 1)

#endif							/* PSYNC_HTTP_NAMES_H */
