/*
 * json_text.c
 *		Text in JSON: escaping, and conversion to UTF-8.
 *
 * Text of a UTF-8 database is valid by the server's own rule, but an image
 * may be damaged; so each character above ASCII is checked on the way.  Most
 * text needs no escape and is copied in runs.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "compat.h"
#include "decode/json.h"

/*
 * The largest text of an event: with its frame it must fit into a row of
 * payment_sync.unsettled.
 */
#define TEXT_MAX	(MaxAllocSize - 64 * 1024)

/* What a byte of UTF-8 text is to JSON. */
#define PLAIN		0
#define ESCAPED		1
#define MULTIBYTE	2

/* Text is written in pieces of this many bytes, see psync_json_string. */
#define PIECE		1024
/* \u0000 is the longest that one byte becomes. */
#define ESCAPE_MAX	6
/* UTF-8 for U+FFFD, the replacement character */
#define REPLACEMENT "\xEF\xBF\xBD"

/*
 * The server's own check takes an int, and its message no account of what was
 * asked for.
 */
void
psync_json_enlarge(StringInfo out, Size n)
{
	if (n >= TEXT_MAX || (Size) out->len >= TEXT_MAX - n)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("change is too large for an event"),
				 errdetail("Its text would exceed %zu bytes.", (Size) TEXT_MAX)));
	enlargeStringInfo(out, (int) n);
}

/*
 * Most bytes are plain; the test for the rest is kept short.
 */
static inline int
class_of(unsigned char c)
{
	if (c >= 0x80)
		return MULTIBYTE;
	return c < 0x20 || c == '"' || c == '\\' || c == 0x7f ? ESCAPED : PLAIN;
}

/* The escape for one character, into at; returns what is behind it. */
static char *
put_escape(char *at, unsigned char c)
{
	static const char hex[] = "0123456789abcdef";
	char		letter = 0;

	switch (c)
	{
		case '"':
		case '\\':
			letter = c;
			break;
		case '\b':
			letter = 'b';
			break;
		case '\f':
			letter = 'f';
			break;
		case '\n':
			letter = 'n';
			break;
		case '\r':
			letter = 'r';
			break;
		case '\t':
			letter = 't';
			break;
		case 0x7f:				/* legal as it is */
			*at++ = c;
			return at;
	}
	*at++ = '\\';
	if (letter != 0)
	{
		*at++ = letter;
		return at;
	}
	memcpy(at, "u00", 3);
	at[3] = hex[c >> 4];
	at[4] = hex[c & 0xf];
	return at + 5;
}

/*
 * Length of the character above ASCII at text.  In a database whose encoding
 * is not known to the server anything may come up: 0 then.
 */
static int
multibyte_length(const char *text, const char *end)
{
	int			length = pg_utf_mblen((const unsigned char *) text);

	if (length <= end - text &&
		pg_utf8_islegal((const unsigned char *) text, length))
		return length;
	if (GetDatabaseEncoding() != PG_SQL_ASCII)
		psync_corrupt_image();
	return 0;
}

/*
 * Escape text[0 .. piece), or a few bytes more to end with a character;
 * returns where to go on.  Room is made for a piece at a time, as if all of it
 * had to be escaped: a large text then takes little more than itself.
 */
static const char *
put_piece(StringInfo out, const char *text, const char *piece, const char *end)
{
	Size		size = piece - text + MAX_MULTIBYTE_CHAR_LEN;
	char	   *at = psync_json_room(out, size * ESCAPE_MAX);

	Assert(text < piece && piece <= end);

	while (text < piece)
	{
		unsigned char c = (unsigned char) *text;
		int			length;

		switch (class_of(c))
		{
			case PLAIN:
				*at++ = c;
				text++;
				break;
			case ESCAPED:
				at = put_escape(at, c);
				text++;
				break;
			default:
				length = multibyte_length(text, end);
				if (length > 0)
				{
					memcpy(at, text, length);
					at += length;
					text += length;
				}
				else
				{
					memcpy(at, REPLACEMENT, strlen(REPLACEMENT));
					at += strlen(REPLACEMENT);
					text++;
				}
		}
	}
	out->len = at - out->data;
	Assert(out->len < out->maxlen);
	return text;
}

/* UTF-8 text between quotes. */
void
psync_json_utf8(StringInfo out, const char *text, int size)
{
	const char *end = text + size;

	Assert(size >= 0);
	psync_json_literal(out, "\"");
	while (text < end)
		text = put_piece(out, text, Min(text + PIECE, end), end);
	psync_json_literal(out, "\"");
}

/*
 * The text in UTF-8; the same pointer if nothing had to be done, else to be
 * freed.  *size is the result's.
 */
static const char *
convert(const char *text, int *size)
{
	int			encoding = GetDatabaseEncoding();
	char	   *converted;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return text;
	converted = pg_server_to_any(text, *size, PG_UTF8);
	if (converted != text)
		*size = strlen(converted);
	return converted;
}

/*
 * Text in the database's encoding, as a JSON string in UTF-8.
 */
void
psync_json_string(StringInfo out, const char *text, int size)
{
	const char *utf8 = convert(text, &size);

	psync_json_utf8(out, utf8, size);
	if (utf8 != text)
		pfree(unconstify(char *, utf8));
}

/*
 * A piece of JSON, or a few bytes more; returns where to go on.
 */
static const char *
put_piece_verbatim(StringInfo out, const char *from, const char *piece,
				   const char *end)
{
	Size		size = piece - from + MAX_MULTIBYTE_CHAR_LEN;
	char	   *at = psync_json_room(out, size * strlen(REPLACEMENT));

	while (from < piece)
	{
		int			length = 1;

		if (class_of((unsigned char) *from) == MULTIBYTE)
			length = multibyte_length(from, end);
		if (length == 0)
		{
			memcpy(at, REPLACEMENT, strlen(REPLACEMENT));
			at += strlen(REPLACEMENT);
			from++;
			continue;
		}
		memcpy(at, from, length);
		if ((unsigned char) *at < 0x20)
			*at = ' ';
		at += length;
		from += length;
	}
	out->len = at - out->data;
	return from;
}

/*
 * JSON in the database's encoding, as it is; but on one line, since line
 * breaks separate events in some formats.  In JSON they mean no more than
 * blanks, unless within strings, where they are not allowed.
 */
void
psync_json_verbatim(StringInfo out, const char *text, int size)
{
	const char *utf8 = convert(text, &size);
	const char *end = utf8 + size;

	for (const char *from = utf8; from < end;)
		from = put_piece_verbatim(out, from, Min(from + PIECE, end), end);
	if (utf8 != text)
		pfree(unconstify(char *, utf8));
}

/* Text in the database's encoding as UTF-8, neither escaped nor quoted. */
void
psync_json_plain_utf8(StringInfo out, const char *text)
{
	int			size = strlen(text);
	const char *utf8 = convert(text, &size);

	psync_json_put(out, utf8, size);
	if (utf8 != text)
		pfree(unconstify(char *, utf8));
}
