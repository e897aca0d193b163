//! Which server, and who is calling.

use std::{fmt, path::Path, str::FromStr};

use http::Uri;
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::Endpoint,
};

use crate::input::{self, InputError};

/// `HOST:PORT` of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerAddr {
    text: String,
    uri: Uri,
}

/// Why a text names no server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("server address {text:?} is not HOST:PORT ({why})")]
pub struct BadServerAddr {
    text: String,
    why: &'static str,
}

impl FromStr for ServerAddr {
    type Err = BadServerAddr;

    /// `HOST:PORT`, `:PORT` (this machine), and the same behind `http://` or Go's `dns:///`.
    fn from_str(given: &str) -> Result<Self, BadServerAddr> {
        let bad = |why| BadServerAddr { text: given.chars().take(80).collect(), why };
        let text = given.trim();
        if text.starts_with("https://") {
            return Err(bad(
                "https is not supported; use http or no scheme, with a token and a private network",
            ));
        }
        let text = text.strip_prefix("http://").or_else(|| text.strip_prefix("dns:///")).unwrap_or(text);
        let text = text.strip_suffix('/').unwrap_or(text);
        let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("there is no port"))?;
        if !matches!(port.parse::<u16>(), Ok(1..)) {
            return Err(bad("the port is no number from 1 to 65535"));
        }
        let host = if host.is_empty() { "localhost" } else { host };
        if host.contains(['/', '@', '?', '#']) || (host.contains(':') && !host.starts_with('[')) {
            return Err(bad("the host is not a name, an IPv4 address or an IPv6 address in brackets"));
        }
        let text = format!("{host}:{port}");
        let uri =
            format!("http://{text}").parse().map_err(|_| bad("the host has characters no host name has"))?;
        Ok(Self { text, uri })
    }
}

impl ServerAddr {
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::from(self.uri.clone())
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The secret that tells the server who is calling. Its text appears nowhere but in the request.
#[derive(Clone)]
pub struct Token(MetadataValue<Ascii>);

/// Why a token file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not readable.
    #[error("reading the token file {0} failed: {1}")]
    Read(String, #[source] InputError),
    /// Nothing in it.
    #[error("the token file {0} is empty: put the server's token into it")]
    Empty(String),
    /// Not one line of visible ASCII.
    #[error("the token file {0} must hold one line of visible ASCII and nothing else")]
    Malformed(String),
}

impl Token {
    /// Reads it from a file; white space around it is dropped.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let name = || path.display().to_string();
        let text = input::read_text(path, input::SMALL).map_err(|e| TokenError::Read(name(), e))?;
        match text.trim() {
            "" => Err(TokenError::Empty(name())),
            token if token.bytes().all(|b| b.is_ascii_graphic()) => {
                let mut value: MetadataValue<Ascii> =
                    format!("Bearer {token}").parse().map_err(|_| TokenError::Malformed(name()))?;
                value.set_sensitive(true);
                Ok(Self(value))
            }
            _ => Err(TokenError::Malformed(name())),
        }
    }

    pub(super) fn bearer(&self) -> MetadataValue<Ascii> {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_usual_way_to_write_an_address_is_understood() {
        for (given, meant) in [
            ("localhost:50051", "localhost:50051"),
            (":50051", "localhost:50051"),
            ("http://10.0.0.1:50051/", "10.0.0.1:50051"),
            ("dns:///vz.example:50051", "vz.example:50051"),
            ("[::1]:50051", "[::1]:50051"),
            (" a:1\n", "a:1"),
        ] {
            assert_eq!(given.parse::<ServerAddr>().unwrap().to_string(), meant, "{given:?}");
        }
    }

    #[test]
    fn a_wrong_address_is_quoted_with_its_reason() {
        for (given, why) in [
            ("", "no port"),
            ("localhost", "no port"),
            ("localhost:0", "65535"),
            ("localhost:70000", "65535"),
            ("::1:50051", "brackets"),
            ("a/b:1", "brackets"),
            ("a b:1", "characters"),
            ("https://a:1", "https"),
        ] {
            let words = given.parse::<ServerAddr>().unwrap_err().to_string();
            assert!(words.contains(why) && words.contains(&format!("{given:?}")), "{words}");
        }
    }

    #[test]
    fn a_token_is_read_from_its_file_and_shown_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "s3cret-token\n").unwrap();
        let token = Token::read(&path).unwrap();
        assert_eq!(token.bearer().to_str().unwrap(), "Bearer s3cret-token");
        let server = super::super::Server::new("a:1".parse().unwrap(), Some(token));
        assert!(!format!("{server:?}").contains("s3cret"));

        for (text, words) in [("", "empty"), (" \n", "empty"), ("two words", "one line"), ("ü", "one line")]
        {
            fs::write(&path, text).unwrap();
            let told = Token::read(&path).unwrap_err().to_string();
            assert!(told.contains(words) && told.contains("token"), "{told}");
        }
        assert!(Token::read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
