#!/usr/bin/env bash
# Checks for the tools that are needed. On Debian and Ubuntu it installs missing ones with apt as root. On any other system,
# including macOS, it changes nothing and prints what is missing and how to get it.
#
# usage: setup.sh [build | demo | test | qemu]
#   build   what compiling needs: Rust, a C compiler
#   demo    in addition, what the Linux guest template and its VMs need (default)
#   test    in addition, what only tests need
#   qemu    a QEMU that can save VMs (8.2 or newer), from backports on Debian 12: only this adds a package source
set -euo pipefail
stage=${1:-demo}
case $stage in build | demo | test | qemu) ;; *) echo "usage: setup.sh [build | demo | test | qemu]" >&2 && exit 2 ;; esac

# The rust-version of Cargo.toml.
rust_minor=$(sed -n 's/^rust-version = "1\.\([0-9]*\)".*/\1/p' "$(dirname "$0")/../Cargo.toml")
missing=()

need_rust() { # how to get it
    local minor
    if ! command -v cargo > /dev/null; then
        missing+=("Rust (cargo) 1.$rust_minor or newer: $1")
        return
    fi
    minor=$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
    [[ -z $minor || $minor -ge $rust_minor ]] \
        || missing+=("Rust 1.$rust_minor or newer ($(cargo --version) is installed): \`rustup update stable\`, or $1")
}

report_missing() {
    ((${#missing[@]} == 0)) || {
        printf 'setup: missing: %s\n' "${missing[@]}" >&2
        exit 1
    }
}

# ---- macOS ----------------------------------------------------------------------------------------------------------

setup_macos() {
    local rustup="install rustup from https://rustup.rs" swift
    if command -v brew > /dev/null; then
        rustup="with Homebrew, \`brew install rustup\`, then \`\"\$(brew --prefix rustup)/bin/rustup\" default stable\` and that directory in PATH"
    fi
    need_rust "$rustup"
    if ! xcode-select -p > /dev/null 2>&1; then
        missing+=("Xcode 26, for Swift, the SDK and codesign: install it from the App Store, or its command line tools with \`xcode-select --install\`")
    elif ! swift=$(swift --version 2>&1); then
        missing+=("Swift: Xcode is at $(xcode-select -p), and \`swift --version\` fails there ($(tail -n 1 <<< "$swift")); choose another with \`sudo xcode-select --switch /Applications/Xcode.app\`, or accept its licence with \`sudo xcodebuild -license\`")
    else
        swift=$(sed -n 's/.*Swift version \([0-9]*\).*/\1/p' <<< "$swift" | head -n 1)
        [[ -z $swift || $swift -ge 6 ]] || missing+=("Swift 6 (Swift $swift is selected): install Xcode 26")
    fi
    [[ $(uname -m) == arm64 ]] || missing+=("a Mac with Apple silicon: macOS guests do not run on $(uname -m)")
    [[ $stage != qemu ]] || echo "setup: QEMU is for Linux; on macOS, Virtualization.framework runs the VMs, and saved states need nothing more"
    report_missing
}

# ---- Debian and Ubuntu ----------------------------------------------------------------------------------------------

packages=()
need() { # command package…
    local cmd=$1
    shift
    command -v "$cmd" > /dev/null || packages+=("$@")
}

qemu_version() { # as a number: 7.2 is 702
    { "qemu-system-$(uname -m)" --version 2> /dev/null || true; } \
        | sed -n '1s/.*version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p' | awk '{ print $1 * 100 + $2 }'
}

candidate_version() { # package: like qemu_version, for the version that apt would install
    LC_ALL=C apt-cache policy "$1" | sed -n 's/^  Candidate: \([0-9]*:\)\{0,1\}\([0-9]*\)\.\([0-9]*\).*/\2 \3/p' \
        | awk '{ print $1 * 100 + $2 }'
}

is_debian() {
    # Tests replace this machine's file.
    local release=${SHOESVZ_OS_RELEASE:-/etc/os-release}
    # shellcheck source=/dev/null
    [[ ! -r $release ]] || . "$release"
    [[ ${ID:-} == debian || ${ID:-} == ubuntu || " ${ID_LIKE:-} " == *" debian "* ]] && command -v apt-get > /dev/null
}

as_root=()
find_root() {
    [[ $(id -u) != 0 ]] || return 0
    command -v sudo > /dev/null || {
        echo "setup: packages are missing, this user is not root, and sudo is not installed; nothing was changed." >&2
        echo "As root: apt-get install ${packages[*]}" >&2
        exit 1
    }
    as_root=(sudo)
}

apt_install() { # options and packages
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q=2 --no-install-recommends "$@" > /dev/null
}

needs_of_guests() {
    need qemu-system-"$(uname -m)" "$qemu_package"
    need mmdebstrap mmdebstrap
    need mke2fs e2fsprogs
    need ssh-keygen openssh-client
    need cpio cpio
    need xz xz-utils
    need zstd zstd
    # Debian's cloud kernels are compressed by it.
    need lz4 lz4
    need strip binutils
    # Without root, the guest's tree is built in a user namespace and packed with the owners it has there.
    [[ $(id -u) == 0 ]] || {
        need fakeroot fakeroot
        need newuidmap uidmap
    }
}

needs_of_tests() {
    need qemu-img qemu-utils
    need pgrep procps
    need ip iproute2
    # For the template of Virtualization.framework's stand-in, which runs if Swift is installed.
    need debugfs e2fsprogs
    need python3 python3
}

# Tools that apt cannot always provide: the script reports them and continues.
say_what_is_not_tested() {
    local go=none
    ! command -v go > /dev/null || go=$(go env GOVERSION 2> /dev/null || true)
    awk -v v="$go" 'BEGIN { split(v, part, "."); exit !(part[1] == "go1" && part[2] + 0 >= 25) }' \
        || echo "setup: Go 1.25 or newer is not installed (found: $go): tests with the real hashicorp/go-plugin and Prometheus' own parser are skipped"
}

setup_linux() {
    case $(uname -m) in
        x86_64) qemu_package=qemu-system-x86 ;;
        aarch64) qemu_package=qemu-system-arm ;;
        *)
            [[ $stage == build ]] || {
                echo "setup: Linux guests are not supported on $(uname -m); they run on x86_64 and aarch64" >&2
                exit 1
            }
            ;;
    esac
    need_rust "install it with rustup (https://rustup.rs)"
    need cc gcc libc6-dev
    [[ $stage == build ]] || needs_of_guests
    [[ $stage != test ]] || needs_of_tests
    report_missing
    if [[ $stage == qemu ]]; then
        setup_qemu
        return
    fi
    ((${#packages[@]} == 0)) || install_packages
    if [[ $stage != build ]]; then
        local have
        have=$(qemu_version)
        [[ -n $have && $have -ge 600 ]] || {
            echo "setup: QEMU 6.2 or newer is needed; $(qemu-system-"$(uname -m)" --version 2>&1 | head -n 1)" >&2
            exit 1
        }
        if [[ $have -lt 802 ]]; then
            echo "setup: this QEMU ($((have / 100)).$((have % 100))) cannot save VMs: guests boot and hot VMs work, but saved states need QEMU 8.2 (\`make setup-qemu\`)"
        fi
    fi
    [[ $stage != test ]] || say_what_is_not_tested
}

install_packages() {
    is_debian || {
        echo "setup: ${PRETTY_NAME:-this system} is neither Debian nor Ubuntu; nothing was changed." >&2
        echo "Please install the equivalents of these Debian packages: ${packages[*]}" >&2
        exit 1
    }
    find_root
    echo "setup: installing ${packages[*]} (apt-get, as root)"
    ${as_root[@]+"${as_root[@]}"} apt-get update -q=2
    # If setup-qemu took QEMU from backports, related packages must come from there too.
    local release=()
    if dpkg-query -W -f='${Version}' "$qemu_package" 2> /dev/null | grep -q '~bpo' && is_debian; then
        release=(-t "${VERSION_CODENAME:-}-backports")
    fi
    apt_install ${release[@]+"${release[@]}"} "${packages[@]}"
    echo "setup: done"
}

# Debian 12 has QEMU 7.2, and its backports have 10.
setup_qemu() {
    local have offered release=()
    have=$(qemu_version)
    if [[ -n $have && $have -ge 802 ]]; then
        echo "setup-qemu: $(qemu-system-"$(uname -m)" --version | head -n 1) can save VMs; nothing to do"
        return
    fi
    is_debian || {
        echo "setup-qemu: ${PRETTY_NAME:-this system} is neither Debian nor Ubuntu; nothing was changed. Please install QEMU 8.2 or newer." >&2
        exit 1
    }
    packages=("$qemu_package" qemu-utils)
    find_root
    ${as_root[@]+"${as_root[@]}"} apt-get update -q=2
    offered=$(candidate_version "$qemu_package")
    if [[ -z $offered || $offered -lt 802 ]]; then
        [[ ${VERSION_CODENAME:-} == bookworm ]] || {
            echo "setup-qemu: QEMU 8.2 or newer is needed, and ${PRETTY_NAME:-this release} offers ${offered:-none}" \
                "(as a number: 602 is 6.2); nothing was installed. Ubuntu has it from 24.04 on, Debian from 13 on." >&2
            exit 1
        }
        add_backports
        release=(-t bookworm-backports)
    fi
    echo "setup-qemu: installing ${packages[*]} ${release[*]+from bookworm-backports} (apt-get, as root)"
    apt_install ${release[@]+"${release[@]}"} "${packages[@]}"
    have=$(qemu_version)
    [[ -n $have && $have -ge 802 ]] || {
        echo "setup-qemu: after installing, QEMU is still $(qemu-system-"$(uname -m)" --version 2>&1 | head -n 1)" >&2
        exit 1
    }
    echo "setup-qemu: done: $(qemu-system-"$(uname -m)" --version | head -n 1)"
}

# From the mirror that this machine's apt uses already.
add_backports() {
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local file=/etc/apt/sources.list.d/shoes-vz-backports.sources
    if LC_ALL=C apt-cache policy | grep -q 'n=bookworm-backports'; then return; fi
    mirror=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' \
        | awk '$1 == "bookworm" && $2 == "main" { print $3; exit }')
    if [[ -z ${mirror:-} ]]; then
        echo "setup-qemu: apt has no source for bookworm main, from which the source for backports is derived. Nothing was installed." >&2
        exit 1
    fi
    {
        echo "Types: deb"
        echo "URIs: $mirror"
        echo "Suites: bookworm-backports"
        echo "Components: main"
        [[ ! -f $keyring ]] || echo "Signed-By: $keyring"
    } | ${as_root[@]+"${as_root[@]}"} tee "$file" > /dev/null
    echo "setup-qemu: added $file for QEMU"
    ${as_root[@]+"${as_root[@]}"} apt-get update -q=2
}

# The operating system first: `arm64` is what macOS calls an architecture, and no reason to refuse a Mac.
case $(uname -s) in
    Darwin) setup_macos ;;
    Linux) setup_linux ;;
    *)
        echo "setup: shoes-vz builds on Linux and on macOS; this is $(uname -s). Nothing was changed." >&2
        exit 1
        ;;
esac
