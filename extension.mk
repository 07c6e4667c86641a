# pg_outbox: three shared libraries, since no broker library may be mapped into
# a client backend:
#   pg_outbox            the extension
#   pg_outbox_kafka_fdw  DDL checks of Kafka servers, loaded by backends
#   pg_outbox_kafka      the Kafka client, loaded by relay workers only
#
# Used through the Makefile beside it.  PGXS builds one library a makefile, so
# each transport's libraries have makefiles of their own.

EXTENSION = pg_outbox
DATA = pg_outbox--1.0.sql
MODULE_big = pg_outbox

# validate.c belongs to the libraries that check DDL
OBJS = $(patsubst %.c,%.o,$(filter-out src/transport/validate.c, \
	$(wildcard src/*.c src/*/*.c)))

SUBDIRS = transports/kafka/fdw transports/kafka/worker

include flags.mk
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# any header, any object: a few seconds lost are cheaper than a stale object
$(OBJS): $(OUTBOX_HEADERS)

all: subdirs-all
install: subdirs-install
uninstall: subdirs-uninstall
clean: subdirs-clean

.PHONY: subdirs-all subdirs-install subdirs-uninstall subdirs-clean
subdirs-all subdirs-install subdirs-uninstall subdirs-clean: subdirs-%:
	set -e; for dir in $(SUBDIRS); do \
		$(MAKE) -C $$dir PG_CONFIG='$(PG_CONFIG)' $*; done
