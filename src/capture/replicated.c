/*
 * replicated.c
 *		Rows of another server's payment_sync.
 *
 * A publication FOR ALL TABLES includes this extension's tables; PostgreSQL has
 * no way to leave them out.  What the publisher's rows mean holds there only:
 * its log names its transactions, and its syncs would be delivered twice, to
 * the same targets.  So triggers that fire for replicated rows alone make
 * nothing of them.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"
#include "replication/logicalworker.h"

#include "compat.h"

PG_FUNCTION_INFO_V1(payment_sync_skip_replicated);

/*
 * A row trigger, before the row is written.  It fires where
 * session_replication_role is "replica"; that may also be a session that
 * restores a dump, whose rows are meant.
 */
Datum
payment_sync_skip_replicated(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger before rows are written",
						"skip_replicated")));
	if (IsLogicalWorker())
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ?
						   trigger->tg_newtuple : trigger->tg_trigtuple);
}
