/*
 * fuzz.h
 *		What a fuzz target sees of the harness (runtime.c).
 *
 * A target includes the .c file that it tests, so that static functions can be
 * called, and defines fuzz_one(): one input, in a copy that ends where it
 * ends, with a zero behind it only if "terminated" says so.  An error that is
 * raised ends the input and is fine; a read out of bounds, an overflow, a leak
 * of more memory than FUZZ_MEMORY_MAX, or a failed fuzz_check() is a finding.
 */
#ifndef PSYNC_FUZZ_H
#define PSYNC_FUZZ_H

#include "postgres.h"

#include "lib/stringinfo.h"

extern const bool fuzz_terminated;
extern void fuzz_one(const char *data, size_t size);

/* Cut the input in two at the first zero; the first part as a string. */
extern const char *fuzz_string(const char **data, size_t *size);

extern int	fuzz_encoding;		/* what GetDatabaseEncoding() says */

extern void fuzz_failed(const char *condition, const char *file, int line) pg_attribute_noreturn();
#define fuzz_check(condition) \
	((condition) ? (void) 0 : fuzz_failed(#condition, __FILE__, __LINE__))

#endif
