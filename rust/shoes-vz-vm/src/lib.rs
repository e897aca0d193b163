//! One VM in one process: what the agent needs to make, start, watch and end a VM, and the process that runs it.
//!
//! ```text
//! agent                                           VM process (same binary, separate session, cwd = bundle)
//! template::TemplateDir ─▶ clone::make_bundle ─▶  process::run ─▶ hypervisor::{qemu, vz} ─▶ the guest
//! client::Vm ── vm.sock (gRPC VmService) ──────▶  process::service ─▶ process::owner (one task)
//! shoes_vz_channel::socket ── guest.sock ──────▶  mux over the guest channel ─▶ the guest agent
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod template;

pub mod saved;
pub mod spec;

pub mod clone;

pub mod client;

pub mod process;

pub mod hypervisor;

#[cfg(target_os = "linux")]
pub mod accel;

#[cfg(target_os = "linux")]
mod arch;
mod end;
mod output;
mod qcow2;
mod temporary;

pub use end::{End, EndKind};
