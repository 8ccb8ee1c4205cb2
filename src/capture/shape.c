/*
 * shape.c
 *		Building, recording and reading shapes.  See shape.h.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rangetypes.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "base/owner.h"
#include "capture/shape.h"
#include "compat.h"
#include "log/log.h"

/* payment_sync.shape */
#define NATTS_SHAPE				8
#define ANUM_SHAPE_ID			1
#define ANUM_SHAPE_RELID		2
#define ANUM_SHAPE_ATTNUMS		3
#define ANUM_SHAPE_NAMES		4
#define ANUM_SHAPE_TYPES		5
#define ANUM_SHAPE_TYPMODS		6
#define ANUM_SHAPE_TEXTUAL		7
#define ANUM_SHAPE_KEYS			8

/*
 * Types made by initdb from PostgreSQL's own list have the same oid on every
 * server; those that it makes by running scripts (from 10000 on) do not.
 */
static bool
is_built_in(Oid type)
{
	return type < FirstGenbkiObjectId;
}

/*
 * Is the binary form of the row type, which lists the types of its columns by
 * oid, readable elsewhere?  The lock is kept no longer than the look.
 */
static bool
composite_is_portable(Oid relid)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	bool		result = true;

	Assert(OidIsValid(relid));

	/* the binary form holds each column's type oid, dropped ones left out */
	for (int i = 0; i < desc->natts && result; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped)
			result = is_built_in(att->atttypid) &&
				psync_type_is_portable(att->atttypid);
	}
	relation_close(rel, AccessShareLock);
	return result;
}

/*
 * Is the type's binary form free of this server's object ids, so that another
 * server can read it?  Arrays and composites hold the oids of their parts'
 * types, the reg* types are oids that people read as names.
 */
bool
psync_type_is_portable(Oid type)
{
	Oid			send;
	bool		is_varlena;
	HeapTuple	tuple;
	Form_pg_type form;
	bool		result;

	switch (type)
	{
		case REGCLASSOID:
		case REGTYPEOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGCOLLATIONOID:
		case RECORDOID:
		case RECORDARRAYOID:
			return false;
		default:
			break;
	}

	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_type) GETSTRUCT(tuple);
	send = form->typsend;
	is_varlena = form->typlen == -1;

	if (!OidIsValid(send) || !OidIsValid(form->typreceive))
		result = false;
	else if (form->typtype == TYPTYPE_DOMAIN)
		result = psync_type_is_portable(form->typbasetype);
	else if (form->typtype == TYPTYPE_COMPOSITE)
		result = composite_is_portable(form->typrelid);
	else if (form->typtype == TYPTYPE_RANGE)
		result = psync_type_is_portable(get_range_subtype(type));
	else if (form->typtype == TYPTYPE_MULTIRANGE)
		result = psync_type_is_portable(get_multirange_range(type));
	else if (OidIsValid(form->typelem) && is_varlena && send == F_ARRAY_SEND)
		result = is_built_in(form->typelem) &&
			psync_type_is_portable(form->typelem);
	else
		result = true;
	ReleaseSysCache(tuple);
	return result;
}

/*
 * shape.h has the contract.  A type cannot contain itself, so this ends.
 */
bool
psync_type_holds_money(Oid type)
{
	Oid			base = getBaseType(type);
	Oid			part;
	TupleDesc	desc;
	bool		result = false;

	part = get_element_type(base);
	if (!OidIsValid(part))
		part = get_multirange_range(base);
	if (!OidIsValid(part))
		part = get_range_subtype(base);
	if (base == CASHOID || OidIsValid(part))
		return base == CASHOID || psync_type_holds_money(part);
	if (get_typtype(base) != TYPTYPE_COMPOSITE)
		return false;
	desc = lookup_rowtype_tupdesc(base, -1);
	for (int i = 0; i < desc->natts && !result; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		result = !att->attisdropped && psync_type_holds_money(att->atttypid);
	}
	ReleaseTupleDesc(desc);
	return result;
}

/*
 * The shape that the relation has now; shape.h has the contract.  Names of
 * types are left out: they are looked up when the shape is read, since they
 * may change.
 */
PsyncShape *
psync_shape_build(Relation rel, int nattnums, const AttrNumber *attnums,
				  int nkeys, const AttrNumber *keys)
{
	TupleDesc	desc = RelationGetDescr(rel);
	PsyncShape *shape = palloc0(sizeof(PsyncShape));

	Assert(nkeys >= 0 && nkeys <= INDEX_MAX_KEYS);

	shape->relid = RelationGetRelid(rel);
	shape->ncolumns = nattnums;
	shape->columns = palloc0(Max(nattnums, 1) * sizeof(PsyncColumn));
	shape->nkeys = nkeys;
	shape->keys = palloc0(Max(nkeys, 1) * sizeof(int));

	for (int i = 0; i < nattnums; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, attnums[i] - 1);
		PsyncColumn *column = &shape->columns[i];

		Assert(!att->attisdropped);
		column->relid = RelationGetRelid(rel);
		column->attnum = attnums[i];
		column->type = att->atttypid;
		column->typmod = att->atttypmod;
		column->textual = !psync_type_is_portable(att->atttypid);
		column->name = pstrdup(NameStr(att->attname));
		column->current_name = column->name;
		for (int k = 0; k < nkeys; k++)
		{
			if (keys[k] != attnums[i])
				continue;
			column->key = true;
			shape->keys[k] = i;
		}
	}
	return shape;
}

/*
 * Do the two describe the same columns in the same way?  Also by name: an old
 * name is what people see in the log of changes made under it.  Ids do not
 * count.
 */
bool
psync_shape_equal(const PsyncShape *a, const PsyncShape *b)
{
	if (a->relid != b->relid || a->ncolumns != b->ncolumns ||
		a->nkeys != b->nkeys)
		return false;
	for (int i = 0; i < a->nkeys; i++)
		if (a->keys[i] != b->keys[i])
			return false;
	for (int i = 0; i < a->ncolumns; i++)
	{
		PsyncColumn *x = &a->columns[i];
		PsyncColumn *y = &b->columns[i];

		if (x->attnum != y->attnum || x->type != y->type ||
			x->typmod != y->typmod || x->textual != y->textual ||
			strcmp(x->name, y->name) != 0)
			return false;
	}
	return true;
}

/* ------------------------------------------------------------- the table */

/*
 * The table of shapes, and its two indexes by oid, which catalog scans want.
 */
static Relation
open_shape_table(LOCKMODE lockmode, Oid *by_id, Oid *by_relid)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, false);

	*by_id = get_relname_relid("shape_pkey", schema);
	*by_relid = get_relname_relid("shape_relid_idx", schema);
	return table_open(get_relname_relid("shape", schema), lockmode);
}

/*
 * An array column of the row, detoasted: the shape of a table with a thousand
 * columns does not fit a page.
 */
static ArrayType *
get_array(HeapTuple tuple, TupleDesc desc, int attnum)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, attnum, desc, &isnull);

	Assert(!isnull);
	return DatumGetArrayTypeP(value);
}

/*
 * The recorded shape, in the current context; current names and type names are
 * not yet filled in.  The arrays were written by insert_shape(), so that they
 * agree in length is taken for granted.
 */
static PsyncShape *
shape_from_tuple(HeapTuple tuple, TupleDesc desc)
{
	PsyncShape *shape = palloc0(sizeof(PsyncShape));
	ArrayType  *attnums = get_array(tuple, desc, ANUM_SHAPE_ATTNUMS);
	ArrayType  *names = get_array(tuple, desc, ANUM_SHAPE_NAMES);
	ArrayType  *types = get_array(tuple, desc, ANUM_SHAPE_TYPES);
	ArrayType  *typmods = get_array(tuple, desc, ANUM_SHAPE_TYPMODS);
	ArrayType  *textual = get_array(tuple, desc, ANUM_SHAPE_TEXTUAL);
	ArrayType  *keys = get_array(tuple, desc, ANUM_SHAPE_KEYS);
	bool		isnull;

	shape->id = DatumGetInt32(heap_getattr(tuple, ANUM_SHAPE_ID, desc, &isnull));
	shape->relid = DatumGetObjectId(heap_getattr(tuple, ANUM_SHAPE_RELID, desc,
												 &isnull));
	shape->ncolumns = ArrayGetNItems(ARR_NDIM(attnums), ARR_DIMS(attnums));
	shape->columns = palloc0(Max(shape->ncolumns, 1) * sizeof(PsyncColumn));
	Assert(ArrayGetNItems(ARR_NDIM(names), ARR_DIMS(names)) == shape->ncolumns);
	Assert(ArrayGetNItems(ARR_NDIM(types), ARR_DIMS(types)) == shape->ncolumns);
	for (int i = 0; i < shape->ncolumns; i++)
	{
		PsyncColumn *column = &shape->columns[i];
		NameData   *name = (NameData *) (ARR_DATA_PTR(names) + i * NAMEDATALEN);

		column->relid = shape->relid;
		column->attnum = ((int16 *) ARR_DATA_PTR(attnums))[i];
		column->name = pstrdup(NameStr(*name));
		column->type = ((Oid *) ARR_DATA_PTR(types))[i];
		column->typmod = ((int32 *) ARR_DATA_PTR(typmods))[i];
		column->textual = ((bool *) ARR_DATA_PTR(textual))[i];
	}
	shape->nkeys = ArrayGetNItems(ARR_NDIM(keys), ARR_DIMS(keys));
	shape->keys = palloc0(Max(shape->nkeys, 1) * sizeof(int));
	for (int i = 0; i < shape->nkeys; i++)
	{
		shape->keys[i] = ((int16 *) ARR_DATA_PTR(keys))[i];
		Assert(shape->keys[i] >= 0 && shape->keys[i] < shape->ncolumns);
		shape->columns[shape->keys[i]].key = true;
	}
	return shape;
}

/*
 * The newest recorded shape of the relation, or NULL. Under a catalog
 * snapshot, which sees what this transaction has written and what others have
 * committed; a shape of a transaction still open is not seen, so two that meet
 * a new column list at once each record it.
 */
static PsyncShape *
newest_shape(Relation rel, Oid by_relid, Oid relid)
{
	ScanKeyData key;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;
	PsyncShape *result = NULL;

	ScanKeyInit(&key, ANUM_SHAPE_RELID, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	index = index_open(by_relid, AccessShareLock);
	scan = systable_beginscan_ordered(rel, index, NULL, 1, &key);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	if (HeapTupleIsValid(tuple))
		result = shape_from_tuple(tuple, RelationGetDescr(rel));
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	return result;
}

/*
 * An array of values, or the empty one, which construct_array() would make
 * with dimensions.
 */
static ArrayType *
build_array(Datum *elems, int n, Oid type)
{
	int16		len;
	bool		byval;
	char		align;

	if (n == 0)
		return construct_empty_array(type);
	get_typlenbyvalalign(type, &len, &byval, &align);
	return construct_array(elems, n, type, len, byval, align);
}

/*
 * Insert a row with catalog functions: no trigger, no privilege, no executor
 * on the writer's path.  It commits or not with the changes that name it (P1).
 */
static void
insert_shape(Relation rel, const PsyncShape *shape, uint32 id)
{
	int			n = shape->ncolumns;
	Datum	   *attnums = palloc(Max(n, 1) * sizeof(Datum));
	Datum	   *names = palloc(Max(n, 1) * sizeof(Datum));
	Datum	   *types = palloc(Max(n, 1) * sizeof(Datum));
	Datum	   *typmods = palloc(Max(n, 1) * sizeof(Datum));
	Datum	   *textual = palloc(Max(n, 1) * sizeof(Datum));
	Datum	   *keys = palloc(Max(shape->nkeys, 1) * sizeof(Datum));
	Datum		values[NATTS_SHAPE];
	bool		nulls[NATTS_SHAPE] = {false};
	HeapTuple	tuple;

	Assert(id != 0);

	for (int i = 0; i < n; i++)
	{
		Name		name = palloc0(NAMEDATALEN);

		namestrcpy(name, shape->columns[i].name);
		attnums[i] = Int16GetDatum(shape->columns[i].attnum);
		names[i] = NameGetDatum(name);
		types[i] = ObjectIdGetDatum(shape->columns[i].type);
		typmods[i] = Int32GetDatum(shape->columns[i].typmod);
		textual[i] = BoolGetDatum(shape->columns[i].textual);
	}
	for (int i = 0; i < shape->nkeys; i++)
		keys[i] = Int16GetDatum((int16) shape->keys[i]);

	values[ANUM_SHAPE_ID - 1] = Int32GetDatum((int32) id);
	values[ANUM_SHAPE_RELID - 1] = ObjectIdGetDatum(shape->relid);
	values[ANUM_SHAPE_ATTNUMS - 1] = PointerGetDatum(build_array(attnums, n, INT2OID));
	values[ANUM_SHAPE_NAMES - 1] = PointerGetDatum(build_array(names, n, NAMEOID));
	values[ANUM_SHAPE_TYPES - 1] = PointerGetDatum(build_array(types, n, OIDOID));
	values[ANUM_SHAPE_TYPMODS - 1] = PointerGetDatum(build_array(typmods, n, INT4OID));
	values[ANUM_SHAPE_TEXTUAL - 1] = PointerGetDatum(build_array(textual, n, BOOLOID));
	values[ANUM_SHAPE_KEYS - 1] = PointerGetDatum(build_array(keys, shape->nkeys, INT2OID));
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
}

/*
 * The id of a recorded shape equal to this one.  A new one gets a number from
 * a sequence, so ids grow with time for one relation, nearly: of two that were
 * recorded at once either may be taken for the newest, and they are equal or
 * one of the writers will look again.
 */
uint32
psync_shape_record(const PsyncShape *shape)
{
	Oid			by_id;
	Oid			by_relid;
	Relation	rel = open_shape_table(RowExclusiveLock, &by_id, &by_relid);
	PsyncShape *newest = newest_shape(rel, by_relid, shape->relid);
	uint32		id;

	if (newest != NULL && psync_shape_equal(newest, shape))
		id = newest->id;
	else
	{
		Oid			sequence = get_relname_relid("shape_id",
												 RelationGetNamespace(rel));

		id = (uint32) nextval_internal(sequence, false);
		insert_shape(rel, shape, id);
	}
	table_close(rel, NoLock);
	Assert(id != 0);
	return id;
}

/*
 * What the column is called now, in the current memory context; NULL if it, or
 * its table, was dropped.  get_attname() would find a dropped one, too, under
 * the name that DROP COLUMN leaves in its place.
 */
static char *
current_name(const PsyncColumn *column)
{
	HeapTuple	tuple = SearchSysCacheAttNum(column->relid, column->attnum);
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	name = pstrdup(NameStr(((Form_pg_attribute) GETSTRUCT(tuple))->attname));
	ReleaseSysCache(tuple);
	return name;
}

/*
 * Does another column of the table bear the name that this one had?  A column
 * is its number, not its name.
 */
static bool
name_is_reused(const PsyncColumn *column)
{
	AttrNumber	attnum = get_attnum(column->relid, column->name);

	return attnum != InvalidAttrNumber && attnum != column->attnum;
}

/* shape.h has the contract. */
bool
psync_shape_outdated(const PsyncShape *shape)
{
	for (int i = 0; i < shape->ncolumns; i++)
	{
		const PsyncColumn *column = &shape->columns[i];
		char	   *now = current_name(column);

		if ((now == NULL) != (column->current_name == NULL) ||
			(now != NULL && strcmp(now, column->current_name) != 0) ||
			name_is_reused(column) != column->name_reused)
			return true;
	}
	return false;
}

/*
 * What the columns and types are called now.  A column that was dropped since
 * has no name now, and a type that is gone has none: then current_name or
 * type_name is NULL.
 */
static void
fill_current_names(PsyncShape *shape)
{
	for (int i = 0; i < shape->ncolumns; i++)
	{
		PsyncColumn *column = &shape->columns[i];

		column->current_name = current_name(column);
		column->name_reused = name_is_reused(column);
		if (SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(column->type)))
			column->type_name =
				format_type_extended(column->type, column->typmod,
									 FORMAT_TYPE_TYPEMOD_GIVEN |
									 (is_built_in(column->type) ? 0 : FORMAT_TYPE_FORCE_QUALIFY));
	}
}

/*
 * Read a recorded shape; shape.h has the contract.
 */
PsyncShape *
psync_shape_load(uint32 id)
{
	Oid			by_id;
	Oid			by_relid;
	Relation	rel = open_shape_table(AccessShareLock, &by_id, &by_relid);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	PsyncShape *result = NULL;

	Assert(id != 0);

	ScanKeyInit(&key, ANUM_SHAPE_ID, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum((int32) id));
	scan = systable_beginscan(rel, by_id, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		result = shape_from_tuple(tuple, RelationGetDescr(rel));
	systable_endscan(scan);
	table_close(rel, NoLock);
	if (result != NULL)
		fill_current_names(result);
	Assert(result == NULL || result->id == id);
	return result;
}
