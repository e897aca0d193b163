//! Ports on which a test can listen again after the first listener has ended.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ephemeral ports (Linux: from 32768, `ip_local_port_range`; macOS: from 49152), so neither a bind to port 0 nor
/// an outgoing connection takes one of these while its owner is down.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A free loopback address that this process has not returned before.
///
/// # Panics
/// When every port of the range is taken.
pub fn fixed() -> SocketAddr {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let (first, count) = (RANGE.start, RANGE.end - RANGE.start);
    // Concurrent test processes begin at different offsets.
    let offset = std::process::id().wrapping_mul(64) % u32::from(count);
    let offset = u16::try_from(offset).expect("it is below the range's length");
    (0..count)
        .map(|_| first + (offset + TRIED.fetch_add(1, Ordering::Relaxed) % count) % count)
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_returns_another_port_below_the_ephemeral_ports() {
        let (one, other) = (fixed(), fixed());
        assert!(one != other && RANGE.contains(&one.port()) && RANGE.contains(&other.port()));
        TcpListener::bind(one).unwrap();
    }

    #[test]
    fn a_port_in_use_is_skipped() {
        let taken = TcpListener::bind(fixed()).unwrap();
        assert_ne!(fixed(), taken.local_addr().unwrap());
    }
}
