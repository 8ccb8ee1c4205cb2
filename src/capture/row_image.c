/*
 * row_image.c
 *		Encoding captured columns as COPY BINARY does.
 *
 * A new image is a COPY BINARY tuple, an old part is the same with holes.  All
 * integers are in network order, nothing is aligned:
 *
 *	new image				old part
 *	size	meaning			size	meaning
 *	2		fields, n		2		fields kept, n
 *	then, n times:			then, n times, indexes ascending:
 *							2		index into the shape's columns
 *	4		length, l		4		length, l
 *	l		value			l		value
 *
 * with l = -1 and no value for NULL.  What follows an image in a chunk is in
 * log/log.h.
 *
 * Most columns of payments are of a few types whose binary form is their
 * stored form, byte-swapped at most; these are copied without a call.  The
 * others go through their send functions (P10).
 *
 * A session's settings have no business in an image.  Send functions of
 * textual types convert to the client's encoding; while one could do so, the
 * client encoding is set to the database's.  Output functions print dates,
 * floats, money and names of objects as the session likes them; while one could do
 * so, the settings are those that every server can read.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/float.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "capture/capture.h"
#include "compat.h"
#include "log/log.h"

/* A sparse field of fixed size takes at most this: index, length, uuid. */
#define PSYNC_FIXED_FIELD_MAX	(sizeof(uint16) + sizeof(uint32) + UUID_LEN)

/*
 * Room for that many of them, and for what the log adds to a change behind its
 * images.
 */
#define PSYNC_ROOM(ncolumns)	((ncolumns) * PSYNC_FIXED_FIELD_MAX + 64)

/*
 * The put functions for fixed sizes do not check for room: put_columns() makes
 * room for all columns' fixed parts, and put_field() makes that much again
 * behind what it stores.
 */
static inline void
put_int16(StringInfo buf, int16 value)
{
	uint16		n = pg_hton16((uint16) value);

	Assert(buf->len + sizeof(n) < buf->maxlen);
	memcpy(buf->data + buf->len, &n, sizeof(n));
	buf->len += sizeof(n);
}

/*
 * Length and value at once: most columns of payments are such.
 */
static inline void
put_field32(StringInfo buf, uint32 value)
{
	uint32		n[2] = {pg_hton32(sizeof(uint32)), pg_hton32(value)};

	Assert(buf->len + sizeof(n) < buf->maxlen);
	memcpy(buf->data + buf->len, n, sizeof(n));
	buf->len += sizeof(n);
}

/*
 * Likewise.
 */
static inline void
put_field64(StringInfo buf, uint64 value)
{
	uint32		size = pg_hton32(sizeof(uint64));
	uint64		n = pg_hton64(value);

	Assert(buf->len + sizeof(size) + sizeof(n) < buf->maxlen);
	memcpy(buf->data + buf->len, &size, sizeof(size));
	memcpy(buf->data + buf->len + sizeof(size), &n, sizeof(n));
	buf->len += sizeof(size) + sizeof(n);
}

/*
 * Length and bytes; the caller has made room for both.
 */
static inline void
put_bytes(StringInfo buf, const char *bytes, int32 size)
{
	uint32		n = pg_hton32((uint32) size);

	Assert(buf->len + sizeof(n) + size < buf->maxlen);
	memcpy(buf->data + buf->len, &n, sizeof(n));
	memcpy(buf->data + buf->len + sizeof(n), bytes, size);
	buf->len += sizeof(n) + size;
}

/*
 * A change is encoded in one piece, which an allocation limits to 1 GB.
 * PostgreSQL would say "out of memory", which helps nobody to find the column.
 */
static void
too_large(PsyncCaptureRel *crel)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("changed row of table \"%s\" is too large to be captured",
					get_rel_name(crel->relid)),
			 errdetail("The new values and the kept old ones must stay below 1 GB together."),
			 errhint("Capture the table with old_values => 'none', or leave a column out.")));
}

/*
 * A field of any size.  Room for the fixed parts of all that may follow is
 * made with it, so that those need not ask.
 */
static inline void
put_field(StringInfo buf, PsyncCaptureRel *crel, const char *bytes, int32 size)
{
	if ((Size) buf->len + size + PSYNC_ROOM(crel->ncolumns) >= MaxAllocSize)
		too_large(crel);
	enlargeStringInfo(buf, sizeof(uint32) + size + PSYNC_ROOM(crel->ncolumns));
	put_bytes(buf, bytes, size);
}

/*
 * A value whose binary form is its stored form without the header.  A TOAST
 * pointer means nothing elsewhere: it is fetched here, which for an unchanged
 * column of an UPDATE costs what the update saved; images are complete, lest a
 * target need the row that came before.
 */
static void
put_varlena(StringInfo buf, PsyncCaptureRel *crel, Datum value)
{
	struct varlena *datum = (struct varlena *) DatumGetPointer(value);
	struct varlena *plain = pg_detoast_datum_packed(datum);

	/* not by VARATT_IS_SHORT(), which a TOAST pointer also is */
	Assert(!VARATT_IS_EXTERNAL(plain) && !VARATT_IS_COMPRESSED(plain));
	put_field(buf, crel, VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));
	if (plain != datum)
		pfree(plain);
}

/*
 * By the type's output function: for types whose binary form says something
 * about this server only, see psync_type_is_portable().
 */
static void
put_text(StringInfo buf, PsyncCaptureRel *crel, FmgrInfo *output, Datum value)
{
	char	   *text = OutputFunctionCall(output, value);

	put_field(buf, crel, text, strlen(text));
	pfree(text);
}

/*
 * By the type's send function, as COPY BINARY would.
 */
static void
put_sent(StringInfo buf, PsyncCaptureRel *crel, FmgrInfo *send, Datum value)
{
	bytea	   *bytes = SendFunctionCall(send, value);

	put_field(buf, crel, VARDATA(bytes), VARSIZE(bytes) - VARHDRSZ);
	pfree(bytes);
}

/*
 * One field, length and value.  The shortcuts store what the send functions of
 * these types do; row images of all types are compared with COPY's in a test.
 */
static void
put_value(StringInfo buf, PsyncCaptureRel *crel, PsyncCaptureColumn *column,
		  Datum value, bool isnull)
{
	if (isnull)
	{
		memset(buf->data + buf->len, 0xff, sizeof(uint32)); /* -1 */
		buf->len += sizeof(uint32);
		return;
	}
	switch (column->encoding)
	{
		case PSYNC_ENC_INT2:
			{
				uint16		n = pg_hton16((uint16) DatumGetInt16(value));

				put_bytes(buf, (char *) &n, sizeof(n));
			}
			break;
		case PSYNC_ENC_INT4:
			put_field32(buf, (uint32) DatumGetInt32(value));
			break;
		case PSYNC_ENC_INT8:
			put_field64(buf, (uint64) DatumGetInt64(value));
			break;
		case PSYNC_ENC_BOOL:
			{
				char		c = DatumGetBool(value) ? 1 : 0;

				put_bytes(buf, &c, 1);
			}
			break;
		case PSYNC_ENC_UUID:
			put_bytes(buf, (char *) DatumGetPointer(value), UUID_LEN);
			break;
		case PSYNC_ENC_VARLENA:
			put_varlena(buf, crel, value);
			break;
		case PSYNC_ENC_TEXT:
			put_text(buf, crel, &column->send, value);
			break;
		case PSYNC_ENC_SEND:
			put_sent(buf, crel, &column->send, value);
			break;
	}
}

/*
 * The image of the captured columns, or with "include" the old part of those
 * that it names.  The slot's tuple is deformed up to the last captured column
 * and not beyond.
 *
 * Appends to "buf" only; values made on the way are freed, since a statement
 * may have millions of rows.
 */
static void
put_columns(StringInfo buf, PsyncCaptureRel *crel, TupleTableSlot *slot,
			const bool *include)
{
	int			count = crel->ncolumns;

	Assert(crel->ncolumns > 0 && crel->ncolumns <= MaxTupleAttributeNumber);

	slot_getsomeattrs(slot, crel->attnum_max);
	if (include != NULL)
	{
		count = 0;
		for (int i = 0; i < crel->ncolumns; i++)
			count += include[i];
	}
	enlargeStringInfo(buf, sizeof(uint16) + PSYNC_ROOM(crel->ncolumns));
	put_int16(buf, count);
	for (int i = 0; i < crel->ncolumns; i++)
	{
		PsyncCaptureColumn *column = &crel->columns[i];
		int			a = column->attnum - 1;

		if (include != NULL)
		{
			if (!include[i])
				continue;
			put_int16(buf, i);
		}
		put_value(buf, crel, column, slot->tts_values[a], slot->tts_isnull[a]);
	}
}

static void
set_for_now(const char *setting, const char *value)
{
	(void) set_config_option(setting, value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Encode under settings that do not depend on the session.  If an output
 * function fails, the end of the (sub)transaction restores them.
 */
static void
put_columns_as_text(StringInfo buf, PsyncCaptureRel *crel,
					TupleTableSlot *slot, const bool *include)
{
	int			level;

	if (!crel->textual)
	{
		put_columns(buf, crel, slot, include);
		return;
	}
	level = NewGUCNestLevel();
	if (DateStyle != USE_ISO_DATES)
		set_for_now("datestyle", "ISO");
	if (IntervalStyle != INTSTYLE_POSTGRES)
		set_for_now("intervalstyle", "postgres");
	if (extra_float_digits < 1)
		set_for_now("extra_float_digits", "1");
	if (crel->textual_money)
		set_for_now("lc_monetary", "C");
	set_for_now("search_path", "pg_catalog");
	put_columns(buf, crel, slot, include);
	AtEOXact_GUC(true, level);
}

/*
 * Encode under the database's own encoding.  The usual case, that client and
 * database agree, must not pay for a PG_TRY.
 */
static void
put_columns_unconverted(StringInfo buf, PsyncCaptureRel *crel,
						TupleTableSlot *slot, const bool *include)
{
	int			client = pg_get_client_encoding();

	if (client == GetDatabaseEncoding())
	{
		put_columns_as_text(buf, crel, slot, include);
		return;
	}
	(void) SetClientEncoding(GetDatabaseEncoding());
	PG_TRY();
	{
		put_columns_as_text(buf, crel, slot, include);
	}
	PG_FINALLY();
	{
		(void) SetClientEncoding(client);
	}
	PG_END_TRY();
}

/*
 * Append the new image of the slot's row to "buf".  May raise what a send
 * function raises, or that the row is too large.
 */
void
psync_image_append(StringInfo buf, PsyncCaptureRel *crel, TupleTableSlot *slot)
{
	put_columns_unconverted(buf, crel, slot, NULL);
}

/*
 * Append an old part: the columns that include[] names, an entry per captured
 * column.
 */
void
psync_old_part_append(StringInfo buf, PsyncCaptureRel *crel,
					  TupleTableSlot *slot, const bool *include)
{
	Assert(include != NULL);

	put_columns_unconverted(buf, crel, slot, include);
}

/*
 * Are the two stored values the same, byte for byte?  An unchanged TOASTed
 * value keeps its pointer, so it need not be fetched.
 *
 * By bytes rather than by the type's equality: 1.0 and 1.00 are equal
 * numerics, and a target should show what the source shows.  Two equal values
 * stored in different forms (compressed or not) count as equal.
 */
static bool
same_value(const PsyncCaptureColumn *column, Datum a, Datum b)
{
	if (column->byval)
		return a == b;
	if (column->len == -1)
	{
		struct varlena *x = (struct varlena *) DatumGetPointer(a);
		struct varlena *y = (struct varlena *) DatumGetPointer(b);

		if (VARATT_IS_EXTERNAL_ONDISK(x) && VARATT_IS_EXTERNAL_ONDISK(y) &&
			memcmp(x, y, TOAST_POINTER_SIZE) == 0)
			return true;
	}
	return datum_image_eq(a, b, false, column->len);
}

/*
 * Which captured columns differ?  changed[] has an entry per column,
 * *key_changed says whether one of the key is among them.  False if none is:
 * such an update leaves no trace.
 */
bool
psync_image_changed(PsyncCaptureRel *crel, TupleTableSlot *oldslot,
					TupleTableSlot *newslot, bool *changed, bool *key_changed)
{
	bool		any = false;

	Assert(changed != NULL && key_changed != NULL);

	slot_getsomeattrs(oldslot, crel->attnum_max);
	slot_getsomeattrs(newslot, crel->attnum_max);
	*key_changed = false;
	for (int i = 0; i < crel->ncolumns; i++)
	{
		PsyncCaptureColumn *column = &crel->columns[i];
		int			a = column->attnum - 1;
		bool		old_null = oldslot->tts_isnull[a];
		bool		new_null = newslot->tts_isnull[a];

		if (old_null || new_null)
			changed[i] = old_null != new_null;
		else
			changed[i] = !same_value(column, oldslot->tts_values[a],
									 newslot->tts_values[a]);
		any |= changed[i];
		*key_changed |= changed[i] && column->key;
	}
	return any;
}
