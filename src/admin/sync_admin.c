/*
 * sync_admin.c
 *		create_sync(), alter_sync(), enable_sync(), disable_sync(), drop_sync().
 *
 * Where a sync starts.  Its position is a snapshot: all that this snapshot does
 * not see will be delivered.  It must be taken such that the log still holds
 * all of that when the sync commits.  Rotation truncates only under a lock
 * that conflicts with ours (psync_log_keep()), which we take before the snapshot
 * and hold until commit; so the position is in force from the moment it is
 * chosen.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "foreign/foreign.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"
#include "utils/varlena.h"

#include "compat.h"
#include "message/transform.h"
#include "sync/admin.h"
#include "target/registry.h"

PG_FUNCTION_INFO_V1(payment_sync_create_sync);
PG_FUNCTION_INFO_V1(payment_sync_alter_sync);
PG_FUNCTION_INFO_V1(payment_sync_enable_sync);
PG_FUNCTION_INFO_V1(payment_sync_disable_sync);
PG_FUNCTION_INFO_V1(payment_sync_drop_sync);
PG_FUNCTION_INFO_V1(payment_sync_cancel_batch);
PG_FUNCTION_INFO_V1(payment_sync_wake_workers);

/* ------------------------------------------------------------- small tools */

/*
 * One statement that returns nothing, as the tables' owner.
 */
static void
run(const char *command, int nargs, Oid *types, Datum *values, const char *nulls)
{
	(void) psync_owner_execute(command, nargs, types, values, nulls);
	SPI_finish();
}

/*
 * The tables named, by oid; the order counts, since targets are parallel to
 * it.
 */
static List *
table_list(ArrayType *array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *result = NIL;

	deconstruct_array(array, ARR_ELEMTYPE(array), sizeof(Oid), true, TYPALIGN_INT,
					  &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("array of tables must not contain nulls")));
		if (list_member_oid(result, DatumGetObjectId(elems[i])))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("table \"%s\" is named twice",
							psync_table_name(DatumGetObjectId(elems[i])))));
		result = lappend_oid(result, DatumGetObjectId(elems[i]));
	}
	return result;
}

pg_noreturn static void
refuse_uncaptured(Oid relid)
{
	Oid			root = psync_captured_root(relid);

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" is not captured", get_rel_name(relid)),
			 OidIsValid(root) ?
			 errdetail("Its changes are captured as those of partitioned table \"%s\".",
					   get_rel_name(root)) : 0,
			 OidIsValid(root) ?
			 errhint("Name the partitioned table instead.") :
			 errhint("Run payment_sync.capture_table('%s') first.",
					 psync_qualified_name(relid))));
}

/*
 * The caller owns the table, and it is captured.  The lock keeps
 * release_table() from slipping in before we commit; writers do not mind it.
 */
static void
check_table(Oid relid)
{
	psync_check_table_owner(relid);
	LockRelationOid(relid, ShareUpdateExclusiveLock);
	psync_check_table_owner(relid);
	if (!psync_is_captured(relid))
		refuse_uncaptured(relid);
}

/* The caller may use the server, and there is a transport for it. */
static void
check_server(const char *name)
{
	psync_check_server_usage(name);
	(void) psync_wrapper_library(GetForeignServerByName(name, false)->fdwid);
}

/* The name is free; if two sessions see this at once, the index decides. */
static void
check_new_name(const char *name)
{
	Assert(name != NULL && strlen(name) < NAMEDATALEN);

	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("name of a sync must not be empty"),
				 errhint("Choose a name of 1 to 63 bytes, unique among the syncs of this database.")));
	if (psync_sync_load_by_name(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("sync \"%s\" already exists", name),
				 errhint("Choose another name, or change that sync with payment_sync.alter_sync().")));
}

/*
 * A batch is sent, and there is nowhere to send it.
 */
pg_noreturn static void
refuse_batch(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("a sync without a server cannot have a batch"),
			 errhint("Copy the tables yourself, then fetch the changes.")));
}

/*
 * The current snapshot as a position, in force from the moment it is chosen: see
 * the header comment.  Our own transaction counts as running, so what it
 * captures later is delivered.
 */
static char *
choose_position(void)
{
	PsyncSnapshot *position;

	psync_log_claim();
	psync_log_choose();
	PushActiveSnapshot(GetLatestSnapshot());
	position = psync_snapshot_current();
	PopActiveSnapshot();
	psync_log_keep(position->xmin);
	return psync_snapshot_text(position);
}

/* -------------------------------------------------------------- the tables */

/*
 * "schema.table" or "table", quoted as in SQL, into its parts.
 */
static void
parse_target_name(const char *text, char **schema, char **table)
{
	List	   *names = psync_qualified_name_list(text);

	Assert(text != NULL);

	if (list_length(names) > 2)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid target table name \"%s\"", text),
				 errhint("Write table or schema.table, with double quotes where needed.")));
	*table = strVal(llast(names));
	*schema = list_length(names) == 2 ? strVal(linitial(names)) : NULL;
}

/*
 * Add a table to the sync, and a batch of it if one is wanted.  Names of NULL
 * stand for those of the source, whatever they become.
 */
static void
add_table(const pg_uuid_t *id, Oid relid, const char *schema, const char *table,
		  bool batch, bool mirror)
{
	Oid			types[5] = {UUIDOID, OIDOID, NAMEOID, NAMEOID, BOOLOID};
	Datum		values[5];
	char		nulls[6] = "     ";
	NameData	schema_name;
	NameData	table_name;
	uint64		added;

	Assert(OidIsValid(relid));

	namestrcpy(&schema_name, schema != NULL ? schema : "");
	namestrcpy(&table_name, table != NULL ? table : "");
	values[0] = UUIDPGetDatum(id);
	values[1] = ObjectIdGetDatum(relid);
	values[2] = NameGetDatum(&schema_name);
	nulls[2] = schema != NULL ? ' ' : 'n';
	values[3] = NameGetDatum(&table_name);
	nulls[3] = table != NULL ? ' ' : 'n';
	values[4] = BoolGetDatum(mirror);
	added = psync_owner_execute("INSERT INTO payment_sync.sync_table"
								" (sync, relid, target_schema, target_table)"
								" VALUES ($1, $2::regclass, $3, $4) ON CONFLICT DO NOTHING",
								4, types, values, nulls);
	SPI_finish();
	if (added == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table \"%s\" belongs to the sync already",
						get_rel_name(relid))));
	if (batch)
	{
		/* reuse the slots: sync, relid, mirror */
		types[2] = BOOLOID;
		values[2] = values[4];
		run("INSERT INTO payment_sync.batch (sync, relid, mirror, initial, rows_estimated)"
			" SELECT $1, $2, $3, true, GREATEST(reltuples, 0)::int8"
			" FROM pg_class WHERE oid = $2",
			3, types, values, NULL);
	}
}

/* targets: NULL, or an array of names parallel to the tables */
static void
add_tables(const pg_uuid_t *id, List *tables, ArrayType *targets,
		   const char *target_schema, bool batch, bool mirror)
{
	Datum	   *names = NULL;
	bool	   *nulls = NULL;
	int			n = 0;
	int			i = 0;
	ListCell   *lc;

	Assert(tables != NIL);

	if (targets != NULL)
	{
		deconstruct_array(targets, TEXTOID, -1, false, TYPALIGN_INT, &names, &nulls, &n);
		if (n != list_length(tables))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("targets names %d tables, but there are %d", n,
							list_length(tables)),
					 errhint("Give one target for each table, in the same order; NULL stands for the table's own name.")));
	}
	foreach(lc, tables)
	{
		char	   *schema = NULL;
		char	   *table = NULL;

		check_table(lfirst_oid(lc));
		if (targets != NULL && !nulls[i])
			parse_target_name(TextDatumGetCString(names[i]), &schema, &table);
		if (schema == NULL && target_schema != NULL)
			schema = pstrdup(target_schema);
		add_table(id, lfirst_oid(lc), schema, table, batch, mirror);
		i++;
	}
}

/* ---------------------------------------------------------------- create */

/*
 * As pg_size_bytes() reads it: "10 GB".
 */
static int64
parse_size(const char *text)
{
	int64		size = DatumGetInt64(DirectFunctionCall1(pg_size_bytes,
														 CStringGetTextDatum(text)));

	if (size <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid max_log_size \"%s\"", text),
				 errdetail("The size must be greater than zero."),
				 errhint("Without a limit of its own, payment_sync.max_log_size holds for the sync.")));
	return size;
}

/*
 * The same words as the CHECK of payment_sync.sync, said with a hint.
 */
static void
check_on_log_full(const char *value)
{
	if (strcmp(value, "warn") != 0 && strcmp(value, "disable") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid on_log_full \"%s\"", value),
				 errhint("Valid values are \"warn\" and \"disable\".")));
}

/*
 * Do foreign keys lead from the sync's tables to others?  A target that has the
 * same keys would refuse rows whose parents it lacks.  Only a warning, for we do
 * not know what the target has.  One that takes messages has no keys.
 */
static void
warn_of_references(const pg_uuid_t *id, const char *server)
{
	List	   *missing;
	StringInfoData names;
	ListCell   *lc;

	if (server == NULL || psync_server_takes_messages(server))
		return;
	missing = psync_owner_names("SELECT DISTINCT format('%I.%I', n.nspname, c.relname)"
								" FROM payment_sync.sync_table t"
								" JOIN pg_constraint k ON k.conrelid = t.relid AND k.contype = 'f'"
								" JOIN pg_class c ON c.oid = k.confrelid"
								" JOIN pg_namespace n ON n.oid = c.relnamespace"
								" WHERE t.sync = $1 AND k.conparentid = 0"
								" AND NOT EXISTS (SELECT FROM payment_sync.sync_table o"
								"  WHERE o.sync = t.sync AND o.relid = k.confrelid) ORDER BY 1",
								UUIDOID, UUIDPGetDatum(id));
	if (missing == NIL)
		return;
	initStringInfo(&names);
	foreach(lc, missing)
		appendStringInfo(&names, "%s%s", names.len > 0 ? ", " : "", (char *) lfirst(lc));
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("tables of the sync reference tables that are not in it"),
			 errdetail("Foreign keys lead to %s.", names.data),
			 errhint("Add them to the sync, unless the target has no such foreign keys or gets these rows in another way.")));
}

/* The expression can be prepared with the owner's rights, and is of use. */
static void
check_transform(const char *transform, Oid owner, const char *server)
{
	if (!psync_server_takes_messages(server))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("argument \"transform\" needs a server that takes messages")));
	psync_transform_check(transform, owner);
}

/*
 * Server and sync may contradict each other: one that takes windows has no use
 * for a transform, nor some formats; one that takes messages has none for the
 * names of tables.  Told now, since the sync would only fail later on.
 */
static void
check_with_server(const char *server, const char *transform, bool names)
{
	ForeignServer *known = GetForeignServerByName(server, false);

	if (psync_wrapper_takes_messages(known->fdwid))
	{
		psync_message_options_check(known, transform);
		if (names)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a target that takes messages has no tables"),
					 errdetail("Events name the table at the source."),
					 errhint("Leave out the names of tables and schema at the target.")));
	}
	else if (transform != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" takes no messages, but the sync has a transform", server),
				 errhint("Remove it with transform => ''.")));
}

/*
 * The definition and the state, from the arguments of create_sync(); *id is
 * the new sync's.  The position is chosen before either is written.
 */
static void
insert_sync(FunctionCallInfo fcinfo, pg_uuid_t *id)
{
	Oid			types[8] = {NAMEOID, NAMEOID, OIDOID, BOOLOID, TEXTARRAYOID, INT8OID, TEXTOID, TEXTOID};
	Datum		values[8];
	char		nulls[9] = "        ";
	char	   *position = choose_position();
	bool		isnull;

	Assert(fcinfo->nargs == 12);

	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(2);
	nulls[1] = PG_ARGISNULL(2) ? 'n' : ' ';
	values[2] = ObjectIdGetDatum(GetUserId());
	values[3] = PG_GETARG_DATUM(9);
	values[4] = PG_GETARG_DATUM(6);
	nulls[5] = PG_ARGISNULL(7) ? 'n' : ' ';
	values[5] = PG_ARGISNULL(7) ? (Datum) 0 :
		Int64GetDatum(parse_size(text_to_cstring(PG_GETARG_TEXT_PP(7))));
	values[6] = PG_GETARG_DATUM(8);
	values[7] = PG_GETARG_DATUM(11);
	nulls[7] = PG_ARGISNULL(11) ? 'n' : ' ';

	(void) psync_owner_execute("INSERT INTO payment_sync.sync"
							   " (name, server, owner, enabled, exclude_origins, max_log_size, on_log_full, transform)"
							   " VALUES ($1, $2, $3::regrole, $4, $5, $6, $7, $8) RETURNING id",
							   8, types, values, nulls);
	*id = *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();

	types[0] = UUIDOID;
	values[0] = UUIDPGetDatum(id);
	types[1] = TEXTOID;
	values[1] = CStringGetTextDatum(position);
	run("INSERT INTO payment_sync.sync_state (sync, position) VALUES ($1, $2::pg_snapshot)",
		2, types, values, NULL);
}

/*
 * create_sync(name, tables, server, batch, targets, target_schema,
 *			   exclude_origins, max_log_size, on_log_full, enabled, mirror,
 *			   transform)
 */
Datum
payment_sync_create_sync(PG_FUNCTION_ARGS)
{
	static const char *const required[] = {
		"name", "tables", NULL, "batch", NULL, NULL, "exclude_origins", NULL,
		"on_log_full", "enabled", "mirror", NULL
	};
	List	   *tables;
	pg_uuid_t	id;

	for (int i = 0; i < lengthof(required); i++)
		if (required[i] != NULL)
			psync_require_argument(fcinfo, i, required[i]);
	tables = table_list(PG_GETARG_ARRAYTYPE_P(1));
	if (tables == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a sync needs at least one table"),
				 errhint("Name captured tables as in '{payments,refunds}'.")));
	check_new_name(NameStr(*PG_GETARG_NAME(0)));
	if (!PG_ARGISNULL(2))
		check_server(NameStr(*PG_GETARG_NAME(2)));
	else if (PG_GETARG_BOOL(3))
		refuse_batch();
	check_on_log_full(text_to_cstring(PG_GETARG_TEXT_PP(8)));

	if (!PG_ARGISNULL(11))
		check_transform(text_to_cstring(PG_GETARG_TEXT_PP(11)), GetUserId(),
						PG_ARGISNULL(2) ? NULL : NameStr(*PG_GETARG_NAME(2)));
	if (PG_GETARG_BOOL(10) && !PG_ARGISNULL(2))
		psync_refuse_mirror(NameStr(*PG_GETARG_NAME(2)));
	if (!PG_ARGISNULL(2))
		check_with_server(NameStr(*PG_GETARG_NAME(2)),
						  PG_ARGISNULL(11) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(11)),
						  !PG_ARGISNULL(4) || !PG_ARGISNULL(5));
	insert_sync(fcinfo, &id);
	add_tables(&id, tables, PG_ARGISNULL(4) ? NULL : PG_GETARG_ARRAYTYPE_P(4),
			   PG_ARGISNULL(5) ? NULL : NameStr(*PG_GETARG_NAME(5)),
			   PG_GETARG_BOOL(3), PG_GETARG_BOOL(10));
	warn_of_references(&id, PG_ARGISNULL(2) ? NULL : NameStr(*PG_GETARG_NAME(2)));
	psync_definition_changed();
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------- alter */

/*
 * Take tables out.  What is in the log of them is passed over from our commit
 * on.
 */
static void
remove_tables(const PsyncSync *sync, List *tables)
{
	ListCell   *lc;

	foreach(lc, tables)
	{
		Oid			types[2] = {UUIDOID, OIDOID};
		Datum		values[2];
		uint64		removed;

		values[0] = UUIDPGetDatum(&sync->id);
		values[1] = ObjectIdGetDatum(lfirst_oid(lc));
		removed = psync_owner_execute("DELETE FROM payment_sync.sync_table"
									  " WHERE sync = $1 AND relid = $2::regclass",
									  2, types, values, NULL);
		SPI_finish();
		if (removed == 0)
			psync_refuse_table_of_sync(sync, lfirst_oid(lc));
		run("DELETE FROM payment_sync.batch WHERE sync = $1 AND relid = $2",
			2, types, values, NULL);
	}
}

/* Arguments of alter_sync(). */
enum
{
	ALTER_NAME,
	ALTER_NEW_NAME,
	ALTER_SERVER,
	ALTER_ADD_TABLES,
	ALTER_DROP_TABLES,
	ALTER_TARGETS,
	ALTER_BATCH,
	ALTER_EXCLUDE_ORIGINS,
	ALTER_MAX_LOG_SIZE,
	ALTER_ON_LOG_FULL,
	ALTER_TRANSFORM
};

/*
 * Refuse what makes no sense together, before anything is written.
 */
static void
check_altered_server(FunctionCallInfo fcinfo, const PsyncSync *sync)
{
	const char *server = sync->server;
	const char *transform = sync->transform;

	if (server == NULL ||
		(PG_ARGISNULL(ALTER_SERVER) && PG_ARGISNULL(ALTER_TRANSFORM) &&
		 PG_ARGISNULL(ALTER_TARGETS)))
		return;
	if (!PG_ARGISNULL(ALTER_SERVER))
		server = NameStr(*PG_GETARG_NAME(ALTER_SERVER));
	if (!PG_ARGISNULL(ALTER_TRANSFORM))
		transform = text_to_cstring(PG_GETARG_TEXT_PP(ALTER_TRANSFORM));
	if (transform != NULL && transform[0] == '\0')
		transform = NULL;
	check_with_server(server, transform, !PG_ARGISNULL(ALTER_TARGETS));
}

static void
check_alteration(FunctionCallInfo fcinfo, const PsyncSync *sync)
{
	bool		batch = !PG_ARGISNULL(ALTER_BATCH) && PG_GETARG_BOOL(ALTER_BATCH);

	if (!PG_ARGISNULL(ALTER_NEW_NAME))
		check_new_name(NameStr(*PG_GETARG_NAME(ALTER_NEW_NAME)));
	if (!PG_ARGISNULL(ALTER_SERVER))
	{
		check_server(NameStr(*PG_GETARG_NAME(ALTER_SERVER)));
		if (sync->server == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("sync \"%s\" has no target", sync->name),
					 errhint("Drop it and create one with a server.")));
	}
	if (PG_ARGISNULL(ALTER_ADD_TABLES) &&
		(batch || !PG_ARGISNULL(ALTER_TARGETS)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arguments \"targets\" and \"batch\" need \"add_tables\""),
				 errhint("Drop tables and add them again to give them other targets.")));
	if (batch && sync->server == NULL)
		refuse_batch();
	if (!PG_ARGISNULL(ALTER_ON_LOG_FULL))
		check_on_log_full(text_to_cstring(PG_GETARG_TEXT_PP(ALTER_ON_LOG_FULL)));
	if (!PG_ARGISNULL(ALTER_TRANSFORM) &&
		VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(ALTER_TRANSFORM)) > 0)
		check_transform(text_to_cstring(PG_GETARG_TEXT_PP(ALTER_TRANSFORM)), sync->owner,
						PG_ARGISNULL(ALTER_SERVER) ? sync->server :
						NameStr(*PG_GETARG_NAME(ALTER_SERVER)));
	check_altered_server(fcinfo, sync);
}

/*
 * One statement for all plain properties: NULL leaves a property as it is.
 */
static void
update_sync(FunctionCallInfo fcinfo, const PsyncSync *sync)
{
	static const int arguments[] = {ALTER_NEW_NAME, ALTER_SERVER,
	ALTER_EXCLUDE_ORIGINS, ALTER_ON_LOG_FULL, ALTER_MAX_LOG_SIZE, ALTER_TRANSFORM};
	Oid			types[7] = {UUIDOID, NAMEOID, NAMEOID, TEXTARRAYOID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[7];
	char		nulls[8] = "       ";
	uint64		updated;

	values[0] = UUIDPGetDatum(&sync->id);
	for (int i = 0; i < lengthof(arguments); i++)
	{
		values[i + 1] = PG_GETARG_DATUM(arguments[i]);
		nulls[i + 1] = PG_ARGISNULL(arguments[i]) ? 'n' : ' ';
	}
	if (!PG_ARGISNULL(ALTER_MAX_LOG_SIZE))
	{
		char	   *size = text_to_cstring(PG_GETARG_TEXT_PP(ALTER_MAX_LOG_SIZE));

		values[5] = Int64GetDatum(size[0] == '\0' ? -1 : parse_size(size));
	}
	updated = psync_owner_execute("UPDATE payment_sync.sync SET name = COALESCE($2, name),"
								  " server = COALESCE($3, server), exclude_origins = COALESCE($4, exclude_origins),"
								  " on_log_full = COALESCE($5, on_log_full),"
								  " max_log_size = NULLIF(COALESCE($6, max_log_size), -1),"
								  " transform = NULLIF(COALESCE($7, transform), '') WHERE id = $1",
								  7, types, values, nulls);
	SPI_finish();

	/* its row is locked from here on: nothing is added to a sync that is gone */
	if (updated == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("sync \"%s\" was dropped concurrently", sync->name)));
}

/*
 * alter_sync(name, new_name, server, add_tables, drop_tables, targets,
 *			  batch, exclude_origins, max_log_size, on_log_full, transform)
 * NULL leaves a property as it is; max_log_size '' removes the limit, and
 * transform '' the transform.
 *
 * A table that is added without a batch is delivered from our commit on, and
 * perhaps some changes from before.
 */
Datum
payment_sync_alter_sync(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync;

	psync_require_argument(fcinfo, ALTER_NAME, "name");
	sync = psync_sync_get_own(NameStr(*PG_GETARG_NAME(ALTER_NAME)));
	check_alteration(fcinfo, sync);
	update_sync(fcinfo, sync);
	if (!PG_ARGISNULL(ALTER_DROP_TABLES))
		remove_tables(sync, table_list(PG_GETARG_ARRAYTYPE_P(ALTER_DROP_TABLES)));
	if (!PG_ARGISNULL(ALTER_ADD_TABLES))
	{
		add_tables(&sync->id, table_list(PG_GETARG_ARRAYTYPE_P(ALTER_ADD_TABLES)),
				   PG_ARGISNULL(ALTER_TARGETS) ? NULL : PG_GETARG_ARRAYTYPE_P(ALTER_TARGETS),
				   NULL, !PG_ARGISNULL(ALTER_BATCH) && PG_GETARG_BOOL(ALTER_BATCH),
				   false);
		warn_of_references(&sync->id, sync->server);
	}
	psync_definition_changed();
	PG_RETURN_VOID();
}

/* ------------------------------------------------------- enable, disable */

/*
 * Give the sync a position of now, whatever it had: what is pending is left
 * out.  "restart" tells the next delivery that a position at the target is
 * outdated, not wrong.  With a batch, all tables are mirrored: the target may
 * hold anything.
 */
static void
start_anew(const PsyncSync *sync, bool batch)
{
	Oid			types[3] = {UUIDOID, TEXTOID, BOOLOID};
	Datum		values[3];

	Assert(!batch || sync->server != NULL);

	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = CStringGetTextDatum(choose_position());
	values[2] = BoolGetDatum(!psync_server_takes_messages(sync->server));
	run("INSERT INTO payment_sync.sync_state (sync, position, restart)"
		" VALUES ($1, $2::pg_snapshot, true)"
		" ON CONFLICT (sync) DO UPDATE SET position = excluded.position, restart = true,"
		" target_position = NULL, hint_filenode = DEFAULT, hint_block = DEFAULT,"
		" pull_upto = NULL, pull_position = 0, pull_xid = DEFAULT,"
		" window_upto = NULL, window_ahead = NULL, generation = sync_state.generation + 1, failing_since = NULL,"
		" pull_window = sync_state.pull_window + 1, released = false, log_full_at = NULL,"
		" failures = 0, retry_at = NULL, disabled_reason = NULL",
		2, types, values, NULL);
	if (batch)
		run("INSERT INTO payment_sync.batch (sync, relid, mirror, initial, rows_estimated)"
			" SELECT t.sync, c.oid, $3, true, GREATEST(c.reltuples, 0)::int8"
			" FROM payment_sync.sync_table t JOIN pg_class c ON c.oid = t.relid"
			" WHERE t.sync = $1 AND $2 IS NOT NULL"
			" ON CONFLICT (sync, relid) DO UPDATE SET mirror = excluded.mirror, initial = true, state = 'pending',"
			" request = excluded.request, swept = false, whole = false,"
			" shape = NULL, cursor = NULL, chunks = 0, rows = 0, started = NULL,"
			" finished = NULL, requested = clock_timestamp()",
			3, types, values, NULL);
}

/*
 * Tables may have got other owners since they joined the sync.
 */
static void
check_tables_of(const PsyncSync *sync)
{
	ListCell   *lc;

	foreach(lc, sync->tables)
	{
		PsyncTable *table = lfirst(lc);

		if (!psync_owns_table(table->relid, sync->owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("cannot enable sync \"%s\"", sync->name),
					 errdetail("Its owner \"%s\" does not own table \"%s\".",
							   GetUserNameFromId(sync->owner, false),
							   table->source_name)));
	}
}

/*
 * enable_sync(name, start): start NULL goes on where it stopped; 'now' leaves
 * out what is pending; 'batch' starts now and mirrors all tables.
 */
Datum
payment_sync_enable_sync(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync;
	char	   *start = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	Oid			types[1] = {UUIDOID};
	Datum		values[1];

	psync_require_argument(fcinfo, 0, "name");
	sync = psync_sync_get_own(NameStr(*PG_GETARG_NAME(0)));
	if (start != NULL && strcmp(start, "now") != 0 && strcmp(start, "batch") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid start \"%s\"", start),
				 errhint("Valid values are \"now\" and \"batch\"; leave it out to go on where the sync stopped.")));
	if (sync->server != NULL)
		check_server(sync->server);
	else if (start != NULL && strcmp(start, "batch") == 0)
		refuse_batch();
	if (start == NULL && !sync->has_state)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sync \"%s\" has no position to go on from", sync->name),
				 errdetail("It was restored from a dump, its database was copied from another one, or it was disabled because the change log had become too large."),
				 errhint("Use start => 'batch' to copy its tables anew, or start => 'now' if the target is known to be equal.")));
	check_tables_of(sync);
	if (start != NULL)
		start_anew(sync, strcmp(start, "batch") == 0);

	values[0] = UUIDPGetDatum(&sync->id);
	run("UPDATE payment_sync.sync SET enabled = true WHERE id = $1", 1, types, values, NULL);
	run("UPDATE payment_sync.sync_state SET failures = 0, retry_at = NULL, failing_since = NULL,"
		" disabled_reason = NULL WHERE sync = $1", 1, types, values, NULL);
	psync_definition_changed();
	PG_RETURN_VOID();
}

/*
 * disable_sync(name, reason): a window under way may still reach its target;
 * the next one does not.
 */
Datum
payment_sync_disable_sync(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync;
	Oid			types[2] = {UUIDOID, TEXTOID};
	Datum		values[2];
	char		nulls[3] = "  ";

	psync_require_argument(fcinfo, 0, "name");
	sync = psync_sync_get_own(NameStr(*PG_GETARG_NAME(0)));
	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	run("UPDATE payment_sync.sync SET enabled = false WHERE id = $1", 1, types, values, NULL);
	run("UPDATE payment_sync.sync_state SET disabled_reason = $2 WHERE sync = $1",
		2, types, values, nulls);
	psync_definition_changed();
	PG_RETURN_VOID();
}

/*
 * drop_sync(name): definition, state and batches go together.  The row that a
 * target keeps of it stays there; it names the sync by an id that never comes
 * again.
 */
Datum
payment_sync_drop_sync(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync;
	Oid			types[1] = {UUIDOID};
	Datum		values[1];

	psync_require_argument(fcinfo, 0, "name");
	sync = psync_sync_get_own(NameStr(*PG_GETARG_NAME(0)));
	values[0] = UUIDPGetDatum(&sync->id);
	run("DELETE FROM payment_sync.sync WHERE id = $1", 1, types, values, NULL);
	run("DELETE FROM payment_sync.sync_table WHERE sync = $1", 1, types, values, NULL);
	psync_definition_changed();
	PG_RETURN_VOID();
}

/*
 * cancel_batch(name, rel): true if a batch was pending or running.
 */
Datum
payment_sync_cancel_batch(PG_FUNCTION_ARGS)
{
	PsyncSync  *sync;
	Oid			types[2] = {UUIDOID, OIDOID};
	Datum		values[2];
	char		nulls[3] = "  ";
	uint64		cancelled;

	psync_require_argument(fcinfo, 0, "name");
	sync = psync_sync_get_own(NameStr(*PG_GETARG_NAME(0)));
	values[0] = UUIDPGetDatum(&sync->id);
	values[1] = PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	if (!PG_ARGISNULL(1) && !psync_sync_has_table(sync, PG_GETARG_OID(1)))
		psync_refuse_table_of_sync(sync, PG_GETARG_OID(1));
	cancelled = psync_owner_execute("UPDATE payment_sync.batch SET state = 'cancelled',"
									" finished = clock_timestamp() WHERE sync = $1"
									" AND ($2 IS NULL OR relid = $2)"
									" AND state IN ('pending', 'running')",
									2, types, values, nulls);
	SPI_finish();
	psync_definition_changed();
	PG_RETURN_BOOL(cancelled > 0);
}

/* wake_workers(): look for work now; also called at CREATE EXTENSION. */
Datum
payment_sync_wake_workers(PG_FUNCTION_ARGS)
{
	psync_wakeup_config();
	PG_RETURN_VOID();
}
