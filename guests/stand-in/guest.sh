#!/bin/bash
# The stand-in's guest, which a "boot" runs (guests/stand-in/template.sh): a container of the template's root, with
# separate processes, network and mounts. When its first process ends for any reason, the kernel ends the others.
#
# From the stand-in: VZ_GUEST_VSOCK, the directory of the guest's virtio sockets.
set -eu
base=@BASE@

if [ "${1:-}" != inside ]; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(--map-root-user --map-auto)
    # The clock is the host's: no program of the guest, root or not, may set it.
    exec unshare "${as_root[@]}" --mount --pid --net --uts --ipc --fork --kill-child=KILL \
        setpriv --bounding-set=-sys_time --inh-caps=-sys_time -- "$0" inside
fi

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# The process that started the VM may have a strict umask; the directories of a root must be open.
umask 022
mount -t tmpfs -o mode=755 guest "$base/mount"
cd "$base/mount"
mkdir upper work root
mount -t overlay -o "lowerdir=$base/root,upperdir=$PWD/upper,workdir=$PWD/work" guest root
mount -t proc proc root/proc
# Devices that a program may expect, and separate shared memory, in which the guest agent keeps its state.
mount -t tmpfs -o mode=755 dev root/dev
mkdir root/dev/pts root/dev/shm
for device in null zero full random urandom tty; do
    : > "root/dev/$device"
    mount --bind "/dev/$device" "root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 pts root/dev/pts
ln -s pts/ptmx root/dev/ptmx
ln -s /proc/self/fd root/dev/fd
mount -t tmpfs -o mode=1777 shm root/dev/shm
mount -t tmpfs -o mode=755 run root/run
mkdir root/run/sshd root/run/vsock
mount --bind "$VZ_GUEST_VSOCK" root/run/vsock
# The guest agent listens there as the runner. If the runner is not a user of the host (in a plain user's container), only a
# directory that is open to all can be shared with it.
if [ "$(stat -c %u "$VZ_GUEST_VSOCK")" = 0 ]; then chown -R 1000:1000 root/run/vsock; else chmod -R 777 root/run/vsock; fi
ip link set lo up
hostname runner
mkfifo -m 600 root/run/guest-init
chown 1000:1000 root/run/guest-init

env -i PATH="$PATH" chroot root /usr/sbin/sshd -D -e &
env -i PATH=/usr/local/sbin:/usr/local/bin:"$PATH" HOME=/home/runner USER=runner LOGNAME=runner SHELL=/bin/bash \
    LANG=C.UTF-8 chroot --userspec=1000:1000 root \
    /usr/local/bin/shoes-vz-runner-agent --vsock unix:/run/vsock &
# `poweroff` and the guest agent write a word here.
read -r word < root/run/guest-init
echo "guest: $word"
