//! The part of the boot that SSH does not need, and that therefore runs after it: other modules, the network card, the
//! machine id, and growing the file system to the size of its disk.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    process::Command,
    sync::mpsc,
};

use super::{
    boot::{DISK, load},
    event::Event,
    log::{error, step},
    net,
};

/// Runs once sshd listens. A failure is only logged: the guest can be used without it.
pub(super) fn run(modules: &[(String, File)], events: &mpsc::Sender<Event>) {
    for (name, file) in modules {
        load(name, file);
    }
    net::ethernet_up().unwrap_or_else(|e| error(&e));
    machine_id().unwrap_or_else(|e| error(&format!("writing /etc/machine-id failed: {e}")));
    match disk_has_grown() {
        Ok(true) => {
            let mut command = Command::new("/sbin/resize2fs");
            command.arg(DISK);
            if events.send(Event::RunOnce("disk growth", command)).is_err() {
                return;
            }
        }
        Ok(false) => {}
        Err(e) => error(&format!("finding the size of {DISK} failed, so its file system was not grown: {e}")),
    }
    step("deferred part of the boot done");
}

/// Writes one unless there is one. The template's file is empty, so that each guest gets a different id (machine-id(5)).
fn machine_id() -> io::Result<()> {
    if fs::metadata("/etc/machine-id").is_ok_and(|m| m.len() > 0) {
        return Ok(());
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
    fs::write("/etc/machine-id", id)
}

/// Whether the disk is at least 1 MiB larger than the file system on it.
fn disk_has_grown() -> io::Result<bool> {
    // In units of 512 bytes, whatever the disk's sector size (Documentation/ABI/stable/sysfs-block).
    let sectors: u64 = fs::read_to_string("/sys/class/block/vda/size")?
        .trim()
        .parse()
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let mut superblock = [0; 1024];
    File::open(DISK)?.read_exact_at(&mut superblock, 1024)?;
    Ok(sectors * 512 >= file_system_bytes(&superblock) + (1 << 20))
}

/// Of an ext4 superblock: `s_blocks_count_lo` << (10 + `s_log_block_size`). This image has no 64bit feature.
fn file_system_bytes(superblock: &[u8; 1024]) -> u64 {
    let word = |at: usize| {
        u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]])
    };
    u64::from(word(4)) << (10 + word(24).min(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_file_system_is_its_blocks_times_their_size() {
        let mut superblock = [0; 1024];
        superblock[4..8].copy_from_slice(&524_288u32.to_le_bytes());
        superblock[24..28].copy_from_slice(&2u32.to_le_bytes());
        assert_eq!(file_system_bytes(&superblock), 2 << 30);
    }
}
