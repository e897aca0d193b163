#!/usr/bin/env bash
# Checks the macOS build as far as another system can: it compiles without a warning, tests included; it links; the
# bundle's signature is valid, and its check detects a changed byte. Prints at the end what was checked and what was not.
# On macOS it does the same with Xcode's tools.
#
# Its tools go into ${XDG_CACHE_HOME:-~/.cache}/shoes-vz/macos: about 600 MB, and ten minutes on two cores the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/macos-tools.sh

binaries=(shoes-vz-client shoes-vz-server shoes-vz-agent shoes-vz-runner-agent)
built=$macos_out/$macos_target/macos-check
app=target/bundle/ShoesVZAgent.app
times=()

stage() { # name command…
    local name=$1 begin=$SECONDS
    shift
    echo "==> $name"
    "$@"
    times+=("$(printf '%4d s  %s' $((SECONDS - begin)) "$name")")
}

# The signer takes long to build and is needed last: it is built in the background, in its process group.
signer=
start_signer() {
    macos_host && return
    mkdir -p "$macos_out"
    set -m
    (
        renice -n 5 -p "$BASHPID" > /dev/null
        macos_rcodesign
    ) > "$macos_out/rcodesign.log" 2>&1 &
    set +m
    signer=$!
    trap 'kill -- "-$signer" 2> /dev/null || true' EXIT
}
await_signer() {
    [[ -n $signer ]] || return 0
    wait "$signer" || {
        cat "$macos_out/rcodesign.log" >&2
        macos_fail "rcodesign, which signs the bundle, could not be built (apple-codesign $rcodesign_version)"
    }
    trap - EXIT
}

tools() {
    macos_host && return
    macos_zig
    macos_std
    macos_env
}

link_tests() {
    macos_cargo test --workspace --no-run 2>&1 | tee "$macos_out/tests.log"
    test_programs=$(grep -c '^  Executable ' "$macos_out/tests.log") || macos_fail "no test program was linked"
}

link_binaries() {
    local names=("${binaries[@]/#/--bin=}")
    macos_cargo build "${names[@]}"
}

check_signature() {
    cargo build --quiet --workspace --bin check-signature
    "${CARGO_TARGET_DIR:-target}/debug/check-signature" "$@"
}
check_binaries() {
    check_signature --linked --minos "$MACOSX_DEPLOYMENT_TARGET" "${binaries[@]/#/$built/}"
}

flip_byte() { # file offset
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf "\\$(printf %03o $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc 2> /dev/null
}

# The check must refuse a changed bundle.
tamper() {
    local copy=$macos_out/tampered/ShoesVZAgent.app file output
    for file in MacOS/shoes-vz-agent Helpers/shoes-vz-runner-agent Info.plist _CodeSignature/CodeResources \
        Resources/launchd/com.github.whywaita.shoes-vz-agent.plist; do
        rm -rf "$macos_out/tampered"
        mkdir -p "$macos_out/tampered"
        cp -R "$app" "$copy"
        flip_byte "$copy/Contents/$file" $(($(wc -c < "$copy/Contents/$file") / 3))
        if output=$(check_signature "$copy" --minos "$MACOSX_DEPLOYMENT_TARGET" --entitlements entitlements.plist \
            --identifier com.github.whywaita.shoes-vz-agent 2>&1); then
            macos_fail "one byte of $file was changed, but check-signature accepted it"
        fi
        [[ $output == *"${file##*/}"* ]] || macos_fail "one byte of $file was changed, but check-signature does not name it:" "$output"
        echo "one byte of $file changed: refused"
    done
    rm -rf "$macos_out/tampered"
}

start_signer
stage "tools: zig, std for $macos_target" tools
stage "clippy, tests included, warnings denied" macos_cargo clippy --workspace --all-targets -- -D warnings
stage "link every test program" link_tests
stage "link the four binaries" link_binaries
stage "check the four binaries" check_binaries
stage "wait for the signer" await_signer
stage "bundle, sign, check" packaging/macos/bundle.sh "$built"
stage "tamper with the bundle" tamper

printf '\nmacos-check: done in %d s\n' "$SECONDS"
printf '  %s\n' "${times[@]}"
cat << END

checked, for $macos_target and macOS $MACOSX_DEPLOYMENT_TARGET or newer:
  - the workspace compiles without a warning of rustc or clippy, tests included
  - $test_programs test programs and ${#binaries[@]} binaries link: ${binaries[*]}
  - each binary is a thin arm64 Mach-O with minos $MACOSX_DEPLOYMENT_TARGET that links only libraries of macOS
  - $app has its entitlements (XML and DER), hardened runtime and seals; every hash was computed again,
    and a changed byte in any of five places is refused
END
if macos_host; then
    cat << END
not checked: nothing was run. docs/on-a-mac.md describes how to run it.
END
    exit
fi
cat << END
not checked, because this is not macOS:
  - nothing was run: neither the programs nor their tests
  - these binaries contain C stand-ins instead of VZCore (\`make test\` runs it on Linux, against the
    stand-in for Virtualization.framework)
  - frameworks were linked by the symbols that objc2's crates declare, not by Apple's lists
  - whether macOS accepts the signature and grants the entitlement
  - std is $macos_std_from
docs/on-a-mac.md lists what to run on a Mac.
END
