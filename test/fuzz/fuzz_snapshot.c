/*
 * fuzz_snapshot.c
 *		Positions as a target returns them: a snapshot, and the last change.
 */
#include "fuzz.h"

#include "../../src/log/snapshot.c"
#include "../../src/deliver/position.c"

const bool	fuzz_terminated = true;

void
fuzz_one(const char *data, size_t size)
{
	PsyncLastChange mark;
	PsyncSnapshot *snapshot;
	char	   *text;

	psync_last_change_parse(&mark, data);
	snapshot = psync_snapshot_parse(data);
	text = psync_snapshot_text(snapshot);
	fuzz_check(strcmp(text, psync_snapshot_text(psync_snapshot_parse(text))) == 0);
	fuzz_check(psync_snapshot_covers(snapshot, snapshot));
	for (int i = 0; i < snapshot->nxip; i++)
	{
		fuzz_check(i == 0 || snapshot->xip[i - 1] <= snapshot->xip[i]);
		fuzz_check(!psync_snapshot_sees(snapshot, snapshot->xip[i]));
	}
}
