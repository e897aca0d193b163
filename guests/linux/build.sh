#!/usr/bin/env bash
# Builds a Linux guest from packages of this machine's Debian or Ubuntu release: kernel, initial RAM disk, root disk.
# `shoes-vz-agent template build-linux` runs it, holds the cache's lock, writes Template.json and publishes the result.
#
#   base    packages (mmdebstrap) and the kernel's package      keyed by suite, packages and how they are fetched
#   kernel  uncompressed, with the modules the guest needs      keyed by the kernel's package
#   final   initrd and disk with keys, guest agent, overlays    keyed by everything
#
# No loop mounts; runs as root, or as a plain user with fakeroot.
#
# From the environment: OUT (directory to fill), CACHE, GUEST_AGENT, GUEST_INIT, OVERLAYS (one a line), DISK_BYTES,
# SUITE ("" = this machine's), PACKAGES (additional, separated by blanks), HAVE_VERSION (if the result would have this
# version, nothing is done).
set -euo pipefail
shopt -s nullglob

RUNNER_ID=1000
BASE_PACKAGES=(openssh-server bash busybox-static ca-certificates curl jq sudo procps e2fsprogs)
EARLY_MODULES=(virtio_pci virtio_blk ext4 crc32c_generic virtio_console)
LATE_MODULES=(pvpanic_pci vmgenid virtio_net virtio_rng)
NOT_NEEDED=(/usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian /usr/share/bash-completion)

started=${EPOCHREALTIME/./}
say() {
    local us=$((${EPOCHREALTIME/./} - started))
    printf '[%3d.%03d s] %s\n' $((us / 1000000)) $((us / 1000 % 1000)) "$*"
}
fail() {
    printf 'building the guest: %s\n' "$*" >&2
    exit 1
}
digest() { sha256sum | cut -c1-16; }
size() { numfmt --to=iec --suffix=B "$(stat -c %s "$1")"; }

check_tools() {
    local missing=() pair
    for pair in mmdebstrap:mmdebstrap fakeroot:fakeroot mke2fs:e2fsprogs cpio:cpio xz:xz-utils zstd:zstd \
        strip:binutils ssh-keygen:openssh-client dpkg-deb:dpkg apt-get:apt; do
        [[ ${pair%%:*} == fakeroot && $(id -u) == 0 ]] || command -v "${pair%%:*}" > /dev/null || missing+=("${pair#*:}")
    done
    # The tree has its owners: root can create them, a plain user needs a range of IDs.
    [[ $(id -u) == 0 ]] || command -v newuidmap > /dev/null || missing+=(uidmap)
    ((${#missing[@]} == 0)) || fail "tools are missing; on Debian or Ubuntu: apt-get install ${missing[*]}"
    [[ $(id -u) == 0 ]] || grep -qE "^($(id -un)|$(id -u)):" /etc/subuid \
        || fail "$(id -un) has no range in /etc/subuid; as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
}

# ---- base -----------------------------------------------------------------------------------------------------------

# The machine's sources of this distribution and suite, as one-line entries; empty = mmdebstrap's default.
machine_sources() {
    apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)' 'Created-By: Packages' \
        | awk -F '|' -v suite="$SUITE" '
            ($1 == "Debian" || $1 == "Ubuntu") && $4 ~ /^https?:/ \
                && ($2 == suite || $2 == suite "-updates" || $2 == suite "-security") {
                signed = $5 ~ /^\// ? "[signed-by=" $5 "] " : ""
                if (!seen[$0]++) print "deb " signed $4 " " $2 " " $3
            }' || true
}

# Runs in the new tree: fetches the kernel and the package with its modules into /kernel.
FETCH_KERNEL='
    set -e
    mkdir -p /kernel && cd /kernel
    for meta in linux-image-6.12-cloud-$1 linux-image-cloud-$1 linux-image-virtual; do
        image=$(apt-cache depends $meta 2> /dev/null | sed -n "s/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p" | head -n 1)
        [ -z "$image" ] || break
    done
    if [ -z "$image" ]; then echo "no kernel package is offered for $1" >&2; exit 1; fi
    modules=linux-modules-${image#linux-image-}
    apt-cache show "$modules" > /dev/null 2>&1 || modules=
    apt-get download -q=2 -o APT::Sandbox::User=root "$image" $modules
'

build_base() { # directory to fill
    local dir=$1 list=$1/sources.list mirror=() dpkg=() path conf
    machine_sources > "$list"
    [[ ! -s $list ]] || mirror=("$list")
    for path in "${NOT_NEEDED[@]}"; do dpkg+=("--dpkgopt=path-exclude=$path/*"); done
    # This machine's proxy settings, if any.
    conf=$dir/apt.conf
    apt-config dump | grep -iE '^Acquire::https?::(Proxy|CaInfo|Verify-Peer|Verify-Host)' > "$conf" || true
    local include
    include=$(IFS=, && echo "${BASE_PACKAGES[*]} ${PACKAGES}" | xargs | tr ' ' ,)
    mmdebstrap --quiet --variant=minbase --architectures="$deb_arch" --include="$include" "${dpkg[@]}" \
        --aptopt="$conf" --aptopt='APT::Install-Recommends "false"' \
        --customize-hook="chroot \"\$1\" sh -c '$FETCH_KERNEL' fetch $deb_arch" \
        --customize-hook="copy-out /kernel $dir" \
        --customize-hook='rm -rf "$1/kernel" "$1/etc/apt/apt.conf.d/99mmdebstrap"' \
        "$SUITE" "$dir/base.tar" "${mirror[@]}" > "$dir/log" 2>&1 \
        || fail "mmdebstrap failed; the end of $dir/log:
$(tail -n 20 "$dir/log")"
    rm -f "$conf" "$list"
}

# ---- kernel ---------------------------------------------------------------------------------------------------------

le() { # file offset bytes: an unsigned little-endian number
    od -An -v -t "u$3" -j "$2" -N "$3" --endian=little "$1" | tr -d ' '
}

# Uncompresses a bzImage's payload (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length): QEMU
# enters an ELF kernel directly (PVH), so that an emulated processor need not decompress it.
uncompress_kernel() { # from to
    local from=$1 to=$2 sectors at length magic
    if [[ $deb_arch != amd64 ]]; then
        # arm64: an Image, gzipped or not.
        gzip -dc "$from" > "$to" 2> /dev/null || cp "$from" "$to"
        return
    fi
    sectors=$(le "$from" $((0x1f1)) 1)
    at=$(((${sectors/#0/4} + 1) * 512 + $(le "$from" $((0x248)) 4)))
    length=$(le "$from" $((0x24c)) 4)
    magic=$(od -An -v -t x1 -j "$at" -N 4 "$from" | tr -d ' ')
    # The payload's last four bytes are its uncompressed size, which is not part of the compressed stream.
    payload() { tail -c +$((at + 1)) "$from" | head -c $((length - 4)); }
    case $magic in
        fd377a58) payload | xz --single-stream -dc > "$to" ;;
        28b52ffd) payload | zstd -dcq > "$to" ;;
        02214c18) payload | lz4 -dcq > "$to" ;;
        1f8b*) payload | gzip -dc > "$to" ;;
        *) fail "the kernel in $from is compressed in an unknown way ($magic)" ;;
    esac || true
    [[ $(head -c 4 "$to" | od -An -t x1 | tr -d ' ') == 7f454c46 ]] || fail "the kernel in $from did not uncompress to an ELF file"
}

declare -A placed=()
# Puts a module's dependencies and then the module into a directory, in files whose names sort in that order.
place_module() { # tree directory name
    local tree=$1 dir=$2 name=${3//-/_} file raw need
    [[ -z ${placed[$name]:-} ]] || return 0
    placed[$name]=1
    file=$(find "$tree" -regextype posix-extended -regex ".*/${name//_/[-_]}\.ko(\.xz|\.zst|\.gz)?" -print -quit)
    # Built into the kernel, or not part of it.
    [[ -n $file ]] || return 0
    raw=$work/module.ko
    case $file in
        *.xz) xz -dc "$file" > "$raw" ;;
        *.zst) zstd -dcq "$file" > "$raw" ;;
        *.gz) gzip -dc "$file" > "$raw" ;;
        *) cp "$file" "$raw" ;;
    esac
    strip --strip-debug "$raw"
    mv "$raw" "$work/$name.ready"
    for need in $(tr '\0' '\n' < "$work/$name.ready" | sed -n 's/^depends=//p' | tr ',' ' '); do
        place_module "$tree" "$dir" "$need"
    done
    mv "$work/$name.ready" "$dir/$(printf %02d "$(find "$dir" -type f | wc -l)")-$name.ko"
}

build_kernel() { # directory to fill, base directory
    local dir=$1 base=$2 tree=$work/kernel deb image name
    mkdir -p "$tree" "$dir/early" "$dir/late"
    for deb in "$base"/kernel/*.deb; do dpkg-deb -x "$deb" "$tree"; done
    image=$(echo "$tree"/boot/vmlinuz-*)
    [[ -f $image ]] || fail "no kernel is in $base/kernel"
    uncompress_kernel "$image" "$dir/kernel"
    for name in "${EARLY_MODULES[@]}"; do place_module "$tree" "$dir/early" "$name"; done
    for name in "${LATE_MODULES[@]}"; do place_module "$tree" "$dir/late" "$name"; done
    echo "${image##*/vmlinuz-}" > "$dir/release"
    rm -rf "$tree"
}

# ---- final ----------------------------------------------------------------------------------------------------------

build_initrd() { # kernel directory
    local tree=$work/initrd
    mkdir -p "$tree"/{dev,proc,root,sys,modules}
    install -m 755 "$GUEST_INIT" "$tree/init"
    cp -r "$1/early" "$1/late" "$tree/modules/"
    (cd "$tree" && find . -print0 | LC_ALL=C sort -z | cpio -0 -o -H newc -R 0:0 --quiet) > "$OUT/initrd"
}

write_configuration() { # tree
    local tree=$1 tool
    grep -q '^runner:' "$tree/etc/passwd" || {
        echo "runner:x:$RUNNER_ID:$RUNNER_ID:GitHub Actions runner:/home/runner:/bin/bash" >> "$tree/etc/passwd"
        echo "runner:x:$RUNNER_ID:" >> "$tree/etc/group"
        echo 'runner:*:19000:0:99999:7:::' >> "$tree/etc/shadow"
        [[ ! -f $tree/etc/gshadow ]] || echo 'runner:!::' >> "$tree/etc/gshadow"
    }
    echo runner > "$tree/etc/hostname"
    printf '127.0.0.1 localhost runner\n::1 localhost\n' > "$tree/etc/hosts"
    rm -f "$tree/etc/resolv.conf"
    echo 'nameserver 10.0.2.3' > "$tree/etc/resolv.conf"
    : > "$tree/etc/machine-id"
    : > "$tree/etc/motd"
    mkdir -p "$tree/etc/sudoers.d"
    echo 'runner ALL=(ALL:ALL) NOPASSWD: ALL' > "$tree/etc/sudoers.d/runner"
    chmod 440 "$tree/etc/sudoers.d/runner"
    rm -f "$tree"/etc/ssh/ssh_host_* "$tree"/etc/ssh/sshd_config.d/*
    install -m 600 "$keys/host_key" "$tree/etc/ssh/ssh_host_ed25519_key"
    install -m 644 "$keys/host_key.pub" "$tree/etc/ssh/ssh_host_ed25519_key.pub"
    cat > "$tree/etc/ssh/sshd_config" << 'SSHD'
AddressFamily inet
HostKey /etc/ssh/ssh_host_ed25519_key
HostKeyAlgorithms ssh-ed25519
# Cheap where the processor is emulated.
KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org
AllowUsers runner
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
UsePAM no
UseDNS no
PermitUserRC no
PrintMotd no
PrintLastLog no
X11Forwarding no
LogLevel ERROR
MaxStartups 100
Subsystem sftp internal-sftp
SSHD
    install -d "$tree/usr/local/bin" "$tree/usr/local/etc"
    install -m 755 "$GUEST_AGENT" "$tree/usr/local/bin/shoes-vz-runner-agent"
    for tool in poweroff reboot; do
        printf '#!/bin/sh\n# The first process takes this word from root and from the runner.\necho %s > /run/guest-init\n' "$tool" \
            > "$tree/usr/local/bin/$tool"
        chmod 755 "$tree/usr/local/bin/$tool"
    done
    for tool in ip ifconfig ping nc vi less wget; do
        [[ -e $tree/usr/bin/$tool || -e $tree/usr/sbin/$tool ]] || ln -s /bin/busybox "$tree/usr/local/bin/$tool"
    done
    install -d -m 755 "$tree/home/runner"
    install -d -m 700 "$tree/home/runner/.ssh"
    install -m 600 "$keys/ssh_key.pub" "$tree/home/runner/.ssh/authorized_keys"
}

# Runs as root or under fakeroot, so that the owners on the disk are right.
pack() { # base.tar
    local tree=$work/tree overlay path
    mkdir -p "$tree"
    tar -C "$tree" --numeric-owner --exclude='./dev/*' -xf "$1"
    for path in "${NOT_NEEDED[@]}" /var/lib/apt/lists /var/cache/apt /var/log; do
        find "$tree$path" -mindepth 1 -delete 2> /dev/null || true
    done
    write_configuration "$tree"
    while IFS= read -r overlay; do
        [[ -z $overlay ]] || cp -R --preserve=mode,timestamps,links "$overlay/." "$tree/"
    done <<< "$OVERLAYS"
    # The runner may move an unpacked Actions runner out of /usr/local/etc, as myshoes' setup script does.
    chown -hR "$RUNNER_ID:$RUNNER_ID" "$tree/home/runner" "$tree/usr/local/etc"
    chmod 1777 "$tree/tmp"
    cat > "$work/mke2fs.conf" << 'CONF'
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    default_mntopts = user_xattr
    blocksize = 4096
    inode_size = 256
    inode_ratio = 16384
    reserved_ratio = 0
[fs_types]
    ext4 = {
        features = extent,huge_file,flex_bg,uninit_bg,dir_nlink,extra_isize
    }
CONF
    # No journal: a guest's disk is removed with the guest, and the first mount is faster.
    truncate -s "$DISK_BYTES" "$OUT/Disk.img"
    MKE2FS_CONFIG=$work/mke2fs.conf mke2fs -q -F -t ext4 -L root -E lazy_itable_init=1,nodiscard,root_owner=0:0 \
        -d "$tree" "$OUT/Disk.img"
}

# A stage's directory appears under its final name only once it is complete.
stage() { # name key builder arguments… -> sets $stage_dir
    local name=$1 key=$2 old
    shift 2
    stage_dir=$CACHE/$name-$key
    if [[ -d $stage_dir ]]; then
        say "$name: in the cache"
        return
    fi
    say "$name: building"
    rm -rf "$CACHE/$name.new"
    mkdir -p "$CACHE/$name.new"
    "$1" "$CACHE/$name.new" "${@:2}"
    for old in "$CACHE/$name"-*; do rm -rf "$old"; done
    mv "$CACHE/$name.new" "$stage_dir"
    say "$name: done"
}

if [[ ${1:-} == pack ]]; then
    pack "$2"
    exit 0
fi

check_tools
deb_arch=$(dpkg --print-architecture)
case $deb_arch in amd64 | arm64) ;; *) fail "guests of architecture $deb_arch are not supported (amd64, arm64)" ;; esac
[[ -n $SUITE ]] || SUITE=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[[ -n $SUITE ]] || fail "this machine does not name its Debian or Ubuntu release; give --suite"
mkdir -p "$CACHE"
keys=$CACHE/keys
work=$(mktemp -d "$CACHE/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
for key in ssh_key host_key; do
    [[ -f $keys/$key ]] || (umask 077 && mkdir -p "$keys" && ssh-keygen -q -t ed25519 -N '' -C "shoes-vz $key" -f "$keys/$key")
done

base_key=$({ echo "$deb_arch $SUITE ${BASE_PACKAGES[*]} $PACKAGES ${NOT_NEEDED[*]} $FETCH_KERNEL"; declare -f build_base; } | digest)
stage base "$base_key" build_base
base=$stage_dir
kernel_key=$({ echo "${EARLY_MODULES[*]} / ${LATE_MODULES[*]}" && ls "$base/kernel" && declare -f build_kernel place_module uncompress_kernel; } | digest)
stage kernel "$kernel_key" build_kernel "$base"
kernel=$stage_dir

version=$({
    echo "$base_key $kernel_key $DISK_BYTES"
    declare -f build_initrd write_configuration pack
    cat "$keys/ssh_key.pub" "$keys/host_key.pub" "$GUEST_AGENT" "$GUEST_INIT"
    while IFS= read -r overlay; do
        [[ -z $overlay ]] || tar -C "$overlay" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - .
    done <<< "$OVERLAYS"
} | digest)
if [[ $version == "${HAVE_VERSION:-}" ]]; then
    say "template: version $version already exists"
    exit 0
fi
say "disk: packing"
mkdir -p "$OUT"
export RUNNER_ID OUT DISK_BYTES OVERLAYS GUEST_AGENT keys work
if [[ $(id -u) == 0 ]]; then pack "$base/base.tar"; else fakeroot -- bash "$0" pack "$base/base.tar"; fi
build_initrd "$kernel"
cp "$kernel/kernel" "$OUT/kernel"
install -m 600 "$keys/ssh_key" "$OUT/ssh_key"
cut -d ' ' -f 1,2 "$keys/host_key.pub" > "$OUT/host_key.pub"
cp "$kernel/release" "$OUT/kernel.release"
echo "$version" > "$OUT/version"
say "disk: $(size "$OUT/Disk.img"), of which $(du -h "$OUT/Disk.img" | cut -f 1) are used; kernel $(<"$kernel/release"): $(size "$OUT/kernel"); initrd: $(size "$OUT/initrd")"
