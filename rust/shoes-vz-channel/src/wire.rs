//! Frames on the byte stream.
//!
//! ```text
//!  0      4      5      6       8          16     20            24           28
//!  │magic │kind  │0     │length │session   │seq   │payload crc  │header crc  │payload …
//! ```
//! Big-endian. A reader may meet anything between frames: what an ended writer left half-written, bytes a saved state
//! replays, a getty's greeting. It skips to the next frame whose checksums both match. A writer that starts
//! first sends [`filler`], so that a frame that its predecessor left half-written ends before its first frame begins.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest payload. Small enough that a short answer never waits long behind a bulk transfer.
pub const MAX_PAYLOAD: usize = 8 * 1024;
/// Bytes before the payload.
pub const HEADER: usize = 28;
const MAGIC: [u8; 4] = [0xF5, b's', b'v', b'z'];

/// What a frame's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// See `handshake`.
    Hello = 1,
    /// Bytes of the session's multiplexer.
    Data = 2,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Kind::Hello),
            2 => Some(Kind::Data),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    /// The session it belongs to; 0 for [`Kind::Hello`].
    pub session: u64,
    /// Number among the session's data frames in this direction, from 0.
    pub seq: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
}

/// Appends `frame` to `out`.
///
/// # Panics
/// When the payload is longer than [`MAX_PAYLOAD`], which is a bug of the caller.
pub fn encode(frame: &Frame, out: &mut BytesMut) {
    assert!(frame.payload.len() <= MAX_PAYLOAD, "a frame of {} bytes", frame.payload.len());
    let start = out.len();
    out.reserve(HEADER + frame.payload.len());
    out.put_slice(&MAGIC);
    out.put_u8(frame.kind as u8);
    out.put_u8(0);
    out.put_u16(frame.payload.len() as u16);
    out.put_u64(frame.session);
    out.put_u32(frame.seq);
    out.put_u32(crc32fast::hash(&frame.payload));
    let check = crc32fast::hash(&out[start..]);
    out.put_u32(check);
    out.put_slice(&frame.payload);
}

/// What a writer sends when it starts: no part of it can begin a frame, and it is as long as the rest of any frame.
pub fn filler() -> Bytes {
    Bytes::from_static(&[0; HEADER + MAX_PAYLOAD])
}

/// Finds the frames in a stream of bytes that comes in pieces of any length.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    skipped: u64,
}

impl Decoder {
    /// Where to append what was read.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(HEADER + MAX_PAYLOAD);
        &mut self.buffer
    }

    /// Bytes so far that belonged to no frame.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next whole frame; `None` until more bytes are appended.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            let garbage = self.buffer.iter().position(|b| *b == MAGIC[0]).unwrap_or(self.buffer.len());
            self.skip(garbage);
            let known = self.buffer.len().min(MAGIC.len());
            if self.buffer[..known] != MAGIC[..known] {
                self.skip(1);
                continue;
            }
            if self.buffer.len() < HEADER {
                return None;
            }
            let Some((kind, length, session, seq, check)) = header(&self.buffer[..HEADER]) else {
                self.skip(1);
                continue;
            };
            if self.buffer.len() < HEADER + length {
                return None;
            }
            if crc32fast::hash(&self.buffer[HEADER..HEADER + length]) != check {
                self.skip(1);
                continue;
            }
            self.buffer.advance(HEADER);
            let payload = self.buffer.split_to(length).freeze();
            return Some(Frame { kind, session, seq, payload });
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        self.skipped += bytes as u64;
    }
}

fn header(bytes: &[u8]) -> Option<(Kind, usize, u64, u32, u32)> {
    let (covered, mut check) = bytes.split_at(HEADER - 4);
    if crc32fast::hash(covered) != check.get_u32() {
        return None;
    }
    let mut rest = &covered[MAGIC.len()..];
    let kind = Kind::of(rest.get_u8())?;
    rest.advance(1);
    let length = usize::from(rest.get_u16());
    (length <= MAX_PAYLOAD).then(|| (kind, length, rest.get_u64(), rest.get_u32(), rest.get_u32()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame() -> impl Strategy<Value = Frame> {
        (any::<bool>(), any::<u64>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..2000)).prop_map(
            |(hello, session, seq, payload)| Frame {
                kind: if hello { Kind::Hello } else { Kind::Data },
                session,
                seq,
                payload: payload.into(),
            },
        )
    }

    /// Bytes that look like frames as much as random ones can.
    fn garbage() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![Just(0xF5), Just(b's'), Just(b'v'), Just(b'z'), any::<u8>()],
            0..200,
        )
    }

    fn decode(bytes: &[u8], chunk: usize) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for piece in bytes.chunks(chunk) {
            decoder.buffer().extend_from_slice(piece);
            while let Some(frame) = decoder.next_frame() {
                frames.push(frame);
            }
        }
        frames
    }

    proptest! {
        #[test]
        fn frames_come_out_whatever_stands_between_them_and_however_the_bytes_are_cut(
            parts in proptest::collection::vec((garbage(), frame()), 1..8),
            chunk in 1usize..5000,
        ) {
            let mut bytes = BytesMut::new();
            for (garbage, frame) in &parts {
                bytes.extend_from_slice(garbage);
                encode(frame, &mut bytes);
            }
            // Garbage may look like the beginning of a header, but its checksum does not match.
            prop_assert_eq!(decode(&bytes, chunk), parts.into_iter().map(|p| p.1).collect::<Vec<_>>());
        }

        #[test]
        fn a_new_writers_frames_come_out_though_its_predecessor_ended_within_one(
            cut in frame(), keep in 0.0f64..1.0, next in proptest::collection::vec(frame(), 1..4), chunk in 1usize..5000,
        ) {
            let mut bytes = BytesMut::new();
            encode(&cut, &mut bytes);
            bytes.truncate((bytes.len() as f64 * keep) as usize);
            bytes.extend_from_slice(&filler());
            for frame in &next {
                encode(frame, &mut bytes);
            }
            let mut frames = decode(&bytes, chunk);
            if frames.len() > next.len() {
                // What was cut off it were zeros, as the filler is.
                prop_assert_eq!(frames.remove(0), cut);
            }
            prop_assert_eq!(frames, next);
        }

        #[test]
        fn a_changed_byte_costs_that_frame_only(a in frame(), b in frame(), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut bytes = BytesMut::new();
            encode(&a, &mut bytes);
            let i = at.index(bytes.len());
            bytes[i] ^= flip;
            // The header's checksum catches a changed length field, so b is never swallowed.
            encode(&b, &mut bytes);
            let frames = decode(&bytes, 4096);
            // Byte 5 is reserved, but the checksum covers it.
            prop_assert_eq!(frames, vec![b]);
        }
    }

    #[test]
    fn skipped_bytes_are_counted() {
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(b"login: ");
        assert_eq!(decoder.next_frame(), None);
        assert_eq!(decoder.skipped(), 7);
    }
}
