//! The scheduler: a function of a snapshot. An agent with a hot VM that fits first, then one that is starting such a VM,
//! then the one with most free slots; reservations, and hot VMs promised, are counted by whoever takes the
//! snapshot; an agent that is not connected, or cordoned, or says that it takes none, is never chosen, nor one that
//! refused this very runner and has said nothing new since.

use std::{collections::BTreeMap, fmt};

use shoes_vz_model::AgentId;

use super::{
    agent::{Heard, Refused},
    hot::{Hot, Warmth},
    labels::{self, Accepted, Misfit, Offers, UnknownLabels},
    types::Shape,
};

/// Whether an agent's Sync stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It does.
    Online,
    /// It does not.
    Offline,
}

/// One agent, as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Who.
    pub id: AgentId,
    /// For people.
    pub hostname: &'a str,
    /// Whether it is there.
    pub link: Link,
    /// Set while an operator lets it have no new runners: why.
    pub cordon: Option<&'a str>,
    /// Why it takes no runners for now, in its own words; "" = it does.
    pub takes_none: &'a str,
    /// How far it was heard; `None` = it is not connected.
    pub heard: Option<Heard>,
    /// Its slots.
    pub slots: u32,
    /// Slots in use or promised.
    pub taken: u32,
    /// CPU cores; 0 = unknown.
    pub cpus: u32,
    /// Bytes of memory; 0 = unknown.
    pub memory_bytes: u64,
    /// Its templates.
    pub offers: &'a Offers,
    /// Its hot VMs; `None` = it is not connected.
    pub hot: Option<&'a Hot>,
    /// Runners it has, or is to have, that it has not told of yet: what they were promised is in `hot` still.
    pub promised: Vec<Shape>,
}

impl Candidate<'_> {
    /// How soon it could have that runner ready.
    fn warmth(&self, template: &str, shape: Shape) -> Warmth {
        self.hot.map_or(Warmth::Cold, |hot| hot.warmth(template, shape, &self.promised))
    }

    /// Slots that can be had now.
    pub fn free(&self) -> u32 {
        match (self.link, self.cordon, self.takes_none) {
            (Link::Online, None, "") => self.slots.saturating_sub(self.taken),
            (Link::Online | Link::Offline, ..) => 0,
        }
    }
}

/// What a runner needs.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The job's labels.
    pub labels: &'a [String],
    /// Its size.
    pub shape: Shape,
    /// The only template it may have; "" = any that fits its labels.
    pub template: &'a str,
    /// Labels without meaning.
    pub accepted: &'a Accepted,
    /// What is done about others.
    pub unknown: UnknownLabels,
    /// Agents that refused it for their own sake.
    pub refused_by: &'a BTreeMap<AgentId, Refused>,
}

/// Where a runner goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The agent.
    pub agent: AgentId,
    /// "" = the agent's own.
    pub template: String,
}

/// Why an agent cannot have a runner now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyNot {
    /// No Sync stream.
    Offline,
    /// An operator's decision: why, or "".
    Cordoned(String),
    /// It takes none for now: why, in its words.
    TakesNone(String),
    /// It refused this one, and has said nothing new since: why, in its words.
    Refused(String),
    /// It takes no runners at all.
    NoSlots,
    /// All slots are in use.
    Full(u32),
    /// It offers no template of this name.
    NoTemplate(String),
    /// These labels do not fit.
    Labels(Vec<String>),
    /// The host is smaller than the runner.
    TooSmall,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offline => write!(f, "is offline"),
            Self::Cordoned(reason) if reason.is_empty() => write!(f, "is cordoned"),
            Self::Cordoned(reason) => write!(f, "is cordoned ({reason})"),
            Self::TakesNone(words) => write!(f, "takes no runners for now: {words}"),
            Self::Refused(words) => write!(f, "refused it: {words}"),
            Self::NoSlots => write!(f, "takes no runners (its --max-runners is 0)"),
            Self::Full(slots) => write!(f, "is full (all {slots} slots in use)"),
            Self::NoTemplate(name) => write!(f, "has no template named {name}"),
            Self::Labels(labels) => write!(f, "has no template for label {}", labels.join(", ")),
            Self::TooSmall => write!(f, "has fewer CPUs or less memory than asked for"),
        }
    }
}

/// Chooses, or says of every agent why not.
pub fn choose<'a>(candidates: &[Candidate<'a>], want: Want<'_>) -> Result<Choice, Vec<(&'a str, WhyNot)>> {
    let mut best: Option<((Warmth, u32), Choice)> = None;
    let mut why_not = Vec::new();
    for candidate in candidates {
        match fits(candidate, want) {
            Ok(template) => {
                let worth = (candidate.warmth(&template, want.shape), candidate.free());
                if best.as_ref().is_none_or(|(other, _)| worth > *other) {
                    best = Some((worth, Choice { agent: candidate.id, template }));
                }
            }
            Err(why) => why_not.push((candidate.hostname, why)),
        }
    }
    best.map(|(_, choice)| choice).ok_or(why_not)
}

/// What can never change is told before what may.
fn fits(candidate: &Candidate<'_>, want: Want<'_>) -> Result<String, WhyNot> {
    let template = labels::fit(want, candidate.offers).map_err(|misfit| match misfit {
        Misfit::Template => WhyNot::NoTemplate(want.template.to_owned()),
        Misfit::Labels(labels) => WhyNot::Labels(labels),
    })?;
    let too_many_cpus = candidate.cpus > 0 && want.shape.cpus > candidate.cpus;
    let too_much_memory = candidate.memory_bytes > 0 && want.shape.memory_bytes > candidate.memory_bytes;
    if too_many_cpus || too_much_memory {
        return Err(WhyNot::TooSmall);
    }
    if let Some(reason) = candidate.cordon {
        return Err(WhyNot::Cordoned(reason.to_owned()));
    }
    if candidate.link == Link::Offline {
        return Err(WhyNot::Offline);
    }
    if !candidate.takes_none.is_empty() {
        return Err(WhyNot::TakesNone(candidate.takes_none.to_owned()));
    }
    if let Some(refused) = want.refused_by.get(&candidate.id).filter(|r| r.heard == candidate.heard) {
        return Err(WhyNot::Refused(refused.words.clone()));
    }
    match (candidate.slots, candidate.free()) {
        (0, _) => Err(WhyNot::NoSlots),
        (slots, 0) => Err(WhyNot::Full(slots)),
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
            takes_none: "",
            heard: None,
            slots,
            taken,
            cpus: 8,
            memory_bytes: 16 << 30,
            offers: &ANY,
            hot: None,
            promised: Vec::new(),
        }
    }

    fn pick<'a>(candidates: &[Candidate<'a>], shape: Shape) -> Result<AgentId, Vec<(&'a str, WhyNot)>> {
        let accepted = Accepted::default();
        let refused_by = BTreeMap::new();
        let unknown = UnknownLabels::Refuse;
        let want =
            Want { labels: &[], shape, template: "", accepted: &accepted, unknown, refused_by: &refused_by };
        choose(candidates, want).map(|c| c.agent)
    }

    #[test]
    fn the_agent_with_most_free_slots_is_chosen() {
        let all = [candidate("a", 2, 1), candidate("b", 4, 1), candidate("c", 9, 9)];
        assert_eq!(pick(&all, Shape::default()), Ok(all[1].id));
    }

    #[test]
    fn a_hot_vm_that_fits_is_worth_more_than_free_slots_until_it_is_promised() {
        let vms = |ready, preparing| {
            let own = wire::HotVms { cpus: 4, ready, preparing, default_size: true, ..Default::default() };
            Hot::told(vec![own])
        };
        let (ready, warming) = (vms(1, 0), vms(0, 1));
        let mut all = [candidate("free", 9, 0), candidate("warming", 2, 1), candidate("hot", 2, 1)];
        (all[1].hot, all[2].hot) = (Some(&warming), Some(&ready));
        assert_eq!(pick(&all, Shape::default()), Ok(all[2].id));
        assert_eq!(pick(&all, Shape { cpus: 8, ..Shape::default() }), Ok(all[0].id), "another size");
        all[2].promised.push(Shape::default());
        assert_eq!(pick(&all, Shape::default()), Ok(all[1].id));
        all[1].cordon = Some("");
        assert_eq!(pick(&all, Shape::default()), Ok(all[0].id));
    }

    proptest::proptest! {
        #[test]
        fn no_hot_vm_is_promised_twice_and_none_is_left_out(
            hosts in proptest::collection::vec((0_u32..4, 0_u32..4), 1..5),
            runners in 1_usize..12,
        ) {
            let hot: Vec<Hot> = hosts
                .iter()
                .map(|(ready, _)| Hot::told(vec![wire::HotVms { ready: *ready, default_size: true, ..Default::default() }]))
                .collect();
            let mut all: Vec<_> = hosts.iter().map(|(ready, more)| candidate("h", ready + more, 0)).collect();
            for (one, hot) in all.iter_mut().zip(&hot) {
                one.hot = Some(hot);
            }
            let ready: u32 = hosts.iter().map(|(ready, _)| *ready).sum();
            for n in 0..runners {
                let Ok(agent) = pick(&all, Shape::default()) else { break };
                let chosen = all.iter_mut().find(|c| c.id == agent).unwrap();
                // As long as there is a hot VM anywhere, that is where a runner goes.
                let is_hot = chosen.warmth("", Shape::default()) == Warmth::Hot;
                proptest::prop_assert_eq!(is_hot, n < ready as usize);
                chosen.taken += 1;
                chosen.promised.push(Shape::default());
            }
        }
    }

    #[test]
    fn an_agent_without_the_template_asked_for_is_never_chosen_however_free() {
        let offers = |name: &str| {
            let template = wire::TemplateInfo { name: name.into(), ..Default::default() };
            Offers::Templates(vec![template], Host::default())
        };
        let (tahoe, sequoia) = (offers("tahoe"), offers("sequoia"));
        let mut all = [candidate("a", 9, 0), candidate("b", 2, 1), candidate("go", 9, 0)];
        (all[0].offers, all[1].offers) = (&tahoe, &sequoia);
        let (accepted, refused_by) = (Accepted::default(), BTreeMap::new());
        let want = |template| Want {
            labels: &[],
            shape: Shape::default(),
            template,
            accepted: &accepted,
            unknown: UnknownLabels::Refuse,
            refused_by: &refused_by,
        };
        let chosen = choose(&all, want("sequoia")).unwrap();
        assert_eq!((chosen.agent, chosen.template.as_str()), (all[1].id, "sequoia"));
        let why = choose(&all, want("sonoma")).unwrap_err();
        assert_eq!(why.len(), 3, "a Go agent tells of no template");
        assert!(why.iter().all(|(_, why)| why.to_string() == "has no template named sonoma"), "{why:?}");
    }

    #[test]
    fn an_agent_that_is_offline_full_too_small_or_cordoned_is_never_chosen_and_each_is_told_apart() {
        let mut all = [("a", 2, 0), ("b", 2, 3), ("c", 2, 0), ("d", 0, 0), ("e", 2, 0), ("f", 2, 0)]
            .map(|(name, slots, taken)| candidate(name, slots, taken));
        all[0].link = Link::Offline;
        all[2].cpus = 2;
        all[4].cordon = Some("new disk");
        all[5].takes_none = "its disk is full";
        let why = pick(&all, Shape { cpus: 4, ..Shape::default() }).unwrap_err();
        assert_eq!(
            why,
            [
                ("a", WhyNot::Offline),
                ("b", WhyNot::Full(2)),
                ("c", WhyNot::TooSmall),
                ("d", WhyNot::NoSlots),
                ("e", WhyNot::Cordoned("new disk".into())),
                ("f", WhyNot::TakesNone("its disk is full".into())),
            ]
        );
        assert_eq!(why[4].1.to_string(), "is cordoned (new disk)");
        assert_eq!(WhyNot::Cordoned(String::new()).to_string(), "is cordoned");
    }
}
