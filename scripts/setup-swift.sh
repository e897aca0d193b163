#!/usr/bin/env bash
# Installs a Swift toolchain without changing the system: downloads Debian trixie's swiftlang and its dependencies with apt,
# from the mirror that this machine's apt uses, and unpacks them into a separate directory (1.5 GB, about a minute). Needs no
# root. `scripts/with-swift` runs commands with it. Does nothing if `swift` is installed already.
set -euo pipefail
cd "$(dirname "$0")"
. ./swift-place.sh
. ./debian-mirror.sh

if command -v swift > /dev/null; then
    exit 0
fi
if [[ -e $swift_root/.complete ]]; then
    exit 0
fi
if [[ $(uname -s) != Linux ]]; then
    echo "setup-swift: swift is not installed; install Xcode 26 or its command line tools (xcode-select --install)" >&2
    exit 1
fi
. /etc/os-release
if [[ -z $debian_mirror || ! -f $debian_keyring ]]; then
    echo "setup-swift: Swift comes from Debian 13 (trixie), and this machine's apt (${PRETTY_NAME:-unknown}) knows no Debian mirror or key." >&2
    echo "Install Swift 6 from swift.org instead, so that \`swift\` is in PATH. Everything but Swift works without it." >&2
    exit 1
fi

packages=(swiftlang libstdc++-14-dev libc6-dev bash coreutils findutils grep sed gawk make ca-certificates tzdata util-linux procps)
not_needed=('./usr/share/doc/*' './usr/share/man/*' './usr/share/locale/*' '*/bin/lldb*' '*/liblldb*' '*/bin/clangd'
    '*/bin/sourcekit-lsp' '*/libsourcekitdInProc.so' '*/bin/docc' '*/lib/swift/embedded' '*/libLTO*')

mkdir -p "$(dirname "$swift_root")"
exec 9> "$swift_root.lock"
flock 9
[[ ! -e $swift_root/.complete ]] || exit 0
work=$(mktemp -d "$swift_root.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
debian_apt_in "$work" trixie
echo "setup-swift: downloading Swift (about 540 MB)"
apt-get "${debian_apt[@]}" update
apt-get "${debian_apt[@]}" install -y --no-install-recommends --download-only "${packages[@]}"
echo "setup-swift: unpacking it into $swift_root (about 1.5 GB)"
excludes=("${not_needed[@]/#/--exclude=}")
for deb in "$work"/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/root" --keep-directory-symlink "${excludes[@]}"
done
# The links that update-alternatives and dash would have made; the stand-in's guests are shell scripts.
ln -sf gcc "$work/root/usr/bin/cc"
ln -sf bash "$work/root/usr/bin/sh"
touch "$work/root/.complete"
rm -rf "$swift_root"
mv "$work/root" "$swift_root"
echo "setup-swift: done: $(./with-swift swift --version 2>&1 | head -n 1)"
