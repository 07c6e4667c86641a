# Helper programs of tests and demo: plain C, librdkafka, no PostgreSQL.

OUT ?= build
PROGRAMS := $(addprefix $(OUT)/, mock_broker kafka_admin kafka_produce judge_consume \
	kafka_driver fault_proxy)
# for those brokers whose client library is there
include headers.mk
PROGRAMS += $(if $(call headers,nats/nats.h),$(OUT)/nats_consume)
RABBIT_LIBRARY = transports/rabbitmq/worker/rabbit_library.h
PROGRAMS += $(if $(call headers,$(RABBIT_LIBRARY)),$(OUT)/rabbit_consume $(OUT)/rabbit_produce)
CLOCK = $(OUT)/fault_clock.so
CFLAGS ?= -O2 -g
LIBRARY = -lrdkafka
WARNINGS = -Wall -Wextra $(WERROR) -Wno-unused-parameter

all: $(PROGRAMS) $(CLOCK)

$(OUT)/mock_broker: test/support/mock_broker.c
$(OUT)/kafka_admin: test/support/kafka_admin.c
$(OUT)/kafka_produce: test/support/kafka_produce.c
$(OUT)/kafka_produce: CPPFLAGS += -D_GNU_SOURCE
$(OUT)/judge_consume: test/judge/judge_consume.c test/judge/judge_line.h
$(OUT)/rabbit_consume: test/judge/rabbit_consume.c test/judge/judge_line.h $(RABBIT_LIBRARY)
$(OUT)/rabbit_produce: test/support/rabbit_produce.c $(RABBIT_LIBRARY)
$(OUT)/rabbit_produce: CPPFLAGS += -D_GNU_SOURCE
$(OUT)/rabbit_consume $(OUT)/rabbit_produce: LIBRARY = -lrabbitmq
$(OUT)/rabbit_consume $(OUT)/rabbit_produce: CPPFLAGS += -I$(dir $(RABBIT_LIBRARY))
$(OUT)/nats_consume: test/judge/nats_consume.c test/judge/judge_line.h
$(OUT)/nats_consume: LIBRARY = -lnats
$(OUT)/fault_proxy: test/faults/proxy.c
$(OUT)/fault_proxy: CPPFLAGS += -D_GNU_SOURCE

# preloaded into servers whose clock jumps
$(CLOCK): test/faults/clock.c programs.mk
	@mkdir -p $(OUT)
	$(CC) $(CPPFLAGS) -D_GNU_SOURCE $(CFLAGS) $(WARNINGS) -shared -fPIC -o $@ $< -ldl

# the Kafka transport without PostgreSQL
KAFKA_WORKER = transports/kafka/worker
$(OUT)/kafka_driver: $(wildcard test/transport/*.c test/transport/*.h) \
	$(filter-out %/kafka_module.c, $(wildcard $(KAFKA_WORKER)/*.c)) \
	$(wildcard transports/common/*.c transports/common/*.h $(KAFKA_WORKER)/*.h src/transport/transport.h src/transport/source.h)
$(OUT)/kafka_driver: CPPFLAGS += -D_GNU_SOURCE -Isrc -Itransports -I$(KAFKA_WORKER)

# TSAN=1: under ThreadSanitizer; with an OUT of its own
ifneq ($(TSAN),)
$(OUT)/kafka_driver: test/support/tsan_threads.c
$(OUT)/kafka_driver: CFLAGS = -O1 -g -fsanitize=thread -rdynamic
endif

# the programs in Go of an example, where Go is and its modules can be had
WELCOME = examples/welcome-email
WELCOME_PROGRAMS = $(addprefix $(OUT)/welcome_, consumer sink)
ifneq ($(shell command -v go),)
all: $(WELCOME_PROGRAMS)
endif
$(WELCOME_PROGRAMS): $(OUT)/welcome_%: $(wildcard $(WELCOME)/*/*.go) $(WELCOME)/go.mod $(WELCOME)/go.sum
	@mkdir -p $(OUT)
	cd $(WELCOME) && GOTOOLCHAIN=local go build -buildvcs=false -o $(abspath $@) ./$* || \
		echo "$@ is not built; the tests of $(WELCOME) will be skipped" >&2

$(PROGRAMS): programs.mk
	@mkdir -p $(OUT)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(WARNINGS) -o $@ $(filter %.c,$^) $(LIBRARY) -lpthread

clean:
	rm -f $(PROGRAMS) $(WELCOME_PROGRAMS) $(CLOCK)

.PHONY: all clean
