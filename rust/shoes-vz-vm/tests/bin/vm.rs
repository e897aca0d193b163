//! Test equipment: what `shoes-vz-agent`'s two hidden subcommands do, without the agent.

use std::{env, ffi::OsString, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    match args.next().as_deref().and_then(|a| a.to_str()) {
        Some("exec-with-parent") => shoes_vz_vm::process::exec_with_parent(args),
        Some("vm") => {
            let rest: Vec<OsString> = args.collect();
            let [_, bundle] = rest.as_slice() else {
                eprintln!("usage: shoes-vz-vm-test vm --bundle DIR");
                return ExitCode::from(2);
            };
            match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
                Ok(runtime) => runtime.block_on(shoes_vz_vm::process::run(Path::new(bundle))),
                Err(e) => {
                    eprintln!("no runtime: {e}");
                    ExitCode::FAILURE
                }
            }
        }
        other => {
            eprintln!("unknown subcommand {other:?}");
            ExitCode::from(2)
        }
    }
}
