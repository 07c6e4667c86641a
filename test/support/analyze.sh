#!/bin/sh
# Static analysis; what `make analyze` calls: gcc -fanalyzer, clang's analyzer, cppcheck.
#
# Every finding must stand in analyze.known, with its reason behind ##; and every line there must
# be a finding still.  The last line is "N passed, N failed": files looked at by a tool,
# findings and stale lines.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
"$here/deps.sh" postgres rdkafka analyze
. "$here/versions.sh"
out=build/analyze
mkdir -p "$out"
make -s -C test/fuzz OUT="$PWD/$out" PG_CONFIG="$system_config" "$PWD/$out/option_table.h"
server=$("$system_config" --includedir-server)
files=$(ls src/*.c src/*/*.c transports/common/*.c transports/*/*/*.c | grep -v make_option_table)
looked=0

# each finding as: tool file: text
: >"$out/found"
for file in $files; do
	flags="-D_GNU_SOURCE -DOUTBOX_FAULT_POINTS -Isrc -Itransports -I$(dirname "$file") -I$out -I$server"
	gcc -fanalyzer -O1 $flags -c -o /dev/null "$file" 2>&1 |
		sed -n 's/^\([^ ]*\.[ch]\):[0-9]*:[0-9]*: \(warning\|error\|fatal error\): \(.*\)/gcc \1: \3/p'
	clang-14 --analyze -Wno-ignored-attributes $flags -o /dev/null "$file" 2>&1 |
		sed -n 's/^\([^ ]*\.[ch]\):[0-9]*:[0-9]*: \(warning\|error\|fatal error\): \(.*\)/clang \1: \3/p'
	looked=$((looked + 2))
done >>"$out/found"
cppcheck --quiet --enable=warning,portability,performance --max-configs=1 \
	-Isrc -Itransports -DOUTBOX_FAULT_POINTS=1 --include="$here/analyze.h" \
	--template='cppcheck {file}: {id}: {message}' $files >>"$out/found" 2>&1
looked=$((looked + $(echo "$files" | wc -l)))

sort -u "$out/found" >"$out/all"
sed -n 's/ ## .*//p' "$here/analyze.known" | sort -u >"$out/known"
comm -23 "$out/all" "$out/known" >"$out/new"
comm -13 "$out/all" "$out/known" | sed 's/^/no finding any more: /' >"$out/stale"
cat "$out/new" "$out/stale"
failed=$(cat "$out/new" "$out/stale" | wc -l)
echo "$looked passed, $failed failed"
[ "$failed" = 0 ]
