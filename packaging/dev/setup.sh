#!/usr/bin/env bash
# Installs what building, testing and the demo need, on Debian and Ubuntu. Does nothing where all of it is there.
# Anywhere else it changes nothing and says what is missing.
set -euo pipefail

arch=$(uname -m)
missing_packages=()
missing_words=()

need() { # command package…
    local cmd=$1
    shift
    command -v "$cmd" > /dev/null || missing_packages+=("$@")
}

qemu_major() {
    { "qemu-system-$arch" --version 2> /dev/null || true; } | sed -n '1s/.*version \([0-9]*\).*/\1/p'
}

case $arch in
    x86_64) qemu_package=qemu-system-x86 ;;
    aarch64) qemu_package=qemu-system-arm ;;
    *)
        echo "setup: guests are not supported on $arch; shoes-vz runs Linux guests on x86_64 and aarch64" >&2
        exit 1
        ;;
esac

if [[ $(uname -s) != Linux ]]; then
    echo "setup: this demo and test set-up is for Debian and Ubuntu; nothing was changed." >&2
    echo "On macOS, see docs/on-a-mac.md." >&2
    exit 1
fi

need cc gcc libc6-dev
need go golang-go
need qemu-img qemu-utils
need mmdebstrap mmdebstrap
need fakeroot fakeroot
need mke2fs e2fsprogs
need ssh-keygen openssh-client
need cpio cpio
need xz xz-utils
need zstd zstd
need lz4 lz4
need strip binutils
need python3 python3
need setpriv util-linux
need ip iproute2
need pgrep procps
[[ $(id -u) == 0 ]] || need newuidmap uidmap

qemu_have=$(qemu_major)
if [[ -z $qemu_have || $qemu_have -lt 9 ]]; then
    missing_packages+=("$qemu_package")
fi

if ! command -v cargo > /dev/null; then
    missing_words+=("Rust (cargo): install it with rustup, version 1.95 or newer")
fi
if command -v go > /dev/null; then
    go_minor=$(go env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    if [[ -n $go_minor && $go_minor -lt 25 ]]; then
        missing_words+=("Go 1.25 or newer (found $(go env GOVERSION))")
    fi
fi

if ((${#missing_words[@]})); then
    printf 'setup: missing: %s\n' "${missing_words[@]}" >&2
    exit 1
fi
if ! ((${#missing_packages[@]})); then
    exit 0
fi

. /etc/os-release
if [[ ${ID:-} != debian && ${ID:-} != ubuntu && " ${ID_LIKE:-} " != *" debian "* ]] || ! command -v apt-get > /dev/null; then
    echo "setup: ${PRETTY_NAME:-this system} is neither Debian nor Ubuntu; nothing was changed." >&2
    echo "Please install what these Debian packages hold, QEMU 9 or newer: ${missing_packages[*]}" >&2
    exit 1
fi

if [[ $(id -u) == 0 ]]; then
    as_root=()
elif command -v sudo > /dev/null; then
    as_root=(sudo)
else
    echo "setup: packages are missing and neither root nor sudo is at hand; nothing was changed." >&2
    echo "As root: apt-get install ${missing_packages[*]}" >&2
    exit 1
fi

echo "setup: installing ${missing_packages[*]}"
"${as_root[@]}" apt-get update -q=2

candidate_major() { # package [apt options]
    LC_ALL=C apt-cache policy "$1" | sed -n 's/^  Candidate: \([0-9]*:\)\{0,1\}\([0-9]*\)\..*/\2/p'
}

from_release=()
if [[ " ${missing_packages[*]} " == *" $qemu_package "* ]]; then
    have=$(candidate_major "$qemu_package")
    if [[ -z $have || $have -lt 9 ]]; then
        if [[ ${VERSION_CODENAME:-} != bookworm ]]; then
            echo "setup: QEMU 9 or newer is needed; ${PRETTY_NAME:-this release} offers ${have:-none}. Nothing was installed." >&2
            exit 1
        fi
        # Debian 12 has QEMU 7.2; its backports have 10. The mirror is the one this machine's apt uses already.
        if ! LC_ALL=C apt-cache policy | grep -q 'n=bookworm-backports'; then
            mirror=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' \
                | awk '$1 == "bookworm" && $2 == "main" { print $3; exit }')
            keyring=/usr/share/keyrings/debian-archive-keyring.gpg
            if [[ -z ${mirror:-} ]]; then
                echo "setup: apt has no source for bookworm main, so its backports cannot be derived. Nothing was installed." >&2
                exit 1
            fi
            {
                echo "Types: deb"
                echo "URIs: $mirror"
                echo "Suites: bookworm-backports"
                echo "Components: main"
                [[ ! -f $keyring ]] || echo "Signed-By: $keyring"
            } | "${as_root[@]}" tee /etc/apt/sources.list.d/shoes-vz-backports.sources > /dev/null
            echo "setup: added /etc/apt/sources.list.d/shoes-vz-backports.sources for QEMU"
            "${as_root[@]}" apt-get update -q=2
        fi
        from_release=(-t bookworm-backports)
    fi
fi

qemu_only=()
rest=()
for p in "${missing_packages[@]}"; do
    if [[ $p == "$qemu_package" || $p == qemu-utils ]]; then qemu_only+=("$p"); else rest+=("$p"); fi
done
apt_install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q=2 --no-install-recommends "$@" > /dev/null
}
((${#rest[@]} == 0)) || apt_install "${rest[@]}"
((${#qemu_only[@]} == 0)) || apt_install "${from_release[@]}" "${qemu_only[@]}"

qemu_have=$(qemu_major)
if [[ -z $qemu_have || $qemu_have -lt 9 ]]; then
    echo "setup: after installing, qemu-system-$arch is still ${qemu_have:-not there}; version 9 or newer is needed" >&2
    exit 1
fi
echo "setup: done"
