# Sourced by run-check: runs of the tests that look inside.
#
#   coverage   which lines and branches of src/ and transports/ the tests reach
#   asan       AddressSanitizer and UndefinedBehaviorSanitizer in every process of the
#              server, on the second major, whose assertions and overwriting of freed
#              memory they go well with
#   valgrind   on a server that tells valgrind of its memory contexts: publish, relay,
#              one drain
#   caches     every catalog entry is thrown away as soon as it can be: publish
#   tsan       ThreadSanitizer on the Kafka transport, the only part that has threads,
#              outside of a server
#
# Each is a flavour: a build of its own beside the others, in build/pgNN-FLAVOUR.  Tools
# write what they find into reports/ there; a file in it is a failure, whatever the
# tests say.

reports=

# What a flavour is compiled with, and what its servers are told.
instrument_choose() {
	flavour=$1 flavour_cflags=
	case $flavour in
		coverage) flavour_cflags='--coverage -O1' ;;
		asan)
			# PostgreSQL's -fwrapv would hide overflows
			flavour_cflags='-fsanitize=address,undefined -fno-omit-frame-pointer -O1 -fno-wrapv'
			;;
		valgrind) flavour_cflags='-O1' ;;
	esac
}

# A program in postgres' place that starts it as it must be.  What initdb and pg_ctl ask
# it for besides goes on without.  Where it can it keeps that name, by which pg_ctl
# starts the server again.
wrap_postgres() {
	[ -e "$bindir/postgres.real" ] || mv "$bindir/postgres" "$bindir/postgres.real"
	cat >"$bindir/postgres" <<-END
		#!/bin/bash
		here=\$(cd "\$(dirname "\$0")" && pwd)
		case \${1:-} in
			-V | --version | --boot | --single | --check | -C) exec "\$here/postgres.real" "\$@" ;;
		esac
		$1 "\$here/postgres.real" "\$@"
	END
	chmod 755 "$bindir/postgres"
}

# After the build, before anything starts.
instrument_prepare() {
	reports=$top/reports
	rm -rf "$reports"
	mkdir -p -m 1777 "$reports"
	TEMP_CONFIG=$top/out/instrumented.conf
	export TEMP_CONFIG
	: >"$TEMP_CONFIG"
	case $flavour in
		coverage)
			# processes of the servers' user write beside the objects, at their exit:
			# none may be ended otherwise where that is avoidable
			find "$top/tree" -name '*.gcda' -delete
			chmod -R a+rwX "$top/tree"
			OUTBOX_GENTLE_STOP=1
			export OUTBOX_GENTLE_STOP
			;;
		asan)
			preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
			# what lives as long as its process is no leak here
			options="log_path=$reports/report:detect_leaks=0:abort_on_error=1"
			wrap_postgres "LD_PRELOAD='$preload' ASAN_OPTIONS='$options' \\
				UBSAN_OPTIONS=print_stacktrace=1 exec -a \"\$here/postgres\""
			;;
		valgrind)
			wrap_postgres "exec valgrind -q --trace-children=yes --time-stamp=no --num-callers=30 \\
				--suppressions='$valgrind_supp' --suppressions='$support/valgrind.supp' \\
				--leak-check=no --log-file='$reports/report.%p'"
			;;
		caches)
			echo 'debug_discard_caches = 1' >"$TEMP_CONFIG"
			;;
		tsan)
			OUTBOX_BUILD=$top/programs
			make -s -C "$tree" -f programs.mk OUT="$OUTBOX_BUILD" TSAN=1
			TSAN_OPTIONS="log_path=$reports/report exitcode=0"
			export OUTBOX_BUILD TSAN_OPTIONS
			;;
	esac
	# a slow server or broker is no failure
	PG_TEST_TIMEOUT_DEFAULT=600 PGCTLTIMEOUT=300 OUTBOX_FILE_TIMEOUT=3600
	export PG_TEST_TIMEOUT_DEFAULT PGCTLTIMEOUT OUTBOX_FILE_TIMEOUT
}

# librdkafka's code is not instrumented, so it seems to free without having asked what it
# counts by atomics.  What it does itself goes; what it calls back for stays.
drop_library_races() {
	find "$reports" -type f -exec perl -0777 -i -ne '
		for (split /^={18}\n/m) {
			print if /^WARNING/ &&
				!/^  [\w ]+ of size .*\n(?: +#\d+ .*\(libtsan.*\n)+ +#\d+ .*\(librdkafka/m
		}' {} +
}

# Counts what the tools have written.
instrument_finish() {
	# UBSan's go to the servers' logs where ASan is there too
	if [ "$flavour" = asan ]; then
		find "$top/out" -type f -name '*.log' -exec grep -ah -A 12 ': runtime error: ' {} + \
			>"$reports/runtime_errors" || true
	fi
	[ "$flavour" != tsan ] || drop_library_races
	found=$(find "$reports" -type f -size +0 | sort)
	[ -n "$found" ] || { count 1 0; return 0; }
	for report in $found; do
		head -n 60 "$report"
		broken "$flavour: $report"
	done
}

instrumented_tests() {
	case $flavour in
		coverage)
			on_server regress isolation
			tap_tests
			coverage_report
			;;
		asan)
			on_server regress isolation
			OUTBOX_SANITIZED=1
			export OUTBOX_SANITIZED
			# not what looks for words that a newer PostgreSQL logs where nothing is wrong
			: "${PROVE_TESTS:=$(cd "$tree" && ls test/t/*.pl | grep -v 021_publication)}"
			tap_tests
			;;
		valgrind)
			REGRESS=${REGRESS:-publish} on_server regress
			PROVE_TESTS=${PROVE_TESTS:-test/t/000_smoke.pl} tap_tests
			;;
		caches)
			REGRESS=${REGRESS:-publish} on_server regress
			;;
		tsan)
			PROVE_TESTS=${PROVE_TESTS:-$(cd "$tree" && ls test/t/00*_kafka_*.pl)} tap_tests
			;;
	esac
	[ "$flavour" = coverage ] || instrument_finish
}

coverage_report() {
	headline "coverage"
	info=$top/coverage.info
	if ! (lcov -q --capture --rc lcov_branch_coverage=1 --no-external \
		--directory "$top/tree" --base-directory "$top/tree" --output-file "$info.all" &&
		lcov -q --rc lcov_branch_coverage=1 --extract "$info.all" "$top/tree/src/*" \
			"$top/tree/transports/*" --output-file "$info.some" &&
		lcov -q --rc lcov_branch_coverage=1 --remove "$info.some" '*/make_option_table.c' \
			--output-file "$info") >"$top/lcov.log" 2>&1; then
		tail "$top/lcov.log"
		broken "lcov"
		return 0
	fi
	perl "$support/uncovered.pl" "$top/tree/" "$info"
	genhtml -q --branch-coverage -p "$top/tree" -o "$top/coverage" "$info" >>"$top/lcov.log" 2>&1 ||
		broken "genhtml"
	echo "pages to look at: $top/coverage/index.html"
}
