#!/usr/bin/env bash
# Builds std for aarch64-apple-darwin into a new directory, laid out as a sysroot, with the rustc in use.
#
# usage: macos-std.sh DIRECTORY
#
# The sources must be of the same release as rustc. The script searches the toolchain (`rustup component add rust-src`),
# Debian (rust-src of trixie's backports, trixie, forky, sid, from the mirror that this machine's apt uses), and an archive
# beside this checkout.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dest=$(cd "$1" && pwd)
. "$root/scripts/debian-mirror.sh"

# In this directory rustup chooses the toolchain that builds the workspace.
cd "$root"
toolchain=$(rustc --print sysroot)
rustc=$toolchain/bin/rustc
release=$("$rustc" -vV | sed -n 's/^release: //p')
host=$("$rustc" -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
library=$dest/lib/rustlib/src/rust/library
mkdir -p "$library" "$dest/lib/rustlib/$host" "$dest/lib/rustlib/aarch64-apple-darwin/lib" "$dest/bin"
# Not needed to build std: vendored dependencies (cargo fetches the locked ones), and tests.
needless=(--exclude '*/library/vendor' --exclude '*/tests')

from_toolchain() {
    local have=$toolchain/lib/rustlib/src/rust
    [[ -e $have/library/std/Cargo.toml ]] || return 1
    tar -C "$have" -c "${needless[@]}" ./library | tar -C "$library" -x --strip-components=2 || return 1
    echo "the toolchain's rust-src $release" > "$dest/source"
}

from_debian() {
    local suite package version
    [[ -n $debian_mirror && -f $debian_keyring ]] || return 1
    for suite in trixie-backports trixie forky sid; do
        debian_apt_in "$work" "$suite"
        apt-get "${debian_apt[@]}" update 2> /dev/null || continue
        for package in rust-src rust-web-src; do
            version=$(apt-cache "${debian_apt[@]}" madison "$package" | awk -v r="$release" '$3 ~ ("^" r "[+-]") { print $3; exit }')
            [[ -n $version ]] || continue
            (cd "$work" && apt-get "${debian_apt[@]}" download "$package=$version") || continue
            dpkg-deb --fsys-tarfile "$work"/"$package"_*.deb | tar -C "$library" -x --wildcards "${needless[@]}" \
                --strip-components=5 './usr/src/rustc-*/library/*' || continue
            echo "Debian's $package $version" > "$dest/source"
            return
        done
    done
    return 1
}

from_archive() {
    local archive=$root/../shared/recipes/macos-cross/library-${release%.*}.txz
    [[ $release == *.0 && -f $archive ]] || return 1
    tar -C "$library" -xJf "$archive" --strip-components=1 || return 1
    echo "the archive ${archive##*/}" > "$dest/source"
}

from_toolchain || from_debian || from_archive || {
    cat >&2 << END
macos-std: std for aarch64-apple-darwin is not installed, and sources of std $release to build it from were not found: neither in
the Rust toolchain ($toolchain), nor in Debian trixie, its backports, forky or sid${debian_mirror:+ (on the mirror that apt uses here)}.
With rustup, run either of these:
    rustup target add aarch64-apple-darwin
    rustup component add rust-src
END
    exit 1
}

# A separate sysroot. Each of the host's libraries is a link to the toolchain's, so that no directory link leads back into it.
for file in "$toolchain/lib/rustlib/$host"/*; do
    ln -s "$file" "$dest/lib/rustlib/$host/"
done
printf '#!/bin/sh\nexec "%s" --sysroot "%s" "$@"\n' "$rustc" "$dest" > "$dest/bin/rustc"
chmod +x "$dest/bin/rustc"

mkdir -p "$work/std/src"
: > "$work/std/src/lib.rs"
# Without optimisation: it is linked against, never run.
cat > "$work/std/Cargo.toml" << 'END'
[package]
name = "with-std"
version = "0.0.0"
edition = "2024"

[profile.release]
opt-level = 0
END
# -Zbuild-std is the only use of an unstable feature with a stable compiler; the workspace is built without it.
(
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTC_WRAPPER RUSTC_WRAPPER
    RUSTC="$dest/bin/rustc" RUSTC_BOOTSTRAP=1 cargo build --quiet --release --target aarch64-apple-darwin \
        --manifest-path "$work/std/Cargo.toml" --target-dir "$work/target" -Zbuild-std=std,panic_abort,panic_unwind,proc_macro,test
)
for rlib in "$work"/target/aarch64-apple-darwin/release/deps/*.rlib; do
    [[ ${rlib##*/} == libwith_std-* ]] || cp "$rlib" "$dest/lib/rustlib/aarch64-apple-darwin/lib/"
done
rm -rf "$dest/lib/rustlib/src" "$dest/bin" "${dest:?}/lib/rustlib/$host"
