/*
 * body.c
 *		Compression of bodies.
 *
 * The same bytes in give the same bytes out, so a retry stays byte-identical;
 * gzip's header therefore bears no time.
 */
#include "postgres.h"

#include <zlib.h>
#ifdef PSYNC_HTTP_ZSTD_LIBRARY
#include <zstd.h>
#endif
#include "utils/memutils.h"

#include "transport/http/http_transport.h"

/* Window of 32 KiB, and 16 for "with a gzip header". */
#define PSYNC_HTTP_GZIP_WINDOW	(15 + 16)

/*
 * Is this build able to? Debian's libcurl has nothing to do with it: we
 * compress ourselves, since libcurl compresses no requests.
 */
bool
psync_http_have_zstd(void)
{
#ifdef PSYNC_HTTP_ZSTD_LIBRARY
	return true;
#else
	return false;
#endif
}

/* The libraries fail for lack of memory only: the input is any bytes. */
static void
refuse_compression(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("could not compress a message")));
}

/*
 * With a gzip header, which receivers understand better than bare zlib. The
 * bound is computed beforehand, so that one call does it.
 */
static char *
compress_gzip(const char *body, size_t size, size_t *compressed_size)
{
	z_stream	stream;
	char	   *compressed;
	size_t		room;
	int			rc;

	Assert(size <= MaxAllocSize);
	memset(&stream, 0, sizeof(stream));
	if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED,
					 PSYNC_HTTP_GZIP_WINDOW, 8, Z_DEFAULT_STRATEGY) != Z_OK)
		refuse_compression();
	room = deflateBound(&stream, size);
	compressed = palloc_extended(room, MCXT_ALLOC_NO_OOM);
	if (compressed == NULL)
	{
		/* zlib's memory is not PostgreSQL's: it must be freed first */
		(void) deflateEnd(&stream);
		refuse_compression();
	}
	stream.next_in = (Bytef *) body;
	stream.avail_in = size;
	stream.next_out = (Bytef *) compressed;
	stream.avail_out = room;
	rc = deflate(&stream, Z_FINISH);
	*compressed_size = stream.total_out;
	(void) deflateEnd(&stream);
	if (rc != Z_STREAM_END)
		refuse_compression();
	return compressed;
}

#ifdef PSYNC_HTTP_ZSTD_LIBRARY
static char *
compress_zstd(const char *body, size_t size, size_t *compressed_size)
{
	size_t		room = ZSTD_compressBound(size);
	char	   *compressed = palloc(room);

	*compressed_size = ZSTD_compress(compressed, room, body, size, ZSTD_CLEVEL_DEFAULT);
	if (ZSTD_isError(*compressed_size))
		refuse_compression();
	return compressed;
}
#endif

/*
 * Returns the body itself if nothing is to be done, else memory of the
 * current context.
 */
const char *
psync_http_compress(PsyncHttpCompression compression, const char *body,
					size_t size, size_t *compressed_size)
{
	Assert(body != NULL || size == 0);
	switch (compression)
	{
		case PSYNC_HTTP_IDENTITY:
			break;
		case PSYNC_HTTP_GZIP:
			return compress_gzip(body, size, compressed_size);
		case PSYNC_HTTP_ZSTD:
#ifdef PSYNC_HTTP_ZSTD_LIBRARY
			return compress_zstd(body, size, compressed_size);
#else
			/* settings.c has refused it */
			Assert(false);
			break;
#endif
	}
	*compressed_size = size;
	return body;
}
