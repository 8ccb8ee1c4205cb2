/*
 * fuzz_json_text.c
 *		Text of any bytes becomes one JSON string on one line, in UTF-8; JSON
 *		stays on one line.
 */
#include "fuzz.h"

#include "../../src/decode/json_text.c"

const bool	fuzz_terminated = true;

void
psync_corrupt_image(void)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("not UTF-8")));
}

static void
check_utf8_line(const StringInfoData *out)
{
	const unsigned char *at = (const unsigned char *) out->data;
	const unsigned char *end = at + out->len;

	while (at < end)
	{
		int			length = pg_utf_mblen(at);

		fuzz_check(*at >= 0x20);
		fuzz_check(at + length <= end && pg_utf8_islegal(at, length));
		at += length;
	}
}

void
fuzz_one(const char *data, size_t size)
{
	StringInfoData out;

	if (size < 1)
		return;
	fuzz_encoding = (data[0] & 1) ? PG_SQL_ASCII : PG_UTF8;
	data++;
	size--;
	initStringInfo(&out);
	psync_json_string(&out, data, size);
	fuzz_check(out.len >= 2 && out.data[0] == '"' && out.data[out.len - 1] == '"');
	check_utf8_line(&out);
	for (int i = 1; i < out.len - 1; i++)
	{
		fuzz_check(out.data[i] != '"');
		if (out.data[i] == '\\')
			i++;
	}
	resetStringInfo(&out);
	psync_json_verbatim(&out, data, size);
	check_utf8_line(&out);
	resetStringInfo(&out);
	psync_json_plain_utf8(&out, data);
}
