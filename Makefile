# pg_outbox
#
#   make                the extension and its transports, against PG_CONFIG
#   make install        into that server's directories (DESTDIR works)
#   make demo           shows the main job on an embedded broker;
#                       KAFKA=real does it on Apache Kafka
#   make check          everything below, and a second PostgreSQL major
#   make check-regress  SQL surface and error texts      [REGRESS=name ...]
#   make check-isolation races                           [ISOLATION=name ...]
#   make check-tap      real PostgreSQL and real Kafka   [PROVE_TESTS=file ...]
#   make check-fuzz     the fuzz targets on their corpora
#   make check-model    the model of the log, on small scopes
#   make check-next     what check runs on a second PostgreSQL major
#   make faults         seeded faults          SEED=n COUNT=m [KINDS=...] [SETUP=...]
#   make check-deep     what takes longer than check may
#   make check-asan     the tests under AddressSanitizer and UBSan
#   make check-valgrind publish, relay and one drain under valgrind
#   make check-tsan     the Kafka transport under ThreadSanitizer
#   make check-caches   publish, with every catalog cache thrown away at once
#   make analyze        gcc -fanalyzer, clang's analyzer, cppcheck
#   make coverage       what the tests reach
#   make fuzz           fuzzes the parsers        [SECONDS=n for each] [TARGET=name ...]
#   make model          the model at depth        [MODEL_SECONDS=n of walks] [MODEL_SEED=n]
#   make bench          ratios against references of the same run
#   make programs       helpers of tests and demo, in build/
#
#   PG_CONFIG=...       which PostgreSQL (default: pg_config in the PATH)
#   OUTBOX_TESTING=1    compiles fault points in; the checks build so themselves
#   WERROR=-Werror      warnings are errors, as in the checks; compilers elsewhere may be newer
#
# demo and the checks install what they need, PostgreSQL included, so they can't
# stand in extension.mk, which includes PostgreSQL's own makefiles.

.PHONY: all install uninstall clean demo check check-regress check-isolation \
	check-tap check-fuzz check-model check-next check-deep check-asan check-valgrind check-caches \
	check-tsan coverage analyze faults fuzz model bench programs

all install uninstall:
	$(MAKE) -f extension.mk $@

clean:
	$(MAKE) -f extension.mk $@
	$(MAKE) -f programs.mk $@
	rm -rf build

programs:
	$(MAKE) -f programs.mk

demo:
	demo/run $(KAFKA)

check:
	test/run-check

check-regress check-isolation check-tap check-fuzz check-model check-next check-deep check-asan \
check-valgrind check-caches check-tsan: check-%:
	test/run-check $*

check-deep: check-asan check-valgrind check-caches check-tsan analyze model

analyze:
	test/support/analyze.sh

coverage:
	test/run-check coverage

faults:
	SEED='$(SEED)' COUNT='$(COUNT)' KINDS='$(KINDS)' SETUP='$(SETUP)' RDKAFKA='$(RDKAFKA)' test/run-check faults

fuzz:
	SECONDS='$(SECONDS)' TARGET='$(TARGET)' test/fuzz/run

model:
	test/support/deps.sh cc
	test/model/run deep

bench:
	test/support/deps.sh postgres rdkafka kafka redis nats rabbitmq
	test/bench/run
