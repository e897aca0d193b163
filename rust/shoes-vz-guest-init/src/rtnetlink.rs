//! The requests of rtnetlink(7) that bring a network interface up, as bytes.
//!
//! Layouts: `struct nlmsghdr` (linux/netlink.h), `ifinfomsg`, `ifaddrmsg`, `rtmsg`, `rtattr` (linux/rtnetlink.h).

use std::net::Ipv4Addr;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLM_F_CREATE_REPLACE: u16 = 0x400 | 0x100;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

const HEADER: usize = 16;

/// `ip link set <index> up`.
pub(crate) fn link_up(index: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    message(RTM_NEWLINK, NLM_F_REQUEST_ACK, body)
}

/// `ip addr replace <address>/<prefix> dev <index>`.
pub(crate) fn address(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let mut body = vec![AF_INET, prefix, 0, RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &address.octets());
    attribute(&mut body, IFA_ADDRESS, &address.octets());
    message(RTM_NEWADDR, NLM_F_REQUEST_ACK | NLM_F_CREATE_REPLACE, body)
}

/// `ip route replace default via <gateway> dev <index>`.
pub(crate) fn default_route(index: u32, gateway: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST];
    body.extend(0u32.to_ne_bytes());
    attribute(&mut body, RTA_GATEWAY, &gateway.octets());
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    message(RTM_NEWROUTE, NLM_F_REQUEST_ACK | NLM_F_CREATE_REPLACE, body)
}

/// Whether the kernel's answer to a request acknowledges it: `Err(errno)`, or `Err(0)` when it is not a valid answer.
pub(crate) fn acknowledged(answer: &[u8]) -> Result<(), i32> {
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(negative)) => Err(-negative),
        _ => Err(0),
    }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    body.extend(8u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, flags: u16, body: Vec<u8>) -> Vec<u8> {
    // A body is a few dozen bytes.
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_states_its_own_length_and_is_padded_to_four_bytes() {
        let gateway = Ipv4Addr::new(10, 0, 2, 2);
        for request in [link_up(1), address(2, gateway, 24), default_route(2, gateway)] {
            let length = u32::from_ne_bytes(request[..4].try_into().unwrap());
            assert_eq!(length as usize, request.len());
            assert_eq!(request.len() % 4, 0);
        }
    }

    #[test]
    fn an_address_goes_with_its_interface_and_prefix() {
        let request = address(7, Ipv4Addr::new(10, 0, 2, 15), 24);
        assert_eq!(request[HEADER + 1], 24);
        assert_eq!(request[HEADER + 4..HEADER + 8], 7u32.to_ne_bytes());
        assert_eq!(request.windows(4).filter(|w| *w == [10, 0, 2, 15]).count(), 2);
    }

    #[test]
    fn the_kernels_refusal_keeps_its_error_number() {
        let mut answer = message(NLMSG_ERROR, 0, (-17i32).to_ne_bytes().to_vec());
        assert_eq!(acknowledged(&answer), Err(17));
        answer[HEADER..].copy_from_slice(&0i32.to_ne_bytes());
        assert_eq!(acknowledged(&answer), Ok(()));
        assert_eq!(acknowledged(&answer[..10]), Err(0));
    }
}
