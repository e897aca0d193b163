//! An error with its causes on one line.

use std::{error::Error, fmt};

/// Shows `error: cause: cause of the cause`. A cause whose text its parent already ends in is not repeated: many
/// libraries print their source themselves.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        f.write_str(&shown)?;
        let mut at = self.0.source();
        while let Some(cause) = at {
            let text = cause.to_string();
            if !text.is_empty() && !shown.ends_with(&text) {
                write!(f, ": {text}")?;
                shown = text;
            }
            at = cause.source();
        }
        Ok(())
    }
}

/// The last cause: "Connection refused (os error 111)" rather than "transport error".
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut at = error;
    while let Some(cause) = at.source() {
        at = cause;
    }
    at
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the state")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("reading failed: {0}")]
    struct Middle(#[source] io::Error);

    #[test]
    fn every_cause_is_shown_once_and_the_last_one_can_be_found() {
        let error = Outer(Middle(io::Error::other("disk on fire")));
        assert_eq!(Chain(&error).to_string(), "cannot open the state: reading failed: disk on fire");
        assert_eq!(innermost(&error).to_string(), "disk on fire");
    }
}
