# pg_outbox: the extension, and two shared libraries for each kind of broker,
# since no broker library may be mapped into a client backend:
#   pg_outbox            the extension
#   pg_outbox_X_fdw      DDL checks of X's servers, loaded by backends
#   pg_outbox_X          the client, loaded by workers only
# Clients are built for those brokers whose client library is there.
#
# Used through the Makefile beside it.  PGXS builds one library a makefile, so
# each transport's libraries have makefiles of their own.

EXTENSION = pg_outbox
DATA = pg_outbox--1.0.sql
MODULE_big = pg_outbox

# these belong to the libraries that check DDL
OBJS = $(patsubst %.c,%.o,$(filter-out src/transport/validate.c src/transport/checks.c, \
	$(wildcard src/*.c src/*/*.c)))

include flags.mk
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

include headers.mk

# a transport, headers of its client library, their package; Kafka's is needed
# for its DDL checks too
TRANSPORTS = kafka
define optional
ifeq ($$(call headers,$(2)),yes)
TRANSPORTS += $(1)
else
MISSING += $(1) ($(3))
endif
endef
$(eval $(call optional,nats,nats/nats.h openssl/evp.h,libnats-dev and libssl-dev))
$(eval $(call optional,rabbitmq,transports/rabbitmq/worker/rabbit_library.h openssl/ssl.h,librabbitmq-dev and libssl-dev))

SUBDIRS = $(patsubst %/,%,$(wildcard transports/*/fdw/)) $(TRANSPORTS:%=transports/%/worker)

# any header, any object: a few seconds lost are cheaper than a stale object
$(OBJS): $(OUTBOX_HEADERS)

all: subdirs-all
	@echo "pg_outbox: clients of $(TRANSPORTS) are built$(if $(MISSING),; missing are: $(MISSING))"

install: subdirs-install
uninstall: subdirs-uninstall
clean: subdirs-clean

.PHONY: subdirs-all subdirs-install subdirs-uninstall subdirs-clean
subdirs-all subdirs-install subdirs-uninstall subdirs-clean: subdirs-%:
	set -e; for dir in $(SUBDIRS); do \
		$(MAKE) -C $$dir PG_CONFIG='$(PG_CONFIG)' $*; done
