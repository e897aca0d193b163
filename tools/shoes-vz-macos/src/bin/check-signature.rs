//! Checks signed programs and bundles for macOS, on any machine. Prints every mistake; the exit code is then 1.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use shoes_vz_macos::signature::{self, Signing, Version, Wanted};

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Check the hashes, signature and entitlements of signed macOS programs and bundles"
)]
struct Args {
    /// Programs (Mach-O) and .app directories
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Oldest macOS version they must run on, as linked (for example 26.0)
    #[arg(long)]
    minos: Version,
    /// Expect programs signed by the linker only: not hardened, without entitlements
    #[arg(long, conflicts_with_all = ["entitlements", "identifier"])]
    linked: bool,
    /// Property list with the exact entitlements they must have
    #[arg(long, required_unless_present = "linked")]
    entitlements: Option<PathBuf>,
    /// Signing identifier they must have
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
