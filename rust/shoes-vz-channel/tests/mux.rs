//! The multiplexer between two ends in one process, each of which is restarted at will.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use shoes_vz_channel::{
    Hello, StreamRequest,
    mux::{Guest, Host, OpenError, Peer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

const LONG: Duration = Duration::from_secs(20);

/// Port 1 echoes until the caller's end, 2 refuses, 3 never answers, 4 drops the request, 5 answers by the caller's end
/// (and only then), 6 says "hi" and waits.
async fn handler(mut request: StreamRequest) {
    let port = request.port();
    match port {
        1 | 5 => {
            let mut stream = request.accept().await.unwrap();
            let (mut bytes, mut buf) = (0u64, vec![0; 8192]);
            let echo = port == 1;
            loop {
                let Ok(n) = stream.read(&mut buf).await else { return };
                if n == 0 {
                    break;
                }
                bytes += n as u64;
                if echo && stream.write_all(&buf[..n]).await.is_err() {
                    return;
                }
            }
            let _ = stream.write_all(format!(" end after {bytes}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        2 => request.refuse("connection to port 2 refused").await.unwrap(),
        3 => request.caller_closed().await,
        4 => {}
        _ => {
            let mut stream = request.accept().await.unwrap();
            stream.write_all(b"hi").await.unwrap();
            std::future::pending::<()>().await;
        }
    }
}

fn guest(io: DuplexStream, start_id: &str) -> JoinHandle<std::io::Result<()>> {
    tokio::spawn(Guest::serve(io, Hello::new("test", start_id), handler))
}

async fn up(host: &Host) -> Hello {
    let mut peer = host.peer();
    let up =
        timeout(LONG, peer.wait_for(|p| matches!(p, Peer::Up(_)))).await.expect("guest up").unwrap().clone();
    match up {
        Peer::Up(hello) => hello,
        Peer::Down => unreachable!(),
    }
}

/// A host and a guest whose ends can be replaced: what is written to one side's pump comes out at the other's.
struct Wire {
    host: tokio::sync::mpsc::Sender<DuplexStream>,
    guest: tokio::sync::mpsc::Sender<DuplexStream>,
    stale: Arc<Notify>,
}

/// Like a virtio-serial port: the wire outlives both ends, and bytes in it survive their restarts.
fn wire() -> Wire {
    let (host, mut hosts) = tokio::sync::mpsc::channel::<DuplexStream>(1);
    let (guest, mut guests) = tokio::sync::mpsc::channel::<DuplexStream>(1);
    let stale = Arc::new(Notify::new());
    let replay = stale.clone();
    tokio::spawn(async move {
        let mut h = hosts.recv().await.unwrap();
        let mut g = guests.recv().await.unwrap();
        let mut to_host_before: Vec<u8> = Vec::new();
        let (mut hb, mut gb) = (vec![0; 3000], vec![0; 3000]);
        let (mut host_there, mut guest_there) = (true, true);
        loop {
            tokio::select! {
                biased;
                Some(new) = hosts.recv() => (h, host_there) = (new, true),
                Some(new) = guests.recv() => (g, guest_there) = (new, true),
                () = replay.notified() => drop(h.write_all(&to_host_before).await),
                // An end that was dropped reads as ended until another replaces it.
                n = h.read(&mut hb), if host_there => match n {
                    Ok(n) if n > 0 => drop(g.write_all(&hb[..n]).await),
                    _ => host_there = false,
                },
                n = g.read(&mut gb), if guest_there => match n {
                    Ok(n) if n > 0 => {
                        to_host_before.extend_from_slice(&gb[..n]);
                        drop(h.write_all(&gb[..n]).await);
                    }
                    _ => guest_there = false,
                },
            }
        }
    });
    Wire { host, guest, stale }
}

impl Wire {
    async fn new_host(&self) -> Host {
        let (a, b) = duplex(64 * 1024);
        self.host.send(b).await.unwrap();
        Host::spawn(a)
    }

    async fn new_guest(&self, start_id: &str) -> JoinHandle<std::io::Result<()>> {
        let (a, b) = duplex(64 * 1024);
        self.guest.send(b).await.unwrap();
        guest(a, start_id)
    }
}

fn pattern(seed: usize, length: usize) -> Bytes {
    (0..length).map(|i| (i.wrapping_mul(31) ^ (i >> 9) ^ seed) as u8).collect()
}

async fn echoed(host: &Host, seed: usize, length: usize) {
    let mut stream = host.open(1).await.unwrap();
    let sent = pattern(seed, length);
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut got = Vec::new();
    let (w, r) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut got)
    );
    w.unwrap();
    r.unwrap();
    let end = format!(" end after {length}");
    assert!(got[..length] == sent[..], "stream {seed} came back changed");
    assert_eq!(&got[length..], end.as_bytes());
}

#[tokio::test]
async fn the_hello_reaches_the_host() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let _guest = guest(b, "start-1");
    assert_eq!(up(&host).await, Hello::new("test", "start-1"));
}

#[tokio::test]
async fn many_streams_carry_megabytes_both_ways_over_a_narrow_wire() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let _guest = guest(b, "s");
    let streams = (0..40).map(|seed| {
        let host = host.clone();
        tokio::spawn(async move { echoed(&host, seed, 1 << 20).await })
    });
    for stream in streams.collect::<Vec<_>>() {
        timeout(LONG * 3, stream).await.expect("no stream is stuck").unwrap();
    }
}

#[tokio::test]
async fn a_refusal_comes_with_the_guests_words() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let _guest = guest(b, "s");
    let error = host.open(2).await.unwrap_err();
    assert_eq!(error.to_string(), "the guest refused a stream to its port 2: connection to port 2 refused");
    assert!(matches!(host.open(4).await.unwrap_err(), OpenError::Dropped { port: 4, .. }));
}

#[tokio::test]
async fn a_callers_leaving_reaches_a_guest_that_has_not_answered_yet() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let left = Arc::new(Notify::new());
    let (seen, asked) = (left.clone(), Arc::new(Notify::new()));
    let tell = asked.clone();
    let _guest = tokio::spawn(Guest::serve(b, Hello::new("t", "s"), move |mut request: StreamRequest| {
        let (seen, tell) = (seen.clone(), tell.clone());
        async move {
            tell.notify_one();
            request.caller_closed().await;
            seen.notify_one();
        }
    }));
    let caller = host.clone();
    let opening = tokio::spawn(async move { caller.open(3).await });
    asked.notified().await;
    opening.abort();
    timeout(LONG, left.notified()).await.expect("the guest hears that its caller left");
}

#[tokio::test]
async fn one_direction_ends_and_the_other_goes_on() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let _guest = guest(b, "s");
    let mut stream = host.open(5).await.unwrap();
    stream.write_all(b"abc").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, " end after 3");
}

#[tokio::test]
async fn a_dropped_stream_is_never_a_clean_end() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let _guest = tokio::spawn(Guest::serve(b, Hello::new("t", "s"), |request: StreamRequest| async move {
        let mut stream = request.accept().await.unwrap();
        stream.write_all(b"half an ans").await.unwrap();
    }));
    let mut stream = host.open(1).await.unwrap();
    let mut got = Vec::new();
    let error = stream.read_to_end(&mut got).await.unwrap_err();
    assert_eq!((got.as_slice(), error.kind()), (&b"half an ans"[..], std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn the_guests_restart_ends_old_streams_with_an_error_and_new_ones_work() {
    let wire = wire();
    let host = wire.new_host().await;
    let first = wire.new_guest("first").await;
    assert_eq!(up(&host).await.start_id, "first");
    let mut old = host.open(6).await.unwrap();
    let mut hi = [0; 2];
    old.read_exact(&mut hi).await.unwrap();
    let waiting = tokio::spawn({
        let host = host.clone();
        async move { host.open(3).await }
    });
    first.abort();
    let _second = wire.new_guest("second").await;
    let error = timeout(LONG, old.read_u8()).await.expect("the old stream ends").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("restarted"), "{error}");
    assert_eq!(up(&host).await.start_id, "second");
    echoed(&host, 1, 100_000).await;
    assert!(
        !waiting.is_finished(),
        "a caller that waits for an answer goes on waiting, with the new guest agent"
    );
}

#[tokio::test]
async fn the_hosts_restart_ends_the_guests_old_streams_and_new_ones_work() {
    let wire = wire();
    let host = wire.new_host().await;
    let _guest = wire.new_guest("g").await;
    up(&host).await;
    let mut old = host.open(1).await.unwrap();
    old.write_all(&pattern(0, 10_000)).await.unwrap();
    drop(host);
    let host = wire.new_host().await;
    up(&host).await;
    echoed(&host, 2, 100_000).await;
}

#[tokio::test]
async fn replayed_bytes_change_nothing() {
    let wire = wire();
    let host = wire.new_host().await;
    let first = wire.new_guest("first").await;
    up(&host).await;
    echoed(&host, 1, 10_000).await;
    first.abort();
    let _second = wire.new_guest("second").await;
    host.peer().wait_for(|p| matches!(p, Peer::Up(h) if h.start_id == "second")).await.unwrap();
    let mut open = host.open(6).await.unwrap();
    let mut hi = [0; 2];
    open.read_exact(&mut hi).await.unwrap();
    wire.stale.notify_one();
    echoed(&host, 3, 100_000).await;
    assert!(matches!(&*host.peer().borrow(), Peer::Up(h) if h.start_id == "second"));
    assert!(timeout(Duration::from_millis(50), open.read_u8()).await.is_err(), "the open stream lives on");
}

#[tokio::test]
async fn garbage_and_lost_bytes_cost_a_session_at_most() {
    let (a, mut wire_h) = duplex(64 * 1024);
    let (b, mut wire_g) = duplex(64 * 1024);
    let host = Host::spawn(a);
    let _guest = guest(b, "g");
    wire_h.write_all(b"Debian GNU/Linux 12 hvc0\r\n\r\nlogin: \xf5svz\x02").await.unwrap();
    wire_g.write_all(&[0xF5; 1000]).await.unwrap();
    let lose = Arc::new(Notify::new());
    let losing = lose.clone();
    tokio::spawn(async move {
        let (mut hb, mut gb, mut drop_next) = (vec![0; 5000], vec![0; 5000], false);
        loop {
            tokio::select! {
                () = losing.notified() => drop_next = true,
                Ok(n) = wire_h.read(&mut hb) => {
                    // One byte of what the host says is lost on the way.
                    let from = usize::from(std::mem::take(&mut drop_next));
                    wire_g.write_all(&hb[from..n]).await.unwrap();
                }
                Ok(n) = wire_g.read(&mut gb) => wire_h.write_all(&gb[..n]).await.unwrap(),
            }
        }
    });
    up(&host).await;
    let mut old = host.open(6).await.unwrap();
    let mut hi = [0; 2];
    old.read_exact(&mut hi).await.unwrap();
    lose.notify_one();
    tokio::task::yield_now().await;
    old.write_all(b"lost").await.unwrap();
    tokio::task::yield_now().await;
    // The next frame shows the gap.
    let _ = old.write_all(b"next").await;
    let mut buf = [0; 1];
    let error = timeout(LONG, async {
        loop {
            if let Err(e) = old.read(&mut buf).await {
                return e;
            }
        }
    });
    assert_eq!(error.await.expect("the broken session ends").kind(), std::io::ErrorKind::ConnectionReset);
    echoed(&host, 4, 50_000).await;
}

#[tokio::test]
async fn the_end_of_the_byte_stream_ends_every_wait_for_a_stream() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let waiting = tokio::spawn({
        let host = host.clone();
        async move { host.open(1).await }
    });
    tokio::task::yield_now().await;
    drop(b);
    let error = timeout(LONG, waiting).await.expect("every wait ends").unwrap().unwrap_err();
    assert!(matches!(error, OpenError::Closed), "{error}");
}

#[tokio::test]
async fn a_round_trip_waits_for_no_timer() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let _guest = guest(b, "s");
    up(&host).await;
    let mut took = Vec::new();
    for seed in 0..51 {
        let before = tokio::time::Instant::now();
        echoed(&host, seed, 100).await;
        took.push(before.elapsed());
    }
    took.sort();
    // The shortest timer there is lasts 50 ms; a busy machine may delay some of the trips, not most.
    assert!(took[25] < Duration::from_millis(25), "{took:?}");
}

#[tokio::test]
async fn a_short_answer_does_not_wait_behind_a_bulk_transfer() {
    let (a, b) = duplex(4096);
    let host = Host::spawn(a);
    let _guest = guest(b, "s");
    let bulk = tokio::spawn({
        let host = host.clone();
        async move { echoed(&host, 7, 16 << 20).await }
    });
    for seed in 0..20 {
        echoed(&host, seed, 10).await;
    }
    assert!(!bulk.is_finished(), "the bulk transfer ended before the short ones: this test showed nothing");
    bulk.await.unwrap();
}

#[tokio::test]
async fn a_guest_that_ended_within_a_frame_does_not_swallow_the_next_ones_hello() {
    use shoes_vz_channel::wire::{Frame, HEADER, Kind, MAX_PAYLOAD, encode};
    let (a, mut wire) = duplex(64 * 1024);
    let host = Host::spawn(a);
    let payload = Bytes::from_static(&[7; MAX_PAYLOAD]);
    let mut cut = bytes::BytesMut::new();
    encode(&Frame { kind: Kind::Data, session: 1, seq: 0, payload }, &mut cut);
    wire.write_all(&cut[..HEADER + 10]).await.unwrap();
    let _guest = guest(wire, "next");
    // Well before enough repeated hellos would have filled the cut frame up.
    let hello = timeout(Duration::from_secs(2), up(&host)).await.expect("received at once");
    assert_eq!(hello.start_id, "next");
}
