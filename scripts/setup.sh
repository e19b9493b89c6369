# SPDX-License-Identifier: Apache-2.0
# setup.sh -- sourced by demo and check: packages and builds. bash, Debian or Ubuntu.

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "$(basename "$0"): $*"
    exit 1
}

# Packages as "NAME=TEST": TEST is a command that succeeds when the package's part is there, so that
# toolchains installed by other ways count as well.
has_header() {
    echo "#include <$1>" | cc -E - >/dev/null 2>&1
}

build_packages='
gcc=command -v cc
pkg-config=command -v pkg-config
meson=command -v meson
ninja-build=command -v ninja
libjansson-dev=has_header jansson.h
libxxhash-dev=has_header xxhash.h
liburing-dev=has_header liburing.h
libdnnl-dev=has_header oneapi/dnnl/dnnl.h
'

# Install what is missing: with the system's package manager where that is allowed, else the line to
# run is printed.
install_packages() {
    local missing=() line
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        eval "${line#*=}" >/dev/null 2>&1 || missing+=("${line%%=*}")
    done <<<"$1"
    [ ${#missing[@]} -gt 0 ] || return 0

    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        if sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            die "missing packages; run: sudo apt-get install -y ${missing[*]}"
        fi
    fi
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (Debian's names); install them"
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { "${as_root[@]}" apt-get update -q &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
            --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "could not install; run: sudo apt-get update && sudo apt-get install -y ${missing[*]}"
    fi
    rm -f "$log"
}

# build FOLDER [meson options]: configure once, then compile; quiet unless it fails.
build() {
    local folder=$1 log
    shift
    log=$(mktemp)
    if { [ -f "$folder/build.ninja" ] || meson setup "$folder" "$@"; } >"$log" 2>&1 &&
        ninja -C "$folder" >>"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    grep -E 'ERROR|error:|FAILED|warning:' "$log" | head -n 40 >&2 || true
    say "the whole log: $log"
    return 1
}

# Whether clang can link its sanitizers' runtime, which Debian packs apart from clang itself.
clang_has_sanitizers() {
    echo 'int main(void) { return 0; }' | clang -fsanitize=thread -x c - -o /dev/null 2>/dev/null
}
