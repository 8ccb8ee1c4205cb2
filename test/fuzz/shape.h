/*
 * shape.h
 *		A shape made of an input's first bytes: number of columns, which are
 *		the key.
 */
#ifndef PSYNC_FUZZ_SHAPE_H
#define PSYNC_FUZZ_SHAPE_H

#include "transport/payment_sync_transport.h"

static PsyncShape *
fuzz_shape(const char **data, size_t *size)
{
	PsyncShape *shape = palloc0(sizeof(PsyncShape));
	unsigned	keys;

	if (*size < 2)
		return NULL;
	shape->ncolumns = 1 + (unsigned char) (*data)[0] % 8;
	keys = (unsigned char) (*data)[1];
	*data += 2;
	*size -= 2;
	shape->columns = palloc0(sizeof(PsyncColumn) * shape->ncolumns);
	shape->keys = palloc0(sizeof(int) * shape->ncolumns);
	for (int i = 0; i < shape->ncolumns; i++)
	{
		shape->columns[i].name = "c";
		shape->columns[i].key = (keys >> i) & 1;
		if (shape->columns[i].key)
			shape->keys[shape->nkeys++] = i;
	}
	return shape;
}

#endif
