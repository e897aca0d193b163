//! What is to be kept hot: `--hot`, `--hot-idle`, `--hot-max-age`.
//!
//! `all`, `none` or a number is for VMs of the template's own size; `4x8GiB=1` (CPUs, memory, and a disk size if wanted:
//! `4x8GiBx100GiB=1`) for another. Several are written with commas between them.

use std::{str::FromStr, time::Duration};

use shoes_vz_process::units;
use shoes_vz_vm::template::TemplateDir;

use crate::host::VmSize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// As many as there are free slots.
    All,
    /// So many, if there are slots.
    Of(u32),
}

/// What a hot VM does while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Idle {
    /// It runs: claimed fastest, and checked now and then.
    #[default]
    Running,
    /// It is paused: it costs memory, and no CPU time.
    Paused,
}

/// One kind of VM and how many of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    /// 0 = the template's, for each.
    cpus: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    count: Count,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotPlan {
    wanted: Vec<Wanted>,
    /// What they do meanwhile.
    pub idle: Idle,
    /// After so long one is replaced.
    pub max_age: Duration,
}

impl HotPlan {
    /// Nothing is kept hot.
    pub fn none() -> Self {
        Self { wanted: Vec::new(), idle: Idle::Running, max_age: Duration::from_secs(12 * 3600) }
    }

    /// The kinds of VMs, in the order they are wanted.
    pub(crate) fn sizes(&self, template: &TemplateDir) -> Vec<(VmSize, Count)> {
        self.wanted
            .iter()
            .map(|w| (VmSize::of(template, w.cpus, w.memory_bytes, w.disk_bytes), w.count))
            .collect()
    }

    /// The value of `--hot`.
    pub fn parse_wanted(&mut self, text: &str) -> Result<(), String> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let new: Wanted = part.parse()?;
            let size = |w: &Wanted| (w.cpus, w.memory_bytes, w.disk_bytes);
            if wanted.iter().any(|w| size(w) == size(&new)) {
                return Err(format!("{text:?} names one size twice"));
            }
            wanted.push(new);
        }
        // Those that would take every slot come last.
        wanted.sort_by_key(|w| w.count == Count::All);
        self.wanted = wanted;
        Ok(())
    }
}

impl FromStr for Wanted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is none of all, none, a number, or CPUSxMEMORY[xDISK]=NUMBER");
        let (size, count) = match text.split_once('=') {
            Some((size, count)) => (Some(size), count),
            None => (None, text),
        };
        let count = match count {
            "all" if size.is_none() => Count::All,
            "none" if size.is_none() => Count::Of(0),
            number => Count::Of(number.parse().map_err(|_| bad())?),
        };
        let mut wanted = Self { cpus: 0, memory_bytes: 0, disk_bytes: 0, count };
        let Some(size) = size else { return Ok(wanted) };
        let mut parts = size.split('x');
        wanted.cpus = parts.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0).ok_or_else(bad)?;
        wanted.memory_bytes =
            units::size(parts.next().ok_or_else(bad)?).map_err(|e| format!("{text:?}: {e}"))?;
        if let Some(disk) = parts.next() {
            wanted.disk_bytes = units::size(disk).map_err(|e| format!("{text:?}: {e}"))?;
        }
        match parts.next() {
            None if wanted.memory_bytes > 0 => Ok(wanted),
            _ => Err(bad()),
        }
    }
}

impl FromStr for Idle {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "running" => Ok(Self::Running),
            "paused" => Ok(Self::Paused),
            other => Err(format!("{other:?} is neither running nor paused")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<Vec<Wanted>, String> {
        let mut plan = HotPlan::none();
        plan.parse_wanted(text).map(|()| plan.wanted)
    }

    #[test]
    fn sizes_are_named_and_the_greedy_one_comes_last() {
        let other = Wanted { cpus: 4, memory_bytes: 8 << 30, disk_bytes: 100 << 30, count: Count::Of(1) };
        let own = |count| Wanted { cpus: 0, memory_bytes: 0, disk_bytes: 0, count };
        assert_eq!(plan("all, 4x8GiBx100GiB=1"), Ok(vec![other, own(Count::All)]));
        assert_eq!(plan("3"), Ok(vec![own(Count::Of(3))]));
        assert_eq!(plan("none"), Ok(vec![own(Count::Of(0))]));
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for text in
            ["some", "4x=1", "x8GiB=1", "0x8GiB=1", "4x0=1", "4x8GiB", "1x1GiBx1GiBx1=1", "4x8GiB=all", "-1"]
        {
            let refused = plan(text).unwrap_err();
            assert!(refused.contains(text), "{refused}");
        }
        assert!(plan("1,2").unwrap_err().contains("twice"));
    }
}
