/*
 * rel_cache.c
 *		What a writer knows of each captured relation.
 *
 * An entry is built once per backend and relation, from the relation's
 * descriptor and its row in payment_sync.captured, by index scan in C.  It
 * lives until the relation, or the partitioned table above it, is
 * invalidated: ALTER TABLE does that by itself, capture_table() and
 * release_table() do it for their table.
 *
 * Invalidation may arrive at any table_open(), in the middle of using an
 * entry; so the callback only marks, and the next lookup rebuilds.
 *
 * A shape's id that was recorded by a transaction that does not commit (or
 * is prepared, or whose savepoint is rolled back) must not be used later;
 * such ids are marked and forgotten.
 */
#include "postgres.h"

#include "access/attmap.h"
#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/invalidation.h"
#include "base/owner.h"
#include "capture/capture.h"
#include "compat.h"
#include "log/log.h"

/* payment_sync.captured */
#define ANUM_CAPTURED_RELID		1
#define ANUM_CAPTURED_COLUMNS	2
#define ANUM_CAPTURED_KEY		3
#define ANUM_CAPTURED_OLD		4

/* A row of payment_sync.captured. */
typedef struct PsyncCapturedRow
{
	int			ncolumns;		/* -1: all */
	NameData   *columns;
	int			nkeys;
	NameData   *keys;
	PsyncOldValues old_values;
} PsyncCapturedRow;

uint64		psync_capture_transaction = 1;

static HTAB *cache = NULL;
static bool any_new_shape = false;

/*
 * Mark what is outdated.  Runs at any place that takes a lock, also while an
 * entry is being built or used: so nothing is freed here.  InvalidOid stands
 * for all relations.
 */
static void
mark_outdated(Oid relid)
{
	HASH_SEQ_STATUS status;
	PsyncCaptureRel *crel;

	if (cache == NULL)
		return;
	hash_seq_init(&status, cache);
	while ((crel = hash_seq_search(&status)) != NULL)
	{
		if (relid == InvalidOid || crel->relid == relid ||
			crel->rootid == relid)
			crel->valid = false;
	}
}

/*
 * Shapes that the current transaction recorded are now committed, or are not
 * (keep = false): then their ids name nothing.
 */
static void
forget_new_shapes(bool keep)
{
	HASH_SEQ_STATUS status;
	PsyncCaptureRel *crel;

	if (!any_new_shape)
		return;
	Assert(cache != NULL);
	hash_seq_init(&status, cache);
	while ((crel = hash_seq_search(&status)) != NULL)
	{
		if (crel->shape_new && !keep)
			crel->shape_id = 0;
		crel->shape_new = false;
	}
	any_new_shape = false;
}

/*
 * The end of the transaction decides what its shapes' ids are worth.  After
 * PREPARE that is not known here, so they are not used again.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	forget_new_shapes(event == XACT_EVENT_COMMIT);
	psync_capture_transaction++;
}

/*
 * A savepoint was rolled back, perhaps with the shape that it recorded.  Or
 * another level recorded it: then it is recorded once more, which is harmless,
 * while an id that names nothing would stop every reader.
 */
static void
subxact_callback(SubXactEvent event, SubTransactionId mySubid,
				 SubTransactionId parentSubid, void *arg)
{
	/* perhaps another level recorded it: then it is recorded once more */
	if (event == SUBXACT_EVENT_ABORT_SUB)
		forget_new_shapes(false);
}

/*
 * Called once per process, by _PG_init.  An empty table costs nothing to those
 * who never capture.
 */
void
psync_rel_cache_init(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(PsyncCaptureRel);
	cache = hash_create("payment_sync captured relations", 64, &ctl,
						HASH_ELEM | HASH_BLOBS);
	psync_invalidation_subscribe(mark_outdated);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

/* -------------------------------------------------- the definition's row */

/*
 * The elements of a name[], as an array of its own.
 */
static int
read_names(Datum value, NameData **names)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	int			n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));

	Assert(ARR_ELEMTYPE(array) == NAMEOID);
	*names = palloc(Max(n, 1) * sizeof(NameData));
	memcpy(*names, ARR_DATA_PTR(array), n * sizeof(NameData));
	return n;
}

/*
 * The relation's row of payment_sync.captured, if it has one.  By catalog
 * functions, as a catalog would be read: no privilege of the writer's is
 * needed, and the row that counts is the latest committed one, whatever
 * snapshot the writer's statement has.  capture_table() holds a lock on the
 * table that keeps writers out until it commits.
 *
 * False also without the extension: triggers that are left over do nothing.
 */
static bool
read_captured_row(Oid relid, PsyncCapturedRow *row)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, true);
	Oid			table = InvalidOid;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	if (OidIsValid(schema))
		table = get_relname_relid("captured", schema);
	if (!OidIsValid(table))
		return false;

	rel = table_open(table, AccessShareLock);
	ScanKeyInit(&key, ANUM_CAPTURED_RELID, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(rel, get_relname_relid("captured_pkey", schema),
							  true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		TupleDesc	desc = RelationGetDescr(rel);
		bool		isnull;
		Datum		value;
		char	   *old;

		value = heap_getattr(tuple, ANUM_CAPTURED_COLUMNS, desc, &isnull);
		row->ncolumns = isnull ? -1 : read_names(value, &row->columns);
		value = heap_getattr(tuple, ANUM_CAPTURED_KEY, desc, &isnull);
		row->nkeys = read_names(value, &row->keys);
		value = heap_getattr(tuple, ANUM_CAPTURED_OLD, desc, &isnull);
		old = TextDatumGetCString(value);
		row->old_values = strcmp(old, "none") == 0 ? PSYNC_OLD_NONE :
			strcmp(old, "all") == 0 ? PSYNC_OLD_ALL : PSYNC_OLD_CHANGED;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * The captured relation that this one's changes belong to: itself, or a
 * partitioned table above it, the nearest one.  Fills in *row with its
 * definition; InvalidOid if there is none, which is so for a moment while
 * release_table() is at work, and for triggers made by hand.
 */
static Oid
find_captured(Relation rel, PsyncCapturedRow *row)
{
	Oid			relid = RelationGetRelid(rel);
	List	   *ancestors;
	ListCell   *lc;

	if (read_captured_row(relid, row))
		return relid;
	if (!rel->rd_rel->relispartition)
		return InvalidOid;
	ancestors = get_partition_ancestors(relid);
	foreach(lc, ancestors)
	{
		if (read_captured_row(lfirst_oid(lc), row))
			return lfirst_oid(lc);
	}
	return InvalidOid;
}

/* -------------------------------------------------------- building entries */

/*
 * How a column is encoded.  Domains are stored as their base type; so all but
 * textual columns are judged by that.
 */
static PsyncEncoding
choose_encoding(const PsyncColumn *column)
{
	if (column->textual)
		return PSYNC_ENC_TEXT;
	switch (getBaseType(column->type))
	{
		case INT2OID:
			return PSYNC_ENC_INT2;
		case INT4OID:
		case OIDOID:
		case XIDOID:
		case CIDOID:
		case DATEOID:
		case FLOAT4OID:
			return PSYNC_ENC_INT4;
		case INT8OID:
		case FLOAT8OID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case TIMEOID:
		case CASHOID:
		case XID8OID:
			return PSYNC_ENC_INT8;
		case BOOLOID:
			return PSYNC_ENC_BOOL;
		case UUIDOID:
			return PSYNC_ENC_UUID;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case BYTEAOID:
		case JSONOID:
			return PSYNC_ENC_VARLENA;
		default:
			return PSYNC_ENC_SEND;
	}
}

/*
 * The attnums of the captured columns: those named, or all; dropped and
 * virtual generated ones left out, as is a named one that was dropped since.
 */
static int
choose_columns(Relation root, const PsyncCapturedRow *row, AttrNumber *attnums)
{
	TupleDesc	desc = RelationGetDescr(root);
	int			n = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool		wanted = row->ncolumns < 0;

		if (att->attisdropped || psync_att_is_virtual(att))
			continue;
		for (int c = 0; c < row->ncolumns && !wanted; c++)
			wanted = namestrcmp(&att->attname, NameStr(row->columns[c])) == 0;
		if (wanted)
			attnums[n++] = att->attnum;
	}
	return n;
}

/*
 * The key's attnums, in its order.  A key column that is gone makes the
 * writer's statement fail, since without it no target could tell which row is
 * meant; DDL that would take it away is refused where the event trigger is in
 * force.
 */
static void
choose_keys(Relation root, const PsyncCapturedRow *row, AttrNumber *keys)
{
	for (int k = 0; k < row->nkeys; k++)
	{
		keys[k] = get_attnum(RelationGetRelid(root), NameStr(row->keys[k]));
		if (keys[k] == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of captured table \"%s\" does not exist",
							NameStr(row->keys[k]), RelationGetRelationName(root)),
					 errhint("Run payment_sync.capture_table() again to name the key.")));
	}
}

/*
 * Prepare each column of the shape for reading from the firing relation, which
 * may be a partition with another order of columns than the captured root.
 *
 * Functions are looked up once; fn_extra, which some of them keep state in,
 * lives in the entry's context.
 */
static void
build_columns(PsyncCaptureRel *crel, Relation rel, Relation root)
{
	AttrMap    *map = NULL;

	if (RelationGetRelid(rel) != RelationGetRelid(root))
		map = psync_attrmap_by_name(RelationGetDescr(rel), RelationGetDescr(root));

	crel->columns = palloc0(Max(crel->ncolumns, 1) * sizeof(PsyncCaptureColumn));
	for (int i = 0; i < crel->ncolumns; i++)
	{
		PsyncColumn *from = &crel->shape->columns[i];
		PsyncCaptureColumn *column = &crel->columns[i];
		Oid			function;
		bool		is_varlena;

		column->attnum = map != NULL ? map->attnums[from->attnum - 1] : from->attnum;
		Assert(column->attnum > 0);
		Assert(column->attnum <= RelationGetDescr(rel)->natts);
		column->key = from->key;
		column->encoding = choose_encoding(from);
		get_typlenbyval(from->type, &column->len, &column->byval);
		crel->attnum_max = Max(crel->attnum_max, column->attnum);

		if (column->encoding == PSYNC_ENC_TEXT)
		{
			getTypeOutputInfo(from->type, &function, &is_varlena);
			crel->textual = true;
			crel->textual_money |= psync_type_holds_money(from->type);
		}
		else if (column->encoding == PSYNC_ENC_SEND)
			getTypeBinaryOutputInfo(from->type, &function, &is_varlena);
		else
			continue;
		fmgr_info_cxt(function, &column->send, crel->context);
	}
}

/*
 * Fill in the entry from what the catalogs say now; all of it in the current
 * memory context, which is the entry's own.  May raise; the entry is invalid
 * then.
 */
static void
build(PsyncCaptureRel *crel, Relation rel)
{
	PsyncCapturedRow row;
	Relation	root;
	AttrNumber *attnums;
	AttrNumber *keys;

	crel->captured = false;
	crel->rootid = find_captured(rel, &row);
	if (!OidIsValid(crel->rootid))
		return;

	root = crel->rootid == RelationGetRelid(rel) ? rel :
		table_open(crel->rootid, AccessShareLock);
	attnums = palloc(Max(RelationGetDescr(root)->natts, 1) * sizeof(AttrNumber));
	keys = palloc(Max(row.nkeys, 1) * sizeof(AttrNumber));
	crel->ncolumns = choose_columns(root, &row, attnums);
	choose_keys(root, &row, keys);
	crel->old_values = row.old_values;
	crel->shape = psync_shape_build(root, crel->ncolumns, attnums, row.nkeys, keys);
	build_columns(crel, rel, root);
	if (root != rel)
		table_close(root, AccessShareLock);
	Assert(crel->ncolumns > 0 && crel->shape->nkeys > 0);
	crel->captured = true;
}

/*
 * The relation's entry, built if it is new or outdated.  capture.h says how
 * long it is valid.
 *
 * The caller holds a lock on the relation, so its own definition stands still;
 * that of a partitioned root does not, but whoever changes that locks the
 * partitions, too.
 */
PsyncCaptureRel *
psync_rel_cache_get(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	bool		found;
	PsyncCaptureRel *crel = hash_search(cache, &relid, HASH_ENTER, &found);
	MemoryContext old;
	uint64		transaction = found ? crel->transaction : 0;
	CommandId	command_last = found ? crel->command_last : FirstCommandId;

	if (found && crel->valid)
		return crel;
	if (found && crel->context != NULL)
		MemoryContextDelete(crel->context);

	memset((char *) crel + sizeof(Oid), 0, sizeof(PsyncCaptureRel) - sizeof(Oid));
	crel->transaction = transaction;
	crel->command_last = command_last;
	crel->context = AllocSetContextCreate(CacheMemoryContext,
										  "payment_sync captured relation",
										  ALLOCSET_SMALL_SIZES);
	/* an invalidation that arrives while building must not be lost */
	crel->valid = true;
	old = MemoryContextSwitchTo(crel->context);
	PG_TRY();
	{
		build(crel, rel);
	}
	PG_CATCH();
	{
		crel->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	return crel;
}

/*
 * An encoder for the rows of a query, not for the relation's own tuples:
 * column i of the shape is column i + 1 there.  Not in the cache, hence not
 * invalidated; the caller keeps a lock on the relation or builds it anew.
 */
PsyncCaptureRel *
psync_capture_rel_for_query(Relation rel, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	PsyncCaptureRel *crel = palloc0(sizeof(PsyncCaptureRel));

	crel->relid = RelationGetRelid(rel);
	crel->context = context;
	build(crel, rel);
	for (int i = 0; i < crel->ncolumns; i++)
		crel->columns[i].attnum = i + 1;
	crel->attnum_max = crel->ncolumns;
	MemoryContextSwitchTo(old);
	return crel;
}

/*
 * The id of the entry's shape, recorded by this transaction if the newest
 * recorded one is another.  To be called before psync_log_begin(), since it
 * may write.
 */
uint32
psync_rel_cache_shape(PsyncCaptureRel *crel)
{
	Assert(crel->captured);

	if (crel->shape_id == 0)
	{
		crel->shape_id = psync_shape_record(crel->shape);
		crel->shape_new = true;
		any_new_shape = true;
	}
	return crel->shape_id;
}
