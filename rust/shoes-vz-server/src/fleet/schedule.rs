//! The scheduler, a function of a snapshot. It prefers an agent with a hot VM that fits, then one that prepares such a VM,
//! then the one with most free slots. The snapshot counts slots and hot VMs that are already promised. It never chooses an
//! agent that is offline, is cordoned or accepts no runners, nor one that refused this runner and has reported nothing new
//! since.

use std::{collections::BTreeMap, fmt};

use shoes_vz_model::AgentId;

use super::{
    agent::{Agent, AgentRefusal, AgentRevision, Link, Session},
    hot::{Hot, Readiness},
    labels::{self, Accepted, Offers, TemplateMismatch, UnknownLabels},
    values::VmSize,
};

/// One agent, as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    pub id: AgentId,
    pub hostname: &'a str,
    pub link: Link,
    /// Set while it is cordoned: the reason, which may be empty.
    pub cordon: Option<&'a str>,
    /// Why it accepts no runners for now, as it reports; "" while it accepts them.
    pub unschedulable_reason: &'a str,
    /// `None` while it is offline.
    pub revision: Option<AgentRevision>,
    pub slots: u32,
    /// Slots in use or promised.
    pub taken: u32,
    /// CPU cores; 0 is unknown.
    pub cpus: u32,
    /// Bytes of memory; 0 is unknown.
    pub memory_bytes: u64,
    pub offers: &'a Offers,
    /// `None` while it is offline.
    pub hot: Option<&'a Hot>,
    /// Sizes of its runners that it has not reported yet: the VMs promised to them are still in `hot`.
    pub promised: Vec<VmSize>,
}

impl<'a> Candidate<'a> {
    /// The agent with `taken` slots in use, and these promised sizes.
    pub fn new(agent: &'a Agent, taken: usize, promised: Vec<VmSize>) -> Self {
        Self {
            id: agent.id,
            hostname: &agent.hostname,
            link: agent.link(),
            cordon: agent.cordon.as_ref().map(|c| c.reason.as_str()),
            unschedulable_reason: agent.unschedulable_reason(),
            revision: agent.session.as_ref().map(Session::revision),
            slots: agent.capacity.max_runners,
            taken: u32::try_from(taken).unwrap_or(u32::MAX),
            cpus: agent.capacity.cpu_cores,
            memory_bytes: agent.capacity.memory_bytes,
            offers: &agent.offers,
            hot: agent.session.as_ref().map(|s| &s.hot),
            promised,
        }
    }

    /// How soon it could have that runner ready.
    fn readiness(&self, template: &str, size: VmSize) -> Readiness {
        self.hot.map_or(Readiness::Cold, |hot| hot.readiness(template, size, &self.promised))
    }

    /// Slots that a new runner can have now.
    pub fn free(&self) -> u32 {
        match (self.link, self.cordon, self.unschedulable_reason) {
            (Link::Online, None, "") => self.slots.saturating_sub(self.taken),
            (Link::Online | Link::Offline, ..) => 0,
        }
    }
}

/// What a runner requires of its agent.
#[derive(Debug, Clone, Copy)]
pub struct Requirements<'a> {
    pub labels: &'a [String],
    pub size: VmSize,
    /// The only template it may have; "" allows any that fits its labels.
    pub template: &'a str,
    /// Labels that no template has to offer.
    pub accepted: &'a Accepted,
    /// What to do about others.
    pub unknown: UnknownLabels,
    /// Agents that could not take it.
    pub refused_by: &'a BTreeMap<AgentId, AgentRefusal>,
}

/// Where to place a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub agent: AgentId,
    /// "" is the agent's default template.
    pub template: String,
}

/// Why an agent cannot take a runner now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    Offline,
    /// With the operator's reason, which may be empty.
    Cordoned(String),
    /// It accepts no runners for now, for this reason.
    Unschedulable(String),
    /// It refused this runner for this reason, and has reported nothing new since.
    Refused(String),
    NoSlots,
    /// All of its slots are in use.
    Full(u32),
    /// It offers no template of this name.
    NoTemplate(String),
    /// No template fits these labels.
    Labels(Vec<String>),
    /// The host is smaller than the runner.
    TooSmall,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline => write!(f, "is offline"),
            Self::Cordoned(reason) if reason.is_empty() => write!(f, "is cordoned"),
            Self::Cordoned(reason) => write!(f, "is cordoned ({reason})"),
            Self::Unschedulable(reason) => write!(f, "takes no runners for now: {reason}"),
            Self::Refused(reason) => write!(f, "refused it: {reason}"),
            Self::NoSlots => write!(f, "takes no runners (its --max-runners is 0)"),
            Self::Full(slots) => write!(f, "is full (all {slots} slots in use)"),
            Self::NoTemplate(name) => write!(f, "has no template named {name}"),
            Self::Labels(labels) => write!(f, "has no template for label {}", labels.join(", ")),
            Self::TooSmall => write!(f, "has fewer CPUs or less memory than required"),
        }
    }
}

/// Chooses an agent, or says why each one was rejected.
pub fn choose<'a>(
    candidates: &[Candidate<'a>],
    required: Requirements<'_>,
) -> Result<Choice, Vec<(&'a str, Rejection)>> {
    let mut best: Option<((Readiness, u32), Choice)> = None;
    let mut rejections = Vec::new();
    for candidate in candidates {
        match fits(candidate, required) {
            Ok(template) => {
                let rank = (candidate.readiness(&template, required.size), candidate.free());
                if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                    best = Some((rank, Choice { agent: candidate.id, template }));
                }
            }
            Err(rejection) => rejections.push((candidate.hostname, rejection)),
        }
    }
    best.map(|(_, choice)| choice).ok_or(rejections)
}

/// Reasons that can never change come before those that may.
fn fits(candidate: &Candidate<'_>, required: Requirements<'_>) -> Result<String, Rejection> {
    let Requirements { labels, size, template, accepted, unknown, refused_by } = required;
    let template =
        labels::fit(candidate.offers, template, labels, accepted, unknown).map_err(|e| match e {
            TemplateMismatch::Template => Rejection::NoTemplate(template.to_owned()),
            TemplateMismatch::Labels(labels) => Rejection::Labels(labels),
        })?;
    let too_many_cpus = candidate.cpus > 0 && size.cpus > candidate.cpus;
    let too_much_memory = candidate.memory_bytes > 0 && size.memory_bytes > candidate.memory_bytes;
    if too_many_cpus || too_much_memory {
        return Err(Rejection::TooSmall);
    }
    if let Some(reason) = candidate.cordon {
        return Err(Rejection::Cordoned(reason.to_owned()));
    }
    if candidate.link == Link::Offline {
        return Err(Rejection::Offline);
    }
    if !candidate.unschedulable_reason.is_empty() {
        return Err(Rejection::Unschedulable(candidate.unschedulable_reason.to_owned()));
    }
    if let Some(refused) = refused_by.get(&candidate.id).filter(|r| r.revision == candidate.revision) {
        return Err(Rejection::Refused(refused.reason.clone()));
    }
    match (candidate.slots, candidate.free()) {
        (0, _) => Err(Rejection::NoSlots),
        (slots, 0) => Err(Rejection::Full(slots)),
        _ => Ok(template),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::labels::Host, *};
    use shoes_vz_proto::agent as wire;

    const ANY: Offers = Offers::Anything;

    fn candidate(hostname: &str, slots: u32, taken: u32) -> Candidate<'_> {
        Candidate {
            id: AgentId::random(),
            hostname,
            link: Link::Online,
            cordon: None,
            unschedulable_reason: "",
            revision: None,
            slots,
            taken,
            cpus: 8,
            memory_bytes: 16 << 30,
            offers: &ANY,
            hot: None,
            promised: Vec::new(),
        }
    }

    fn pick<'a>(candidates: &[Candidate<'a>], size: VmSize) -> Result<AgentId, Vec<(&'a str, Rejection)>> {
        let accepted = Accepted::default();
        let refused_by = BTreeMap::new();
        let unknown = UnknownLabels::Refuse;
        let required = Requirements {
            labels: &[],
            size,
            template: "",
            accepted: &accepted,
            unknown,
            refused_by: &refused_by,
        };
        choose(candidates, required).map(|c| c.agent)
    }

    #[test]
    fn the_agent_with_most_free_slots_is_chosen() {
        let all = [candidate("a", 2, 1), candidate("b", 4, 1), candidate("c", 9, 9)];
        assert_eq!(pick(&all, VmSize::default()), Ok(all[1].id));
    }

    #[test]
    fn a_hot_vm_that_fits_is_worth_more_than_free_slots_until_it_is_promised() {
        let vms = |ready, preparing| {
            let default =
                wire::HotVms { cpus: 4, ready, preparing, default_size: true, ..Default::default() };
            Hot::reported(vec![default])
        };
        let (ready, preparing) = (vms(1, 0), vms(0, 1));
        let mut all = [candidate("free", 9, 0), candidate("preparing", 2, 1), candidate("hot", 2, 1)];
        (all[1].hot, all[2].hot) = (Some(&preparing), Some(&ready));
        assert_eq!(pick(&all, VmSize::default()), Ok(all[2].id));
        assert_eq!(pick(&all, VmSize { cpus: 8, ..VmSize::default() }), Ok(all[0].id), "another size");
        all[2].promised.push(VmSize::default());
        assert_eq!(pick(&all, VmSize::default()), Ok(all[1].id));
        all[1].cordon = Some("");
        assert_eq!(pick(&all, VmSize::default()), Ok(all[0].id));
    }

    proptest::proptest! {
        #[test]
        fn no_hot_vm_is_promised_twice_and_none_is_left_out(
            hosts in proptest::collection::vec((0_u32..4, 0_u32..4), 1..5),
            runners in 1_usize..12,
        ) {
            let hot: Vec<Hot> = hosts
                .iter()
                .map(|(ready, _)| Hot::reported(vec![wire::HotVms { ready: *ready, default_size: true, ..Default::default() }]))
                .collect();
            let mut all: Vec<_> = hosts.iter().map(|(ready, more)| candidate("h", ready + more, 0)).collect();
            for (one, hot) in all.iter_mut().zip(&hot) {
                one.hot = Some(hot);
            }
            let ready: u32 = hosts.iter().map(|(ready, _)| *ready).sum();
            for n in 0..runners {
                let Ok(agent) = pick(&all, VmSize::default()) else { break };
                let chosen = all.iter_mut().find(|c| c.id == agent).unwrap();
                // As long as there is a hot VM anywhere, that is where a runner goes.
                let is_hot = chosen.readiness("", VmSize::default()) == Readiness::Hot;
                proptest::prop_assert_eq!(is_hot, n < ready as usize);
                chosen.taken += 1;
                chosen.promised.push(VmSize::default());
            }
        }
    }

    #[test]
    fn an_agent_without_the_required_template_is_never_chosen_however_free() {
        let offers = |name: &str| {
            let template = wire::TemplateInfo { name: name.into(), ..Default::default() };
            Offers::Templates(vec![template], Host::default())
        };
        let (tahoe, sequoia) = (offers("tahoe"), offers("sequoia"));
        let mut all = [candidate("a", 9, 0), candidate("b", 2, 1), candidate("go", 9, 0)];
        (all[0].offers, all[1].offers) = (&tahoe, &sequoia);
        let (accepted, refused_by) = (Accepted::default(), BTreeMap::new());
        let required = |template| Requirements {
            labels: &[],
            size: VmSize::default(),
            template,
            accepted: &accepted,
            unknown: UnknownLabels::Refuse,
            refused_by: &refused_by,
        };
        let chosen = choose(&all, required("sequoia")).unwrap();
        assert_eq!((chosen.agent, chosen.template.as_str()), (all[1].id, "sequoia"));
        let rejections = choose(&all, required("sonoma")).unwrap_err();
        assert_eq!(rejections.len(), 3, "a Go agent reports no template");
        let all_say = |text: &str| rejections.iter().all(|(_, rejection)| rejection.to_string() == text);
        assert!(all_say("has no template named sonoma"), "{rejections:?}");
    }

    #[test]
    fn an_agent_that_is_offline_full_too_small_or_cordoned_is_never_chosen_and_the_reason_says_which() {
        let mut all = [("a", 2, 0), ("b", 2, 3), ("c", 2, 0), ("d", 0, 0), ("e", 2, 0), ("f", 2, 0)]
            .map(|(name, slots, taken)| candidate(name, slots, taken));
        all[0].link = Link::Offline;
        all[2].cpus = 2;
        all[4].cordon = Some("new disk");
        all[5].unschedulable_reason = "its disk is full";
        let rejections = pick(&all, VmSize { cpus: 4, ..VmSize::default() }).unwrap_err();
        assert_eq!(
            rejections,
            [
                ("a", Rejection::Offline),
                ("b", Rejection::Full(2)),
                ("c", Rejection::TooSmall),
                ("d", Rejection::NoSlots),
                ("e", Rejection::Cordoned("new disk".into())),
                ("f", Rejection::Unschedulable("its disk is full".into())),
            ]
        );
        assert_eq!(rejections[4].1.to_string(), "is cordoned (new disk)");
        assert_eq!(Rejection::Cordoned(String::new()).to_string(), "is cordoned");
    }
}
