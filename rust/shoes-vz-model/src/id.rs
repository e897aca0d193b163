//! One type for each ID, so that the compiler finds an ID that is passed in the place of another.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not a valid ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {reason}")]
pub struct BadId {
    kind: &'static str,
    text: String,
    reason: Cow<'static, str>,
}

impl BadId {
    fn new(kind: &'static str, text: &str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, text: text.chars().take(80).collect(), reason: reason.into() }
    }
}

macro_rules! uuid_id {
    ($(#[$meta:meta])* $name:ident, $kind:literal, $prefix:literal, $reason:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let uuid = text.strip_prefix($prefix).and_then(|uuid| Uuid::try_parse(uuid).ok());
                uuid.map(Self).ok_or_else(|| BadId::new($kind, text, $reason))
            }
        }
    };
}

uuid_id! {
    /// Identifies a runner, its VM and its bundle (`<runner_id>.bundle`). The server creates it.
    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    RunnerId, "runner ID", "", "it is not a UUID"
}
uuid_id! {
    /// Identifies a host agent, which keeps it on its disk.
    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    AgentId, "agent ID", "", "it is not a UUID"
}
uuid_id! {
    /// The ID by which myshoes deletes an instance: `shoes-vz-<uuid4>` (Go: server.go AddInstance).
    CloudId, "cloud ID", "shoes-vz-", "it is not \"shoes-vz-\" and a UUID"
}

impl AgentId {
    /// The MAC address of the VMs in a slot of this agent: locally administered, and the same for each of them, so that a
    /// host's DHCP leases do not run out (macOS keeps one for a day) and a saved state is restored with its network card.
    pub fn slot_mac(self, slot: u32) -> String {
        let id = self.0.as_bytes();
        let [.., slot_high, slot_low] = slot.to_be_bytes();
        // Bit 1 of the first byte: locally administered; bit 0: not multicast (IEEE 802).
        format!(
            "{:02x}:{:02x}:{:02x}:{:02x}:{slot_high:02x}:{slot_low:02x}",
            id[0] & 0xfc | 0x02,
            id[1],
            id[2],
            id[3]
        )
    }
}

/// The name under which a runner registers at GitHub; unique among the runners that exist. myshoes sends `myshoes-<job uuid>`.
///
/// Valid are GitHub's rules: 1 to 64 letters (a-z, A-Z), digits, `.`, `-` and `_` (GitHub's REST description of a runner's
/// `name`: "must be between 1 and 64 characters and may only contain upper and lowercase letters a-z, numbers 0-9, '.',
/// '-', and '_'"). The first may not be `-`: the name is an argument of the runner's `config.sh`, which would take it for
/// a flag. A name that is refused here would fail later, in the guest, after a VM was created for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunnerName(String);

impl RunnerName {
    /// GitHub's limit, in characters.
    pub const MAX_LEN: usize = 64;
    const KIND: &str = "runner name";

    /// For a name from a record, or one to look up: also accepts the names that earlier versions accepted.
    pub fn recorded(text: &str) -> Result<Self, BadId> {
        let reason = match text {
            "" => "it is empty",
            t if t.len() > 255 => "it is longer than 255 bytes",
            t if t.chars().any(char::is_control) => "it has control characters",
            t => return Ok(Self(t.to_owned())),
        };
        Err(BadId::new(Self::KIND, text, reason))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RunnerName {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        const RULE: &str = "GitHub takes 1 to 64 letters (a-z, A-Z), digits, \".\", \"-\" and \"_\", \
                             of which the first may not be \"-\"";
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let invalid = text.chars().enumerate().find(|(at, c)| !fits(*c) || (*at == 0 && *c == '-'));
        let length = text.chars().count();
        let reason = match invalid {
            Some((at, c)) => format!("character {} is {c:?}; {RULE}", at + 1),
            None if length == 0 => format!("it is empty; {RULE}"),
            None if length > Self::MAX_LEN => format!("it has {length} characters; {RULE}"),
            None => return Ok(Self(text.to_owned())),
        };
        Err(BadId::new(Self::KIND, text, reason))
    }
}

impl TryFrom<String> for RunnerName {
    type Error = BadId;
    /// As [`Self::recorded`].
    fn try_from(text: String) -> Result<Self, BadId> {
        Self::recorded(&text)
    }
}

impl From<RunnerName> for String {
    fn from(name: RunnerName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_26_each_slot_has_its_own_address_that_never_changes() {
        let agent: AgentId = "ffeeddcc-0000-4000-8000-000000000000".parse().unwrap();
        assert_eq!(agent.slot_mac(0), "fe:ee:dd:cc:00:00");
        assert_eq!(agent.slot_mac(258), "fe:ee:dd:cc:01:02");
        let other: AgentId = "01020304-0000-4000-8000-000000000000".parse().unwrap();
        assert_eq!(other.slot_mac(1), "02:02:03:04:00:01");
    }

    #[test]
    fn a_cloud_id_reads_back_as_itself() {
        let id = CloudId::random();
        assert_eq!(id.to_string().parse::<CloudId>(), Ok(id));
    }

    #[test]
    fn a_cloud_id_without_its_prefix_is_refused() {
        let bare = Uuid::new_v4().to_string();
        assert!(bare.parse::<CloudId>().unwrap_err().to_string().contains(&bare));
    }

    #[test]
    fn a_name_github_would_refuse_is_refused_with_the_character_and_its_position_or_the_limit() {
        for (bad, part) in [
            ("", "it is empty"),
            (&*"x".repeat(65), "it has 65 characters; GitHub takes 1 to 64"),
            ("a/b", "character 2 is '/'"),
            ("a b", "character 2 is ' '"),
            ("-rf", "character 1 is '-'"),
            ("a\nb", "character 2 is '\\n'"),
            ("caf\u{e9}", "character 4 is '\u{e9}'"),
            (&*format!("{}\u{1b}", "x".repeat(999)), "character 1000 is '\\u{1b}'"),
        ] {
            let error = bad.parse::<RunnerName>().unwrap_err().to_string();
            assert!(error.contains(part) && error.len() < 500, "{error}");
        }
        for good in ["a", "myshoes-0a1b2c3d-0000-4000-8000-000000000000", "_x", ".x", &"x".repeat(64)] {
            assert_eq!(good.parse::<RunnerName>().unwrap().as_str(), good);
        }
    }

    proptest::proptest! {
        #[test]
        fn a_name_is_accepted_if_and_only_if_github_accepts_it_and_it_is_not_a_flag(
            text in "([a-c9._-]{0,70}|[a-c/ \u{e9}\\x00-\\x20-]{0,70}|.{0,80})",
        ) {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            let wanted = (1..=64).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('-');
            let parsed = text.parse::<RunnerName>();
            proptest::prop_assert_eq!(parsed.is_ok(), wanted, "{:?}", parsed);
            if let Ok(name) = parsed {
                proptest::prop_assert_eq!(name.as_str(), &text);
                proptest::prop_assert_eq!(RunnerName::recorded(&text), Ok(name), "a record of it is read again");
            }
        }
    }

    #[test]
    fn a_name_an_earlier_version_accepted_is_still_read_from_its_record() {
        for old in ["my runner/1", &"x".repeat(255)] {
            assert!(old.parse::<RunnerName>().is_err());
            assert_eq!(RunnerName::recorded(old).unwrap().as_str(), old);
        }
        assert!(RunnerName::recorded(&"x".repeat(256)).is_err());
    }
}
