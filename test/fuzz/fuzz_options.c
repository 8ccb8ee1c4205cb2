/*
 * fuzz_options.c
 *		Values of options of servers and user mappings: refused or taken, and
 *		what is taken is what PostgreSQL's own functions read.
 */
#include "fuzz.h"

#include "../../src/target/validate.c"

const bool	fuzz_terminated = true;

bool
parse_bool(const char *value, bool *result)
{
	*result = strcmp(value, "true") == 0;
	return *result || strcmp(value, "false") == 0;
}

void
fuzz_one(const char *data, size_t size)
{
	static const PsyncOption number = {.keyword = "number", .type = PSYNC_OPT_INT, .min = 1, .max = 1000000};
	static const PsyncOption word = {.keyword = "word", .type = PSYNC_OPT_ENUM, .values = "on|off|verify-full|verify-ca"};
	const char *value = fuzz_string(&data, &size);

	if (size > 0 && data[0] & 1)
	{
		check_value(&number, value);
		fuzz_check(strtol(value, NULL, 10) >= 1 && strtol(value, NULL, 10) <= 1000000);
	}
	else
	{
		check_value(&word, value);
		fuzz_check(strcmp(value, "on") == 0 || strcmp(value, "off") == 0 ||
				   strcmp(value, "verify-full") == 0 || strcmp(value, "verify-ca") == 0);
	}
}
