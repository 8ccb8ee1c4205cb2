/*
 * function.h
 *		Arguments and results of functions that SQL calls.
 */
#ifndef PSYNC_FUNCTION_H
#define PSYNC_FUNCTION_H

#include "fmgr.h"
#include "utils/tuplestore.h"

/* An argument of a function that is called on null input, but needs this one. */
extern void psync_require_argument(FunctionCallInfo fcinfo, int n,
								   const char *name);

extern Tuplestorestate *psync_result_begin(FunctionCallInfo fcinfo, TupleDesc *desc);
extern void psync_result_put_spi(Tuplestorestate *store, TupleDesc desc);

#endif							/* PSYNC_FUNCTION_H */
