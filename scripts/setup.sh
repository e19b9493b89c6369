# SPDX-License-Identifier: Apache-2.0
# setup.sh -- sourced by demo and check: packages and builds. bash >= 4.4, Debian or Ubuntu.

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
libaio-dev=has_header libaio.h
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

    command -v apt-get >/dev/null || die "missing: ${missing[*]} (Debian's names); install them"
    local by_hand="sudo apt-get update && sudo apt-get install -y ${missing[*]}" as_root=()
    if [ "$(id -u)" != 0 ]; then
        if sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        elif [ -t 0 ] && command -v sudo >/dev/null; then
            as_root=(sudo) # asks for the password
        else
            die "missing packages; run: $by_hand"
        fi
    fi
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { "${as_root[@]}" apt-get update -q &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
            --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "could not install; run: $by_hand"
    fi
    rm -f "$log"
}

# build SOURCE FOLDER [meson options]: configure, anew where compiler or options have changed, then
# compile; quiet unless it fails.
build() {
    local source=$1 folder=$2 log stamp multiarch
    shift 2
    # Without dpkg-dev meson takes a folder for libraries that Debian does not search.
    multiarch=$(${CC-cc} -print-multiarch 2>/dev/null) || true
    [ -z "$multiarch" ] || [ ! -d "/usr/lib/$multiarch" ] || set -- "-Dlibdir=lib/$multiarch" "$@"
    stamp="${CC-cc} $* $(meson --version) $(pkg-config --modversion liburing libaio 2>/dev/null | tr '\n' ' ')"
    log=$(mktemp)
    if [ -f "$folder/build.ninja" ] && [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]; then
        [ -f "$folder/stamp" ] || die "$folder was not made by this script; remove it or move it away"
        rm -rf "$folder"
    fi
    if { [ -f "$folder/build.ninja" ] || meson setup "$folder" "$source" "$@"; } >"$log" 2>&1 &&
        printf '%s\n' "$stamp" >"$folder/stamp" && ninja -C "$folder" >>"$log" 2>&1; then
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
