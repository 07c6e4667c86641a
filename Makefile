# pg_outbox
#
# make, make install, make clean   PG_CONFIG=... chooses the server's version,
#                                  OUTBOX_TESTING=1 compiles fault points in
# make demo                        shows the main job on an embedded broker
# make check                       runs all tests
#
# demo and check install what they need, PostgreSQL included, so they can't
# stand in extension.mk, which needs PostgreSQL's own makefiles.

.PHONY: all install uninstall clean demo check
all install uninstall clean:
	$(MAKE) -f extension.mk $@

demo:
	test/support/deps.sh pg15 rdkafka
	demo/run

check:
	test/support/deps.sh
	test/run-check
