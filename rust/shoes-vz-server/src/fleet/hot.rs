//! Hot VMs: an agent boots them ahead of any runner. They take no slot, and a runner that one fits is ready at once.

use std::collections::BTreeMap;

use shoes_vz_proto::agent as wire;

use super::values::VmSize;

/// How soon an agent could have a runner ready; a greater value is sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It would start a VM.
    Cold,
    /// A VM that fits is being prepared already.
    Preparing,
    /// A VM that fits is ready.
    Hot,
}

/// An agent's hot VMs, as in its last report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hot(Vec<wire::HotVms>);

impl Hot {
    /// A report, of which more sizes than any host has are ignored.
    pub fn reported(mut list: Vec<wire::HotVms>) -> Self {
        list.truncate(64);
        Self(list)
    }

    pub fn list(&self) -> &[wire::HotVms] {
        &self.0
    }

    /// How soon a runner of that template ("" is the agent's default) and size could be ready. VMs `promised` to other
    /// runners are still in the report.
    pub fn readiness(&self, template: &str, size: VmSize, promised: &[VmSize]) -> Readiness {
        let Some(wanted) = self.effective(size) else { return Readiness::Cold };
        let fitting = self.0.iter().filter(|h| size_of(h) == wanted && is_of(h, template));
        let (ready, preparing) =
            fitting.fold((0_u64, 0_u64), |(r, p), h| (r + u64::from(h.ready), p + u64::from(h.preparing)));
        let used = promised.iter().filter(|size| self.effective(**size) == Some(wanted)).count() as u64;
        if ready > used {
            Readiness::Hot
        } else if ready + preparing > used {
            Readiness::Preparing
        } else {
            Readiness::Cold
        }
    }

    /// The size that the agent gives a VM for which this size is asked: never less than its default.
    fn effective(&self, size: VmSize) -> Option<VmSize> {
        let default = self.0.iter().find(|h| h.default_size)?;
        Some(size.at_least(size_of(default)))
    }
}

fn size_of(hot: &wire::HotVms) -> VmSize {
    VmSize { cpus: hot.cpus, memory_bytes: hot.memory_bytes, disk_bytes: hot.disk_bytes }
}

fn is_of(hot: &wire::HotVms, template: &str) -> bool {
    template.is_empty() || hot.template == template
}

/// How often an agent could not use a saved state, by reason. An agent counts from its start; these totals continue across
/// its restarts.
#[derive(Debug, Clone, Default)]
pub struct Fallbacks {
    /// As in the last report.
    last: BTreeMap<&'static str, u64>,
    totals: BTreeMap<&'static str, u64>,
}

impl Fallbacks {
    /// Adds what is new in the agent's report. An agent that reports less than before has restarted.
    pub fn update(&mut self, report: &[wire::RestoreFallback]) {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for fallback in report.iter().take(32) {
            let count = counts.entry(known(&fallback.reason)).or_default();
            *count = count.saturating_add(fallback.count);
        }
        let restarted =
            self.last.iter().any(|(reason, count)| counts.get(reason).is_none_or(|now| now < count));
        for (reason, count) in &counts {
            let before = if restarted { 0 } else { self.last.get(reason).copied().unwrap_or(0) };
            let total = self.totals.entry(reason).or_default();
            *total = total.saturating_add(count - before);
        }
        self.last = counts;
    }

    pub fn totals(&self) -> Vec<wire::RestoreFallback> {
        let of = |(reason, count): (&&str, &u64)| wire::RestoreFallback {
            reason: (*reason).into(),
            count: *count,
        };
        self.totals.iter().map(of).collect()
    }
}

/// The reasons that agents report (`shoes_vz_vm::saved::Kind` and the agent's own restore steps); any other is "other".
fn known(reason: &str) -> &'static str {
    const KNOWN: [&str; 14] = [
        "unsupported",
        "missing",
        "version",
        "cpus",
        "memory",
        "configuration",
        "damaged",
        "unproved",
        "clone",
        "refused",
        "guest",
        "personalize",
        "ssh",
        "late",
    ];
    KNOWN.into_iter().find(|known| *known == reason).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vms(cpus: u32, ready: u32, preparing: u32, default_size: bool) -> wire::HotVms {
        let (memory_bytes, disk_bytes) = (8 << 30, 64 << 30);
        wire::HotVms { template: "t".into(), cpus, memory_bytes, disk_bytes, ready, preparing, default_size }
    }

    const DEFAULT: VmSize = VmSize { cpus: 0, memory_bytes: 0, disk_bytes: 0 };

    #[test]
    fn a_size_that_is_not_asked_for_is_the_agents_default() {
        let hot = Hot::reported(vec![vms(4, 1, 0, true), vms(8, 1, 0, false)]);
        assert_eq!(hot.readiness("", DEFAULT, &[]), Readiness::Hot);
        assert_eq!(hot.readiness("t", VmSize { cpus: 4, ..DEFAULT }, &[]), Readiness::Hot);
        assert_eq!(hot.readiness("", VmSize { cpus: 8, ..DEFAULT }, &[]), Readiness::Hot);
        assert_eq!(hot.readiness("", VmSize { cpus: 6, ..DEFAULT }, &[]), Readiness::Cold);
        assert_eq!(hot.readiness("other", DEFAULT, &[]), Readiness::Cold);
        assert_eq!(
            Hot::default().readiness("", DEFAULT, &[]),
            Readiness::Cold,
            "an agent that reports no hot VMs"
        );
    }

    #[test]
    fn a_vm_is_promised_once() {
        let hot = Hot::reported(vec![vms(4, 1, 1, true), vms(8, 1, 0, false)]);
        let other = VmSize { cpus: 8, ..DEFAULT };
        assert_eq!(
            hot.readiness("", DEFAULT, &[other]),
            Readiness::Hot,
            "a promise of another size does not count"
        );
        assert_eq!(hot.readiness("", DEFAULT, &[DEFAULT]), Readiness::Preparing);
        assert_eq!(hot.readiness("", DEFAULT, &[DEFAULT, VmSize { cpus: 4, ..DEFAULT }]), Readiness::Cold);
    }

    #[test]
    fn a_size_below_the_agents_default_is_the_agents_default() {
        let hot = Hot::reported(vec![vms(4, 1, 0, true)]);
        let small = VmSize { cpus: 2, ..DEFAULT };
        assert_eq!(hot.readiness("", small, &[]), Readiness::Hot);
        assert_eq!(hot.readiness("", DEFAULT, &[small]), Readiness::Cold, "it is promised already");
    }

    #[test]
    fn counts_continue_across_an_agents_restart_and_unknown_reasons_are_one() {
        let report = |counts: &[(&str, u64)]| -> Vec<wire::RestoreFallback> {
            let of = |(reason, count): &(&str, u64)| wire::RestoreFallback {
                reason: (*reason).into(),
                count: *count,
            };
            counts.iter().map(of).collect()
        };
        let mut all = Fallbacks::default();
        all.update(&report(&[("missing", 2), ("guest", 1)]));
        all.update(&report(&[("missing", 2), ("guest", 1)]));
        assert_eq!(all.totals(), report(&[("guest", 1), ("missing", 2)]));
        // It reports less: it has restarted, and all that it reports is new.
        all.update(&report(&[("missing", 3)]));
        assert_eq!(all.totals(), report(&[("guest", 1), ("missing", 5)]));
        all.update(&report(&[]));
        all.update(&report(&[("missing", 2), ("moon", 4)]));
        assert_eq!(all.totals(), report(&[("guest", 1), ("missing", 7), ("other", 4)]));
        for n in 0..1000 {
            all.update(&report(&[(&format!("reason-{n}"), 1)]));
        }
        assert!(all.last.len() <= 1 && all.totals().len() == 3);
    }
}
