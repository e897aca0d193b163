#!/usr/bin/env bash
# Compares every SDK symbol that VZCore and the stand-ins use with facts from the macOS 26.5 SDK (check-api). With a Swift
# toolchain on Linux it also compares the compiler's lists: the stand-ins' public symbols, and those VZCore refers to.
set -euo pipefail
cd "$(dirname "$0")/.."
with=()

if [[ $(uname -s) == Linux ]] && scripts/with-swift true 2> /dev/null; then
    scratch=${SHOESVZ_SWIFT_SCRATCH:-target/swift}
    lists=$scratch/api-check
    rm -rf "$lists"
    mkdir -p "$lists"
    swift() { scripts/with-swift "$@"; }
    # `--target` accepts one target; VZCore needs all of the stand-ins.
    swift swift build --scratch-path "$scratch" --target VZCore
    built=$(swift swift build --scratch-path "$scratch" --show-bin-path)
    triple=$(swift swiftc -print-target-info | awk -F '"' '$2 == "triple" { print $4; exit }')
    seen=(-target "$triple" -I "$built/Modules" -Xcc "-fmodule-map-file=$built/CLinux.build/module.modulemap")
    for module in Virtualization vmnet AppKit StandInDarwin; do
        swift swift-symbolgraph-extract -module-name "$module" "${seen[@]}" -output-dir "$lists" \
            -minimum-access-level public -skip-synthesized-members
    done
    # The tree is written to stdout or stderr, depending on the version; so are errors.
    if ! swift swiftc -dump-ast -module-name VZCore -swift-version 6 "${seen[@]}" -module-alias Darwin=StandInDarwin \
        VZCore/Sources/VZCore/*.swift > "$lists/vzcore.ast" 2>&1; then
        grep 'error:' "$lists/vzcore.ast" >&2
        exit 1
    fi
    with=(--compiler "$lists")
else
    echo "api-check: without a Swift toolchain on Linux the compiler's lists are not compared"
fi

# `--workspace`, so that dependencies are built once. An empty array is an error in macOS' bash.
cargo build --quiet --workspace --bin check-api
"${CARGO_TARGET_DIR:-target}/debug/check-api" ${with[@]+"${with[@]}"} "$@"
