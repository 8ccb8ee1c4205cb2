/*
 * curl.c
 *		The engine: libcurl's multi interface in the server's wait loop.
 *
 * libcurl tells which sockets it waits for and when it wants to be called;
 * both are put behind one descriptor, an epoll set, so that services->wait()
 * waits for it, the latch and interrupts at once.  Nothing here blocks, and
 * nothing runs while there is nothing to do.
 *
 * libcurl resolves names in threads of its own.  They inherit the mask of
 * signals, and a signal handler of PostgreSQL must never run in one of them;
 * so all signals are blocked around calls that may start one.
 *
 * Sockets.  With keep-alive libcurl drops and takes up the same socket for
 * each request.  What epoll watches is therefore left as it is until it
 * matters, which saves two system calls per request: per descriptor, bits
 * tell what epoll has, what libcurl wants, and whether the descriptor is one
 * that we opened.  Only with ours do we learn when it is closed.
 */
#include "postgres.h"

#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "transport/http/http_transport.h"

#define SOCKET_REGISTERED(bits)	((bits) & 0xff)
#define SOCKET_WANTED(bits)		(((bits) >> 8) & 0xff)
#define SOCKET_OURS				0x10000

/* Events taken from epoll at a time. */
#define PSYNC_HTTP_EVENTS_MAX	64

/* Of the descriptors that the server grants, what is left to others. */
#define PSYNC_HTTP_SPARED_FDS	32

/* Room for descriptors to begin with. */
#define PSYNC_HTTP_SOCKETS_MIN	1024

StaticAssertDecl(EPOLLIN <= 0xff && EPOLLOUT <= 0xff,
				 "the bits of a socket's interest do not fit");

/* All sessions of this process, and the sockets that they have open. */
static dlist_head sessions = DLIST_STATIC_INIT(sessions);
static int	nsessions = 0;
static int	nsockets_open = 0;

/* The system's time may be set; timeouts must not notice. */
int64
psync_http_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* Once per process.  Not undone: libcurl may be in use by others, too. */
void
psync_http_curl_init(void)
{
	static bool done = false;

	if (done)
		return;
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));
	done = true;
}

/* --------------------------------------------------------------- sockets */

/* The socket's bits; NULL if there is no memory.  Called back: no errors. */
static uint32 *
socket_bits(PsyncHttpSession *session, curl_socket_t socket)
{
	if (socket >= session->nsockets)
	{
		int			n = Max(session->nsockets * 2, socket + 1);
		uint32	   *bits = MemoryContextAllocExtended(session->context, n * sizeof(uint32),
													  MCXT_ALLOC_NO_OOM | MCXT_ALLOC_ZERO);

		if (bits == NULL)
			return NULL;
		memcpy(bits, session->sockets, session->nsockets * sizeof(uint32));
		pfree(session->sockets);
		session->sockets = bits;
		session->nsockets = n;
	}
	return &session->sockets[socket];
}

/* Let epoll watch the socket for these events; 0: not at all. */
static int
watch_socket(PsyncHttpSession *session, curl_socket_t socket, uint32 *bits, uint32 events)
{
	struct epoll_event event = {.events = events,.data.fd = socket};
	uint32		registered = SOCKET_REGISTERED(*bits);
	int			operation = events == 0 ? EPOLL_CTL_DEL :
		registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

	if (registered == events)
		return 0;
	if (epoll_ctl(session->epoll, operation, socket, &event) != 0)
	{
		/* it may have been closed and opened again behind our back */
		if (operation == EPOLL_CTL_DEL)
			events = 0;
		else if (epoll_ctl(session->epoll,
						   operation == EPOLL_CTL_ADD ? EPOLL_CTL_MOD : EPOLL_CTL_ADD,
						   socket, &event) != 0)
			return -1;
	}
	*bits = (*bits & ~0xff) | events;
	return 0;
}

/* Called back by libcurl: what it waits for at a socket. */
static int
on_socket(CURL *easy, curl_socket_t socket, int what, void *arg, void *socket_arg)
{
	PsyncHttpSession *session = arg;
	uint32	   *bits = socket_bits(session, socket);
	uint32		wanted = what == CURL_POLL_IN ? EPOLLIN :
		what == CURL_POLL_OUT ? EPOLLOUT :
		what == CURL_POLL_INOUT ? EPOLLIN | EPOLLOUT : 0;

	if (bits == NULL)
		return -1;
	*bits = (*bits & ~0xff00) | (wanted << 8);
	/* an idle socket may stay watched; one that can be written would spin */
	if (wanted == 0 && (*bits & SOCKET_OURS) != 0 &&
		SOCKET_REGISTERED(*bits) == EPOLLIN)
		return 0;
	return watch_socket(session, socket, bits, wanted);
}

/*
 * The descriptor may have belonged to somebody else before: its bits start
 * anew, with epoll not watching it.
 */
void
psync_http_socket_opened(PsyncHttpSession *session, curl_socket_t socket)
{
	uint32	   *bits = socket_bits(session, socket);

	Assert(socket >= 0);
	session->nopen++;
	nsockets_open++;
	if (bits != NULL)
		*bits = SOCKET_OURS;
}

/* May one more be opened?  A request that fails is better than a worker. */
bool
psync_http_socket_room(void)
{
	Assert(nsockets_open >= 0);
	return nsockets_open + nsessions < max_safe_fds / 3 - PSYNC_HTTP_SPARED_FDS / 2;
}

/* Before it is closed; epoll forgets it by itself. */
void
psync_http_socket_closed(PsyncHttpSession *session, curl_socket_t socket)
{
	Assert(session->nopen > 0 && nsockets_open >= session->nopen);
	session->nopen--;
	nsockets_open--;
	if (socket < session->nsockets)
		session->sockets[socket] = 0;
}

/* Called back by libcurl: when it wants to be called; -1: no more. */
static int
on_timer(CURLM *multi, long timeout_ms, void *arg)
{
	PsyncHttpSession *session = arg;

	session->timer = timeout_ms < 0 ? -1 : psync_http_clock() + timeout_ms * 1000;
	return 0;
}

/* --------------------------------------------------------------- session */

/*
 * libcurl's multi interface fails for lack of memory or by our mistake only.
 */
static void
check_multi(CURLMcode code)
{
	if (code != CURLM_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("libcurl failed: %s", curl_multi_strerror(code))));
}

static CURLM *
multi_create(PsyncHttpSession *session)
{
	CURLM	   *multi = curl_multi_init();

	if (multi == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	check_multi(curl_multi_setopt(multi, CURLMOPT_SOCKETFUNCTION, on_socket));
	check_multi(curl_multi_setopt(multi, CURLMOPT_SOCKETDATA, session));
	check_multi(curl_multi_setopt(multi, CURLMOPT_TIMERFUNCTION, on_timer));
	check_multi(curl_multi_setopt(multi, CURLMOPT_TIMERDATA, session));
	check_multi(curl_multi_setopt(multi, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX));
	return multi;
}

/*
 * The server grants each process a third of its files for descriptors that
 * are none of its own, and whoever waits for a latch needs one of them: if
 * sessions took all, the worker itself would fail, and go on failing.
 */
static int
sockets_granted(void)
{
	return max_safe_fds / 3 - PSYNC_HTTP_SPARED_FDS - nsessions;
}

/* How many requests a session may have in flight, now that there are so many. */
static int
session_share(const PsyncHttpSession *session)
{
	Assert(nsessions > 0);
	return Max(1, Min(session->nbusy_max, sockets_granted() / nsessions));
}

/* Sockets that are open, or will be once libcurl begins with its requests. */
static int
sockets_needed(void)
{
	int			needed = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &sessions)
	{
		PsyncHttpSession *session = dlist_container(PsyncHttpSession, node, iter.cur);

		Assert(session->listed);
		needed += Max(session->nopen, session->nbusy);
	}
	return needed;
}

/*
 * Idle sessions keep connections from when their share was larger.  libcurl
 * closes one only when another comes back, so all go, with their multi.
 */
static void
shed_idle_connections(const PsyncHttpSession *wanting)
{
	dlist_iter	iter;

	dlist_foreach(iter, &sessions)
	{
		PsyncHttpSession *session = dlist_container(PsyncHttpSession, node, iter.cur);
		CURLM	   *old = session->multi;

		if (session == wanting || session->nbusy > 0 || session->nopen == 0)
			continue;
		Assert(dlist_is_empty(&session->running));
		session->multi = multi_create(session);
		(void) curl_multi_cleanup(old);
		session->timer = -1;
	}
}

/* On error, psync_http_session_end() frees what there is. */
void
psync_http_session_start(PsyncHttpSession *session, int in_flight_max)
{
	Assert(in_flight_max > 0);
	Assert(session->multi == NULL && session->epoll < 0);

	dlist_init(&session->idle);
	dlist_init(&session->waiting);
	dlist_init(&session->running);
	dlist_init(&session->done);
	session->timer = -1;
	session->nbusy_max = Min(in_flight_max, PSYNC_HTTP_IN_FLIGHT_MAX);
	session->nsockets = PSYNC_HTTP_SOCKETS_MIN;
	session->sockets = MemoryContextAllocZero(session->context,
											  session->nsockets * sizeof(uint32));

	session->epoll_reserved = AcquireExternalFD();
	if (session->epoll_reserved)
		session->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (session->epoll < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not open server \"%s\"", session->target->server_name),
				 errdetail("There are too many open files on this server."),
				 errhint("Raise the server's max_files_per_process and/or \"ulimit -n\" limits.")));

	session->multi = multi_create(session);
	dlist_push_tail(&sessions, &session->node);
	nsessions++;
	session->listed = true;
}

/* Ends all that is under way, without waiting.  Must not raise. */
void
psync_http_session_end(PsyncHttpSession *session)
{
	ListCell   *lc;

	foreach(lc, session->transfers)
	{
		PsyncHttpTransfer *transfer = lfirst(lc);

		if (transfer->in_multi)
			(void) curl_multi_remove_handle(session->multi, transfer->easy);
		if (transfer->easy != NULL)
			curl_easy_cleanup(transfer->easy);
		transfer->easy = NULL;
		transfer->in_multi = false;
	}
	session->transfers = NIL;
	if (session->multi != NULL)
		(void) curl_multi_cleanup(session->multi);
	session->multi = NULL;
	if (session->listed)
	{
		dlist_delete(&session->node);
		nsessions--;
	}
	session->listed = false;
	if (session->epoll >= 0)
		close(session->epoll);
	session->epoll = -1;
	if (session->epoll_reserved)
		ReleaseExternalFD();
	session->epoll_reserved = false;
}

/* ------------------------------------------------------------- transfers */

/*
 * Easy handles are made as they are needed and kept: making one costs as
 * much as several requests.
 */
static PsyncHttpTransfer *
transfer_create(PsyncHttpSession *session)
{
	MemoryContext old = MemoryContextSwitchTo(session->context);
	PsyncHttpTransfer *transfer = palloc0(sizeof(PsyncHttpTransfer));

	Assert(session->multi != NULL);
	transfer->session = session;
	transfer->context = AllocSetContextCreate(session->context,
											  "payment_sync http transfer",
											  ALLOCSET_DEFAULT_SIZES);
	session->transfers = lappend(session->transfers, transfer);
	transfer->easy = curl_easy_init();
	if (transfer->easy == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	psync_http_easy_init(transfer);
	MemoryContextSwitchTo(old);
	return transfer;
}

/*
 * A token's transfer is beyond the limit, or it could never be fetched when
 * all others wait for it.
 */
PsyncHttpTransfer *
psync_http_transfer_get(PsyncHttpSession *session, PsyncHttpPurpose purpose)
{
	PsyncHttpTransfer *transfer;
	int			share = session_share(session);

	if (session->nbusy >= share && purpose != PSYNC_HTTP_FOR_TOKEN)
		return NULL;
	if (session->nbusy >= session->nopen && sockets_needed() >= sockets_granted())
	{
		shed_idle_connections(session);
		/* with one at least each session gets on */
		if (session->nbusy > 0 && purpose != PSYNC_HTTP_FOR_TOKEN &&
			sockets_needed() >= sockets_granted())
			return NULL;
	}
	if (dlist_is_empty(&session->idle))
		transfer = transfer_create(session);
	else
		transfer = dlist_container(PsyncHttpTransfer, node,
								   dlist_pop_head_node(&session->idle));
	Assert(!transfer->in_multi);
	session->nbusy++;
	transfer->purpose = purpose;
	transfer->message = NULL;
	transfer->request = NULL;
	memset(&transfer->unsendable, 0, sizeof(PsyncHttpUnsendable));
	transfer->token_renewed = false;
	transfer->started = psync_http_clock();
	memset(&transfer->answer, 0, sizeof(PsyncHttpAnswer));
	return transfer;
}

/* Hand the prepared request to libcurl, which begins with the next drive. */
void
psync_http_transfer_start(PsyncHttpTransfer *transfer)
{
	PsyncHttpSession *session = transfer->session;

	Assert(transfer->request != NULL && !transfer->in_multi);
	psync_http_easy_drop_body(transfer);
	memset(&transfer->answer, 0, sizeof(PsyncHttpAnswer));
	transfer->header_bytes = 0;
	psync_http_easy_prepare(transfer);
	/* idle connections are kept for as many as may be in flight again */
	check_multi(curl_multi_setopt(session->multi, CURLMOPT_MAXCONNECTS,
								  (long) session_share(session)));
	check_multi(curl_multi_add_handle(session->multi, transfer->easy));
	transfer->in_multi = true;
	dlist_push_tail(&session->running, &transfer->node);
}

/* It is in no list. */
void
psync_http_transfer_release(PsyncHttpTransfer *transfer)
{
	Assert(!transfer->in_multi);
	Assert(transfer->session->nbusy > 0);
	MemoryContextReset(transfer->context);
	transfer->message = NULL;
	transfer->request = NULL;
	transfer->session->nbusy--;
	dlist_push_head(&transfer->session->idle, &transfer->node);
}

/* --------------------------------------------------------------- driving */

/* Note how the transfer has ended; what it means is outcome.c's business. */
static void
finish_transfer(PsyncHttpSession *session, PsyncHttpTransfer *transfer, CURLcode code)
{
	PsyncHttpAnswer *answer = &transfer->answer;
	long		status = 0;
	long		connects = 0;
	curl_off_t	announced = -1;

	Assert(transfer->in_multi);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_NUM_CONNECTS, &connects);
	(void) curl_easy_getinfo(transfer->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &announced);
	answer->announced = announced;
	answer->code = code;
	answer->status = (int) status;
	answer->reused = connects == 0;
	answer->error = transfer->error[0] ? transfer->error : curl_easy_strerror(code);
	(void) curl_multi_remove_handle(session->multi, transfer->easy);
	transfer->in_multi = false;
	dlist_delete(&transfer->node);
	dlist_push_tail(&session->done, &transfer->node);
}

/* A handle that libcurl reports must be taken out before it is used again. */
static void
collect_finished(PsyncHttpSession *session)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(session->multi, &left)) != NULL)
	{
		void	   *transfer = NULL;
		CURLcode	code = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		(void) curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
		finish_transfer(session, transfer, code);
	}
}

/*
 * Tell libcurl which of its sockets are ready. More than fit into the array
 * are taken by the next call.
 */
static void
drive_sockets(PsyncHttpSession *session)
{
	struct epoll_event events[PSYNC_HTTP_EVENTS_MAX];
	int			running;
	int			n = epoll_wait(session->epoll, events, lengthof(events), 0);

	Assert(session->epoll >= 0);
	for (int i = 0; i < n; i++)
	{
		int			socket = events[i].data.fd;
		int			mask = 0;

		Assert(socket < session->nsockets);
		/* an idle connection that has been closed, or got what nobody asked for */
		if (SOCKET_WANTED(session->sockets[socket]) == 0)
		{
			(void) watch_socket(session, socket, &session->sockets[socket], 0);
			continue;
		}
		if (events[i].events & EPOLLIN)
			mask |= CURL_CSELECT_IN;
		if (events[i].events & EPOLLOUT)
			mask |= CURL_CSELECT_OUT;
		if (events[i].events & (EPOLLERR | EPOLLHUP))
			mask |= CURL_CSELECT_ERR;
		(void) curl_multi_socket_action(session->multi, socket, mask, &running);
	}
}

/*
 * Timers first: new requests begin with one that is due at once. No error
 * can be raised while signals are blocked, so they are always unblocked.
 */
void
psync_http_session_drive(PsyncHttpSession *session)
{
	sigset_t	all;
	sigset_t	before;
	int			running;

	Assert(session->multi != NULL);
	if (dlist_is_empty(&session->running))
		return;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	if (session->timer >= 0 && session->timer <= psync_http_clock())
	{
		session->timer = -1;
		(void) curl_multi_socket_action(session->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
	drive_sockets(session);
	collect_finished(session);
	sigprocmask(SIG_SETMASK, &before, NULL);
}

/*
 * What wakes a session: a socket of its transfers, or libcurl's next timer, in
 * *timeout_ms (-1: none).  PGINVALID_SOCKET: nothing is under way.
 */
pgsocket
psync_http_session_watch(const PsyncHttpSession *session, long *timeout_ms)
{
	*timeout_ms = -1;
	if (dlist_is_empty(unconstify(dlist_head *, &session->running)))
		return PGINVALID_SOCKET;
	if (session->timer >= 0)
	{
		int64		left = session->timer - psync_http_clock();

		*timeout_ms = left <= 0 ? 0 : (long) ((left + 999) / 1000);
	}
	Assert(session->epoll >= 0);
	return session->epoll;
}

/*
 * Does not wait for long if libcurl has something to do at some time.  With
 * nothing under way only the latch ends the wait.
 */
bool
psync_http_session_wait(PsyncHttpSession *session, long timeout_ms)
{
	long		timer_ms;
	pgsocket	socket = psync_http_session_watch(session, &timer_ms);

	if (timer_ms == 0)
		return true;
	if (timer_ms > 0 && (timeout_ms < 0 || timer_ms < timeout_ms))
		timeout_ms = timer_ms;
	return (psync_http_services->wait(socket, WL_SOCKET_READABLE, timeout_ms) &
			WL_LATCH_SET) == 0;
}
