/*
 * store.c
 *		Runs, suspects and discrepancies in their tables.
 *
 * A run's row is written after each step, together with what the step has
 * found, so a run that was killed goes on behind its last step, and nothing
 * is counted twice.  A discrepancy has one row for as long as it lasts: each
 * run that sees it again moves its last_run on, so that it ages; a full run
 * that does not see it any more marks it as gone.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"

/* -------------------------------------------------------------------- runs */

static const char load_command[] =
	"SELECT sync, owner::oid, other, server, key, columns, other_columns, condition,"
	" key_after, key_upto, recent, digest = 'sha256', tolerance::text,"
	" rows_per_second, (extract(epoch FROM max_wait) * 1000)::bigint,"
	" seeds[1], seeds[2], state, cursor, started IS NOT NULL,"
	" source_rows, target_rows, missing, unexpected, different, rows_moved, compared"
	" FROM payment_sync.reconciliation WHERE run = $1 AND relid = $2";

/*
 * A column of load_command's only row, as the next six.
 */
static Datum
run_datum(int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, isnull);
}

/*
 * 0 for a null.
 */
static int64
run_int(int column)
{
	bool		isnull;
	Datum		value = run_datum(column, &isnull);

	return isnull ? 0 : DatumGetInt64(value);
}

/*
 * Never null.
 */
static bool
run_bool(int column)
{
	bool		isnull;

	return DatumGetBool(run_datum(column, &isnull));
}

/*
 * Copied to the current memory context; NULL for a null.
 */
static char *
run_text(int column)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);
}

/*
 * NIL for a null.
 */
static List *
run_names(int column)
{
	bool		isnull;
	Datum		value = run_datum(column, &isnull);

	return isnull ? NIL : psync_name_list(DatumGetArrayTypeP(value));
}

/*
 * The elements in the current memory context; NULL for a null.
 */
static char **
text_array(Datum value, int *n)
{
	Datum	   *elems;
	bool	   *nulls;
	char	  **result;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, n);
	result = palloc(Max(1, *n) * sizeof(char *));
	for (int i = 0; i < *n; i++)
		result[i] = nulls[i] ? NULL : TextDatumGetCString(elems[i]);
	return result;
}

/*
 * A key; NULL for a null, with *n = 0.  Users give bounds, too, which cannot
 * have nulls.
 */
static char **
run_key(int column, int *n)
{
	bool		isnull;
	Datum		value = run_datum(column, &isnull);
	char	  **key;

	*n = 0;
	if (isnull)
		return NULL;
	key = text_array(value, n);
	for (int k = 0; k < *n; k++)
	{
		if (key[k] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("bounds of the part to reconcile must not have nulls")));
	}
	return key;
}

/*
 * Likewise all of it.  The columns' numbers are those of load_command.
 */
static PsyncRun *
run_from_row(PsyncCounts *counts)
{
	PsyncRun   *run = palloc0(sizeof(PsyncRun));
	bool		isnull;
	Datum		value = run_datum(1, &isnull);

	run->has_sync = !isnull;
	if (!isnull)
		run->sync = *DatumGetUUIDP(value);
	run->owner = DatumGetObjectId(run_datum(2, &isnull));
	run->other = DatumGetObjectId(run_datum(3, &isnull));
	run->server = run_text(4);
	run->key = run_names(5);
	run->columns = run_names(6);
	run->other_columns = run_names(7);
	run->where = run_text(8);
	run->after = run_key(9, &run->nafter);
	run->upto = run_key(10, &run->nupto);
	run->recent = run_bool(11);
	run->crypto = run_bool(12);
	run->tolerance = run_text(13);
	run->rows_per_second = run_int(14);
	run->max_wait = run_int(15);
	run->seeds[0] = run_int(16);
	run->seeds[1] = run_int(17);
	run->state = run_text(18);
	run->cursor = run_key(19, &run->ncursor);
	run->started = run_bool(20);
	counts->source_rows = run_int(21);
	counts->target_rows = run_int(22);
	counts->missing = run_int(23);
	counts->unexpected = run_int(24);
	counts->different = run_int(25);
	counts->rows_moved = run_int(26);
	run->compared = run_bool(27);
	return run;
}

/* In the current memory context; NULL if there is no such run. */
PsyncRun *
psync_run_load(int64 number, Oid relid, PsyncCounts *counts)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[2] = {INT8OID, OIDOID};
	Datum		values[2];
	PsyncRun   *run = NULL;

	Assert(number > 0 && OidIsValid(relid));

	values[0] = Int64GetDatum(number);
	values[1] = ObjectIdGetDatum(relid);
	if (psync_owner_execute(load_command, 2, types, values, NULL) > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		run = run_from_row(counts);
		run->run = number;
		run->relid = relid;
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return run;
}

/* Run a command about this run's row: $1 and $2 name it. */
static uint64
execute_run(const PsyncReconcile *rec, const char *command, int nargs,
			Oid *more_types, Datum *more_values, const char *more_nulls)
{
	Oid			types[12] = {INT8OID, OIDOID};
	Datum		values[12];
	char		nulls[13] = "            ";
	uint64		processed;

	Assert(nargs <= 10);
	values[0] = Int64GetDatum(rec->run->run);
	values[1] = ObjectIdGetDatum(rec->run->relid);
	for (int i = 0; i < nargs; i++)
	{
		types[i + 2] = more_types[i];
		values[i + 2] = more_values[i];
		nulls[i + 2] = more_nulls != NULL ? more_nulls[i] : ' ';
	}
	processed = psync_owner_execute(command, nargs + 2, types, values, nulls);
	SPI_finish();
	return processed;
}

/*
 * It begins, or goes on.  Suspects that an earlier run of the same two
 * relations has left are no longer of interest.
 */
void
psync_run_begin(PsyncReconcile *rec)
{
	Oid			types[2] = {INT8OID, TEXTOID};
	Datum		values[2];

	values[0] = Int64GetDatum((int64) rec->side[PSYNC_SOURCE].rows);
	values[1] = CStringGetTextDatum(rec->hashed ? "hash" : "range");
	(void) execute_run(rec, "UPDATE payment_sync.reconciliation SET state = 'running',"
					   " rows_estimated = $3, division = $4, error = NULL,"
					   " started = COALESCE(started, clock_timestamp())"
					   " WHERE run = $1 AND relid = $2", 2, types, values, NULL);
	if (rec->run->started)
		return;
	(void) execute_run(rec, "DELETE FROM payment_sync.suspect s USING payment_sync.reconciliation r"
					   " WHERE r.run = $1 AND r.relid = $2 AND s.relid = $2 AND s.run < $1"
					   " AND EXISTS (SELECT FROM payment_sync.reconciliation o WHERE o.run = s.run"
					   " AND o.relid = s.relid AND o.sync = r.sync AND o.other = r.other"
					   " AND o.state NOT IN ('pending', 'running'))", 0, NULL, NULL, NULL);
}

/*
 * A step is done.  False if somebody has cancelled the run meanwhile.  The
 * cursor is NULL until a step has an end; after the last step all is compared,
 * and who goes on with the run has nothing left but suspects.
 */
bool
psync_run_save(PsyncReconcile *rec, char **cursor, bool compared)
{
	PsyncCounts *counts = &rec->counts;
	Oid			types[10] = {INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID,
	INT8OID, TEXTARRAYOID, TEXTOID, BOOLOID};
	Datum		values[10];
	char		nulls[11] = "          ";

	Assert(counts->missing >= 0 && counts->in_flight >= 0);

	values[0] = Int64GetDatum(counts->source_rows);
	values[1] = Int64GetDatum(counts->target_rows);
	values[2] = Int64GetDatum(counts->missing);
	values[3] = Int64GetDatum(counts->unexpected);
	values[4] = Int64GetDatum(counts->different);
	values[5] = Int64GetDatum(counts->in_flight);
	values[6] = Int64GetDatum(counts->rows_moved);
	nulls[7] = cursor != NULL ? ' ' : 'n';
	values[7] = (Datum) 0;
	if (cursor != NULL)
	{
		Datum	   *elems = palloc(rec->nkeys * sizeof(Datum));

		for (int k = 0; k < rec->nkeys; k++)
			elems[k] = CStringGetTextDatum(cursor[k]);
		values[7] = PointerGetDatum(construct_array(elems, rec->nkeys, TEXTOID, -1,
													false, TYPALIGN_INT));
	}
	nulls[8] = rec->position != NULL ? ' ' : 'n';
	values[8] = rec->position != NULL ? CStringGetTextDatum(rec->position) : (Datum) 0;
	values[9] = BoolGetDatum(compared);
	return execute_run(rec, "UPDATE payment_sync.reconciliation SET source_rows = $3,"
					   " target_rows = $4, missing = $5, unexpected = $6, different = $7,"
					   " in_flight = $8, rows_moved = $9, cursor = COALESCE($10, cursor),"
					   " position = COALESCE($11, position), compared = $12, saved = clock_timestamp()"
					   " WHERE run = $1 AND relid = $2 AND state = 'running'",
					   10, types, values, nulls) > 0;
}

/*
 * A schedule would fill the table with runs that found nothing.  The latest
 * hundred are kept, and all that did find something.
 */
static void
forget_old_runs(const PsyncReconcile *rec)
{
	(void) execute_run(rec, "DELETE FROM payment_sync.reconciliation o"
					   " USING payment_sync.reconciliation r"
					   " WHERE r.run = $1 AND r.relid = $2 AND r.scheduled AND o.scheduled"
					   " AND o.sync = r.sync AND o.relid = r.relid AND o.state = 'done'"
					   " AND o.missing + o.unexpected + o.different = 0"
					   " AND o.run < (SELECT min(l.run) FROM (SELECT l.run FROM payment_sync.reconciliation l"
					   "  WHERE l.sync = r.sync AND l.relid = r.relid AND l.scheduled"
					   "  ORDER BY l.run DESC LIMIT 100) l)", 0, NULL, NULL, NULL);
}

/*
 * All is compared.  What earlier runs saw, and this one did not although it
 * has looked at everything, closely, and at no past state, is gone.
 */
void
psync_run_finish(PsyncReconcile *rec)
{
	(void) execute_run(rec, "UPDATE payment_sync.reconciliation SET state = 'done',"
					   " finished = clock_timestamp() WHERE run = $1 AND relid = $2"
					   " AND state = 'running'", 0, NULL, NULL, NULL);
	forget_old_runs(rec);
	if (rec->has_lagged || rec->run->where != NULL || rec->run->recent || rec->run->after != NULL ||
		rec->run->upto != NULL || rec->run->tolerance != NULL)
		return;
	(void) execute_run(rec, "UPDATE payment_sync.discrepancy d SET state ="
					   " CASE d.state WHEN 'repairing' THEN 'repaired' ELSE 'gone' END,"
					   " changed_at = clock_timestamp()"
					   " FROM payment_sync.reconciliation r WHERE r.run = $1 AND r.relid = $2"
					   " AND d.relid = r.relid AND d.other = r.other"
					   " AND d.sync IS NOT DISTINCT FROM r.sync"
					   " AND d.last_run < r.run AND d.state IN ('open', 'accepted', 'repairing')"
					   " AND NOT EXISTS (SELECT FROM payment_sync.suspect s"
					   " WHERE s.run = r.run AND s.relid = r.relid AND s.name = d.name)",
					   0, NULL, NULL, NULL);
}

/*
 * What is left of the run is given up.  In a transaction of its own, after the
 * one that failed.
 */
void
psync_run_failed(int64 run, const char *message)
{
	Oid			types[2] = {INT8OID, TEXTOID};
	Datum		values[2];

	Assert(message != NULL);

	values[0] = Int64GetDatum(run);
	values[1] = CStringGetTextDatum(message);
	(void) psync_owner_execute("UPDATE payment_sync.reconciliation SET state = 'failed',"
							   " error = $2, finished = clock_timestamp()"
							   " WHERE run = $1 AND state IN ('pending', 'running')",
							   2, types, values, NULL);
	SPI_finish();
}

/*
 * Make the rows of a run of the sync that the command finds to be due; the
 * run's number.
 */
int64
psync_run_request_due(const char *due_command)
{
	StringInfoData command;
	bool		isnull;
	int64		run = 0;

	initStringInfo(&command);
	appendStringInfo(&command, "INSERT INTO payment_sync.reconciliation (run, relid, sync,"
					 " sync_name, owner, scheduled)"
					 " SELECT n.run, c.oid, s.id, s.name, s.owner, true"
					 " FROM (%s) due JOIN payment_sync.sync s ON s.name = due.name"
					 " JOIN payment_sync.sync_table t ON t.sync = s.id"
					 " JOIN pg_class c ON c.oid = t.relid,"
					 " (SELECT nextval('payment_sync.reconciliation_run') AS run) n"
					 " RETURNING run", due_command);
	if (psync_owner_execute(command.data, 0, NULL, NULL, NULL) > 0)
		run = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
										  1, &isnull));
	SPI_finish();
	return run;
}

/* ------------------------------------------------------------ discrepancies */

/*
 * Names of the columns that differ, as an array's text; empty for a row that
 * is not there.
 */
static Datum
differing_names(const PsyncReconcile *rec, const bool *differs)
{
	List	   *names = NIL;
	ArrayType  *array;
	Oid			output;
	bool		is_varlena;

	for (int i = 0; differs != NULL && i < rec->npairs; i++)
	{
		if (differs[i])
			names = lappend(names, rec->pairs[i].name);
	}
	array = DatumGetArrayTypeP(psync_name_array(names));
	getTypeOutputInfo(NAMEARRAYOID, &output, &is_varlena);
	return CStringGetTextDatum(OidOutputFunctionCall(output, PointerGetDatum(array)));
}

/* A column of the arrays that a batch of rows is handed over in. */
typedef struct PsyncTextColumn
{
	Datum	   *values;
	bool	   *nulls;
} PsyncTextColumn;

/*
 * Room for n values, all null.
 */
static void
column_init(PsyncTextColumn *column, int n)
{
	column->values = palloc0(Max(1, n) * sizeof(Datum));
	column->nulls = palloc0(Max(1, n) * sizeof(bool));
}

/*
 * The first n values as a text[].
 */
static Datum
column_array(const PsyncTextColumn *column, int n)
{
	int			dims[1] = {n};
	int			lbs[1] = {1};

	Assert(n > 0);

	return PointerGetDatum(construct_md_array(column->values, column->nulls, 1, dims,
											  lbs, TEXTOID, -1, false, TYPALIGN_INT));
}

static const char discrepancy_command[] =
	"INSERT INTO payment_sync.discrepancy AS d (sync, owner, relid, other, name, key, kind,"
	" source, target, columns, first_run, last_run)"
	" SELECT r.sync, r.owner, r.relid, r.other, n.name, n.key::jsonb, n.kind,"
	" n.source::jsonb, n.target::jsonb, n.columns::name[], r.run, r.run"
	" FROM payment_sync.reconciliation r,"
	" unnest($3, $4, $5, $6, $7, $8) n(name, key, kind, source, target, columns)"
	" WHERE r.run = $1 AND r.relid = $2"
	" ON CONFLICT (COALESCE(sync, '00000000-0000-0000-0000-000000000000'), relid, other, digest)"
	" WHERE state IN ('open', 'accepted', 'repairing') DO UPDATE SET"
	" last_run = excluded.last_run, last_seen = excluded.last_seen,"
	/* what was accepted or repaired was this difference and no other */
	" state = CASE WHEN d.state = 'accepted' AND d.kind = excluded.kind"
	"  AND d.source IS NOT DISTINCT FROM excluded.source"
	"  AND d.target IS NOT DISTINCT FROM excluded.target THEN 'accepted' ELSE 'open' END,"
	" kind = excluded.kind, source = excluded.source, target = excluded.target,"
	" columns = excluded.columns";

/* Name, key, kind, source, target, columns. */
#define NATTS_RECORD	6

/*
 * The size of a text.
 */
static Size
text_size(Datum text, bool isnull)
{
	return isnull ? 0 : VARSIZE_ANY(DatumGetPointer(text));
}

/*
 * Fill in row "at" from the difference; its size.
 */
static Size
record_difference(const PsyncReconcile *rec, const PsyncDifference *difference,
				  PsyncTextColumn *columns, int at)
{
	const char *kind = difference->target == NULL ? "missing" :
		difference->source == NULL ? "unexpected" : "different";
	Size		size = 0;

	columns[0].values[at] = CStringGetTextDatum(difference->name);
	columns[1].values[at] = psync_key_json(rec, difference->key);
	columns[2].values[at] = CStringGetTextDatum(kind);
	columns[3].nulls[at] = difference->source == NULL;
	if (difference->source != NULL)
		columns[3].values[at] = psync_row_json(rec, PSYNC_SOURCE, difference->source);
	columns[4].nulls[at] = difference->target == NULL;
	if (difference->target != NULL)
		columns[4].values[at] = psync_row_json(rec, PSYNC_OTHER, difference->target);
	columns[5].values[at] = differing_names(rec, difference->differs);
	for (int c = 0; c < NATTS_RECORD; c++)
		size += text_size(columns[c].values[at], columns[c].nulls[at]);
	return size;
}

/* Write the first n of the rows, if there are any. */
static void
write_records(PsyncReconcile *rec, const PsyncTextColumn *columns, int n)
{
	Oid			types[NATTS_RECORD];
	Datum		values[NATTS_RECORD];

	if (n == 0)
		return;
	for (int c = 0; c < NATTS_RECORD; c++)
	{
		types[c] = TEXTARRAYOID;
		values[c] = column_array(&columns[c], n);
	}
	(void) execute_run(rec, discrepancy_command, NATTS_RECORD, types, values, NULL);
}

/*
 * Record the verdicts among the differences, in as few statements as the rows'
 * width allows.
 */
void
psync_store_differences(PsyncReconcile *rec, PsyncDifference *differences, int n)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "payment_sync records",
												  ALLOCSET_DEFAULT_SIZES);
	PsyncTextColumn columns[NATTS_RECORD];
	Size		size = 0;
	int			count = 0;

	Assert(n >= 0);

	for (int c = 0; c < NATTS_RECORD; c++)
		column_init(&columns[c], n);
	for (int i = 0; i < n; i++)
	{
		MemoryContext old;

		/* a key that is there twice, in a file, makes one discrepancy */
		if (differences[i].touched ||
			(i > 0 && !differences[i - 1].touched &&
			 strcmp(differences[i].name, differences[i - 1].name) == 0))
			continue;
		old = MemoryContextSwitchTo(context);
		size += record_difference(rec, &differences[i], columns, count++);
		if (size > PSYNC_READ_BYTES)
		{
			write_records(rec, columns, count);
			MemoryContextReset(context);
			count = 0;
			size = 0;
		}
		MemoryContextSwitchTo(old);
	}
	write_records(rec, columns, count);
	MemoryContextDelete(context);
}

/* ----------------------------------------------------------------- suspects */

/*
 * A JSON array of strings and nulls: it travels inside a text[], where an array
 * would not.
 */
static void
append_json_array(StringInfo buf, char **values, int n)
{
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(buf, i > 0 ? ", " : "");
		if (values[i] != NULL)
			escape_json(buf, values[i]);
		else
			appendStringInfoString(buf, "null");
	}
	appendStringInfoChar(buf, ']');
}

/* Keep the undecided ones for later. */
void
psync_store_suspects(PsyncReconcile *rec, PsyncDifference *differences, int n)
{
	PsyncTextColumn columns[2];
	Oid			types[2] = {TEXTARRAYOID, TEXTARRAYOID};
	Datum		values[2];
	int			count = 0;

	column_init(&columns[0], n);
	column_init(&columns[1], n);
	for (int i = 0; i < n; i++)
	{
		StringInfoData array;

		if (!differences[i].touched)
			continue;
		initStringInfo(&array);
		append_json_array(&array, differences[i].key, rec->nkeys);
		columns[0].values[count] = CStringGetTextDatum(differences[i].name);
		columns[1].values[count] = CStringGetTextDatum(array.data);
		count++;
	}
	if (count == 0)
		return;
	values[0] = column_array(&columns[0], count);
	values[1] = column_array(&columns[1], count);
	(void) execute_run(rec, "INSERT INTO payment_sync.suspect (run, relid, name, key)"
					   " SELECT $1, $2, n.name, ARRAY(SELECT jsonb_array_elements_text(n.key::jsonb))"
					   " FROM unnest($3, $4) n(name, key)"
					   " ON CONFLICT (run, relid, name) DO NOTHING", 2, types, values, NULL);
}

/*
 * A number about the run's suspects; 0 for none.
 */
static int64
query_suspects(PsyncReconcile *rec, const char *command)
{
	Oid			types[2] = {INT8OID, OIDOID};
	Datum		values[2];
	bool		isnull;
	Datum		value;

	values[0] = Int64GetDatum(rec->run->run);
	values[1] = ObjectIdGetDatum(rec->run->relid);
	(void) psync_owner_execute(command, 2, types, values, NULL);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	SPI_finish();
	return isnull ? 0 : DatumGetInt64(value);
}

/*
 * How many are undecided.
 */
int64
psync_store_count_suspects(PsyncReconcile *rec)
{
	return query_suspects(rec, "SELECT count(*) FROM payment_sync.suspect"
						  " WHERE run = $1 AND relid = $2");
}

/*
 * The greatest id; those that are put back have greater ones.
 */
int64
psync_store_last_suspect(PsyncReconcile *rec)
{
	return query_suspects(rec, "SELECT max(id) FROM payment_sync.suspect"
						  " WHERE run = $1 AND relid = $2");
}

/*
 * Take up to PSYNC_READ_KEYS suspects, noted not after "upto", out of the
 * table.  Who examines them puts back what is still undecided.
 */
char ***
psync_store_take_suspects(PsyncReconcile *rec, int64 upto, int *n)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[4] = {INT8OID, OIDOID, INT8OID, INT8OID};
	Datum		values[4];
	char	 ***keys;

	Assert(n != NULL);

	values[0] = Int64GetDatum(rec->run->run);
	values[1] = ObjectIdGetDatum(rec->run->relid);
	values[2] = Int64GetDatum(upto);
	values[3] = Int64GetDatum(Min(PSYNC_READ_KEYS, rec->read_rows));
	*n = (int) psync_owner_execute("DELETE FROM payment_sync.suspect WHERE id IN"
								   " (SELECT id FROM payment_sync.suspect WHERE run = $1"
								   " AND relid = $2 AND id <= $3 ORDER BY id LIMIT $4)"
								   " RETURNING key", 4, types, values, NULL);
	keys = MemoryContextAlloc(context, Max(1, *n) * sizeof(char **));
	for (int i = 0; i < *n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		isnull;
		int			columns;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
										  1, &isnull);

		keys[i] = text_array(value, &columns);
		Assert(columns == rec->nkeys);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
	return keys;
}
