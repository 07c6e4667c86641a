# Sourced: source packages of other Debian suites than this machine's, in $work/source.
#
# They come through apt, from the mirror that this machine's own apt uses for Debian,
# but with lists and cache of their own: the system's apt is not touched.  A suite's
# index may lag behind the pool (then the download fails), so the next one is tried.

private_apt() {
	apt=$work/apt
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
	base=$(debian_mirror)
	base=${base%/}
	case $1 in
		*-security) base=$base-security ;;
	esac
	keys=/usr/share/keyrings/debian-archive-keyring.gpg
	echo "deb-src [signed-by=$keys] $base $1 main" >"$apt/sources.list"
	package=$2
	set -- -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" \
		-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts="$apt/parts" \
		-o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 \
		-o APT::Sandbox::User=root -o Acquire::Languages=none
	apt-get -q -q "$@" update && apt-get -q -q "$@" source --download-only "$package"
}

# fetch_source PACKAGE SUITES...
fetch_source() {
	wanted=$1
	shift
	for suite; do
		rm -rf "$work/apt" "$work/source"
		mkdir -p "$work/source"
		if (cd "$work/source" && private_apt "$suite" "$wanted") >"$work/apt.log" 2>&1 &&
			ls "$work/source/$wanted"_*.orig.tar.* >/dev/null 2>&1; then
			return 0
		fi
		say "no source of $wanted in $suite: $(grep '^E:' "$work/apt.log" | head -1 | sed 's#[a-z]*://[^ ]*/##')"
	done
	return 1
}

# unpack_source PACKAGE: into $work/tree
unpack_source() {
	rm -rf "$work/tree"
	mkdir "$work/tree"
	tar -xf "$(ls "$work/source/$1"_*.orig.tar.* | grep -v '\.asc$' | head -1)" \
		-C "$work/tree" --strip-components=1
}
