# Helper programs of tests and demo: plain C, librdkafka, no PostgreSQL.

OUT ?= build
PROGRAMS = $(addprefix $(OUT)/, mock_broker kafka_admin judge_consume)
CFLAGS ?= -O2 -g
WARNINGS = -Wall -Wextra -Werror

all: $(PROGRAMS)

$(OUT)/mock_broker: test/support/mock_broker.c
$(OUT)/kafka_admin: test/support/kafka_admin.c
$(OUT)/judge_consume: test/judge/judge_consume.c

$(PROGRAMS): programs.mk
	@mkdir -p $(OUT)
	$(CC) $(CFLAGS) $(WARNINGS) -o $@ $(filter %.c,$^) -lrdkafka

clean:
	rm -f $(PROGRAMS)

.PHONY: all clean
