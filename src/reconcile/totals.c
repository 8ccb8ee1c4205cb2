/*
 * totals.c
 *		control_totals(): counts and sums per group, on both sides, exactly.
 *
 * Both sides are totalled as of one position: the target's totals come with
 * the position P that it has recorded, the source's are taken under a later
 * snapshot B, and if the log has no change of the table between the two, they
 * speak of the same state.  If it has some, it is tried again, for as long as
 * the caller will wait; then the totals are returned with the number of changes
 * that are on their way, as many as may explain a difference.
 *
 * Sums are of type numeric, so not a digit is lost; of floating-point columns,
 * what their text says is summed up.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "reconcile/reconcile.h"
#include "sync/admin.h"

PG_FUNCTION_INFO_V1(payment_sync_control_totals);

/* Between attempts to meet a quiet moment, ms. */
#define PSYNC_TOTALS_PAUSE	100

enum
{
	TOTALS_NAME,
	TOTALS_REL,
	TOTALS_GROUP_BY,
	TOTALS_SUM,
	TOTALS_CONDITION,
	TOTALS_SERVER,
	TOTALS_MAX_WAIT
};

/* group, measure, source, target, difference, in_flight */
#define NATTS_TOTALS	6

/* Parts of a moment by which may be grouped: "day(created_at)". */
static const char *const units[] = {"hour", "day", "week", "month", "quarter", "year"};

/* What is asked for. */
typedef struct PsyncTotals
{
	PsyncReconcile *rec;
	List	   *group_by;		/* of char * */
	List	   *sum;			/* of char * */
	int64		in_flight;
	PsyncBothRows both;
} PsyncTotals;

/*
 * The column of this name; an error if the sync does not deliver it.
 */
static const PsyncPair *
find_pair(const PsyncReconcile *rec, const char *name)
{
	for (int i = 0; i < rec->npairs; i++)
	{
		if (strcmp(rec->pairs[i].name, name) == 0)
			return &rec->pairs[i];
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" is not delivered by the sync", name)));
	return NULL;				/* keep the compiler quiet */
}

/* "unit(column)" in two; false if it is a plain column. */
static bool
split_unit(const char *group, const char **unit, char **column)
{
	const char *open = strchr(group, '(');
	int			length = strlen(group);

	if (open == NULL || group[length - 1] != ')')
		return false;
	for (int i = 0; i < lengthof(units); i++)
	{
		if (strlen(units[i]) != open - group ||
			strncmp(units[i], group, open - group) != 0)
			continue;
		*unit = units[i];
		*column = pnstrdup(open + 1, length - (open - group) - 2);
		return true;
	}
	return false;
}

/*
 * The expression by which to group, as text, the same on both sides: moments
 * are cut in UTC, whatever the servers' time zones are.
 */
static char *
group_expression(const PsyncReconcile *rec, int side, const char *group)
{
	const char *unit;
	char	   *column;
	const PsyncSideColumn *of;

	Assert(side == PSYNC_SOURCE || side == PSYNC_OTHER);

	if (!split_unit(group, &unit, &column))
		return find_pair(rec, group)->side[side].text;
	of = &find_pair(rec, column)->side[side];
	if (of->base != TIMESTAMPTZOID && of->base != TIMESTAMPOID && of->base != DATEOID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cannot group by \"%s\"", group),
				 errdetail("Column \"%s\" is neither a timestamp nor a date.", column)));
	return psprintf("pg_catalog.to_char(pg_catalog.date_trunc('%s', t.%s%s), '%s')",
					unit, of->name,
					of->base == TIMESTAMPTZOID ? " AT TIME ZONE 'UTC'" : "::timestamp",
					strcmp(unit, "hour") == 0 ? "YYYY-MM-DD HH24:00" : "YYYY-MM-DD");
}

/*
 * A row per group, and the position before them, in one statement: both are of
 * one time.
 */
static char *
totals_query(const PsyncTotals *totals, int side)
{
	const PsyncReconcile *rec = totals->rec;
	StringInfoData buf;
	ListCell   *lc;

	Assert(side == PSYNC_SOURCE || side == PSYNC_OTHER);

	initStringInfo(&buf);
	if (side == PSYNC_OTHER)
		appendStringInfo(&buf, "SELECT -1 AS i, (%s)", rec->position_query);
	else
		appendStringInfoString(&buf, "SELECT -1 AS i, NULL::text");
	for (int i = 0; i <= list_length(totals->sum); i++)
		appendStringInfoString(&buf, ", NULL::numeric");
	appendStringInfoString(&buf, " UNION ALL SELECT 0, g, pg_catalog.count(*)");
	for (int i = 0; i < list_length(totals->sum); i++)
		appendStringInfo(&buf, ", COALESCE(pg_catalog.sum(s%d), 0)", i);
	appendStringInfoString(&buf, " FROM (SELECT pg_catalog.jsonb_build_object(");
	foreach(lc, totals->group_by)
		appendStringInfo(&buf, "%s%s, %s", foreach_current_index(lc) > 0 ? ", " : "",
						 quote_literal_cstr(lfirst(lc)),
						 group_expression(rec, side, lfirst(lc)));
	appendStringInfoString(&buf, ")::text AS g");
	foreach(lc, totals->sum)
		appendStringInfo(&buf, ", t.%s::numeric AS s%d",
						 find_pair(rec, lfirst(lc))->side[side].name,
						 foreach_current_index(lc));
	appendStringInfo(&buf, " FROM %s t WHERE true", rec->side[side].from);
	if (rec->run->where != NULL)
		appendStringInfo(&buf, " AND (%s\n)", rec->run->where);
	appendStringInfoString(&buf, ") s GROUP BY g");
	return buf.data;
}

/*
 * Only numbers can be summed up, at the source; a target's column of another
 * type is cast.
 */
static void
check_sums(const PsyncTotals *totals)
{
	ListCell   *lc;

	foreach(lc, totals->sum)
	{
		switch (find_pair(totals->rec, lfirst(lc))->side[PSYNC_SOURCE].base)
		{
			case INT2OID:
			case INT4OID:
			case INT8OID:
			case NUMERICOID:
			case FLOAT4OID:
			case FLOAT8OID:
				break;
			default:
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("cannot sum up column \"%s\"", (char *) lfirst(lc)),
						 errdetail("It is no number.")));
		}
	}
}

/*
 * Read both sides, at a moment without changes in between if there is one.
 * What remains are the last attempt's totals, and how many changes may explain
 * a difference.
 */
static void
read_totals(PsyncTotals *totals, int64 max_wait)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), max_wait);
	char	   *source = totals_query(totals, PSYNC_SOURCE);
	char	   *other = totals_query(totals, PSYNC_OTHER);

	for (;;)
	{
		psync_read_begin(totals->rec, source, other,
						 3 + list_length(totals->sum), &totals->both);
		totals->in_flight = psync_read_count_changes(totals->rec, &totals->both);
		psync_read_end(totals->rec, &totals->both);
		if ((totals->in_flight == 0 && !totals->both.undecidable) ||
			GetCurrentTimestamp() >= deadline)
			return;
		psync_pause_ms(PSYNC_TOTALS_PAUSE);
	}
}

/* ----------------------------------------------------------------- results */

/* A side's row of a group, by the group's text. */
typedef struct PsyncTotalRow
{
	const char *group;
	int			row;
} PsyncTotalRow;

/* A side's groups, sorted, so that the other side's can be looked up. */
typedef struct PsyncTotalRows
{
	const PsyncRows *rows;
	PsyncTotalRow *groups;
	int			ngroups;
} PsyncTotalRows;

static int
compare_groups(const void *a, const void *b)
{
	return strcmp(((const PsyncTotalRow *) a)->group,
				  ((const PsyncTotalRow *) b)->group);
}

/*
 * All rows but that of the position.
 */
static void
sort_groups(const PsyncRows *rows, PsyncTotalRows *sorted)
{
	sorted->rows = rows;
	sorted->groups = MemoryContextAllocHuge(CurrentMemoryContext,
											Max(1, rows->nrows) * sizeof(PsyncTotalRow));
	sorted->ngroups = 0;
	for (int i = 0; i < rows->nrows; i++)
	{
		if (strcmp(psync_rows_get(rows, i, 0), "0") != 0)
			continue;
		sorted->groups[sorted->ngroups].group = psync_rows_get(rows, i, 1);
		sorted->groups[sorted->ngroups++].row = i;
	}
	qsort(sorted->groups, sorted->ngroups, sizeof(PsyncTotalRow), compare_groups);
}

/*
 * The column's text in the row of this group; NULL if the side has no such
 * group.
 */
static const char *
find_total(const PsyncTotalRows *sorted, const char *group, int column)
{
	PsyncTotalRow wanted = {group, 0};
	PsyncTotalRow *hit = bsearch(&wanted, sorted->groups, sorted->ngroups,
								 sizeof(PsyncTotalRow), compare_groups);

	Assert(column >= 0 && column < sorted->rows->ncolumns);

	return hit == NULL ? NULL : psync_rows_get(sorted->rows, hit->row, column);
}

/*
 * A group that a side does not have counts as zero.
 */
static Datum
to_numeric(const char *text)
{
	return DirectFunctionCall3(numeric_in, CStringGetDatum(text ? text : "0"),
							   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
}

/*
 * A row of the result for the count, and one for each sum.
 */
static void
put_group(const PsyncTotals *totals, const PsyncTotalRows *sides,
		  const char *group, Tuplestorestate *store, TupleDesc desc)
{
	for (int m = 0; m <= list_length(totals->sum); m++)
	{
		Datum		values[NATTS_TOTALS];
		bool		nulls[NATTS_TOTALS] = {false};
		const char *measure = m == 0 ? "count" :
			psprintf("sum(%s)", (char *) list_nth(totals->sum, m - 1));

		values[0] = DirectFunctionCall1(jsonb_in, CStringGetDatum(group));
		values[1] = CStringGetTextDatum(measure);
		values[2] = to_numeric(find_total(&sides[PSYNC_SOURCE], group, m + 2));
		values[3] = to_numeric(find_total(&sides[PSYNC_OTHER], group, m + 2));
		values[4] = DirectFunctionCall2(numeric_sub, values[3], values[2]);
		values[5] = Int64GetDatum(totals->in_flight);
		nulls[5] = totals->both.undecidable;
		tuplestore_putvalues(store, desc, values, nulls);
	}
}

/* The source's groups, then those that only the target has. */
static void
put_totals(const PsyncTotals *totals, Tuplestorestate *store, TupleDesc desc)
{
	PsyncTotalRows sides[2];
	MemoryContext each = AllocSetContextCreate(CurrentMemoryContext,
											   "payment_sync totals",
											   ALLOCSET_DEFAULT_SIZES);

	for (int side = 0; side < 2; side++)
		sort_groups(totals->both.rows[side], &sides[side]);
	for (int side = 0; side < 2; side++)
	{
		for (int i = 0; i < sides[side].ngroups; i++)
		{
			const char *group = sides[side].groups[i].group;
			MemoryContext old;

			CHECK_FOR_INTERRUPTS();
			if (side == PSYNC_OTHER &&
				find_total(&sides[PSYNC_SOURCE], group, 2) != NULL)
				continue;
			old = MemoryContextSwitchTo(each);
			put_group(totals, sides, group, store, desc);
			MemoryContextSwitchTo(old);
			MemoryContextReset(each);
		}
	}
	MemoryContextDelete(each);
}

/*
 * The same, leaving no target open whatever happens.
 */
static void
compute_totals(PsyncTotals *totals, int64 max_wait)
{
	PG_TRY();
	{
		check_sums(totals);
		read_totals(totals, max_wait);
	}
	PG_CATCH();
	{
		psync_look_close(totals->rec);
		PG_RE_THROW();
	}
	PG_END_TRY();
	psync_look_close(totals->rec);
}

/*
 * control_totals(name, rel, group_by, sum, condition, server, max_wait)
 *
 * Needs no run and leaves no trace: figures for people who compare them with
 * those of another system.
 */
Datum
payment_sync_control_totals(PG_FUNCTION_ARGS)
{
	static const char *const required[] = {"name", "rel", "group_by", "sum"};
	PsyncTotals totals = {0};
	PsyncRun	run = {0};
	TupleDesc	desc;
	Tuplestorestate *store = psync_result_begin(fcinfo, &desc);
	PsyncSync  *sync;
	int64		max_wait = PG_ARGISNULL(TOTALS_MAX_WAIT) ? 0 :
		psync_check_wait(PG_GETARG_INTERVAL_P(TOTALS_MAX_WAIT));

	for (int i = 0; i < lengthof(required); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not be null", required[i])));
	}
	psync_check_reconcile_transaction("control_totals");
	sync = psync_reconcile_sync(NameStr(*PG_GETARG_NAME(TOTALS_NAME)));
	if (!PG_ARGISNULL(TOTALS_SERVER))
	{
		run.server = NameStr(*PG_GETARG_NAME(TOTALS_SERVER));
		psync_check_server_usage(run.server);
	}
	if (!PG_ARGISNULL(TOTALS_CONDITION))
	{
		run.where = text_to_cstring(PG_GETARG_TEXT_PP(TOTALS_CONDITION));
		psync_check_condition(run.where);
	}
	totals.group_by = psync_name_list(PG_GETARG_ARRAYTYPE_P(TOTALS_GROUP_BY));
	totals.sum = psync_name_list(PG_GETARG_ARRAYTYPE_P(TOTALS_SUM));
	totals.rec = psync_look_open(sync, PG_GETARG_OID(TOTALS_REL), &run);
	compute_totals(&totals, max_wait);
	put_totals(&totals, store, desc);
	return (Datum) 0;
}
