# SPDX-License-Identifier: Apache-2.0
# setup.sh -- sourced by demo and check: packages, builds, half models. bash >= 4.4, Debian or Ubuntu.

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

# Names of "$1" whose test fails.
missing_of() {
    local line
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        eval "${line#*=}" >/dev/null 2>&1 || printf '%s ' "${line%%=*}"
    done <<<"$1"
}

# install_packages REQUIRED [OPTIONAL]: install what is missing, with the system's package manager where that
# is allowed; else the line to run is printed. It goes on without what is optional.
install_packages() {
    local required optional all by_hand log as_root=()
    required=$(missing_of "$1")
    optional=$(missing_of "${2-}")
    all=$required$optional
    [ -n "$all" ] || return 0

    by_hand="run: sudo apt-get update && sudo apt-get install -y $all"
    if ! command -v apt-get >/dev/null; then
        cannot_install "missing: $all(Debian's names); install them"
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        if sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        elif [ -t 0 ] && command -v sudo >/dev/null; then
            as_root=(sudo) # asks for the password
        else
            cannot_install "missing packages; $by_hand"
            return
        fi
    fi
    say "installing $all"
    log=$(mktemp)
    # shellcheck disable=SC2086
    if ! { "${as_root[@]}" apt-get update -q &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
            --no-install-recommends $all; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        cannot_install "could not install; $by_hand"
        return
    fi
    rm -f "$log"
}

# The end, or what is optional stays out.
cannot_install() {
    [ -z "$required" ] || die "$1"
    say "$1"
    say "going on without $optional"
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

# drop_half_models FOLDER...: what a synth left that was killed at once. One that runs holds a lock, which
# another machine need not see; so the name begins with the first digits of the kernel's boot_id, and what
# another kernel's made must have been at rest for an hour, by the filesystem's clock. As engine/synth_temp.c.
drop_half_models() {
    local half boot clock
    boot=$(head -c 8 /proc/sys/kernel/random/boot_id 2>/dev/null) || boot=unknown
    for half in "$@"; do
        [ -d "$half" ] || continue
        clock=$(mktemp "${half%/*}/clock-XXXXXX") || return 0
        touch -d "@$(($(stat -c %Y "$clock") - 3600))" "$clock"
        if { [[ ${half##*.tmp-} == "$boot"-* ]] || [ -z "$(find "$half" -newer "$clock")" ]; } &&
            flock -n "$half" rm -rf "$half" 2>/dev/null; then
            say "$half: removed, left by a run that was killed"
        else
            say "$half: half a model, kept: it may be being written, or locks do not work there; if it is not: rm -r $half"
        fi
        rm -f "$clock"
    done
}
