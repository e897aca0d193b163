//! `exec`: runs a program in a guest, and returns its output and exit code.

use std::io::Write as _;

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use shoes_vz_model::{
    bundle::file,
    guest::{ExecRequest, ExecResponse},
};
use shoes_vz_terminal::{
    output::{is_reader_closed, note},
    text,
};
use shoes_vz_vm::client::Vm;

use crate::{cli::ExecArgs, guest, settings};

/// Exit code if the program could not be run, as in `env`, `timeout` and `docker`.
pub const NOT_RUN: u8 = 125;
/// Exit code if the guest could not start the program.
const NOT_STARTED: u8 = 127;

/// Returns the exit code of the program.
pub async fn run(args: &ExecArgs) -> anyhow::Result<u8> {
    let bundle = super::bundle(settings::gather(&args.host), &args.id)?;
    let vm = Vm::adopt(&bundle.path).await?;
    anyhow::ensure!(
        vm.is_some(),
        "the VM {} is not running; `shoes-vz-agent start {0}` boots it",
        bundle.runner
    );
    let spec = super::spec(&bundle.path)?;
    let ip = bundle
        .metadata()
        .context("cannot read RuntimeMetadata.json")?
        .and_then(|m| m.ip_address.parse().ok());
    let (command, rest) = args.command.split_first().context("no program was given")?;
    let request = ExecRequest {
        command: command.clone(),
        args: rest.to_vec(),
        timeout_seconds: args.timeout.as_secs(),
    };
    let done = guest::exec(spec.transport, &bundle.file(file::GUEST_SOCKET), ip, request).await?;
    // Byte for byte, as `ssh` does: control characters included, since the operator chose the program.
    let mut out = std::io::stdout().lock();
    match out.write_all(&output(&done)?).and_then(|()| out.flush()) {
        Err(error) if !is_reader_closed(&error) => {
            return Err(error).context("cannot write the program's output");
        }
        _ => drop(out),
    }
    if !done.error.is_empty() {
        note(&text::indented(&format!("{command}: {}", done.error), "    "));
    }
    Ok(exit_code(done.exit_code))
}

/// The exact bytes, where they are not valid UTF-8.
fn output(done: &ExecResponse) -> anyhow::Result<Vec<u8>> {
    match done.output_base64.as_str() {
        "" => Ok(done.output.clone().into_bytes()),
        exact => STANDARD.decode(exact).context("output_base64 from the guest agent is not valid base64"),
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
    fn output_that_is_not_text_arrives_byte_for_byte() {
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
    fn exit_codes_are_returned_and_a_program_that_did_not_start_is_127() {
        assert_eq!([0, 7, 137, -1].map(exit_code), [0, 7, 137, 127]);
    }
}
