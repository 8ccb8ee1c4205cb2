/*
 * role.c
 *		Becoming another role, and returning: the only place that does it.
 *
 * What users wrote (input functions of their types, checks of their domains,
 * transforms, conditions) runs as whom it belongs to, not as whoever happens
 * to read or deliver.  Four things keep it from getting at more than that:
 *
 *	- SECURITY_RESTRICTED_OPERATION: it cannot change the role again, leave
 *	  deferred triggers, cursors, prepared statements or temporary tables
 *	  behind, nor LISTEN, UNLISTEN or DISCARD.
 *	- A pinned search_path, also for statements of ours: names without a schema
 *	  cannot resolve to objects of the reader's, or of the session's user.
 *	- A GUC nest level of its own, which is rolled back: what it sets is gone
 *	  afterwards.
 *	- A limit of time, see limit.c.
 *
 * Locks of ours that it might give back are pinned (lock.c).  What remains to
 * it: the number generator's seed, and messages by NOTIFY.
 *
 * On error nobody returns: the abort of the (sub)transaction within which the
 * role was changed restores role and settings, and pops the snapshot.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "base/lock.h"
#include "base/role.h"
#include "compat.h"

/* On these depends what values look like as text; transports do the same. */
static const struct
{
	const char *name;
	const char *value;
}			text_settings[] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"timezone", "UTC"},
	{"datestyle", "ISO, MDY"},
	{"intervalstyle", "postgres"},
	{"extra_float_digits", "3"},
	{"bytea_output", "hex"},
};

/* Until the GUC nest level ends. */
static void
set_for_now(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/* A worker has most of them as they should be. */
static void
set_text_settings(void)
{
	for (int i = 0; i < lengthof(text_settings); i++)
		if (strcmp(GetConfigOption(text_settings[i].name, false, false),
				   text_settings[i].value) != 0)
			set_for_now(text_settings[i].name, text_settings[i].value);
}

/*
 * Settings under which text forms are the same on every server, until
 * psync_text_settings_end() or the end of the (sub)transaction.
 */
int
psync_text_settings(void)
{
	int			guc_level = NewGUCNestLevel();

	set_text_settings();
	return guc_level;
}

void
psync_text_settings_end(int guc_level)
{
	AtEOXact_GUC(false, guc_level);
}

/*
 * Become "role" until psync_role_return(), or until the (sub)transaction
 * aborts.
 *
 * SECURITY_LOCAL_USERID_CHANGE keeps SET ROLE and the like from having an
 * effect beyond.  User code, which may be SQL or PL/pgSQL, needs a snapshot; a
 * delivering process has no portal whose snapshot it could use.
 */
void
psync_role_become(PsyncRole *save, Oid role, int flags)
{
	int			context = SECURITY_LOCAL_USERID_CHANGE;

	Assert(OidIsValid(role));

	if (flags & PSYNC_ROLE_USER_CODE)
		psync_session_locks_pin();
	save->snapshot = (flags & PSYNC_ROLE_USER_CODE) != 0 && !ActiveSnapshotSet();
	if (save->snapshot)
		PushActiveSnapshot(GetTransactionSnapshot());
	GetUserIdAndSecContext(&save->userid, &save->sec_context);
	save->guc_level = NewGUCNestLevel();
	if (flags & PSYNC_ROLE_USER_CODE)
		context |= SECURITY_RESTRICTED_OPERATION;
	SetUserIdAndSecContext(role, save->sec_context | context);

	set_for_now("search_path", "pg_catalog, pg_temp");
	if (flags & PSYNC_ROLE_ALL_ROWS)
		set_for_now("row_security", "off");
	if (flags & PSYNC_ROLE_TEXT)
	{
		set_text_settings();
		set_for_now("standard_conforming_strings", "on");
		set_for_now("jit", "off");
	}
}

void
psync_role_return(const PsyncRole *save)
{
	Assert(OidIsValid(save->userid) && save->guc_level > 0);

	AtEOXact_GUC(false, save->guc_level);
	SetUserIdAndSecContext(save->userid, save->sec_context);
	if (save->snapshot)
		PopActiveSnapshot();
}
