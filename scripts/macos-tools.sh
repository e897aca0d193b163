# Sourced: the tools that build and sign for macOS. On macOS that is Xcode. Elsewhere the functions below install them once
# into the user's cache, never into the Rust toolchain:
#
#   macos_std        std for aarch64-apple-darwin, for exactly the rustc in use
#   macos_zig        zig: C compiler, linker and archiver, with libSystem's headers and symbols (PyPI's ziglang)
#   macos_rcodesign  rcodesign: writes code signatures (crates.io's apple-codesign)
#
# `macos_env` then configures cargo, and `macos_cargo SUBCOMMAND …` is cargo for aarch64-apple-darwin. A wrapper (macos-cc)
# calls zig, rather than cargo-zigbuild: it is ten lines long, cargo and clippy stay unchanged, and there is one tool less
# whose version matters.

macos_target=aarch64-apple-darwin
macos_out=target/macos-check
macos_cache=${XDG_CACHE_HOME:-$HOME/.cache}/shoes-vz/macos
# These two versions are tested together with this workspace: change them here, then run `make macos-check`.
zig_version=0.17.1
rcodesign_version=0.29.0
export MACOSX_DEPLOYMENT_TARGET=26.0

macos_host() { [[ $(uname -s) == Darwin ]]; }

macos_fail() {
    printf 'macos-check: %s\n' "$@" >&2
    exit 1
}

# Runs "$2…" unless $1 exists, one process at a time; "$2…" gets a new directory, which becomes $1.
macos_once() {
    local place=$1 new
    shift
    [[ ! -e $place ]] || return 0
    mkdir -p "$macos_cache"
    (
        exec 9> "$place.lock"
        flock 9
        [[ ! -e $place ]] || exit 0
        new=$(mktemp -d "$place.new.XXXXXX")
        trap 'rm -rf "$new"' EXIT
        "$@" "$new"
        mv "$new" "$place"
    )
}

macos_std() {
    local sysroot
    sysroot=$(rustc --print sysroot)
    if compgen -G "$sysroot/lib/rustlib/$macos_target/lib/libstd-*.rlib" > /dev/null; then
        macos_std_from="the Rust toolchain"
        macos_sysroot=
        return
    fi
    # Release and commit: another build of the same release cannot use this std.
    macos_sysroot=$macos_cache/std-$(rustc -vV | awk '/^release:/ { r = $2 } /^commit-hash:/ { h = substr($2, 1, 9) } END { print r "-" h }')
    macos_once "$macos_sysroot" scripts/macos-std.sh
    macos_std_from="built here from $(cat "$macos_sysroot/source")"
}

macos_zig() {
    local place=$macos_cache/zig-$zig_version
    macos_once "$place" macos_zig_into
    export SHOESVZ_ZIG=$place/ziglang/zig
    export ZIG_GLOBAL_CACHE_DIR=$macos_cache/zig-cache ZIG_LOCAL_CACHE_DIR=$macos_cache/zig-cache
}

macos_zig_into() {
    python3 -m pip --version > /dev/null 2>&1 || macos_fail "pip, which installs zig, is missing; on Debian: apt-get install python3-pip"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --disable-pip-version-check \
        --target "$1" "ziglang==$zig_version"
}

macos_rcodesign() {
    macos_once "$macos_cache/rcodesign-$rcodesign_version" macos_rcodesign_into
}

# 300 crates, of which signing runs a few: compiling all but the hashing without optimisation takes half the time, and
# signing the bundle still takes a second.
macos_rcodesign_into() {
    cargo install --quiet --locked --no-default-features --debug --no-track --root "$1" --target-dir "$1/target" \
        --config 'profile.dev.debug=false' --config 'profile.dev.package.sha2.opt-level=3' \
        --config 'profile.dev.package.sha1.opt-level=3' "apple-codesign@$rcodesign_version"
    rm -rf "$1/target"
}

macos_env() {
    macos_host && return
    local here stubs=$PWD/$macos_out/stubs flags
    here=$PWD/scripts
    rm -rf "$stubs"
    mkdir -p "$stubs/no-sdk"
    cargo metadata --format-version 1 --filter-platform "$macos_target" | "$here/macos-stubs.py" "$stubs"
    flags="-Lnative=$stubs -Lframework=$stubs"
    [[ -z $macos_sysroot ]] || flags="--sysroot=$macos_sysroot $flags"
    # RUSTFLAGS would replace the target's flags.
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
    export CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS=$flags CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=$here/macos-cc
    export CC_aarch64_apple_darwin=$here/macos-cc AR_aarch64_apple_darwin=$here/macos-ar
    # A build script that looks for an SDK gets an empty one, instead of a search for Xcode and a warning.
    export SDKROOT=$stubs/no-sdk
    # bridge/build.rs: C functions in place of VZCore, whose Swift cannot be compiled for macOS here.
    export SHOESVZ_MACOS_LINK_CHECK=1
}

# As in a release, except for what costs time: these binaries are never run.
macos_cargo() {
    local subcommand=$1
    shift
    cargo "$subcommand" --profile macos-check --target "$macos_target" --target-dir "$macos_out" \
        --config 'profile.macos-check.inherits="release"' --config 'profile.macos-check.opt-level=0' \
        --config 'profile.macos-check.lto="off"' --config 'profile.macos-check.debug=false' \
        --config 'profile.macos-check.strip="none"' --config 'profile.macos-check.codegen-units=16' "$@"
}
