//! The address of a server.

use std::{fmt, str::FromStr};

use http::Uri;
use tonic::transport::Endpoint;

/// `HOST:PORT` of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerAddr {
    text: String,
    uri: Uri,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("server address {text:?} is not HOST:PORT ({reason})")]
pub struct BadServerAddr {
    text: String,
    reason: &'static str,
}

impl FromStr for ServerAddr {
    type Err = BadServerAddr;

    /// `HOST:PORT`, `:PORT` (this machine), and the same behind `http://` or Go's `dns:///`.
    fn from_str(given: &str) -> Result<Self, BadServerAddr> {
        let bad = |reason| BadServerAddr { text: given.chars().take(80).collect(), reason };
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
            return Err(bad("the port is not a number from 1 to 65535"));
        }
        let host = if host.is_empty() { "localhost" } else { host };
        if host.contains(['/', '@', '?', '#']) || (host.contains(':') && !host.starts_with('[')) {
            return Err(bad("the host is not a name, an IPv4 address or an IPv6 address in brackets"));
        }
        let text = format!("{host}:{port}");
        let uri = format!("http://{text}")
            .parse()
            .map_err(|_| bad("the host has characters that are not valid in a host name"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_way_to_write_an_address_is_accepted() {
        for (given, expected) in [
            ("localhost:50051", "localhost:50051"),
            (":50051", "localhost:50051"),
            ("http://10.0.0.1:50051/", "10.0.0.1:50051"),
            ("dns:///vz.example:50051", "vz.example:50051"),
            ("[::1]:50051", "[::1]:50051"),
            (" a:1\n", "a:1"),
        ] {
            assert_eq!(given.parse::<ServerAddr>().unwrap().to_string(), expected, "{given:?}");
        }
    }

    #[test]
    fn a_wrong_address_is_quoted_with_its_reason() {
        for (given, reason) in [
            ("", "no port"),
            ("localhost", "no port"),
            ("localhost:0", "65535"),
            ("localhost:70000", "65535"),
            ("::1:50051", "brackets"),
            ("a/b:1", "brackets"),
            ("a b:1", "characters"),
            ("https://a:1", "https"),
        ] {
            let error = given.parse::<ServerAddr>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(&format!("{given:?}")), "{error}");
        }
    }
}
