# What every shared library of this project is compiled with; included by
# extension.mk and by the makefiles of the transports, before PGXS.

OUTBOX_TOP ?= .
PG_CONFIG ?= pg_config

# without the warnings that PostgreSQL's own headers trip over
PG_CFLAGS += -Wall -Wextra $(WERROR) -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers
PG_CPPFLAGS += -I$(OUTBOX_TOP)/src
ifneq ($(OUTBOX_TESTING),)
PG_CPPFLAGS += -DOUTBOX_FAULT_POINTS
endif

# no bitcode: nothing here is inlined into queries
override with_llvm = no

OUTBOX_HEADERS = $(wildcard $(OUTBOX_TOP)/src/*.h $(OUTBOX_TOP)/src/*/*.h *.h)
