/*
 * runtime.c
 *		The little of the server that pure parsers need: memory that is given
 *		back after each input, and errors that end it.
 *
 * Functions of the server that a target's file names but that its parsers do
 * not call stay unresolved; a call of one would be seen as a crash.
 */
#include "fuzz.h"

#include <setjmp.h>

#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"

/* An input of some kB that makes a parser hold more than this is a finding. */
#define FUZZ_MEMORY_MAX		(64 * 1024 * 1024)

typedef struct Block
{
	struct Block *next;
	struct Block *previous;
	Size		size;
	char		padding[8];		/* keeps the data aligned as malloc() does */
} Block;

static Block blocks = {&blocks, &blocks};
static Size allocated;
static sigjmp_buf error_exit;
static bool in_input;

MemoryContext CurrentMemoryContext = NULL;
MemoryContext TopMemoryContext = NULL;
int			fuzz_encoding = PG_UTF8;

/* -------------------------------------------------------------- memory */

static void *
allocate(Size size, bool zero)
{
	Block	   *block;

	if (size >= MaxAllocHugeSize / 2 || allocated + size > FUZZ_MEMORY_MAX)
		fuzz_failed("memory is bounded", __FILE__, __LINE__);
	block = malloc(sizeof(Block) + size);
	block->size = size;
	block->next = blocks.next;
	block->previous = &blocks;
	blocks.next->previous = block;
	blocks.next = block;
	allocated += size;
	memset(block + 1, zero ? 0 : 0x7f, size);
	return block + 1;
}

void
pfree(void *pointer)
{
	Block	   *block = (Block *) pointer - 1;

	block->next->previous = block->previous;
	block->previous->next = block->next;
	allocated -= block->size;
	free(block);
}

void *
palloc(Size size)
{
	return allocate(size, false);
}

void *
palloc0(Size size)
{
	return allocate(size, true);
}

void *
palloc_extended(Size size, int flags)
{
	return allocate(size, (flags & MCXT_ALLOC_ZERO) != 0);
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	return allocate(size, false);
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return allocate(size, true);
}

void *
repalloc(void *pointer, Size size)
{
	void	   *moved = allocate(size, false);

	memcpy(moved, pointer, Min(size, ((Block *) pointer - 1)->size));
	pfree(pointer);
	return moved;
}

void *
repalloc_huge(void *pointer, Size size)
{
	return repalloc(pointer, size);
}

char *
pnstrdup(const char *text, Size size)
{
	size = strnlen(text, size);
	return ((char *) memcpy(palloc0(size + 1), text, size));
}

char *
pstrdup(const char *text)
{
	return pnstrdup(text, strlen(text));
}

char *
MemoryContextStrdup(MemoryContext context, const char *text)
{
	return pstrdup(text);
}

List *
lappend(List *list, void *datum)
{
	if (list == NIL)
	{
		list = palloc0(sizeof(List));
		list->type = T_List;
	}
	if (list->length == list->max_length)
	{
		ListCell   *cells = palloc0(sizeof(ListCell) * (list->max_length + 16));

		if (list->length > 0)
			memcpy(cells, list->elements, sizeof(ListCell) * list->length);
		list->elements = cells;
		list->max_length += 16;
	}
	list->elements[list->length++].ptr_value = datum;
	return list;
}

/* ------------------------------------------------------------- strings */

void
initStringInfo(StringInfo str)
{
	str->data = palloc0(64);
	str->maxlen = 64;
	str->len = str->cursor = 0;
}

void
resetStringInfo(StringInfo str)
{
	str->data[0] = '\0';
	str->len = str->cursor = 0;
}

void
enlargeStringInfo(StringInfo str, int needed)
{
	Size		want;

	if (needed < 0)
		fuzz_failed("sizes do not overflow", __FILE__, __LINE__);
	want = (Size) str->len + needed + 1;
	if (want >= MaxAllocSize)
		fuzz_failed("strings are bounded", __FILE__, __LINE__);
	if (want <= (Size) str->maxlen)
		return;
	str->data = repalloc(str->data, Max(want, 2 * (Size) str->maxlen));
	str->maxlen = Max(want, 2 * (Size) str->maxlen);
}

void
#if PG_VERSION_NUM < 160000
appendBinaryStringInfo(StringInfo str, const char *data, int size)
#else
appendBinaryStringInfo(StringInfo str, const void *data, int size)
#endif
{
	enlargeStringInfo(str, size);
	memcpy(str->data + str->len, data, size);
	str->len += size;
	str->data[str->len] = '\0';
}

void
appendStringInfoString(StringInfo str, const char *text)
{
	appendBinaryStringInfo(str, text, strlen(text));
}

void
appendStringInfoChar(StringInfo str, char c)
{
	appendBinaryStringInfo(str, &c, 1);
}

static char *
format(const char *fmt, va_list args)
{
	char	   *text = NULL;
	char	   *copy;

	if (vasprintf(&text, fmt, args) < 0)
		abort();
	copy = pstrdup(text);
	free(text);
	return copy;
}

void
appendStringInfo(StringInfo str, const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	appendStringInfoString(str, format(fmt, args));
	va_end(args);
}

char *
psprintf(const char *fmt,...)
{
	va_list		args;
	char	   *text;

	va_start(args, fmt);
	text = format(fmt, args);
	va_end(args);
	return text;
}

int
GetDatabaseEncoding(void)
{
	return fuzz_encoding;
}

/* -------------------------------------------------------------- errors */

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	if (!in_input)
		fuzz_failed("no error outside of an input", filename, lineno);
	siglongjmp(error_exit, 1);
}

/* Texts of errors are formatted, so that their arguments are looked at. */
#define ERROR_TEXT(name) \
int \
name(const char *fmt,...) \
{ \
	va_list		args; \
\
	va_start(args, fmt); \
	pfree(format(fmt, args)); \
	va_end(args); \
	return 0; \
}

ERROR_TEXT(errmsg)
ERROR_TEXT(errmsg_internal)
ERROR_TEXT(errdetail)
ERROR_TEXT(errdetail_internal)
ERROR_TEXT(errhint)

int
errcode(int sqlerrcode)
{
	return 0;
}

void
ExceptionalCondition(const char *condition,
#if PG_VERSION_NUM < 160000
					 const char *type,
#endif
					 const char *file, int line)
{
	fuzz_failed(condition, file, line);
}

void
fuzz_failed(const char *condition, const char *file, int line)
{
	fprintf(stderr, "%s:%d: failed: %s\n", file, line, condition);
	abort();
}

/* -------------------------------------------------------------- inputs */

const char *
fuzz_string(const char **data, size_t *size)
{
	size_t		length = strnlen(*data, *size);
	char	   *text = palloc0(length + 1);

	memcpy(text, *data, length);
	if (length < *size)
		length++;
	*data += length;
	*size -= length;
	return text;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *copy = malloc(size + (fuzz_terminated ? 1 : 0) + (size == 0));

	if (size > 0)
		memcpy(copy, data, size);
	if (fuzz_terminated)
		copy[size] = '\0';
	fuzz_encoding = PG_UTF8;
	in_input = true;
	if (sigsetjmp(error_exit, 0) == 0)
		fuzz_one(copy, size);
	in_input = false;
	while (blocks.next != &blocks)
		pfree(blocks.next + 1);
	free(copy);
	return 0;
}
