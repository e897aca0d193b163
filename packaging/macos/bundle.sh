#!/usr/bin/env bash
# Builds target/bundle/ShoesVZAgent.app: the agent, the guest agent for macOS guests, launchd's property lists; signed with
# the hardened runtime and checked.
#
# usage: bundle.sh [DIRECTORY]    the directory of the two programs; without it they are built first
#
# On macOS codesign signs the bundle, ad hoc or as SIGN_IDENTITY. Elsewhere rcodesign signs it ad hoc. Such a bundle shows
# that everything can be built and signed, and is not for use: it contains no Swift.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/macos-tools.sh

here=packaging/macos
identifier=com.github.whywaita.shoes-vz-agent
helper=com.github.whywaita.shoes-vz-runner-agent
app=target/bundle/ShoesVZAgent.app
new=target/bundle/new/ShoesVZAgent.app

if [[ $# -gt 0 ]]; then
    programs=$1
elif macos_host; then
    # The programs of `make build`; they are signed once more, as parts of the bundle.
    scripts/build.sh release
    programs=bin
else
    macos_zig
    macos_std
    macos_env
    macos_cargo build --bin shoes-vz-agent --bin shoes-vz-runner-agent
    programs=$macos_out/$macos_target/macos-check
fi

version=$(sed -n '/^\[workspace.package\]/,/^\[[^w]/s/^version = "\([0-9.]*\).*"$/\1/p' Cargo.toml)
[[ -n $version ]] || { echo "bundle: Cargo.toml has no version under [workspace.package]" >&2; exit 1; }

rm -rf "$new"
mkdir -p "$new/Contents/MacOS" "$new/Contents/Helpers" "$new/Contents/Resources/launchd"
sed "s|<string>0\.0\.0</string>|<string>$version</string>|" $here/Info.plist > "$new/Contents/Info.plist"
install -m 755 "$programs/shoes-vz-agent" "$new/Contents/MacOS/"
# A nested program must be in a folder for code: a bundle's Resources are data.
install -m 755 "$programs/shoes-vz-runner-agent" "$new/Contents/Helpers/"
install -m 644 $here/launchd/*.plist "$new/Contents/Resources/launchd/"
install -m 644 LICENSE "$new/Contents/Resources/"

if macos_host; then
    identity=${SIGN_IDENTITY:--}
    sign=(codesign --force --options runtime --sign "$identity")
    # A signature that outlives its certificate needs Apple's time stamp; an ad hoc signature cannot have one.
    if [[ $identity == - ]]; then sign+=(--timestamp=none); else sign+=(--timestamp); fi
    plutil -lint -s "$new/Contents/Info.plist" "$new"/Contents/Resources/launchd/*.plist entitlements.plist
    # From the inside out, because the bundle's signature covers the helper's.
    "${sign[@]}" --identifier "$helper" "$new/Contents/Helpers/shoes-vz-runner-agent"
    "${sign[@]}" --entitlements entitlements.plist "$new"
    codesign --verify --strict --deep "$new"
else
    [[ -z ${SIGN_IDENTITY:-} ]] || macos_fail "SIGN_IDENTITY needs codesign, and so a Mac; here bundles are signed ad hoc"
    macos_rcodesign
    inside=Contents/Helpers/shoes-vz-runner-agent
    "$macos_cache/rcodesign-$rcodesign_version/bin/rcodesign" sign --runtime-version "$MACOSX_DEPLOYMENT_TARGET.0" \
        --code-signature-flags runtime --entitlements-xml-file entitlements.plist \
        --code-signature-flags "$inside:runtime" --binary-identifier "$inside:$helper" "$new"
fi

cargo build --quiet --workspace --bin check-signature
"${CARGO_TARGET_DIR:-target}/debug/check-signature" "$new" --minos "$MACOSX_DEPLOYMENT_TARGET" \
    --entitlements entitlements.plist --identifier "$identifier"
rm -rf "$app"
mv "$new" "$app"
rmdir "${new%/*}"
echo "bundle: $app, version $version"
