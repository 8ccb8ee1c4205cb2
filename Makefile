# payment_sync: the core library here, each transport in a directory below
# src/transport, all built by PGXS.  The control file holds the version.
EXTENSION = payment_sync
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" payment_sync.control)
DATA = $(sort $(wildcard payment_sync--*.sql))
MODULE_big = payment_sync
# for other parties' transports: #include "extension/payment_sync/…"
HEADERS_payment_sync = src/transport/payment_sync_transport.h
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/base/*.c src/capture/*.c src/log/*.c \
	src/sync/*.c src/deliver/*.c src/reconcile/*.c src/worker/*.c src/stats/*.c src/transport/*.c \
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
