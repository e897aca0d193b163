//! Tokens: read from files, compared in constant time, never printed.

use std::{fmt, io, path::Path, sync::Arc};

use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;

/// Longest token file that is read, in bytes.
const LONGEST: u64 = 64 << 10;

/// A bearer token (RFC 6750): one line of visible ASCII. Cheap to clone; wiped from memory with its last clone.
#[derive(Clone)]
pub struct Token(Arc<SecretString>);

/// Why a token file cannot be used. The texts never contain the file's content.
#[derive(Debug, thiserror::Error)]
pub enum BadToken {
    #[error("cannot read the token file {0}: {1}")]
    Unreadable(String, #[source] io::Error),
    #[error("the token file {0} is empty: put the token that server, agents and clients share into it")]
    Empty(String),
    #[error("the token file {0} must hold one line of visible ASCII characters and nothing else")]
    Malformed(String),
}

impl Token {
    /// Reads a token file. White space before and after the token is ignored.
    pub fn read(path: &Path) -> Result<Self, BadToken> {
        let name = || path.display().to_string();
        let bytes = crate::files::read_bounded(path, LONGEST).map_err(|e| BadToken::Unreadable(name(), e))?;
        let token = bytes.trim_ascii();
        match std::str::from_utf8(token) {
            Ok("") => Err(BadToken::Empty(name())),
            Ok(text) if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(Self::new(text)),
            Ok(_) | Err(_) => Err(BadToken::Malformed(name())),
        }
    }

    fn new(text: &str) -> Self {
        Self(Arc::new(SecretString::from(text)))
    }

    /// The value of an `Authorization` header with this token. Mark the header as sensitive.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0.expose_secret())
    }

    /// Whether the value of an `Authorization` header holds this token. The scheme's case does not matter (RFC 9110
    /// §11.1). For any two tokens of one length this takes the same time.
    pub fn is_shown_by(&self, authorization: Option<&[u8]>) -> bool {
        let shown = authorization.and_then(|value| {
            let (scheme, token) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
        });
        shown.is_some_and(|shown| shown.ct_eq(self.0.expose_secret().as_bytes()).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_accepted_and_it_is_never_printed() {
        let token = Token::new("s3cret");
        let shows = |text: &str| token.is_shown_by(Some(text.as_bytes()));
        assert!(shows(&token.authorization()) && shows("bearer s3cret"));
        for wrong in
            ["", "Bearer ", "Bearer s3cre", "Bearer s3crets3cret", "Bearer S3cret", "s3cret", "Basic s3cret"]
        {
            assert!(!shows(wrong), "{wrong:?}");
        }
        assert!(!token.is_shown_by(None));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_file_without_exactly_one_token_is_refused_and_its_content_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Token::read(&path).map(|t| t.authorization()).map_err(|e| e.to_string())
        };
        assert_eq!(read(b" s3cret\n"), Ok("Bearer s3cret".into()));
        for (bytes, text) in [
            (&b""[..], "is empty"),
            (b" \n", "is empty"),
            (b"s3cret two", "one line"),
            (b"s3cret\ns3cret\n", "one line"),
            (b"s3cret\xff", "one line"),
            (&[b's'; 70_000], "larger than"),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(error.contains(text) && !error.contains("s3cret"), "{error}");
        }
        let none = Token::read(&dir.path().join("none")).unwrap_err().to_string();
        assert!(none.contains("none") && none.contains("cannot read"), "{none}");
    }
}
