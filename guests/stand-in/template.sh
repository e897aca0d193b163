#!/usr/bin/env bash
# A macOS template for Virtualization.framework's stand-in on Linux (VZCore/Sources/Virtualization), made from the Linux
# guest template: the same root, sshd, guest agent and imitation of the Actions runner. The stand-in's "boot" runs the disk
# image as a program; this one is a container of the root (guest.sh), so that nothing a job does reaches the host.
#
# usage: template.sh LINUX-TEMPLATE OUTPUT
set -euo pipefail
from=$(readlink -f "$1")
to=$2
here=$(dirname "$(readlink -f "$0")")

fail() {
    echo "building the stand-in's template: $*" >&2
    exit 1
}
metadata() { # key
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$from/Template.json" "$1"
}
[[ -f $from/Template.json ]] || fail "$from is not a Linux template; build one with \`make template\`"
version=$({ metadata version && cat "$here/guest.sh" "$here/template.sh" && id -u; } | sha256sum | cut -c1-16)
if [[ -f $to/version && $(< "$to/version") == "$version" ]]; then
    exit 0
fi

new=$to.new
as_root=()
[[ $(id -u) == 0 ]] || as_root=(unshare --map-root-user --map-auto)
"${as_root[@]}" rm -rf "$new" "$to"
mkdir -p "$new/root" "$new/mount"
new=$(readlink -f "$new")
"${as_root[@]}" debugfs -R "rdump / $new/root" "$from/Disk.img" > "$new/debugfs.log" 2>&1
[[ -x $new/root/usr/local/bin/shoes-vz-runner-agent ]] || fail "the root was not unpacked from $from/Disk.img; see $new/debugfs.log"
rm "$new/debugfs.log"
# Unpacking sets the owners after the modes, which clears this bit; personalization needs it.
"${as_root[@]}" chmod 4755 "$new/root/usr/bin/sudo"

# The disk: a program, filled up to whole sectors.
final=$(readlink -m "$to")
sed -e "s|@BASE@|$final|g" "$here/guest.sh" > "$new/Disk.img"
truncate -s %512 "$new/Disk.img"
truncate -s +512 "$new/Disk.img"
# The stand-in's firmware and hardware: no faults, and the model that it supports.
printf '{}' > "$new/AuxiliaryStorage"
model='<?xml version="1.0" encoding="UTF-8"?><plist version="1.0"><dict><key>DataRepresentationVersion</key><integer>1</integer><key>MinimumSupportedOS</key><array><integer>13</integer><integer>0</integer><integer>0</integer></array><key>PlatformVersion</key><integer>2</integer></dict></plist>'
printf '{"hardwareModel":"%s"}' "$(base64 -w0 <<< "$model")" > "$new/HardwareModel.json"
install -m 600 "$from/ssh_key" "$new/ssh_key"
printf '{"name":"stand-in","version":"%s","os":"macos","ssh_user":"runner","ssh_host_key":"%s","ssh_key_file":"ssh_key","guest_agent":"channel","min_cpus":1,"min_memory_bytes":536870912}\n' \
    "$version" "$(metadata ssh_host_key)" > "$new/Template.json"
echo "$version" > "$new/version"
mv "$new" "$to"
echo "stand-in's template: version $version"
