//! Checks signed programs and bundles for macOS, on any machine. Every mistake is told, and the exit code is 1.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use shoes_vz_macos::signature::{self, Signing, Version, Wanted};

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Hashes signed macOS programs and bundles again, and compares them with what was asked"
)]
struct Args {
    /// Programs (Mach-O) and .app directories
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The oldest macOS they must run on, as linked
    #[arg(long)]
    minos: Version,
    /// Programs as the linker leaves them: signed by it, not hardened, without entitlements
    #[arg(long, conflicts_with_all = ["entitlements", "identifier"])]
    linked: bool,
    /// The property list of the entitlements they must have, exactly
    #[arg(long, required_unless_present = "linked")]
    entitlements: Option<PathBuf>,
    /// The identifier they must be signed as
    #[arg(long)]
    identifier: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let signing = match &args.entitlements {
        None => Signing::Linker,
        Some(file) => Signing::Hardened {
            identifier: args.identifier.clone(),
            entitlements: signature::read_entitlements(file)?,
        },
    };
    let wanted = Wanted { minos: args.minos, signing };
    let mut code = ExitCode::SUCCESS;
    for path in &args.paths {
        match signature::check(path, &wanted) {
            Ok(report) => println!("{report}"),
            Err(mistakes) => {
                eprintln!("{mistakes}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
