/*
 * report.c
 *		reconciliation_report(): a run as a page of HTML, for people.
 *
 * The page holds all it needs: no script, no font, no picture is fetched, and
 * its content security policy forbids that.  It is laid out for paper, too.
 * Whatever comes from tables, from names to values, goes through
 * append_escaped(); a row may hold anything.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "compat.h"
#include "reconcile/reconcile.h"

PG_FUNCTION_INFO_V1(payment_sync_reconciliation_report);

/* Width of the longest bar of a chart, in px, and the height of each. */
#define PSYNC_BAR_WIDTH		360
#define PSYNC_BAR_HEIGHT	22

static const char head[] =
	"<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
	"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
	"<title>Reconciliation %lld</title>\n<style>\n"
	"body { font: 14px/1.4 sans-serif; color: #222; max-width: 75em; margin: 2em auto; padding: 0 1em; }\n"
	"h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; }\n"
	"table { border-collapse: collapse; width: 100%%; }\n"
	"th, td { border-bottom: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top; }\n"
	"td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }\n"
	"td.v { overflow-wrap: anywhere; }\n"
	".good { color: #060; } .bad { color: #a00; } .note { color: #555; }\n"
	"rect { fill: #36c; }\n"
	"@media print { body { margin: 0; max-width: none; font-size: 10pt; }"
	" tr, svg { break-inside: avoid; } thead { display: table-header-group; } }\n"
	"</style>\n</head>\n<body>\n";

static const char tables_command[] =
	"SELECT r.relid::regclass::text, r.state, r.source_rows, r.target_rows, r.matched,"
	" r.missing, r.unexpected, r.different, r.in_flight,"
	" to_char(r.started AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),"
	" to_char(r.finished AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),"
	" r.position, r.error, r.sync_name, NULLIF(r.other, 0)::regclass::text, r.condition,"
	" r.key_after::text, r.key_upto::text, CASE WHEN r.recent THEN 'keys of recent changes only' END,"
	" r.tolerance::text, r.server"
	" FROM payment_sync.reconciliation r WHERE r.run = $1 ORDER BY r.relid";

/* Discrepancies that the run has seen, whatever became of them. */
#define FOUND_BY_RUN \
	" FROM payment_sync.discrepancy d JOIN payment_sync.reconciliation r" \
	" ON r.run = $1 AND r.relid = d.relid AND r.other = d.other" \
	" AND r.sync IS NOT DISTINCT FROM d.sync" \
	" WHERE $1 BETWEEN d.first_run AND d.last_run"

static const char kinds_command[] =
	"SELECT k.kind, count(d.kind) FROM unnest(ARRAY['missing', 'unexpected', 'different'])"
	" WITH ORDINALITY k(kind, n) LEFT JOIN (SELECT d.kind" FOUND_BY_RUN ") d USING (kind)"
	" GROUP BY k.kind, k.n ORDER BY k.n";

static const char ages_command[] =
	"SELECT a.name, count(d.age) FROM (VALUES (1, 'new in this run', '-1 s'::interval, '0'::interval),"
	" (2, 'up to a day', '0', '1 day'), (3, 'up to a week', '1 day', '7 days'),"
	" (4, 'older', '7 days', '100000 years')) a(n, name, low, high)"
	" LEFT JOIN (SELECT CASE WHEN d.first_run = $1 THEN interval '0'"
	"  ELSE GREATEST(r.requested - d.first_seen, interval '1 us') END AS age" FOUND_BY_RUN ") d"
	" ON d.age > a.low AND d.age <= a.high GROUP BY a.n, a.name ORDER BY a.n";

/* A page is for people: of a long text, so much. */
#define SHOWN(text) \
	"CASE WHEN length(" text ") > 4000 THEN left(" text ", 4000) || '...' ELSE " text " END"

static const char breaks_command[] =
	"SELECT d.relid::regclass::text, " SHOWN("d.key::text") ", d.kind, d.state, d.reason,"
	" to_char(d.first_seen AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),"
	" CASE WHEN d.kind = 'different' THEN (SELECT string_agg(format('%s: %s', c,"
	"  COALESCE(" SHOWN("d.source ->> c") ", 'null')), E'\\n' ORDER BY n) FROM unnest(d.columns) WITH ORDINALITY u(c, n))"
	"  ELSE " SHOWN("d.source::text") " END,"
	" CASE WHEN d.kind = 'different' THEN (SELECT string_agg(format('%s: %s', c,"
	"  COALESCE(" SHOWN("d.target ->> c") ", 'null')), E'\\n' ORDER BY n) FROM unnest(d.columns) WITH ORDINALITY u(c, n))"
	"  ELSE " SHOWN("d.target::text") " END" FOUND_BY_RUN " ORDER BY d.relid, d.id LIMIT $2";

/* ----------------------------------------------------------------- pieces */

/*
 * A character beyond ASCII, as its number: whoever saves the page may have any
 * encoding.  "at" is in UTF-8; returns its length.
 */
static int
append_character(StringInfo buf, const unsigned char *at)
{
	appendStringInfo(buf, "&#x%X;", (unsigned int) utf8_to_unicode(at));
	return pg_utf_mblen(at);
}

static void
append_escaped(StringInfo buf, const char *text)
{
	/* of SQL_ASCII nobody knows what its bytes mean */
	bool		known = GetDatabaseEncoding() != PG_SQL_ASCII;
	const char *at = known ? pg_server_to_any(text, strlen(text), PG_UTF8) : text;

	for (; *at != '\0'; at++)
	{
		if (IS_HIGHBIT_SET(*at))
		{
			if (known)
				at += append_character(buf, (const unsigned char *) at) - 1;
			else
				appendStringInfoString(buf, "&#xFFFD;");
			continue;
		}
		switch (*at)
		{
			case '&':
				appendStringInfoString(buf, "&amp;");
				break;
			case '<':
				appendStringInfoString(buf, "&lt;");
				break;
			case '>':
				appendStringInfoString(buf, "&gt;");
				break;
			case '"':
				appendStringInfoString(buf, "&quot;");
				break;
			case '\'':
				appendStringInfoString(buf, "&#39;");
				break;
			case '\n':
				appendStringInfoString(buf, "<br>");
				break;
			default:
				appendStringInfoChar(buf, *at);
				break;
		}
	}
}

/* A column of a row of the current result; "" for null. */
static const char *
field(uint64 row, int column)
{
	const char *value;

	Assert(row < SPI_processed && column <= SPI_tuptable->tupdesc->natts);
	value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value != NULL ? value : "";
}

static void
append_cell(StringInfo buf, const char *class, const char *value)
{
	appendStringInfo(buf, "<td class=\"%s\">", class);
	append_escaped(buf, value);
	appendStringInfoString(buf, "</td>");
}

static uint64
query(const char *command, int64 run, int64 limit)
{
	Oid			types[2] = {INT8OID, INT8OID};
	Datum		values[2];

	values[0] = Int64GetDatum(run);
	values[1] = Int64GetDatum(limit);
	return psync_owner_execute(command, 2, types, values, NULL);
}

/* ---------------------------------------------------------------- sections */

/*
 * What the run has found, by the n rows of the current result.  Green is what
 * has been proven, and no more than that.
 */
static void
append_verdict(StringInfo buf, uint64 n)
{
	int64		differ = 0;
	int64		in_flight = 0;
	bool		done = true;
	bool		part = false;
	bool		broken = false;

	for (uint64 i = 0; i < n; i++)
	{
		done &= strcmp(field(i, 2), "done") == 0;
		broken |= strcmp(field(i, 2), "failed") == 0 || strcmp(field(i, 2), "cancelled") == 0;
		for (int c = 6; c <= 8; c++)
			differ += atoll(field(i, c));
		in_flight += atoll(field(i, 9));
		for (int c = 16; c <= 19; c++)
			part |= field(i, c)[0] != '\0';
	}
	if (differ > 0)
		appendStringInfo(buf, "<b class=\"bad\" id=\"verdict\">%lld %s%s</b>", (long long) differ,
						 differ == 1 ? "discrepancy" : "discrepancies", done ? "" : " so far");
	else if (!done)
		appendStringInfo(buf, "<b class=\"%s\" id=\"verdict\">no discrepancy so far%s</b>",
						 broken ? "bad" : "note", broken ? ", but not all was compared" : "");
	else if (in_flight > 0)
		appendStringInfo(buf, "<b class=\"note\" id=\"verdict\">no discrepancy, but of %lld keys in flight nothing can be said</b>",
						 (long long) in_flight);
	else
		appendStringInfo(buf, "<b class=\"good\" id=\"verdict\">both sides agree%s</b>",
						 part ? " in the part that was compared" : "");
}

static void
append_summary(StringInfo buf, int64 run)
{
	static const char *const notes[] = {"position", "error", NULL, "compared with", "only rows where",
	"only keys after", "only keys up to", "only", "with tolerances", "read through server"};
	uint64		n = query(tables_command, run, 0);

	appendStringInfo(buf, "<h1>Reconciliation %lld</h1>\n<p>", (long long) run);
	if (n > 0 && field(0, 14)[0] != '\0')
	{
		appendStringInfoString(buf, "Sync <b>");
		append_escaped(buf, field(0, 14));
		appendStringInfoString(buf, "</b>: ");
	}
	append_verdict(buf, n);
	appendStringInfoString(buf, "</p>\n<table id=\"tables\"><thead><tr><th>table</th><th>state</th>"
						   "<th class=\"n\">source rows</th><th class=\"n\">target rows</th>"
						   "<th class=\"n\">matched</th><th class=\"n\">missing</th>"
						   "<th class=\"n\">unexpected</th><th class=\"n\">different</th>"
						   "<th class=\"n\">in flight</th><th>started (UTC)</th><th>finished</th>"
						   "</tr></thead><tbody>\n");
	for (uint64 i = 0; i < n; i++)
	{
		appendStringInfoString(buf, "<tr>");
		for (int c = 1; c <= 11; c++)
			append_cell(buf, c >= 3 && c <= 9 ? "n" : "v", field(i, c));
		appendStringInfoString(buf, "</tr>\n");
	}
	appendStringInfoString(buf, "</tbody></table>\n");
	for (uint64 i = 0; i < n; i++)
	{
		for (int c = 12; c < 12 + lengthof(notes); c++)
		{
			if (notes[c - 12] == NULL || field(i, c)[0] == '\0')
				continue;
			appendStringInfoString(buf, "<p class=\"note\">");
			append_escaped(buf, field(i, 1));
			appendStringInfo(buf, ", %s: ", notes[c - 12]);
			append_escaped(buf, field(i, c));
			appendStringInfoString(buf, "</p>\n");
		}
	}
	SPI_finish();
}

/* Names and numbers as bars. */
static void
append_chart(StringInfo buf, const char *title, const char *command, int64 run)
{
	uint64		n = query(command, run, 0);
	int64		most = 1;

	for (uint64 i = 0; i < n; i++)
		most = Max(most, atoll(field(i, 2)));
	appendStringInfo(buf, "<h2>%s</h2>\n<svg role=\"img\" aria-label=\"%s\" width=\"640\" height=\"%d\""
					 " viewBox=\"0 0 640 %d\">\n", title, title,
					 (int) n * PSYNC_BAR_HEIGHT, (int) n * PSYNC_BAR_HEIGHT);
	for (uint64 i = 0; i < n; i++)
	{
		int64		value = atoll(field(i, 2));
		int			width = (int) (value * PSYNC_BAR_WIDTH / most);
		int			y = (int) i * PSYNC_BAR_HEIGHT;

		Assert(width >= 0 && width <= PSYNC_BAR_WIDTH);
		appendStringInfo(buf, "<text x=\"150\" y=\"%d\" text-anchor=\"end\">", y + 15);
		append_escaped(buf, field(i, 1));
		appendStringInfo(buf, "</text><rect x=\"160\" y=\"%d\" width=\"%d\" height=\"%d\"/>"
						 "<text x=\"%d\" y=\"%d\">%lld</text>\n",
						 y + 3, Max(width, value > 0 ? 1 : 0), PSYNC_BAR_HEIGHT - 6,
						 168 + width, y + 15, (long long) value);
	}
	appendStringInfoString(buf, "</svg>\n");
	SPI_finish();
}

static void
append_breaks(StringInfo buf, int64 run, int64 limit, int64 breaks)
{
	uint64		n = query(breaks_command, run, limit);

	appendStringInfo(buf, "<h2>%s</h2>\n", breaks > (int64) n ?
					 psprintf("The first %llu of %lld discrepancies",
							  (unsigned long long) n, (long long) breaks) :
					 "Discrepancies");
	appendStringInfoString(buf, "<table id=\"breaks\"><thead><tr><th>table</th><th>key</th><th>kind</th>"
						   "<th>state</th><th>reason</th><th>first seen (UTC)</th><th>source</th>"
						   "<th>target</th></tr></thead><tbody>\n");
	for (uint64 i = 0; i < n; i++)
	{
		appendStringInfoString(buf, "<tr>");
		for (int c = 1; c <= 8; c++)
			append_cell(buf, "v", field(i, c));
		appendStringInfoString(buf, "</tr>\n");
	}
	appendStringInfoString(buf, "</tbody></table>\n");
	SPI_finish();
}

static int64
count_breaks(int64 run)
{
	uint64		n = query(kinds_command, run, 0);
	int64		result = 0;

	for (uint64 i = 0; i < n; i++)
		result += atoll(field(i, 2));
	SPI_finish();
	return result;
}

/*
 * reconciliation_report(run, breaks)
 */
Datum
payment_sync_reconciliation_report(PG_FUNCTION_ARGS)
{
	int64		run = psync_run_argument(fcinfo);
	int64		limit = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	int64		breaks;
	StringInfoData buf;

	if (limit < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("number of discrepancies to show must not be negative")));
	breaks = count_breaks(run);
	initStringInfo(&buf);
	appendStringInfo(&buf, head, (long long) run);
	append_summary(&buf, run);
	if (breaks > 0)
	{
		append_chart(&buf, "Discrepancies by kind", kinds_command, run);
		append_chart(&buf, "Discrepancies by age", ages_command, run);
		append_breaks(&buf, run, limit, breaks);
	}
	appendStringInfoString(&buf, "</body>\n</html>");
	PG_RETURN_TEXT_P(cstring_to_text_with_len(buf.data, buf.len));
}
