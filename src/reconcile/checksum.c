/*
 * checksum.c
 *		From the whole table down to the few rows that may differ.
 *
 * A step compares the checksums of some cells, both servers computing at the
 * same time.  Cells that differ are split, and their parts compared, until
 * they have so few rows that reading them is cheaper; see recheck.c for what
 * happens to those.  The two sides are read at different moments: rows that
 * change meanwhile make cells differ and nothing worse.
 *
 * Of a large table, ranges are joined at first, so that not only memory but
 * also what is moved does not grow with the table.
 *
 * Into how many parts a cell is split depends on how many differences such
 * cells had of late: with few differences, few checksums are fetched for
 * each; with many, one more level of division would cost more than it saves.
 * A range of integers with few gaps is cut evenly, others where keys lie.
 *
 * Of ranges that are small enough, the digests of single rows are fetched, and
 * what is then read are rows that differ, found by their keys: one row instead
 * of ten or twenty for each difference.
 *
 * Ranges of keys come from a sample of the source's pages, not from the values
 * of keys, so gaps and skew do not matter.  A range may still hold many more
 * rows than meant, at the target in particular; where to split it is asked of
 * the side that has more rows in it.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_class.h"
#include "common/int.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "reconcile/reconcile.h"

/* Sampled rows per cell, and sampled pages. */
#define PSYNC_SAMPLE_ROWS		32
#define PSYNC_SAMPLE_PAGES		4
/* Parts of hashed cells that are compared in one pass over the table. */
#define PSYNC_HASH_CELLS_MAX	65536
/* Differences per cell beyond which its own checksum is not worth computing. */
#define PSYNC_DENSITY_HIGH		8
/* With one difference in so many rows or fewer, only those rows are read. */
#define PSYNC_SINGLE_OUT		3
/* Enough levels of at least PSYNC_SPLIT_MIN parts for any table. */
#define PSYNC_RANGE_DEPTH_MAX	10
/* Ranges of a large table are joined until there are about so many. */
#define PSYNC_JOINED_CELLS		256
/* A range of integers with fewer gaps than that is divided evenly. */
#define PSYNC_ROOM_FACTOR		4
/* More bits of a hash tell nothing apart. */
#define PSYNC_HASH_BITS_MAX		56
/* Hashed cells are read in passes over the table: as few as memory allows. */
#define PSYNC_HASH_READ_FACTOR	8

/* What one side says of a cell; digests are NULL if it has no rows. */
typedef struct PsyncSum
{
	int64		rows;
	const char *digest[2];
} PsyncSum;

/*
 * What a side says of the cells, by their numbers; those without rows are not
 * in the answer and keep zeros.  The answer may come from a target that is not
 * what it seems, so numbers are checked before they are used.
 */
static void
read_sums(const PsyncRows *rows, PsyncSum *sums, int ncells)
{
	Assert(ncells > 0);

	for (int i = 0; i < rows->nrows; i++)
	{
		int			cell = atoi(psync_rows_get(rows, i, 0));

		if (cell < 0 || cell >= ncells)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_ERROR),
					 errmsg("unexpected answer to a query for checksums")));
		sums[cell].rows = atoll(psync_rows_get(rows, i, 1));
		sums[cell].digest[0] = psync_rows_get(rows, i, 2);
		sums[cell].digest[1] = psync_rows_get(rows, i, 3);
	}
}

/*
 * Two empty cells are equal; their digests are NULL.  Of a cell with rows, a
 * null digest proves nothing.
 */
static bool
sums_equal(const PsyncSum *a, const PsyncSum *b)
{
	if (a->rows != b->rows)
		return false;
	for (int i = 0; a->rows != 0 && i < 2; i++)
	{
		if (a->digest[i] == NULL || b->digest[i] == NULL ||
			strcmp(a->digest[i], b->digest[i]) != 0)
			return false;
	}
	return true;
}

/*
 * Compare the cells; those that differ are returned, with their rows counted.
 * "total" counts all rows, or is NULL.
 */
static List *
differing_cells(PsyncReconcile *rec, List *cells, PsyncCounts *total)
{
	int			ncells = list_length(cells);
	PsyncSum   *sums[2];
	PsyncRows  *rows;
	List	   *result = NIL;

	Assert(!rec->hashed || (rec->hash_bits > 0 && rec->hash_bits < 64));

	CHECK_FOR_INTERRUPTS();
	if (cells == NIL)
		return NIL;
	for (int i = 0; i < 2; i++)
		sums[i] = palloc0(ncells * sizeof(PsyncSum));

	/* the other side first: if it is a server, it works while we do */
	psync_side_send(&rec->side[PSYNC_OTHER],
					psync_query_checksum(rec, PSYNC_OTHER, cells), 4, 2);
	psync_side_send(&rec->side[PSYNC_SOURCE],
					psync_query_checksum(rec, PSYNC_SOURCE, cells), 4, 2);
	read_sums(psync_side_collect(&rec->side[PSYNC_SOURCE]), sums[0], ncells);
	rows = psync_side_collect(&rec->side[PSYNC_OTHER]);
	read_sums(rows, sums[1], ncells);
	rec->counts.rows_moved += rows->nrows;

	for (int i = 0; i < ncells; i++)
	{
		PsyncCell  *cell = list_nth(cells, i);

		cell->rows = Max(sums[0][i].rows, sums[1][i].rows);
		cell->more_at_other = sums[1][i].rows > sums[0][i].rows;
		if (total != NULL)
		{
			total->source_rows += sums[0][i].rows;
			total->target_rows += sums[1][i].rows;
		}
		if (!sums_equal(&sums[0][i], &sums[1][i]))
			result = lappend(result, cell);
	}
	return result;
}

/* --------------------------------------------------------------- splitting */

/*
 * A cell; the bounds are shared, not copied.
 */
static PsyncCell *
make_range(char **after, char **upto)
{
	PsyncCell  *cell = palloc0(sizeof(PsyncCell));

	cell->after = after;
	cell->upto = upto;
	return cell;
}

/*
 * A row of keys, as it stands in a result: valid as long as that.
 */
static char **
result_key(const PsyncRows *rows, int row)
{
	return &psync_rows_get(rows, row, 0);
}

/*
 * Into how many rows per part, by what was found of late: about eight parts
 * for each difference expected, so that most parts turn out equal at once.
 */
static int64
split_width(const PsyncReconcile *rec, const PsyncCell *cell)
{
	double		expected = rec->density * cell->rows / PSYNC_CELL_ROWS;
	double		parts = Min(Max(8 * expected, PSYNC_SPLIT_MIN), PSYNC_SPLIT_MAX);

	Assert(cell->rows >= 0 && rec->density >= 0);

	return Max((int64) (cell->rows / parts), PSYNC_LEAF_ROWS / 2);
}

/*
 * A bound as a number.  False for one that a user has written in other ways.
 */
static bool
bound_number(char **bound, int64 *number)
{
	char	   *end;

	if (bound == NULL)
		return false;
	errno = 0;
	*number = strtoll(bound[0], &end, 10);
	return errno == 0 && end != bound[0] && *end == '\0';
}

/*
 * How many keys a range has room for, if that can be told: one integer is the
 * key, and there are both bounds.  Otherwise 0.
 */
static int64
range_room(const PsyncReconcile *rec, const PsyncCell *cell)
{
	int64		after;
	int64		upto;
	int64		room;

	Assert(!rec->integer_key || rec->nkeys == 1);
	if (!rec->integer_key || !bound_number(cell->after, &after) ||
		!bound_number(cell->upto, &upto) || pg_sub_s64_overflow(upto, after, &room))
		return 0;
	return Max(room, 0);
}

/*
 * The parts of a range of integers that is well filled: cut without asking
 * where.
 */
static List *
split_room(const PsyncCell *cell, int64 room, int64 width)
{
	List	   *parts = NIL;
	char	  **after = cell->after;
	int64		first = atoll(cell->after[0]);

	Assert(width > 0 && room <= PSYNC_ROOM_FACTOR * cell->rows);

	for (int64 at = width; at < room; at += width)
	{
		char	  **upto = palloc(sizeof(char *));

		upto[0] = psprintf(INT64_FORMAT, first + at);
		parts = lappend(parts, make_range(after, upto));
		after = upto;
	}
	return lappend(parts, make_range(after, cell->upto));
}

/*
 * A range that ends before the given bound of the run, and begins "n" bounds
 * before that; the bounds in between are where to split it.
 */
static PsyncCell *
make_joined_range(PsyncReconcile *rec, char **after, char **upto, int n)
{
	PsyncCell  *cell = make_range(after, upto);

	Assert(n >= 0 && n <= rec->next_bound);
	cell->inner = rec->bounds + rec->next_bound - n;
	cell->ninner = n;
	return cell;
}

/*
 * The ranges that were joined.
 */
static List *
split_joined(PsyncCell *cell)
{
	List	   *parts = NIL;
	char	  **after = cell->after;

	for (int i = 0; i < cell->ninner; i++)
	{
		parts = lappend(parts, make_range(after, cell->inner[i]));
		after = cell->inner[i];
	}
	return lappend(parts, make_range(after, cell->upto));
}

/*
 * The parts of a range, cut where the side with more rows has every n-th of
 * its keys.  One part only if there is nowhere to cut.
 */
static List *
split_range(PsyncReconcile *rec, PsyncCell *cell)
{
	int			side = cell->more_at_other ? PSYNC_OTHER : PSYNC_SOURCE;
	int64		width = split_width(rec, cell);
	int64		room = range_room(rec, cell);
	PsyncRows  *keys;
	List	   *parts = NIL;
	char	  **after = cell->after;

	Assert(!rec->hashed && cell->rows > PSYNC_LEAF_ROWS);

	if (cell->ninner > 0)
		return split_joined(cell);
	if (room > 0 && room <= PSYNC_ROOM_FACTOR * cell->rows)
		return split_room(cell, room, width);

	keys = psync_side_query(&rec->side[side],
							psync_query_split(rec, side, cell, width),
							rec->nkeys, rec->nkeys);
	if (side == PSYNC_OTHER)
		rec->counts.rows_moved += keys->nrows;
	for (int i = 0; i < keys->nrows; i++)
	{
		parts = lappend(parts, make_range(after, result_key(keys, i)));
		after = result_key(keys, i);
	}
	return lappend(parts, make_range(after, cell->upto));
}

/*
 * The parts of hashed cells: each by the next bits of the hash.
 */
static List *
split_hashed(PsyncReconcile *rec, List *cells, int bits)
{
	List	   *parts = NIL;
	ListCell   *lc;

	Assert(bits > 0 && bits < 32);

	Assert(rec->hashed && bits > 0 && rec->hash_bits <= PSYNC_HASH_BITS_MAX);

	foreach(lc, cells)
	{
		for (int64 i = 0; i < (INT64CONST(1) << bits); i++)
		{
			PsyncCell  *part = palloc0(sizeof(PsyncCell));

			part->prefix = (int64) ((uint64) ((PsyncCell *) lfirst(lc))->prefix << bits) + i;
			parts = lappend(parts, part);
		}
	}
	return parts;
}

/* ------------------------------------------------------------- descending */

/* Cells that are to be read, until there are enough to be worth it. */
typedef struct PsyncLeaves
{
	List	   *cells;
	int64		rows;
} PsyncLeaves;

/*
 * Ask for the digests of single rows first, so that only rows that differ are
 * read?  Not if hardly any would be spared; nor if rows cannot be found by
 * their keys: without an index, and in files, whose keys may be null.
 */
static bool
single_out(const PsyncReconcile *rec)
{
	Assert(rec->density >= 0);

	return rec->sync != NULL && !rec->hashed &&
		rec->density < PSYNC_CELL_ROWS / PSYNC_SINGLE_OUT;
}

/*
 * Examine the rows of these cells that differ by their digests.  A key that is
 * null at the target is not found by "=": then all of the rows are read.
 */
static void
examine_singled_out(PsyncReconcile *rec, List *cells)
{
	PsyncRows  *rows[2];
	char	 ***keys;
	int			n;

	psync_side_send(&rec->side[PSYNC_OTHER],
					psync_query_row_digests(rec, PSYNC_OTHER, cells),
					1 + rec->nkeys + 2, 1);
	psync_side_send(&rec->side[PSYNC_SOURCE],
					psync_query_row_digests(rec, PSYNC_SOURCE, cells),
					1 + rec->nkeys + 2, 1);
	rows[PSYNC_SOURCE] = psync_side_collect(&rec->side[PSYNC_SOURCE]);
	rows[PSYNC_OTHER] = psync_side_collect(&rec->side[PSYNC_OTHER]);
	rec->counts.rows_moved += rows[PSYNC_OTHER]->nrows;

	keys = psync_rows_single_out(rec, rows[PSYNC_SOURCE], rows[PSYNC_OTHER], &n);
	if (keys == NULL)
		psync_examine_cells(rec, cells);
	else
	{
		int			at_once = Min(PSYNC_READ_KEYS, rec->read_rows);

		for (int i = 0; i < n; i += at_once)
			psync_examine_keys(rec, keys + i, Min(n - i, at_once));
	}
}

/*
 * Read what has been put aside, and forget it.
 */
static void
read_leaves(PsyncReconcile *rec, PsyncLeaves *leaves)
{
	if (leaves->cells != NIL && single_out(rec))
		examine_singled_out(rec, leaves->cells);
	else if (leaves->cells != NIL)
		psync_examine_cells(rec, leaves->cells);
	leaves->cells = NIL;
	leaves->rows = 0;
}

/*
 * Put a cell aside to be read, and read what has come together when it is
 * worth a round trip.  Bounds memory: as many rows of both sides are held at a
 * time.
 */
static void
add_leaf(PsyncReconcile *rec, PsyncLeaves *leaves, PsyncCell *cell)
{
	Assert(cell != NULL && cell->rows >= 0);

	leaves->cells = lappend(leaves->cells, cell);
	leaves->rows += cell->rows;
	if (leaves->rows >= rec->read_rows * (rec->hashed ? PSYNC_HASH_READ_FACTOR : 1))
		read_leaves(rec, leaves);
}

/*
 * Take the cells that are small enough; the others are returned.  A hashed
 * cell that no more bits can divide (rows of one key) is small enough by
 * definition.
 */
static List *
take_leaves(PsyncReconcile *rec, PsyncLeaves *leaves, List *cells)
{
	List	   *rest = NIL;
	ListCell   *lc;

	foreach(lc, cells)
	{
		PsyncCell  *cell = lfirst(lc);

		if (cell->rows <= PSYNC_LEAF_ROWS ||
			(rec->hashed && rec->hash_bits >= PSYNC_HASH_BITS_MAX))
			add_leaf(rec, leaves, cell);
		else
			rest = lappend(rest, cell);
	}
	return rest;
}

/*
 * Divide cells that differ until the differences lie in leaves.  Depth first,
 * in portions, so that however many cells differ, only PSYNC_SPLIT_MAX parts
 * per level are held.
 */
static void
descend_ranges(PsyncReconcile *rec, PsyncLeaves *leaves, List *cells, int depth)
{
	List	   *parts = NIL;
	ListCell   *lc;

	Assert(depth <= PSYNC_RANGE_DEPTH_MAX + 1);

	foreach(lc, take_leaves(rec, leaves, cells))
	{
		List	   *split = depth < PSYNC_RANGE_DEPTH_MAX ?
			split_range(rec, lfirst(lc)) : NIL;

		/* many rows of one key cannot be split */
		if (list_length(split) <= 1)
			add_leaf(rec, leaves, lfirst(lc));
		else
			parts = list_concat(parts, split);
		if (list_length(parts) >= PSYNC_SPLIT_MAX)
		{
			descend_ranges(rec, leaves, differing_cells(rec, parts, NULL), depth + 1);
			parts = NIL;
		}
	}
	if (parts != NIL)
		descend_ranges(rec, leaves, differing_cells(rec, parts, NULL), depth + 1);
}

/*
 * Bits by which to split, so that parts come to some rows each; at most what
 * is left of the hash.
 */
static int
hash_bits_needed(const PsyncReconcile *rec, List *cells)
{
	int64		most = 0;
	int			bits = 1;
	ListCell   *lc;

	foreach(lc, cells)
		most = Max(most, ((PsyncCell *) lfirst(lc))->rows);
	while (bits < 10 && (most >> bits) > PSYNC_LEAF_ROWS / 2)
		bits++;
	return Min(bits, PSYNC_HASH_BITS_MAX - rec->hash_bits);
}

/*
 * All cells of a level are of the same number of bits.  Leaves must be read
 * before the number changes.
 */
static void
descend_hashed(PsyncReconcile *rec, PsyncLeaves *leaves, List *cells)
{
	List	   *rest = take_leaves(rec, leaves, cells);
	int			bits;
	int			at_once;

	Assert(rec->hash_bits <= PSYNC_HASH_BITS_MAX);

	check_stack_depth();
	read_leaves(rec, leaves);
	if (rest == NIL)
		return;
	bits = hash_bits_needed(rec, rest);
	at_once = Max(1, PSYNC_HASH_CELLS_MAX >> bits);
	for (int i = 0; i < list_length(rest); i += at_once)
	{
		List	   *group = list_copy_tail(rest, i);

		group = list_truncate(group, at_once);
		group = split_hashed(rec, group, bits);
		rec->hash_bits += bits;
		descend_hashed(rec, leaves, differing_cells(rec, group, NULL));
		rec->hash_bits -= bits;
	}
}

/*
 * All the way down from these cells, and remember how many differences there
 * were in how many cells.
 */
static void
descend(PsyncReconcile *rec, List *cells, int ncells)
{
	PsyncLeaves leaves = {NIL, 0};
	int64		before = rec->found;

	Assert(ncells > 0);

	if (cells == NIL)
		return;
	if (rec->hashed)
		descend_hashed(rec, &leaves, cells);
	else
		descend_ranges(rec, &leaves, cells, 0);
	read_leaves(rec, &leaves);
	rec->density = (double) (rec->found - before) / ncells;
}

/* ------------------------------------------------------------------ steps */

/*
 * Where to cut the table into cells of about PSYNC_CELL_ROWS. From a sample of
 * pages, since reading all keys would cost as much as comparing.  With none,
 * the whole table is one cell, and is split as cells are.
 */
static void
sample_bounds(PsyncReconcile *rec)
{
	const PsyncSide *side = &rec->side[PSYNC_SOURCE];
	double		cells = ceil(Max(side->rows, 1) / PSYNC_CELL_ROWS);
	double		sample;
	PsyncRows  *keys;

	cells = Min(cells, PSYNC_CELLS_MAX);
	if (cells < 2)
		return;

	/* rows of one page lie side by side: many pages, too */
	sample = Max(cells * PSYNC_SAMPLE_ROWS / side->rows,
				 cells * PSYNC_SAMPLE_PAGES / Max(side->pages, 1));
	sample = Min(sample, 1.0);
	keys = psync_side_query(&rec->side[PSYNC_SOURCE],
							psync_query_sample(rec, 100 * sample,
											   Max(1, (int64) (side->rows * sample / cells))),
							rec->nkeys, rec->nkeys);
	rec->nbounds = Min(keys->nrows, 2 * PSYNC_CELLS_MAX);
	rec->bounds = palloc(Max(1, rec->nbounds) * sizeof(char **));
	for (int i = 0; i < rec->nbounds; i++)
		rec->bounds[i] = result_key(keys, i);
}

/* Prepare for steps, from the run's cursor on if it has one. */
void
psync_cells_begin(PsyncReconcile *rec)
{
	MemoryContext old = MemoryContextSwitchTo(rec->context);
	PsyncRun   *run = rec->run;

	if ((run->nafter != 0 && run->nafter != rec->nkeys) ||
		(run->nupto != 0 && run->nupto != rec->nkeys))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("bounds of the part to reconcile must have %d values, as the key has columns",
						rec->nkeys)));
	if (rec->hashed && (run->after != NULL || run->upto != NULL))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot reconcile a range of keys of table \"%s\"",
						rec->side[PSYNC_SOURCE].relname),
				 errdetail("The two sides have no index on the key in the same order."),
				 errhint("Say which rows with a condition instead.")));
	rec->after = run->ncursor == rec->nkeys ? run->cursor : run->after;
	if (!rec->hashed)
		sample_bounds(rec);
	MemoryContextSwitchTo(old);
}

/*
 * With so many differences that hardly a cell is equal, its checksum tells
 * nothing: begin with its parts.
 */
static void
descend_at_once(PsyncReconcile *rec, List *cells)
{
	PsyncLeaves leaves = {NIL, 0};
	int64		before = rec->found;
	List	   *parts = NIL;
	ListCell   *lc;

	foreach(lc, cells)
	{
		PsyncCell  *cell = lfirst(lc);
		int64		room = range_room(rec, cell);

		/* not counted yet */
		cell->rows = room > 0 && room <= PSYNC_ROOM_FACTOR * PSYNC_CELL_ROWS ?
			Max(room, PSYNC_LEAF_ROWS + 1) : PSYNC_CELL_ROWS;
		parts = list_concat(parts, split_range(rec, cell));
		if (list_length(parts) < PSYNC_SPLIT_MAX && lnext(cells, lc) != NULL)
			continue;
		descend_ranges(rec, &leaves, differing_cells(rec, parts, &rec->counts), 1);
		parts = NIL;
	}
	read_leaves(rec, &leaves);
	rec->density = (double) (rec->found - before) / list_length(cells);
}

/*
 * How many ranges to join into one at first.  So that a large table without
 * differences needs no more checksums than a small one; with differences in
 * most of them, joining would only cost one more level.
 */
static int
ranges_to_join(const PsyncReconcile *rec)
{
	int			join = (rec->nbounds + PSYNC_JOINED_CELLS) / PSYNC_JOINED_CELLS;

	if (rec->next_bound == 0 || rec->density * join >= 1)
		return 1;
	return Min(join, PSYNC_STEP_CELLS);
}

/*
 * The next ranges.  False after the last one.  The first step is a short one:
 * from it, the others know how dense differences are.
 */
static bool
step_ranges(PsyncReconcile *rec)
{
	List	   *cells = NIL;
	bool		last = false;
	char	  **after = rec->after;
	int			left = rec->next_bound == 0 ? PSYNC_FIRST_CELLS : PSYNC_STEP_CELLS;
	int			ranges = left;
	int			join = ranges_to_join(rec);

	while (!last && left > 0)
	{
		int			n = Min(Min(join, left), rec->nbounds + 1 - rec->next_bound);
		char	  **upto;

		Assert(n > 0 && rec->next_bound <= rec->nbounds);
		left -= n;
		rec->next_bound += n - 1;
		last = rec->next_bound == rec->nbounds;
		upto = last ? rec->run->upto : rec->bounds[rec->next_bound];
		cells = lappend(cells, make_joined_range(rec, after, upto, n - 1));
		rec->next_bound += !last;
		after = upto;
	}
	if (rec->density >= PSYNC_DENSITY_HIGH)
		descend_at_once(rec, cells);
	else
		descend(rec, differing_cells(rec, cells, &rec->counts), ranges - left);
	rec->after = after;
	return !last;
}

/*
 * All of the table at once: each level of division reads the whole table
 * anyway, so there is nothing to gain from steps.
 */
static bool
step_hashed(PsyncReconcile *rec)
{
	List	   *cells;
	PsyncCell	whole = {0};

	/* hashes are signed: the first half of them begins with a one */
	rec->hash_bits = PSYNC_HASH_BITS;
	whole.prefix = -1;
	cells = split_hashed(rec, list_make1(&whole), PSYNC_HASH_BITS - 1);
	whole.prefix = 0;
	cells = list_concat(cells, split_hashed(rec, list_make1(&whole), PSYNC_HASH_BITS - 1));
	descend(rec, differing_cells(rec, cells, &rec->counts), list_length(cells));
	return false;
}

/* Do some of the work.  True if more is to do; rec->after says from where. */
bool
psync_cells_step(PsyncReconcile *rec)
{
	return rec->hashed ? step_hashed(rec) : step_ranges(rec);
}
