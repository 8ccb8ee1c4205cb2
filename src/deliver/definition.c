/*
 * definition.c
 *		What a delivery was built from, and whether that has changed.
 *
 * A delivery keeps what it has read of its sync, and its target is open with
 * the options that its server and user mapping had.  Both may change while it
 * is open: ALTER SERVER with another address, ALTER USER MAPPING with a new
 * secret.  So what it was built from is remembered as a text, and compared
 * after an invalidation; a delivery that is outdated is saved, closed and
 * opened anew.  Of options the text holds a hash only: they bear secrets (P9).
 *
 * A commit can be seen before its invalidations arrive.  A table that has just
 * joined the sync, and its changes, may hence be in a window although no
 * invalidation has told of it; who passed over them would never come back
 * (P2).  So after each window is found the version of the sync's row is looked
 * at under a snapshot that is not older than the window's: if it is the one
 * that the delivery was built from, the window holds nothing that it does not
 * know.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "common/hashfn.h"
#include "foreign/foreign.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/invalidation.h"
#include "capture/shape.h"
#include "compat.h"
#include "deliver/delivery.h"

/* Counts invalidations of what deliveries are built from. */
static uint64 invalidations = 0;

/*
 * Of which relations: payment_sync.sync, which the functions that change a
 * definition invalidate, and the tables of the syncs that this process has read.
 * Only those count: other sessions' temporary tables must not make deliveries
 * read their definitions again, window after window.
 *
 * Tables are never taken out; a process sees those of one database.
 */
static Oid	sync_relid = InvalidOid;
static HTAB *watched = NULL;	/* of Oid */

/*
 * Only count: what a definition says now is looked up by the next step, which
 * may take locks and raise errors.
 */
static void
relation_changed(Oid relid)
{
	if (relid == InvalidOid || relid == sync_relid ||
		(watched != NULL && hash_search(watched, &relid, HASH_FIND, NULL) != NULL))
		invalidations++;
}

static void
syscache_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	Assert(cacheid == FOREIGNSERVEROID || cacheid == USERMAPPINGOID ||
		   cacheid == FOREIGNDATAWRAPPEROID);
	invalidations++;
}

/* How many there were; a definition read before they grew may be outdated. */
uint64
psync_definition_invalidations(void)
{
	static bool registered = false;

	if (!registered)
	{
		psync_invalidation_subscribe(relation_changed);
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID, syscache_callback, (Datum) 0);
		CacheRegisterSyscacheCallback(USERMAPPINGOID, syscache_callback, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID, syscache_callback, (Datum) 0);
	}
	registered = true;
	return invalidations;
}

/*
 * From now on the relation counts.  One that did not until now may have changed
 * since the caller has read about it, so whoever depends on it looks once more.
 */
static void
watch_relation(Oid relid)
{
	bool		found;

	if (watched == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(Oid);
		watched = hash_create("payment_sync watched tables", 64, &ctl,
							  HASH_ELEM | HASH_BLOBS);
	}
	(void) hash_search(watched, &relid, HASH_ENTER, &found);
	if (!found)
		invalidations++;
}

static void
watch_sync_relation(void)
{
	Oid			schema = get_namespace_oid(PSYNC_SCHEMA, true);
	Oid			relid = OidIsValid(schema) ? get_relname_relid("sync", schema) : InvalidOid;

	if (relid != sync_relid)
		invalidations++;
	sync_relid = relid;
}

/* ----------------------------------------------------------------- target */

/* The options of a catalog's row, which is released; it may be invalid. */
static uint64
hash_options(HeapTuple tuple, int cacheid, AttrNumber attnum)
{
	uint64		hash = 1;
	Datum		options;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		return 0;
	options = SysCacheGetAttr(cacheid, tuple, attnum, &isnull);
	if (!isnull)
	{
		struct varlena *plain = PG_DETOAST_DATUM_PACKED(options);

		hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(plain),
								   VARSIZE_ANY_EXHDR(plain), hash);
	}
	ReleaseSysCache(tuple);
	return hash;
}

/*
 * What psync_target_create() reads: the options of server, wrapper and user
 * mapping, and whether the owner may still use the server.
 */
static uint64
hash_target(const PsyncSync *sync)
{
	HeapTuple	tuple = SearchSysCache1(FOREIGNSERVERNAME, CStringGetDatum(sync->server));
	Form_pg_foreign_server server;
	Oid			serverid;
	Oid			fdwid;
	HeapTuple	mapping;
	uint64		hash;

	if (!HeapTupleIsValid(tuple))
		return 0;
	server = (Form_pg_foreign_server) GETSTRUCT(tuple);
	serverid = server->oid;
	fdwid = server->srvfdw;
	hash = hash_options(tuple, FOREIGNSERVERNAME, Anum_pg_foreign_server_srvoptions);
	hash = hash_combine64(hash, hash_options(SearchSysCache1(FOREIGNDATAWRAPPEROID,
															 ObjectIdGetDatum(fdwid)),
											 FOREIGNDATAWRAPPEROID,
											 Anum_pg_foreign_data_wrapper_fdwoptions));

	/* as GetUserMapping() finds it */
	mapping = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(sync->owner),
							  ObjectIdGetDatum(serverid));
	if (!HeapTupleIsValid(mapping))
		mapping = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								  ObjectIdGetDatum(serverid));
	hash = hash_combine64(hash, hash_options(mapping, USERMAPPINGUSERSERVER,
											 Anum_pg_user_mapping_umoptions));
	hash = hash_combine64(hash, serverid);
	return hash_combine64(hash, psync_server_aclcheck(serverid, sync->owner, ACL_USAGE));
}

/* ------------------------------------------------------------- definition */

/*
 * All that a delivery was built from, in one string, in the current memory
 * context.  Who owns the tables is part of it: a sync whose owner lost one
 * must stop, and psync_target_create() is where that is refused.
 */
char *
psync_definition_text(const PsyncSync *sync)
{
	StringInfoData buf;
	ListCell   *lc;

	Assert(sync->name != NULL);

	watch_sync_relation();
	foreach(lc, sync->tables)
		watch_relation(((PsyncTable *) lfirst(lc))->relid);

	initStringInfo(&buf);
	appendStringInfo(&buf, "%d %u %s %s %d", sync->enabled, sync->owner,
					 sync->name, sync->server ? sync->server : "",
					 sync->generation);
	if (sync->server != NULL)
		appendStringInfo(&buf, " %016llx", (unsigned long long) hash_target(sync));
	if (sync->transform != NULL)
		appendStringInfo(&buf, " (%s)", sync->transform);
	foreach(lc, sync->tables)
	{
		PsyncTable *table = lfirst(lc);

		appendStringInfo(&buf, " %u%s \"%s\" \"%s\" \"%s\" \"%s\"", table->relid,
						 psync_owns_table(table->relid, sync->owner) ? "" : "!",
						 table->source_schema, table->source_name,
						 table->target_schema, table->target_name);
	}
	foreach(lc, sync->exclude_origins)
		appendStringInfo(&buf, " -%s", (char *) lfirst(lc));
	return buf.data;
}

/*
 * Is a shape in use outdated?  Transports have made statements from the names
 * of its columns.  New columns come with a new shape, which is none in use yet.
 */
static bool
shapes_changed(PsyncDelivery *delivery)
{
	HASH_SEQ_STATUS status;
	PsyncShapeEntry *entry;

	hash_seq_init(&status, delivery->shapes);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (psync_shape_outdated(entry->shape))
		{
			hash_seq_term(&status);
			return true;
		}
	}
	return false;
}

/*
 * To be called when all of a window is on its way, before it is committed.  A
 * large one takes a while, in which a column may be dropped and its name given
 * to another one, here and there: then values of the old column may have come
 * to the new one.  Raises an error, so that the window is sent anew.
 */
void
psync_delivery_check_shapes(PsyncDelivery *delivery)
{
	AcceptInvalidationMessages();
	if (delivery->invalidations != psync_definition_invalidations() &&
		shapes_changed(delivery))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("columns were altered while changes of their table were delivered"),
				 errdetail("The changes are sent again.")));
}

/*
 * Is the delivery built from an outdated definition?  Looked up only after an
 * invalidation; the functions that change a definition send one, and so do
 * ALTER SERVER and ALTER USER MAPPING.
 *
 * A batch that was asked for meanwhile is no reason to begin anew: it is noted
 * here.
 */
bool
psync_delivery_changed(PsyncDelivery *delivery)
{
	PsyncSync  *sync;
	PsyncSyncVersion version;
	uint64		seen = psync_definition_invalidations();

	if (delivery->definition == NULL)
		return true;
	if (delivery->invalidations == seen && !delivery->recheck)
		return false;
	delivery->recheck = false;

	psync_sync_version(&delivery->sync->id, &version);
	sync = psync_sync_load(&delivery->sync->id);
	if (sync == NULL || !sync->has_state ||
		strcmp(psync_definition_text(sync), delivery->definition) != 0 ||
		shapes_changed(delivery))
		return true;
	delivery->sync->batch_pending = sync->batch_pending;
	delivery->sync->parked = sync->parked;
	delivery->looks++;
	psync_batch_load_uncopied(delivery);	/* a batch may be cancelled */
	delivery->invalidations = seen;
	delivery->version = version;
	return false;
}

/*
 * The same, right after a window was found, for what has not been told yet.
 */
bool
psync_delivery_outdated(PsyncDelivery *delivery)
{
	PsyncSyncVersion version;

	AcceptInvalidationMessages();
	psync_sync_version(&delivery->sync->id, &version);
	if (!psync_sync_version_equal(&version, &delivery->version))
		psync_delivery_recheck(delivery);
	return psync_delivery_changed(delivery);
}

/*
 * A session's commit wakes us for its changes before its invalidations are
 * sent, though what it did can be seen: who was woken looks in any case.
 */
void
psync_delivery_recheck(PsyncDelivery *delivery)
{
	delivery->recheck = true;
}
