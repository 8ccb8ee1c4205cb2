/*
 * captured.c
 *		The rows of payment_sync.captured.
 *
 * Whether a table is captured is asked at every ALTER or DROP of one, so that
 * is looked up directly; the rest goes by statements as the tables' owner.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/wakeup.h"
#include "capture/captured.h"
#include "compat.h"

#define ANUM_CAPTURED_RELID		1

/*
 * Is there a row for just this relation?  Sees rows of this transaction and of
 * committed ones; the caller has locked what must not change.
 */
bool
psync_is_captured(Oid relid)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, false);
	Relation	rel = table_open(get_relname_relid("captured", schema),
								 AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	Assert(OidIsValid(schema));

	ScanKeyInit(&key, ANUM_CAPTURED_RELID, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, get_relname_relid("captured_pkey", schema),
							  true, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* --------------------------------------------------------- names and rights */

/*
 * For messages: its name, or its oid if it is gone.
 */
const char *
psync_table_name(Oid relid)
{
	char	   *name = get_rel_name(relid);

	return name != NULL ? name : psprintf("%u", relid);
}

/*
 * An error unless the caller owns the table.  By oid, which may be that of
 * nothing.
 */
void
psync_check_table_owner(Oid relid)
{
	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!psync_owns_table(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER,
					   get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
}

/* ----------------------------------------------------------- lists of names */

/*
 * The elements of a name[] as C strings, in the current memory context; none
 * may be NULL.
 */
List *
psync_name_list(ArrayType *array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *result = NIL;

	Assert(ARR_ELEMTYPE(array) == NAMEOID);
	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR,
					  &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("array of column names must not contain nulls")));
		result = lappend(result, pstrdup(NameStr(*DatumGetName(elems[i]))));
	}
	return result;
}

/*
 * The inverse of psync_name_list(), likewise in the current memory context.
 */
Datum
psync_name_array(List *names)
{
	Datum	   *elems = palloc(Max(list_length(names), 1) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, names)
	{
		Name		name = palloc0(NAMEDATALEN);

		Assert(strlen(lfirst(lc)) < NAMEDATALEN);
		namestrcpy(name, lfirst(lc));
		elems[n++] = NameGetDatum(name);
	}
	return PointerGetDatum(construct_array(elems, n, NAMEOID, NAMEDATALEN, false,
										   TYPALIGN_CHAR));
}

/* "a, b", for messages. */
char *
psync_name_list_text(List *names)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, names)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "",
						 quote_identifier(lfirst(lc)));
	return buf.data;
}

/*
 * Names of columns are few; a list will do.
 */
bool
psync_name_list_has(List *names, const char *name)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* ------------------------------------------------------------- definitions */

/*
 * The definition's columns and key, in the current memory context.  Both NIL
 * if the table is not captured; columns NIL if all of them are.
 */
void
psync_captured_read(Oid relid, List **columns, List **key)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[1] = {OIDOID};
	Datum		values[1];

	Assert(columns != NULL && key != NULL);

	*columns = *key = NIL;
	values[0] = ObjectIdGetDatum(relid);
	if (psync_owner_execute("SELECT columns, key FROM payment_sync.captured"
							" WHERE relid = $1::regclass", 1, types, values, NULL) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		isnull;
		Datum		value = SPI_getbinval(row, desc, 1, &isnull);

		if (!isnull)
			*columns = psync_name_list(DatumGetArrayTypeP(value));
		value = SPI_getbinval(row, desc, 2, &isnull);
		*key = psync_name_list(DatumGetArrayTypeP(value));
		Assert(*key != NIL);
		MemoryContextSwitchTo(old);
	}
	SPI_finish();
}

/*
 * Define or redefine; old_values NULL leaves that as it is.  Writers and
 * deliveries look again.
 */
void
psync_captured_write(Oid relid, List *columns, List *key, const char *old_values)
{
	Oid			types[4] = {OIDOID, NAMEARRAYOID, NAMEARRAYOID, TEXTOID};
	Datum		values[4];
	char		nulls[5] = "    ";

	Assert(key != NIL);
	values[0] = ObjectIdGetDatum(relid);
	values[1] = columns != NIL ? psync_name_array(columns) : (Datum) 0;
	nulls[1] = columns != NIL ? ' ' : 'n';
	values[2] = psync_name_array(key);
	values[3] = old_values != NULL ? CStringGetTextDatum(old_values) : (Datum) 0;
	nulls[3] = old_values != NULL ? ' ' : 'n';
	(void) psync_owner_execute("INSERT INTO payment_sync.captured AS c"
							   " (relid, columns, key, old_values)"
							   " VALUES ($1::regclass, $2, $3, COALESCE($4, 'changed'))"
							   " ON CONFLICT (relid) DO UPDATE SET columns = excluded.columns,"
							   " key = excluded.key, old_values = COALESCE($4, c.old_values)",
							   4, types, values, nulls);
	SPI_finish();
	psync_captured_changed(relid);
}

/*
 * Writers must look again at what they know of the table and its partitions;
 * deliveries, at what they are built from.  Both happen when we commit.
 */
void
psync_captured_changed(Oid relid)
{
	List	   *members = find_all_inheritors(relid, NoLock, NULL);
	ListCell   *lc;

	Assert(OidIsValid(relid));

	foreach(lc, members)
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
	psync_definition_changed();
}

/* All captured tables, by oid. */
List *
psync_captured_list(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *result = NIL;

	(void) psync_owner_execute("SELECT relid::oid FROM payment_sync.captured"
							   " ORDER BY 1", 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		bool		isnull;

		result = lappend_oid(result,
							 DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
															SPI_tuptable->tupdesc,
															1, &isnull)));
		MemoryContextSwitchTo(old);
		Assert(!isnull && OidIsValid(llast_oid(result)));
	}
	SPI_finish();
	return result;
}
