# payment_sync: the core library here, each transport in a directory below
# src/transport, all built by PGXS.  The control file holds the version.
EXTENSION = payment_sync
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" payment_sync.control)
DATA = $(sort $(wildcard payment_sync--*.sql))
MODULE_big = payment_sync
# for other parties' transports: #include "extension/payment_sync/…"
HEADERS_payment_sync = src/transport/payment_sync_transport.h
# from the bottom up: each includes nothing of those after it
ROOMS = base log capture decode sync target deliver message pull admin worker reconcile
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c $(foreach room,$(ROOMS),src/$(room)/*.c) \
	src/transport/*/options.c)))

# Build fewer with "make TRANSPORTS=".
TRANSPORTS ?= postgres http
SUBDIRS = $(addprefix src/transport/,$(TRANSPORTS))

REGRESS = $(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql)))
REGRESS_OPTS = --inputdir=. --encoding=UTF8
ISOLATION = $(patsubst test/isolation/specs/%.spec,%,$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation

DEPFILES = $(OBJS:.o=.d)
EXTRA_CLEAN = $(DEPFILES)
PG_CPPFLAGS = -I$(CURDIR)/src -DPSYNC_VERSION='"$(EXTVERSION)"' -MMD -MP
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(call recurse,all install installdirs uninstall clean distclean)

-include $(DEPFILES)
