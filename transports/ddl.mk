# A transport's DDL half; included by the makefiles in transports/*/fdw, which name
# MODULE_big and their own OBJS.  Not linked with any client library.

OBJS += options.o patterns.o validate.o checks.o
# its copies of shared code are its own, whatever else is loaded
SHLIB_LINK = -Wl,-Bsymbolic

OUTBOX_TOP = ../../..
include $(OUTBOX_TOP)/flags.mk
vpath %.c $(OUTBOX_TOP)/src/transport

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(OUTBOX_HEADERS)
