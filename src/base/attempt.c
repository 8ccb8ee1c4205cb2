/*
 * attempt.c
 *		Doing what may fail, and going on.
 *
 * To catch an error and go on takes a subtransaction: whatever failed may hold
 * resources, have pushed a snapshot or become somebody else, or have written
 * something.  It is rolled back before anything is decided.  So whoever raises
 * the error again, a cancel for instance, raises it where he was before, and
 * leaves no subtransaction open.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/attempt.h"
#include "base/role.h"
#include "compat.h"

/*
 * NULL, or the error, in the current memory context.  *late: the time of a
 * limit (limit.c) was up, whether it began within or around the attempt.
 */
ErrorData *
psync_attempt(PsyncAttempt work, void *arg, bool *late)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner resources = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	*late = false;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*late = psync_limit_exceeded();
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = resources;
	return error;
}
