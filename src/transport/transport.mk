# Included by each transport's Makefile, which sets TRANSPORT (as in
# payment_sync_TRANSPORT), OBJS and SHLIB_LINK_INTERNAL / SHLIB_LINK.
MODULE_big = payment_sync_$(TRANSPORT)
EXTRA_CLEAN = $(OBJS:.o=.d)
PG_CPPFLAGS += -I$(abspath $(CURDIR)/../..) -MMD -MP
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

-include $(OBJS:.o=.d)
