//! What a job's labels mean: nothing, an operating system, an architecture, or something that a template must offer.

use std::collections::BTreeSet;

use shoes_vz_proto::agent as wire;

/// Labels that GitHub or myshoes put on every job; no template has to offer them.
const ALWAYS: [&str; 7] = ["self-hosted", "myshoes", "macos", "linux", "x64", "arm64", "dependabot"];

/// Labels that the operator accepts although no template offers them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted(BTreeSet<String>);

impl Accepted {
    /// Case does not matter, as at GitHub.
    pub fn new(labels: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self(labels.into_iter().map(|l| l.as_ref().to_ascii_lowercase()).collect())
    }

    fn has(&self, lower: &str) -> bool {
        self.0.contains(lower)
    }
}

/// What to do about a label that no agent offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownLabels {
    /// The request waits like any other: an agent that offers it may be about to join.
    Wait,
    /// `INVALID_ARGUMENT`: myshoes deletes the job.
    Refuse,
    /// The label is treated as absent.
    Ignore,
}

/// What an agent offers.
#[derive(Debug, Clone, PartialEq)]
pub enum Offers {
    /// A Go agent reports no templates and checks no labels: every label fits, as with the Go server.
    Anything,
    /// Templates, and the host's architecture and operating system.
    Templates(Vec<wire::TemplateInfo>, Host),
}

/// The host an agent runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// "macos" or "linux"; "" is unknown.
    pub os: String,
    /// As `uname -m` or Rust names it; "" is unknown.
    pub arch: String,
}

impl Offers {
    /// From the agent's registration.
    pub fn of(info: Option<&wire::AgentInfo>) -> Self {
        info.map_or(Self::Anything, |i| {
            Self::Templates(i.templates.clone(), Host { os: i.os.clone(), arch: i.arch.clone() })
        })
    }

    fn names(&self, lower: &str) -> bool {
        match self {
            Self::Anything => true,
            Self::Templates(templates, _) => templates.iter().any(|t| has_label(t, lower)),
        }
    }
}

fn has_label(template: &wire::TemplateInfo, lower: &str) -> bool {
    template.labels.iter().any(|l| l.eq_ignore_ascii_case(lower))
}

/// The first of `labels` that no agent offers and nothing else allows. `None` also while no agent is known, since one that
/// offers it may still register.
pub fn first_unknown<'a>(
    labels: &'a [String],
    accepted: &Accepted,
    agents: impl Iterator<Item = &'a Offers> + Clone,
) -> Option<&'a str> {
    agents.clone().next()?;
    labels.iter().map(String::as_str).find(|label| {
        let lower = label.to_ascii_lowercase();
        !ALWAYS.contains(&lower.as_str()) && !accepted.has(&lower) && !agents.clone().any(|o| o.names(&lower))
    })
}

/// Why no template of an agent fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateMismatch {
    /// None has the required name.
    Template,
    /// No template fits these labels.
    Labels(Vec<String>),
}

/// The template of `offers` that fits ("" is the agent's default). `named` is the required template; "" allows any.
pub fn fit(
    offers: &Offers,
    named: &str,
    labels: &[String],
    accepted: &Accepted,
    unknown: UnknownLabels,
) -> Result<String, TemplateMismatch> {
    let Offers::Templates(templates, host) = offers else {
        return if named.is_empty() { Ok(String::new()) } else { Err(TemplateMismatch::Template) };
    };
    let lowers: Vec<String> = labels.iter().map(|l| l.to_ascii_lowercase()).collect();
    let misses = |template: Option<&wire::TemplateInfo>| -> Vec<String> {
        let os = template.map(|t| t.os.as_str()).filter(|os| !os.is_empty()).unwrap_or(&host.os);
        lowers
            .iter()
            .zip(labels)
            .filter(|(lower, _)| {
                let offered = template.is_some_and(|t| has_label(t, lower));
                let passes = match lower.as_str() {
                    "macos" | "linux" => os.is_empty() || os.eq_ignore_ascii_case(lower),
                    "x64" | "arm64" => arch_label(&host.arch).is_none_or(|a| a == lower.as_str()),
                    l => ALWAYS.contains(&l) || accepted.has(l) || unknown == UnknownLabels::Ignore,
                };
                !offered && !passes
            })
            .map(|(_, label)| label.clone())
            .collect()
    };
    if !named.is_empty() {
        let named = templates.iter().find(|t| t.name == named).ok_or(TemplateMismatch::Template)?;
        let missing = misses(Some(named));
        return if missing.is_empty() {
            Ok(named.name.clone())
        } else {
            Err(TemplateMismatch::Labels(missing))
        };
    }
    // The agent's default template is its first; with none listed only the host itself can be checked.
    let default = misses(templates.first());
    if default.is_empty() && !another_offers_more(&lowers, templates) {
        return Ok(String::new());
    }
    let best = templates.iter().map(|t| (misses(Some(t)), offered(&lowers, t), t));
    match best.filter(|(missing, ..)| missing.is_empty()).max_by_key(|(_, offered, _)| *offered) {
        Some((.., template)) => Ok(template.name.clone()),
        None => Err(TemplateMismatch::Labels(default)),
    }
}

/// How many of the labels the template offers itself.
fn offered(lowers: &[String], template: &wire::TemplateInfo) -> usize {
    lowers.iter().filter(|l| has_label(template, l)).count()
}

/// Whether another template than the first offers more of the labels (they matter only when labels may be ignored).
fn another_offers_more(lowers: &[String], templates: &[wire::TemplateInfo]) -> bool {
    let default = templates.first().map_or(0, |t| offered(lowers, t));
    templates.iter().skip(1).any(|t| offered(lowers, t) > default)
}

fn arch_label(arch: &str) -> Option<&'static str> {
    match arch {
        "x86_64" | "amd64" | "x64" => Some("x64"),
        "aarch64" | "arm64" => Some("arm64"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(name: &str, os: &str, labels: &[&str]) -> wire::TemplateInfo {
        wire::TemplateInfo {
            name: name.into(),
            os: os.into(),
            labels: labels.iter().map(|l| (*l).into()).collect(),
            ..Default::default()
        }
    }

    fn mac() -> Offers {
        Offers::Templates(
            vec![
                template("plain", "macos", &["macos-26"]),
                template("xcode", "macos", &["macos-26", "Xcode-26"]),
            ],
            Host { os: "macos".into(), arch: "aarch64".into() },
        )
    }

    fn of(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|l| (*l).into()).collect()
    }

    fn fits(labels: &[&str], offers: &Offers) -> Result<String, Vec<String>> {
        fits_from("", labels, UnknownLabels::Refuse, offers).map_err(|mismatch| match mismatch {
            TemplateMismatch::Labels(labels) => labels,
            TemplateMismatch::Template => panic!("no template was required"),
        })
    }

    fn fits_from(
        template: &str,
        labels: &[&str],
        unknown: UnknownLabels,
        offers: &Offers,
    ) -> Result<String, TemplateMismatch> {
        fit(offers, template, &of(labels), &Accepted::default(), unknown)
    }

    #[test]
    fn a_template_required_by_name_is_the_only_one_considered() {
        let from =
            |template: &str, labels: &[&str]| fits_from(template, labels, UnknownLabels::Refuse, &mac());
        assert_eq!(from("xcode", &[]), Ok("xcode".into()));
        assert_eq!(from("plain", &["macos-26"]), Ok("plain".into()));
        assert_eq!(from("plain", &["xcode-26"]), Err(TemplateMismatch::Labels(of(&["xcode-26"]))));
        assert_eq!(from("sonoma", &[]), Err(TemplateMismatch::Template));
        assert_eq!(
            fits_from("x", &[], UnknownLabels::Ignore, &Offers::Anything),
            Err(TemplateMismatch::Template)
        );
    }

    #[test]
    fn a_template_is_chosen_by_its_labels_whatever_their_case() {
        assert_eq!(
            fits(&["self-hosted", "MacOS-26"], &mac()),
            Ok(String::new()),
            "the agent's default template fits"
        );
        assert_eq!(fits(&["xcode-26"], &mac()), Ok("xcode".into()));
        assert_eq!(fits(&["self-hosted", "gpu"], &mac()), Err(of(&["gpu"])));
    }

    #[test]
    fn a_required_operating_system_or_architecture_is_honoured() {
        assert_eq!(fits(&["macOS", "ARM64"], &mac()), Ok(String::new()));
        assert_eq!(fits(&["Linux"], &mac()), Err(of(&["Linux"])));
        assert_eq!(fits(&["X64"], &mac()), Err(of(&["X64"])));
        let silent = Offers::Templates(vec![], Host::default());
        assert_eq!(
            fits(&["macOS", "X64"], &silent),
            Ok(String::new()),
            "an agent that reports nothing may fit"
        );
    }

    #[test]
    fn a_go_agent_fits_everything() {
        assert_eq!(fits(&["gpu", "Linux"], &Offers::Anything), Ok(String::new()));
    }

    #[test]
    fn the_first_label_that_no_agent_offers_is_named_once_an_agent_is_known() {
        let agents = [mac()];
        let accepted = Accepted::new(["Special"]);
        let labels = of(&["self-hosted", "DEPENDABOT", "special", "xcode-26", "gpu"]);
        assert_eq!(first_unknown(&labels, &accepted, agents.iter()), Some("gpu"));
        assert_eq!(first_unknown(&labels, &accepted, [].iter()), None);
        assert_eq!(first_unknown(&labels, &accepted, [mac(), Offers::Anything].iter()), None);
    }

    #[test]
    fn an_ignored_label_does_not_hide_a_template_that_offers_another() {
        let chosen = fits_from("", &["gpu", "xcode-26"], UnknownLabels::Ignore, &mac());
        assert_eq!(chosen, Ok("xcode".into()));
    }
}
