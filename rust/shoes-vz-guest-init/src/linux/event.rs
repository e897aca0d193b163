//! What the owner of the services acts on.

use std::{fs::File, process::Command, sync::mpsc};

use nix::unistd::Pid;

use crate::control::PowerAction;

pub(super) enum Event {
    /// A child exited, and how.
    Exited(Pid, String),
    NoChildren,
    /// The guest agent can open the guest channel's device.
    PortReady,
    SshdListens,
    /// Runs a program once, under this name.
    RunOnce(&'static str, Command),
    /// Starts a standby sshd, up to the point where it would read its host key.
    PrepareSshd(Reply),
    /// The standby sshd waits there; writing to this file lets it continue.
    SshdAtGate(File),
    /// There is a new host key: the standby sshd, or a new one, replaces sshd.
    ReplaceSshd(Reply),
    End(PowerAction),
}

/// Where the result of a request goes: nothing, or the reason why it failed.
pub(super) type Reply = mpsc::Sender<Result<(), String>>;
