/*
 * json.c
 *		Looking into the JSON that a target has sent.
 *
 * The server's own parser recurses and raises errors; an answer is hostile
 * until proven otherwise and an error would end the delivery of all that is
 * in flight.  So this one walks over the text, remembers nothing but where a
 * value begins and ends, and says false to what it does not understand.  It
 * needs no more of JSON than members, elements, strings and numbers; whether
 * the rest of the text is well-formed is not its business.
 */
#include "postgres.h"

#include "transport/http/http_transport.h"

/* Deeper answers are not looked into. */
#define PSYNC_HTTP_JSON_DEPTH_MAX	64

/* JSON's four kinds of white space. */
static const char *
skip_space(const char *at, const char *end)
{
	while (at < end && strchr(" \t\r\n", *at) != NULL && *at != '\0')
		at++;
	return at;
}

/* "at" is at the quote; returns what follows the closing one, or NULL. */
static const char *
skip_string(const char *at, const char *end)
{
	Assert(at < end && *at == '"');
	for (at++; at < end; at++)
	{
		if (*at == '\\')
			at++;
		else if (*at == '"')
			return at + 1;
	}
	return NULL;
}

/* Number, true, false, null. */
static const char *
skip_word(const char *at, const char *end)
{
	const char *begin = at;

	while (at < end && *at != '\0' && strchr(" \t\r\n,:]}[{\"", *at) == NULL)
		at++;
	return at > begin ? at : NULL;
}

/* What follows the value at "at", or NULL. */
static const char *
skip_value(const char *at, const char *end)
{
	char		open[PSYNC_HTTP_JSON_DEPTH_MAX];
	int			depth = 0;

	do
	{
		at = skip_space(at, end);
		if (at >= end)
			return NULL;
		if (*at == '{' || *at == '[')
		{
			if (depth == PSYNC_HTTP_JSON_DEPTH_MAX)
				return NULL;
			open[depth++] = *at++ == '{' ? '}' : ']';
		}
		else if (*at == '}' || *at == ']')
		{
			if (depth == 0 || open[--depth] != *at++)
				return NULL;
		}
		else if (*at == '"')
			at = skip_string(at, end);
		else if (depth > 0 && (*at == ',' || *at == ':'))
			at++;
		else
			at = skip_word(at, end);
	} while (at != NULL && depth > 0);
	return at;
}

/* The value that begins at "at", white space aside. */
static bool
take_value(const char *at, const char *end, PsyncHttpJson *value)
{
	Assert(at <= end);
	value->at = skip_space(at, end);
	value->end = skip_value(value->at, end);
	return value->end != NULL;
}

/* The whole text must be one value: half an answer is none. */
bool
psync_http_json_parse(const char *text, size_t size, PsyncHttpJson *value)
{
	return text != NULL && take_value(text, text + size, value) &&
		skip_space(value->end, text + size) == text + size;
}

/* Names with escapes are not compared: those that we look for have none. */
bool
psync_http_json_member(PsyncHttpJson object, const char *name, PsyncHttpJson *value)
{
	const char *end = object.end;
	const char *at = object.at;
	size_t		length = strlen(name);

	if (at >= end || *at++ != '{')
		return false;
	for (;;)
	{
		const char *key = skip_space(at, end);

		if (key >= end || *key != '"' || (at = skip_string(key, end)) == NULL)
			return false;
		key++;
		if ((at = skip_space(at, end)) >= end || *at++ != ':' ||
			!take_value(at, end, value))
			return false;
		if (strncmp(key, name, length) == 0 && key[length] == '"')
			return true;
		at = skip_space(value->end, end);
		if (at >= end || *at++ != ',')
			return false;
	}
}

/* "a.b": member b of member a; ".": the value itself. */
bool
psync_http_json_path(PsyncHttpJson value, const char *path, PsyncHttpJson *found)
{
	char	   *copy = pstrdup(path);
	char	   *save = NULL;

	for (char *name = strtok_r(copy, ".", &save); name != NULL;
		 name = strtok_r(NULL, ".", &save))
	{
		if (!psync_http_json_member(value, name, found))
			return false;
		value = *found;
	}
	*found = value;
	return true;
}

/*
 * The next element of an array; *cursor is NULL before the first one.  False
 * at the end, or if this is no array.
 */
bool
psync_http_json_element(PsyncHttpJson array, const char **cursor, PsyncHttpJson *element)
{
	const char *at = *cursor;

	if (at == NULL)
	{
		if (array.at >= array.end || *array.at != '[')
			return false;
		at = skip_space(array.at + 1, array.end);
		if (at < array.end && *at == ']')
			return false;
	}
	else
	{
		at = skip_space(at, array.end);
		if (at >= array.end || *at++ != ',')
			return false;
	}
	if (!take_value(at, array.end, element))
		return false;
	*cursor = element->end;
	return true;
}

/*
 * Did the elements end where the array ends?  The cursor is that of the last
 * one, or NULL.  Else something in it is no element, and what follows unread.
 */
bool
psync_http_json_is_read(PsyncHttpJson array, const char *cursor)
{
	const char *at = cursor != NULL ? cursor : array.at + 1;

	return array.at < array.end && *array.at == '[' &&
		skip_space(at, array.end) == array.end - 1;
}

/* The character that four hexadecimal digits stand for; "?" if not in ASCII. */
static char
plain_character(const char *at, const char *end)
{
	unsigned int code = 0;

	if (end - at < 4)
		return '?';
	for (int i = 0; i < 4; i++)
	{
		const char *digits = "0123456789abcdef";
		const char *digit = strchr(digits, pg_tolower((unsigned char) at[i]));

		if (digit == NULL || *digit == '\0')
			return '?';
		code = code << 4 | (digit - digits);
	}
	return code >= ' ' && code < 0x7f ? (char) code : '?';
}

/* The text of a string or number; what is not ASCII becomes "?". */
char *
psync_http_json_string(PsyncHttpJson value)
{
	char	   *text = palloc(value.end - value.at + 1);
	char	   *to = text;
	const char *at = value.at;
	const char *end = value.end;

	if (at < end && *at == '"')
	{
		at++;
		end--;
	}
	while (at < end)
	{
		if (*at != '\\' || at + 1 >= end)
			*to++ = *at++;
		else if (at[1] == 'u')
		{
			*to++ = plain_character(at + 2, end);
			at = Min(at + 6, end);
		}
		else
		{
			*to++ = strchr("nrtbf", at[1]) != NULL ? ' ' : at[1];
			at += 2;
		}
	}
	*to = '\0';
	return text;
}

/* Neither null nor false nor empty. */
bool
psync_http_json_truthy(PsyncHttpJson value)
{
	static const char *const falsy[] = {"null", "false", "\"\"", "[]", "{}"};
	size_t		size = value.end - value.at;

	for (int i = 0; i < lengthof(falsy); i++)
	{
		if (strlen(falsy[i]) == size && strncmp(value.at, falsy[i], size) == 0)
			return false;
	}
	return true;
}
