/*
 * role.h
 *		Running code as another role, and within a limit of time.
 */
#ifndef PSYNC_ROLE_H
#define PSYNC_ROLE_H

#include "utils/elog.h"

/* What is run, and how. */
#define PSYNC_ROLE_TRUSTED		0	/* statements of ours, on tables of ours */
#define PSYNC_ROLE_USER_CODE	0x01	/* may run what users have written */
#define PSYNC_ROLE_ALL_ROWS		0x02	/* a policy raises instead of hiding rows */
#define PSYNC_ROLE_TEXT			0x04	/* values become text */

/* What psync_role_return() brings back. */
typedef struct PsyncRole
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
	bool		snapshot;		/* one was pushed */
} PsyncRole;

/* A time limit that is running, or would be if there were none around it. */
typedef struct PsyncTimeLimit
{
	const char *what;			/* "transform": takes too long */
	const char *setting;		/* that holds the limit */
	int			ms;				/* 0: none */
	bool		running;
	ErrorContextCallback callback;
} PsyncTimeLimit;

extern void psync_role_become(PsyncRole *save, Oid role, int flags);
extern void psync_role_return(const PsyncRole *save);
extern int	psync_text_settings(void);
extern void psync_text_settings_end(int guc_level);

/* limit.c */
extern int	psync_user_code_timeout;

extern void psync_limit_init(void);
extern void psync_limit_begin(PsyncTimeLimit *limit, const char *what,
							  int ms, const char *setting);
extern void psync_limit_end(PsyncTimeLimit *limit);
extern bool psync_limit_exceeded(void);

#endif							/* PSYNC_ROLE_H */
