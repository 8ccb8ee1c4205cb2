# Included by each transport's Makefile, which sets NAME (as in
# payment_sync_NAME), OBJS and SHLIB_LINK_INTERNAL / SHLIB_LINK.
MODULE_big = payment_sync_$(NAME)
EXTRA_CLEAN = $(OBJS:.o=.d)
PG_CPPFLAGS += -I$(abspath $(CURDIR)/../..) -MMD -MP
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

-include $(OBJS:.o=.d)
