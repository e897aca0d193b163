//! `exec`: a program in a guest, its output and exit code handed on.

use std::io::Write as _;

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use shoes_vz_model::{
    bundle::file,
    guest::{ExecRequest, ExecResponse},
};
use shoes_vz_terminal::{
    output::{is_read_enough, note},
    text,
};
use shoes_vz_vm::client::Vm;

use crate::{cli::ExecArgs, guest, settings};

/// Exit code when the program never ran, as `env`, `timeout` and `docker` have it.
pub const OWN_FAILURE: u8 = 125;
/// Exit code when the guest could not start the program.
const NOT_STARTED: u8 = 127;

/// Runs it, and gives its exit code.
pub async fn run(args: &ExecArgs) -> anyhow::Result<u8> {
    let bundle = super::bundle(settings::of(&args.place), &args.id)?;
    let vm = Vm::adopt(&bundle.path).await?;
    anyhow::ensure!(
        vm.is_some(),
        "the VM {} is not running; `shoes-vz-agent start {0}` boots it",
        bundle.runner
    );
    let spec = super::spec(&bundle.path)?;
    let ip =
        bundle.metadata().context("reading RuntimeMetadata.json")?.and_then(|m| m.ip_address.parse().ok());
    let (command, rest) = args.command.split_first().context("no program was given")?;
    let request = ExecRequest {
        command: command.clone(),
        args: rest.to_vec(),
        timeout_seconds: args.timeout.as_secs(),
    };
    let done = guest::exec(spec.transport, &bundle.file(file::GUEST_SOCKET), ip, request).await?;
    // Byte for byte, as `ssh` does: what the program prints is its operator's own doing.
    let mut out = std::io::stdout().lock();
    match out.write_all(&output(&done)?).and_then(|()| out.flush()) {
        Err(error) if !is_read_enough(&error) => return Err(error).context("writing the program's output"),
        _ => drop(out),
    }
    if !done.error.is_empty() {
        note(&text::indented(&format!("{command}: {}", done.error), "    "));
    }
    Ok(exit_code(done.exit_code))
}

/// The bytes as they came, where they are not what the text says.
fn output(done: &ExecResponse) -> anyhow::Result<Vec<u8>> {
    match done.output_base64.as_str() {
        "" => Ok(done.output.clone().into_bytes()),
        exact => STANDARD.decode(exact).context("the guest agent's output_base64 is no base64"),
    }
}

fn exit_code(code: i32) -> u8 {
    match code {
        -1 => NOT_STARTED,
        code => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_is_no_text_comes_through_byte_for_byte() {
        let done = ExecResponse {
            output: "\u{fffd}".into(),
            output_base64: "/w==".into(),
            ..ExecResponse::default()
        };
        assert_eq!(output(&done).unwrap(), [0xff]);
        let plain = ExecResponse { output: "x\n".into(), ..ExecResponse::default() };
        assert_eq!(output(&plain).unwrap(), b"x\n");
    }

    #[test]
    fn exit_codes_are_handed_on_and_a_program_never_started_is_127() {
        assert_eq!([0, 7, 137, -1].map(exit_code), [0, 7, 137, 127]);
    }
}
