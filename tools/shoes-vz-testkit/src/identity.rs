//! The identity of a guest: values that no two guests may share, read inside the guest and from its SSH greeting.

use std::collections::BTreeMap;

use shoes_vz_channel::{api::GuestApi, socket};
use shoes_vz_model::guest::{ExecRequest, port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fleet::Fleet;

/// The values of one guest, by name.
pub type Traits = BTreeMap<&'static str, String>;

/// Prints one trait per line. Random numbers come from new processes, from a running shell, and from the kernel.
const PRINT_TRAITS: &str = r#"
echo machine-id=$(cat /etc/machine-id)
echo boot-id=$(cat /proc/sys/kernel/random/boot_id)
echo urandom=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
echo uuid=$(cat /proc/sys/kernel/random/uuid)
echo mac=$(cat /sys/class/net/eth0/address 2> /dev/null)
echo ssh-host-key=$(ssh-keyscan -t ed25519 127.0.0.1 2> /dev/null | cut -d' ' -f3)
echo openssh=$(ssh-keygen -q -t ed25519 -N '' -f /tmp/k-$$ && cut -d' ' -f2 /tmp/k-$$.pub; rm -f /tmp/k-$$*)
"#;

/// The traits of the guest of a runner.
///
/// # Panics
/// When it does not answer.
pub async fn traits_of(fleet: &Fleet, runner_id: &str) -> Traits {
    let socket = fleet.runners_path().join(format!("{runner_id}.bundle/guest.sock"));
    let api = GuestApi::new(&socket);
    let request = ExecRequest {
        command: "/bin/bash".into(),
        args: vec!["-c".into(), PRINT_TRAITS.into()],
        timeout_seconds: 60,
    };
    let printed = api.exec(request).await.expect("the guest runs a program");
    assert_eq!(printed.exit_code, 0, "{printed:?}");
    let names = ["machine-id", "boot-id", "urandom", "uuid", "mac", "ssh-host-key", "openssh"];
    let value = |name: &str| {
        let begin = format!("{name}=");
        printed.output.lines().find_map(|l| l.strip_prefix(&begin)).unwrap_or_default().to_owned()
    };
    let mut traits: Traits = names.into_iter().map(|name| (name, value(name))).collect();
    traits.insert("agent-start", api.status().await.expect("its state").agent_start);
    // Sixteen bytes from sshd's random generator, which also makes its session keys (RFC 4253, 7.1).
    traits.insert("sshd-random", sshd_random(&socket).await);
    traits
}

/// The random cookie in the first message of sshd.
async fn sshd_random(guest_socket: &std::path::Path) -> String {
    let mut stream = socket::dial(guest_socket, port::SSH).await.expect("sshd is reached");
    stream.write_all(b"SSH-2.0-identity\r\n").await.expect("sshd listens");
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.expect("a banner"));
    }
    // packet_length, padding_length, SSH_MSG_KEXINIT, cookie
    let mut head = [0; 22];
    stream.read_exact(&mut head).await.expect("a first packet");
    assert_eq!(head[5], 20, "it is SSH_MSG_KEXINIT");
    head[6..22].iter().map(|b| format!("{b:02x}")).collect()
}

/// A line for each trait that two guests share, except those in `allowed`.
pub fn shared_traits(guests: &[(String, Traits)], allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, (name, traits)) in guests.iter().enumerate() {
        for (other, others) in &guests[at + 1..] {
            for (what, value) in traits.iter().filter(|(what, _)| !allowed.contains(what)) {
                if value.is_empty() {
                    found.push(format!("{name} has no {what}"));
                } else if others.get(what) == Some(value) {
                    found.push(format!("{name} and {other} have the same {what}: {value}"));
                }
            }
        }
    }
    found
}
