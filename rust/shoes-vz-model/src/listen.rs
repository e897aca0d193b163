//! Which address a listener may bind. Beyond loopback a listener must authenticate its callers (ARCHITECTURE.md,
//! "Invariants", 5).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Whether callers of a listener are authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// By token or mutual TLS: any address is allowed.
    Authenticated,
    /// Anyone who connects: loopback only.
    Anyone,
    /// Anyone who connects, at any address, because the operator allows it (`--insecure-listen`).
    AnyoneInsecure,
}

/// Why an address cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadListenAddr {
    #[error("listen address {0:?} is neither \":PORT\" nor \"IP:PORT\"")]
    Malformed(String),
    #[error(
        "refusing to listen on {0} without authentication: give a token file (--token-file), or use a loopback address"
    )]
    Unauthenticated(SocketAddr),
}

/// The address to bind for `text`: `IP:PORT` is used as it is, but refused when it would let anyone in; Go's `:PORT` means
/// every interface when callers are authenticated, else loopback.
pub fn listen_addr(text: &str, callers: Callers) -> Result<SocketAddr, BadListenAddr> {
    let malformed = || BadListenAddr::Malformed(text.chars().take(80).collect());
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| malformed())?;
        let ip = match callers {
            Callers::Anyone => Ipv4Addr::LOCALHOST,
            Callers::Authenticated | Callers::AnyoneInsecure => Ipv4Addr::UNSPECIFIED,
        };
        return Ok(SocketAddr::new(IpAddr::V4(ip), port));
    }
    let addr: SocketAddr = text.replacen("localhost:", "127.0.0.1:", 1).parse().map_err(|_| malformed())?;
    if callers == Callers::Anyone && !addr.ip().is_loopback() {
        return Err(BadListenAddr::Unauthenticated(addr));
    }
    Ok(addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_is_loopback_until_callers_are_authenticated() {
        assert_eq!(listen_addr(":50051", Callers::Anyone), Ok("127.0.0.1:50051".parse().unwrap()));
        assert_eq!(listen_addr(":50051", Callers::Authenticated), Ok("0.0.0.0:50051".parse().unwrap()));
    }

    #[test]
    fn an_open_address_without_authentication_is_refused_unless_allowed_explicitly() {
        let refused = listen_addr("0.0.0.0:1", Callers::Anyone).unwrap_err();
        assert!(refused.to_string().contains("0.0.0.0:1"));
        assert!(listen_addr("0.0.0.0:1", Callers::AnyoneInsecure).is_ok());
        assert!(listen_addr("[::1]:1", Callers::Anyone).is_ok());
        assert!(listen_addr("localhost:0", Callers::Anyone).is_ok());
    }

    #[test]
    fn nonsense_is_malformed() {
        for bad in ["", "50051", ":x", ":70000", "host:1"] {
            assert!(matches!(listen_addr(bad, Callers::Anyone), Err(BadListenAddr::Malformed(_))), "{bad:?}");
        }
    }
}
