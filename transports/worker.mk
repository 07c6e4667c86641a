# A transport's worker half; included by the makefiles in transports/*/worker, which name
# MODULE_big and the libraries that it links.

OUTBOX_TOP = ../../..
TRANSPORT_COMMON = $(OUTBOX_TOP)/transports/common
OBJS = $(patsubst %.c,%.o,$(wildcard *.c) $(notdir $(wildcard $(TRANSPORT_COMMON)/*.c)))
PG_CPPFLAGS = -I$(OUTBOX_TOP)/transports
include $(OUTBOX_TOP)/flags.mk
vpath %.c $(TRANSPORT_COMMON)

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(OUTBOX_HEADERS) $(wildcard $(TRANSPORT_COMMON)/*.h)
