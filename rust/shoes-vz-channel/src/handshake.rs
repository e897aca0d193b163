//! The exchange that makes a session out of two ends that may each have just (re)started.
//!
//! ```text
//!   guest starts                                host
//!     Hello(g, echo 0, unsure) ───────────────▶  (unknown: answer)
//!     (echo is mine: session)  ◀─────────────── Hello(h, echo g, unsure)
//!     Hello(h's echo, sure)    ───────────────▶  (echo is mine: session)
//! ```
//! Each end draws a nonce when it starts. Only a Hello that echoes the reader's *present* nonce makes a session, so
//! bytes replayed from a saved state or left over from an ended process can at worst provoke one needless answer.
//! A new session ends the old one and all its streams. Pure: no I/O, no clock.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher, RandomState},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Number of the channel's protocol; ends with different numbers do not make a session.
pub const PROTOCOL: u32 = 1;

/// How many replaced ends an end remembers.
const RETIRED: usize = 32;

/// What an end sends about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hello {
    /// Of the guest agent; on the host's side, of the VM process.
    #[serde(default)]
    pub agent_version: String,
    /// Random, new with each start of the guest agent.
    #[serde(default)]
    pub start_id: String,
    /// [`PROTOCOL`] of the sender.
    #[serde(default)]
    pub protocol: u32,
}

impl Hello {
    /// A hello of this build's protocol.
    pub fn new(agent_version: impl Into<String>, start_id: impl Into<String>) -> Self {
        Self { agent_version: agent_version.into(), start_id: start_id.into(), protocol: PROTOCOL }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Host,
    Guest,
}

/// A Hello frame's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) nonce: u64,
    /// The reader's nonce as last received; 0: none was.
    pub(crate) echo: u64,
    /// The sender has a session of just these two nonces.
    pub(crate) sure: bool,
    pub(crate) hello: Hello,
}

impl Message {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(if self.role == Role::Host { 0 } else { 1 });
        out.put_u8(u8::from(self.sure));
        out.put_u64(self.nonce);
        out.put_u64(self.echo);
        // Strings and a number: this cannot fail.
        out.put_slice(&serde_json::to_vec(&self.hello).unwrap_or_default());
        out.freeze()
    }

    pub(crate) fn decode(mut payload: &[u8]) -> Option<Self> {
        if payload.len() < 18 {
            return None;
        }
        let role = match payload.get_u8() {
            0 => Role::Host,
            1 => Role::Guest,
            _ => return None,
        };
        let (sure, nonce, echo) = (payload.get_u8() == 1, payload.get_u64(), payload.get_u64());
        let hello = serde_json::from_slice(payload).ok()?;
        (nonce != 0).then_some(Self { role, nonce, echo, sure, hello })
    }
}

/// What to do after a Hello.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Reaction {
    pub(crate) reply: Option<Message>,
    /// A new session begins (before the reply goes out).
    pub(crate) begin: Option<u64>,
    /// The other end speaks another protocol.
    pub(crate) foreign: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Handshake {
    role: Role,
    hello: Hello,
    nonce: u64,
    /// The other end's; 0: none was received.
    peer_nonce: u64,
    session_with: Option<u64>,
    /// Nonces of ends that were replaced; no end takes one up again.
    retired: VecDeque<u64>,
}

impl Handshake {
    pub(crate) fn new(role: Role, hello: Hello, nonce: u64) -> Self {
        Self { role, hello, nonce, peer_nonce: 0, session_with: None, retired: VecDeque::new() }
    }

    pub(crate) fn message(&self) -> Message {
        Message {
            role: self.role,
            nonce: self.nonce,
            echo: self.peer_nonce,
            sure: self.session_with == Some(self.peer_nonce),
            hello: self.hello.clone(),
        }
    }

    /// Whether to send the hello again after a while: the guest always sends first, the host once it has received one.
    pub(crate) fn wants_repeat(&self) -> bool {
        self.session_with.is_none() && (self.role == Role::Guest || self.peer_nonce != 0)
    }

    pub(crate) fn on_message(&mut self, m: &Message) -> Reaction {
        if m.role == self.role || self.retired.contains(&m.nonce) {
            return Reaction::default(); // our own message, echoed by a terminal in between; or a replay
        }
        if m.hello.protocol != self.hello.protocol {
            return Reaction { foreign: Some(m.hello.protocol), ..Reaction::default() };
        }
        let begin = (m.echo == self.nonce && self.session_with != Some(m.nonce))
            .then(|| session_id(self.role, self.nonce, m.nonce));
        if begin.is_some()
            && let Some(old) = self.session_with.replace(m.nonce)
        {
            self.retired.truncate(RETIRED - 1);
            self.retired.push_front(old);
        }
        self.peer_nonce = m.nonce;
        let proven = m.echo == self.nonce;
        Reaction { reply: (!proven || !m.sure).then(|| self.message()), begin, foreign: None }
    }

    /// The session is broken on this side: start again, so that the other end notices.
    pub(crate) fn restart(&mut self, nonce: u64) -> Message {
        self.nonce = nonce;
        self.session_with = None;
        self.message()
    }
}

fn session_id(role: Role, mine: u64, theirs: u64) -> u64 {
    let (host, guest) = if role == Role::Host { (mine, theirs) } else { (theirs, mine) };
    host.rotate_left(17) ^ guest
}

/// Unlike any other, never 0. Not a secret, so it need not wait for the kernel's entropy early in a guest's boot
/// (`RandomState` does not; getrandom(2) would).
pub fn nonce() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    hasher.write_u128(now.as_nanos());
    hasher.write_u32(std::process::id());
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end(role: Role, nonce: u64) -> Handshake {
        Handshake::new(role, Hello::new("v", "s"), nonce)
    }

    /// Delivers everything in order until both are silent; returns (host's sessions, guest's sessions, messages sent).
    fn settle(
        host: &mut Handshake,
        guest: &mut Handshake,
        mut to_host: VecDeque<Message>,
        mut to_guest: VecDeque<Message>,
    ) -> (Vec<u64>, Vec<u64>, usize) {
        let (mut hs, mut gs, mut sent) = (vec![], vec![], 0);
        while !to_host.is_empty() || !to_guest.is_empty() {
            if let Some(m) = to_host.pop_front() {
                let reaction = host.on_message(&m);
                hs.extend(reaction.begin);
                to_guest.extend(reaction.reply);
                sent += 1;
            }
            if let Some(m) = to_guest.pop_front() {
                let reaction = guest.on_message(&m);
                gs.extend(reaction.begin);
                to_host.extend(reaction.reply);
                sent += 1;
            }
            assert!(sent < 100, "they never fall silent");
        }
        (hs, gs, sent)
    }

    #[test]
    fn two_starting_ends_make_one_session() {
        let (mut h, mut g) = (end(Role::Host, 7), end(Role::Guest, 9));
        let (hello_h, hello_g) = (h.message(), g.message());
        let (hs, gs, _) = settle(&mut h, &mut g, [hello_g].into(), [hello_h].into());
        assert_eq!((hs.len(), &hs), (1, &gs));
    }

    #[test]
    fn a_restarted_session_is_noticed_by_the_other_end() {
        let (mut h, mut g) = (end(Role::Host, 7), end(Role::Guest, 9));
        let hello = g.message();
        settle(&mut h, &mut g, [hello].into(), [].into());
        let again = h.restart(8);
        let (hs, gs, _) = settle(&mut h, &mut g, [].into(), [again].into());
        assert_eq!((hs.len(), &hs), (1, &gs));
    }

    #[test]
    fn another_protocol_makes_no_session_and_is_named() {
        let mut h = end(Role::Host, 7);
        let mut m = end(Role::Guest, 9).message();
        m.hello.protocol = 99;
        assert_eq!(h.on_message(&m), Reaction { foreign: Some(99), ..Reaction::default() });
    }

    #[test]
    fn a_lost_answer_is_replaced_by_repeating_the_hello() {
        let (mut h, mut g) = (end(Role::Host, 7), end(Role::Guest, 9));
        let to_guest = h.on_message(&g.message()).reply.unwrap();
        let lost = g.on_message(&to_guest);
        assert!(lost.begin.is_some() && lost.reply.is_some());
        assert!(h.wants_repeat());
        let again = h.message();
        let (hs, gs, _) = settle(&mut h, &mut g, [].into(), [again].into());
        assert_eq!((hs.len(), gs.len()), (1, 0));
    }

    #[test]
    fn a_replaced_guests_proof_is_not_believed_again() {
        let (mut h, mut first) = (end(Role::Host, 7), end(Role::Guest, 9));
        let hello = first.message();
        settle(&mut h, &mut first, [hello].into(), [].into());
        let proof = first.message();
        let mut second = end(Role::Guest, 10);
        let hello = second.message();
        settle(&mut h, &mut second, [hello].into(), [].into());
        assert_eq!(h.on_message(&proof), Reaction::default());
    }

    #[test]
    fn nonces_differ() {
        assert_ne!(nonce(), nonce());
    }

    proptest! {
        #[test]
        fn stale_hellos_never_end_a_session_and_the_ends_fall_silent(
            stale in proptest::collection::vec((1u64..50, 0u64..50, any::<bool>(), any::<bool>()), 0..10),
        ) {
            let (mut h, mut g) = (end(Role::Host, 1007), end(Role::Guest, 1009));
            let hello = g.message();
            settle(&mut h, &mut g, [hello].into(), [].into());
            let (mut to_host, mut to_guest) = (VecDeque::new(), VecDeque::new());
            for (nonce, echo, sure, for_host) in stale {
                let role = if for_host { Role::Guest } else { Role::Host };
                let m = Message { role, nonce, echo, sure, hello: Hello::new("old", "old") };
                if for_host { to_host.push_back(m) } else { to_guest.push_back(m) }
            }
            let (hs, gs, _) = settle(&mut h, &mut g, to_host, to_guest);
            prop_assert!(hs.is_empty() && gs.is_empty());
        }

        #[test]
        fn a_message_reads_back_as_itself(nonce in 1u64.., echo: u64, sure: bool, version in ".{0,20}") {
            let m = Message { role: Role::Guest, nonce, echo, sure, hello: Hello::new(version, "x") };
            prop_assert_eq!(Message::decode(&m.encode()), Some(m));
        }
    }
}
