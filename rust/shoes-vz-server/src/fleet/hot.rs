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

/// A size without zeros.
type Size = (u32, u64, u64);

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

    fn size(&self, shape: Shape) -> Option<Size> {
        let own = self.0.iter().find(|h| h.own_size)?;
        let or = |asked: u64, own: u64| if asked == 0 { own } else { asked };
        Some((
            if shape.cpus == 0 { own.cpus } else { shape.cpus },
            or(shape.memory_bytes, own.memory_bytes),
            or(shape.disk_bytes, own.disk_bytes),
        ))
    }
}

fn size_of(hot: &wire::HotVms) -> Size {
    (hot.cpus, hot.memory_bytes, hot.disk_bytes)
}

fn is_of(hot: &wire::HotVms, template: &str) -> bool {
    template.is_empty() || hot.template == template
}

/// Counts an agent tells since its start, as counts of the server's: an agent that started anew tells less.
#[derive(Debug, Clone, Default)]
pub struct Fallbacks(BTreeMap<String, u64>);

impl Fallbacks {
    /// What is new, by reason.
    pub fn told(&mut self, told: &[wire::StateFallback]) -> Vec<(String, u64)> {
        let mut new = Vec::new();
        for told in told.iter().take(32) {
            let last = self.0.insert(told.reason.clone(), told.count).unwrap_or(0);
            let more = if told.count >= last { told.count - last } else { told.count };
            if more > 0 {
                new.push((told.reason.clone(), more));
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vms(cpus: u32, ready: u32, preparing: u32, own_size: bool) -> wire::HotVms {
        let (memory_bytes, disk_bytes) = (8 << 30, 64 << 30);
        wire::HotVms { template: "t".into(), cpus, memory_bytes, disk_bytes, ready, preparing, own_size }
    }

    const OWN: Shape = Shape { cpus: 0, memory_bytes: 0, disk_bytes: 0 };

    #[test]
    fn a_size_that_is_not_asked_for_is_the_agents_own() {
        let hot = Hot::told(vec![vms(4, 1, 0, true), vms(8, 1, 0, false)]);
        assert_eq!(hot.warmth("", OWN, &[]), Warmth::Hot);
        assert_eq!(hot.warmth("t", Shape { cpus: 4, ..OWN }, &[]), Warmth::Hot);
        assert_eq!(hot.warmth("", Shape { cpus: 8, ..OWN }, &[]), Warmth::Hot);
        assert_eq!(hot.warmth("", Shape { cpus: 2, ..OWN }, &[]), Warmth::Cold);
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
    fn an_agent_that_starts_anew_counts_from_zero() {
        let told = |count| [wire::StateFallback { reason: "missing".into(), count }];
        let mut all = Fallbacks::default();
        assert_eq!(all.told(&told(2)), [("missing".into(), 2)]);
        assert_eq!(all.told(&told(2)), []);
        assert_eq!(all.told(&told(5)), [("missing".into(), 3)]);
        assert_eq!(all.told(&told(1)), [("missing".into(), 1)]);
    }
}
