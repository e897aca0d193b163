//! myshoes' resource types, as text and as its enum's numbers.

use std::{fmt, str::FromStr};

use crate::named_enum;

named_enum! {
    /// A size a runner can have, smallest first. The texts are myshoes' (`nano` … `4xlarge`); the Go client's `xlarge2` is
    /// accepted too.
    pub enum ResourceType {
        Nano = "nano",
        Micro = "micro",
        Small = "small",
        Medium = "medium",
        Large = "large",
        XLarge = "xlarge",
        XLarge2 = "2xlarge",
        XLarge3 = "3xlarge",
        XLarge4 = "4xlarge",
    }
}

/// A text or number that is not a valid resource type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid resource type; valid are {list}", list = ResourceType::list())]
pub struct UnknownResourceType(pub String);

impl ResourceType {
    fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ResourceType {
    type Err = UnknownResourceType;
    fn from_str(text: &str) -> Result<Self, UnknownResourceType> {
        let go = match text {
            "xlarge2" => "2xlarge",
            "xlarge3" => "3xlarge",
            "xlarge4" => "4xlarge",
            other => other,
        };
        Self::ALL
            .into_iter()
            .find(|t| t.as_str() == go)
            .ok_or_else(|| UnknownResourceType(text.chars().take(80).collect()))
    }
}

/// From the number in myshoes' enum. Its `Unknown` (0) and unknown numbers are refused.
impl TryFrom<i32> for ResourceType {
    type Error = UnknownResourceType;
    fn try_from(number: i32) -> Result<Self, UnknownResourceType> {
        usize::try_from(number)
            .ok()
            .and_then(|n| n.checked_sub(1))
            .and_then(|n| Self::ALL.get(n).copied())
            .ok_or_else(|| UnknownResourceType(number.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_reads_back_from_its_text() {
        for t in ResourceType::ALL {
            assert_eq!(t.as_str().parse(), Ok(t));
        }
    }

    #[test]
    fn fault_25_the_go_clients_spelling_is_accepted() {
        assert_eq!("xlarge2".parse(), Ok(ResourceType::XLarge2));
    }

    #[test]
    fn an_unknown_type_is_named_in_the_error() {
        assert!("huge".parse::<ResourceType>().unwrap_err().to_string().contains("\"huge\""));
        for number in [-1, 0, 10] {
            assert!(ResourceType::try_from(number).is_err(), "{number}");
        }
    }
}
