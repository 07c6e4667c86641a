# pg_outbox: three shared libraries, since no broker library may be mapped into
# a client backend:
#   pg_outbox            the extension
#   pg_outbox_kafka_fdw  DDL checks of Kafka servers, loaded by backends
#   pg_outbox_kafka      the Kafka client, loaded by relay workers only
#
# Used through the Makefile beside it.

EXTENSION = pg_outbox
DATA = pg_outbox--1.0.sql
MODULE_big = pg_outbox

# validate.c belongs to the libraries that check DDL
SOURCES = $(filter-out src/transport/validate.c, $(wildcard src/*.c src/*/*.c))
OBJS = $(SOURCES:.c=.o)
OUTBOX_HEADERS = $(wildcard src/*.h src/*/*.h)

OUTBOX_WARNINGS = -Wall -Wextra -Werror -Wno-unused-parameter \
	-Wno-sign-compare -Wno-missing-field-initializers
PG_CPPFLAGS = -I$(CURDIR)/src
PG_CFLAGS = $(OUTBOX_WARNINGS)
ifdef OUTBOX_TESTING
PG_CPPFLAGS += -DOUTBOX_FAULT_POINTS
endif

# no bitcode: nothing here is inlined into queries
override with_llvm = no

SUBDIRS = transports/kafka/fdw transports/kafka/worker

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)

include $(PGXS)

$(OBJS): $(OUTBOX_HEADERS)

all: subdirs-all
install: subdirs-install
clean: subdirs-clean

.PHONY: subdirs-all subdirs-install subdirs-clean
subdirs-all subdirs-install subdirs-clean: subdirs-%:
	set -e; for dir in $(SUBDIRS); do \
		$(MAKE) -C $$dir PG_CONFIG='$(PG_CONFIG)' with_llvm=no $*; done
