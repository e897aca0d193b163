//! Hot VMs: started by an agent ahead of any runner. They take no slot; a runner that fits one is ready at once.

use std::collections::BTreeMap;

use shoes_vz_proto::agent as wire;

use super::types::Shape;

/// How soon an agent could have a runner ready; the later, the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Warmth {
    /// It would start a VM.
    Cold,
    /// A VM that fits is being started already.
    Warming,
    /// A VM that fits is ready.
    Hot,
}

/// An agent's hot VMs, as it told last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hot(Vec<wire::HotVms>);

impl Hot {
    /// As told; more sizes than any host has are not looked at.
    pub fn told(mut told: Vec<wire::HotVms>) -> Self {
        told.truncate(64);
        Self(told)
    }

    /// As told.
    pub fn shown(&self) -> &[wire::HotVms] {
        &self.0
    }

    /// How soon a runner of that template ("" = the agent's own) and shape could be ready when these were promised VMs
    /// already, and are not in what the agent told yet.
    pub fn warmth(&self, template: &str, shape: Shape, promised: &[Shape]) -> Warmth {
        let Some(wanted) = self.size(shape) else { return Warmth::Cold };
        let fitting = self.0.iter().filter(|h| size_of(h) == wanted && is_of(h, template));
        let (ready, warming) =
            fitting.fold((0_u64, 0_u64), |(r, p), h| (r + u64::from(h.ready), p + u64::from(h.preparing)));
        let gone = promised.iter().filter(|shape| self.size(**shape) == Some(wanted)).count() as u64;
        if ready > gone {
            Warmth::Hot
        } else if ready + warming > gone {
            Warmth::Warming
        } else {
            Warmth::Cold
        }
    }

    /// What an agent makes of a shape: never less than its own size.
    fn size(&self, shape: Shape) -> Option<Shape> {
        let own = self.0.iter().find(|h| h.default_size)?;
        Some(shape.at_least(size_of(own)))
    }
}

fn size_of(hot: &wire::HotVms) -> Shape {
    Shape { cpus: hot.cpus, memory_bytes: hot.memory_bytes, disk_bytes: hot.disk_bytes }
}

fn is_of(hot: &wire::HotVms, template: &str) -> bool {
    template.is_empty() || hot.template == template
}

/// How often an agent could not use a saved state, by reason: it tells what it counted since its start, and this goes on
/// counting over its restarts.
#[derive(Debug, Clone, Default)]
pub struct Fallbacks {
    /// As told last.
    told: BTreeMap<&'static str, u64>,
    totals: BTreeMap<&'static str, u64>,
}

impl Fallbacks {
    /// Takes in what the agent tells. One that tells less than before has started anew.
    pub fn hear(&mut self, told: &[wire::RestoreFallback]) {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for told in told.iter().take(32) {
            let count = counts.entry(known(&told.reason)).or_default();
            *count = count.saturating_add(told.count);
        }
        let told = counts;
        let anew = self.told.iter().any(|(reason, count)| told.get(reason).is_none_or(|now| now < count));
        for (reason, count) in &told {
            let before = if anew { 0 } else { self.told.get(reason).copied().unwrap_or(0) };
            let total = self.totals.entry(reason).or_default();
            *total = total.saturating_add(count - before);
        }
        self.told = told;
    }

    /// All of them.
    pub fn shown(&self) -> Vec<wire::RestoreFallback> {
        let of = |(reason, count): (&&str, &u64)| wire::RestoreFallback {
            reason: (*reason).into(),
            count: *count,
        };
        self.totals.iter().map(of).collect()
    }
}

/// The words agents have (`shoes_vz_vm::saved::Kind`, `shoes_vz_agent::slot_vm`); others are "other".
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

    const OWN: Shape = Shape { cpus: 0, memory_bytes: 0, disk_bytes: 0 };

    #[test]
    fn a_size_that_is_not_asked_for_is_the_agents_own() {
        let hot = Hot::told(vec![vms(4, 1, 0, true), vms(8, 1, 0, false)]);
        assert_eq!(hot.warmth("", OWN, &[]), Warmth::Hot);
        assert_eq!(hot.warmth("t", Shape { cpus: 4, ..OWN }, &[]), Warmth::Hot);
        assert_eq!(hot.warmth("", Shape { cpus: 8, ..OWN }, &[]), Warmth::Hot);
        assert_eq!(hot.warmth("", Shape { cpus: 6, ..OWN }, &[]), Warmth::Cold);
        assert_eq!(hot.warmth("other", OWN, &[]), Warmth::Cold);
        assert_eq!(Hot::default().warmth("", OWN, &[]), Warmth::Cold, "an agent that tells of none");
    }

    #[test]
    fn a_vm_is_promised_once() {
        let hot = Hot::told(vec![vms(4, 1, 1, true), vms(8, 1, 0, false)]);
        let other = Shape { cpus: 8, ..OWN };
        assert_eq!(hot.warmth("", OWN, &[other]), Warmth::Hot, "another size's promise is not ours");
        assert_eq!(hot.warmth("", OWN, &[OWN]), Warmth::Warming);
        assert_eq!(hot.warmth("", OWN, &[OWN, Shape { cpus: 4, ..OWN }]), Warmth::Cold);
    }

    #[test]
    fn a_size_below_the_agents_own_is_the_agents_own() {
        let hot = Hot::told(vec![vms(4, 1, 0, true)]);
        let small = Shape { cpus: 2, ..OWN };
        assert_eq!(hot.warmth("", small, &[]), Warmth::Hot);
        assert_eq!(hot.warmth("", OWN, &[small]), Warmth::Cold, "it is promised");
    }

    #[test]
    fn counts_go_on_over_an_agents_restart_and_unknown_reasons_are_one() {
        let told = |counts: &[(&str, u64)]| -> Vec<wire::RestoreFallback> {
            let of = |(reason, count): &(&str, u64)| wire::RestoreFallback {
                reason: (*reason).into(),
                count: *count,
            };
            counts.iter().map(of).collect()
        };
        let mut all = Fallbacks::default();
        all.hear(&told(&[("missing", 2), ("guest", 1)]));
        all.hear(&told(&[("missing", 2), ("guest", 1)]));
        assert_eq!(all.shown(), told(&[("guest", 1), ("missing", 2)]));
        // It tells less: it has started anew, and all it tells is new.
        all.hear(&told(&[("missing", 3)]));
        assert_eq!(all.shown(), told(&[("guest", 1), ("missing", 5)]));
        all.hear(&told(&[]));
        all.hear(&told(&[("missing", 2), ("moon", 4)]));
        assert_eq!(all.shown(), told(&[("guest", 1), ("missing", 7), ("other", 4)]));
        for n in 0..1000 {
            all.hear(&told(&[(&format!("reason-{n}"), 1)]));
        }
        assert!(all.told.len() <= 1 && all.shown().len() == 3);
    }
}
