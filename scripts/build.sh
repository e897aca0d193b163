#!/usr/bin/env bash
# Builds the four programs and puts them into bin/. On macOS codesign signs them, as SIGN_IDENTITY or ad hoc. The agent,
# which is also the VM process, gets the entitlement that it needs to run VMs (entitlements.plist).
#
# usage: build.sh [PROFILE]    release, or "dev": what demo and tests have already built (FEATURES from make)
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release}
programs=(shoes-vz-client shoes-vz-server shoes-vz-agent shoes-vz-runner-agent)

if [[ $profile == dev ]]; then
    folder=debug
    # shellcheck disable=SC2086 # several words
    cargo build --workspace --bins ${FEATURES:-}
else
    folder=$profile
    # By package, so that it contains nothing that only tests need, and without the flags of .cargo/config.toml, which are
    # for the simulation.
    RUSTFLAGS='' cargo build --profile "$profile" "${programs[@]/#/--package=}" --bins
fi

mkdir -p bin
for program in "${programs[@]}"; do
    # A new file under the name: a running program's file cannot be written, and macOS remembers the old file's signature.
    install -m 755 "${CARGO_TARGET_DIR:-target}/$folder/$program" "bin/$program.new"
    if [[ $(uname -s) == Darwin ]]; then
        sign=(codesign --force --options runtime --sign "${SIGN_IDENTITY:--}" --identifier "com.github.whywaita.$program")
        [[ $program != shoes-vz-agent ]] || sign+=(--entitlements entitlements.plist)
        "${sign[@]}" "bin/$program.new"
    fi
    mv "bin/$program.new" "bin/$program"
done
echo "build: $profile binaries in bin/: ${programs[*]}"
