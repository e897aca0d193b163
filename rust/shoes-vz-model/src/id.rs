//! One type for each id, so that none is passed where another is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {why}")]
pub struct BadId {
    kind: &'static str,
    text: String,
    why: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh random id.
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
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                Uuid::try_parse(text).map(Self).map_err(|_| BadId {
                    kind: $kind,
                    text: text.chars().take(80).collect(),
                    why: "it is not a UUID",
                })
            }
        }
    };
}

uuid_id! {
    /// A runner, and so its VM and bundle. The server makes it; the bundle is `<runner_id>.bundle`.
    RunnerId, "runner id"
}
uuid_id! {
    /// A host agent; stable on its disk.
    AgentId, "agent id"
}

impl AgentId {
    /// The network address of the VMs in a slot of this agent's: locally administered, and the same for each of them,
    /// so that a host's DHCP leases do not run out (macOS keeps one for a day) and a saved state finds its card again.
    pub fn slot_mac(self, slot: u32) -> String {
        let id = self.0.as_bytes();
        let [.., slot_high, slot_low] = slot.to_be_bytes();
        // Bit 1 of the first byte: locally administered; bit 0: no multicast (IEEE 802).
        format!(
            "{:02x}:{:02x}:{:02x}:{:02x}:{slot_high:02x}:{slot_low:02x}",
            id[0] & 0xfc | 0x02,
            id[1],
            id[2],
            id[3]
        )
    }
}

/// What myshoes keeps to delete an instance by: `shoes-vz-<uuid4>` (Go: server.go AddInstance).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloudId(Uuid);

impl CloudId {
    const PREFIX: &'static str = "shoes-vz-";

    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl From<Uuid> for CloudId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for CloudId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.0)
    }
}

impl FromStr for CloudId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        text.strip_prefix(Self::PREFIX).and_then(|rest| Uuid::try_parse(rest).ok()).map(Self).ok_or_else(
            || BadId {
                kind: "cloud id",
                text: text.chars().take(80).collect(),
                why: "it is not \"shoes-vz-\" and a UUID",
            },
        )
    }
}

/// The name a runner registers under at GitHub; unique among the living. From myshoes: `myshoes-<job uuid>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunnerName(String);

impl RunnerName {
    /// The name as text.
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
        let bad = |why| BadId { kind: "runner name", text: text.chars().take(80).collect(), why };
        match text {
            "" => Err(bad("it is empty")),
            t if t.len() > 255 => Err(bad("it is longer than 255 bytes")),
            t if t.chars().any(char::is_control) => Err(bad("it has control characters")),
            t => Ok(Self(t.to_owned())),
        }
    }
}

impl TryFrom<String> for RunnerName {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
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
    fn fault_26_each_slot_has_an_address_of_its_own_that_stays() {
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
    fn an_empty_or_endless_runner_name_is_refused() {
        for bad in [String::new(), "x".repeat(256), "a\nb".into()] {
            assert!(bad.parse::<RunnerName>().is_err(), "{bad:?}");
        }
    }
}
