/*
 * option_list.c
 *		The option tables of the wrappers, as rows of SQL.
 *
 * For the view payment_sync.transport_options.  It reads the tables with which
 * the validators check, so the two cannot disagree.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "compat.h"
#include "target/registry.h"

PG_FUNCTION_INFO_V1(payment_sync_read_transport_options);

#define NATTS_OPTION	8

/* Where the next call goes on. */
typedef struct PsyncOptionCursor
{
	const PsyncWrapper *wrapper;
	const PsyncOption *option;
} PsyncOptionCursor;

static const char *const type_names[] = {
	[PSYNC_OPT_STRING] = "string",
	[PSYNC_OPT_INT] = "integer",
	[PSYNC_OPT_BOOL] = "boolean",
	[PSYNC_OPT_ENUM] = "enum",
};

/*
 * As a text[], in the words of the commands.
 */
static Datum
places_of(const PsyncOption *option)
{
	Datum		elems[3];
	int			n = 0;

	if (option->where & PSYNC_ON_WRAPPER)
		elems[n++] = CStringGetTextDatum("foreign-data wrapper");
	if (option->where & PSYNC_ON_SERVER)
		elems[n++] = CStringGetTextDatum("server");
	if (option->where & PSYNC_ON_USER)
		elems[n++] = CStringGetTextDatum("user mapping");
	Assert(n > 0);
	return PointerGetDatum(construct_array(elems, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/* NULL: any text. */
static char *
valid_values(const PsyncOption *option)
{
	switch (option->type)
	{
		case PSYNC_OPT_INT:
			return psprintf(INT64_FORMAT " .. " INT64_FORMAT,
							option->min, option->max);
		case PSYNC_OPT_BOOL:
			return pstrdup("true|false");
		case PSYNC_OPT_ENUM:
			return pstrdup(option->values);
		case PSYNC_OPT_STRING:
			break;
	}
	return NULL;
}

/*
 * A row of the view.
 */
static HeapTuple
form_option(TupleDesc desc, const PsyncOptionCursor *at)
{
	char	   *valid = valid_values(at->option);
	Datum		values[NATTS_OPTION];
	bool		nulls[NATTS_OPTION] = {false};

	Assert(at->option->type < lengthof(type_names));
	values[0] = CStringGetTextDatum(at->wrapper->name);
	values[1] = CStringGetTextDatum(at->option->keyword);
	values[2] = places_of(at->option);
	values[3] = CStringGetTextDatum(type_names[at->option->type]);
	nulls[4] = valid == NULL;
	values[4] = valid != NULL ? CStringGetTextDatum(valid) : (Datum) 0;
	values[5] = BoolGetDatum((at->option->where & PSYNC_BY_SUPERUSER) != 0);
	values[6] = BoolGetDatum(at->option->secret);
	values[7] = CStringGetTextDatum(at->option->meaning);
	return heap_form_tuple(desc, values, nulls);
}

/* To the next wrapper with a table, if there is no option at hand. */
static bool
find_option_at(PsyncOptionCursor *at)
{
	while (at->option == NULL || at->option->keyword == NULL)
	{
		if (at->option != NULL)
			at->wrapper++;
		for (; at->wrapper->name != NULL && at->wrapper->options == NULL; at->wrapper++)
			 /* options that are not ours */ ;
		if (at->wrapper->name == NULL)
			return false;
		at->option = at->wrapper->options;
	}
	return true;
}

/* read_transport_options() */
Datum
payment_sync_read_transport_options(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	PsyncOptionCursor *at;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;
		TupleDesc	desc;

		funcctx = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		Assert(desc->natts == NATTS_OPTION);
		funcctx->tuple_desc = BlessTupleDesc(desc);
		at = palloc0(sizeof(PsyncOptionCursor));
		at->wrapper = psync_wrappers;
		funcctx->user_fctx = at;
		MemoryContextSwitchTo(old);
	}

	funcctx = SRF_PERCALL_SETUP();
	at = funcctx->user_fctx;
	if (find_option_at(at))
	{
		HeapTuple	tuple = form_option(funcctx->tuple_desc, at);

		at->option++;
		SRF_RETURN_NEXT(funcctx, HeapTupleGetDatum(tuple));
	}
	SRF_RETURN_DONE(funcctx);
}
