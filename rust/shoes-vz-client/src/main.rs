//! The plugin when myshoes starts it, otherwise the operator's command line.

use std::process::ExitCode;

use shoes_vz_client::{cli, goplugin, plugin};
use shoes_vz_terminal::output::note;

fn main() -> ExitCode {
    // One thread: a plugin makes one call, and its handshake line is due within milliseconds.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            note(&format!("shoes-vz-client: starting the async runtime failed: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let env = |name: &str| std::env::var(name).ok();
    let code = match goplugin::Settings::from_env(plugin::HANDSHAKE, env) {
        Some(settings) => runtime.block_on(plugin::run(settings, std::env::vars_os())),
        None => runtime.block_on(cli::run(std::env::args_os())),
    };
    // A blocked read of stdin must not delay the exit.
    runtime.shutdown_background();
    code
}
