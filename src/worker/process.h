/*
 * process.h
 *		What launcher and workers have in common as processes, and the parts
 *		of a worker; private to this folder.
 */
#ifndef PSYNC_WORKER_PROCESS_H
#define PSYNC_WORKER_PROCESS_H

#include "postmaster/bgworker.h"

#include "worker/shmem.h"

/* As pg_stat_activity.backend_type shows them. */
#define PSYNC_LAUNCHER_TYPE		"payment_sync launcher"
#define PSYNC_WORKER_TYPE		"payment_sync worker"

/* What a new worker is told, in bgw_extra; bgw_main_arg is its slot. */
typedef struct PsyncWorkerStart
{
	uint32		generation;
	Oid			dboid;
} PsyncWorkerStart;

/* process.c */
typedef void (*PsyncWork) (void *arg);

extern void psync_process_signals(void);
extern bool psync_process_should_stop(void);
extern void psync_process_wait(TimestampTz until, uint32 wait_event);
extern ErrorData *psync_process_try(PsyncWork work, void *arg);

/* worker.c */
extern void psync_worker_settings(void);

/* plan.c: the launcher's decisions */
typedef struct PsyncPlan
{
	/* in: room for psync_max_workers, psync_max_databases */
	int		   *granted;		/* slots that now need a process */
	Oid		   *absent;			/* databases without the extension */
	/* out */
	int			ngranted;
	int			nabsent;
	TimestampTz next;			/* when to plan again, unless woken before */
	bool		short_of_workers;
} PsyncPlan;

extern void psync_plan(PsyncPlan *plan);

/* start.c: processes for slots */
extern void psync_start_init(void);
extern void psync_start_worker(int n);
extern void psync_start_check(void);

#endif							/* PSYNC_WORKER_PROCESS_H */
