//! Compares every SDK symbol VZCore and the stand-ins use with facts from the SDK; exit code 1 if one differs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use shoes_vz_macos::api::compiler::{self, Compiled};
use shoes_vz_macos::api::declaration::Access;
use shoes_vz_macos::api::facts::Facts;
use shoes_vz_macos::api::{self, Report};

/// Compares every SDK symbol VZCore and the stand-ins use with facts from the SDK.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Root directory of the repository
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Directory with the compiler's lists of the stand-ins' symbols and of those VZCore uses, to compare with
    /// (scripts/api-check.sh creates it)
    #[arg(long)]
    compiler: Option<PathBuf>,
    /// Print every compared declaration: place, SDK symbol and macOS version, Swift type, Swift declaration
    #[arg(long)]
    list: bool,
    /// Print the declarations that VZCore does not use
    #[arg(long)]
    unused: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut report = api::check(&arguments.root)
        .with_context(|| format!("comparing the sources in {}", arguments.root.display()))?;
    let mut compiled = None;
    if let Some(directory) = &arguments.compiler {
        let lists = compiler::compare(&Facts::built_in()?, directory, &report.declarations)
            .with_context(|| format!("comparing with the compiler's lists in {}", directory.display()))?;
        report.findings.extend(lists.findings.iter().cloned());
        compiled = Some(lists);
    }
    if arguments.list {
        for it in report.declarations.iter().filter(|it| it.access == Access::Public) {
            let symbol = it.annotations.first().map_or("-", |annotation| annotation.text.as_str());
            let owner = if it.owner.is_empty() { "-" } else { &it.owner };
            println!("{}\t{symbol}\t{owner}\t{it}", it.place);
        }
    }
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
    if arguments.unused {
        for unused in &report.usage.unused {
            println!("unused: {unused}");
        }
    }
    for finding in &report.findings {
        println!("error: {finding}");
    }
    summary(&report, compiled.as_ref());
    Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn summary(report: &Report, compiled: Option<&Compiled>) {
    let counts = &report.counts;
    let percent =
        if counts.public == 0 { 0.0 } else { 100.0 * counts.compared as f64 / counts.public as f64 };
    println!(
        "public declarations of the stand-ins: {}, right: {} ({percent:.1} %)",
        counts.public, counts.compared
    );
    let kinds: Vec<String> = counts.symbols.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("SDK symbols: {}", kinds.join(", "));
    println!(
        "known to PyObjC and objc2: {}, to one package: {}, to facts/by-hand.tsv alone: {}",
        counts.in_both, counts.in_one, counts.by_hand
    );
    println!("the same as documented: {}; for tests only (@_spi): {}", counts.documented, counts.spi);
    if let Some(lists) = compiled {
        println!(
            "by the compiler: {} public symbols; VZCore uses {} of them, and {} of the C library",
            lists.public, lists.used, lists.of_libc
        );
    }
    let usage = &report.usage;
    println!(
        "VZCore uses {} of {} declarations (by name); {} are unused",
        usage.used,
        usage.declared,
        usage.unused.len()
    );
    println!("{} wrong, {} warnings", report.findings.len(), report.warnings.len());
}
