//! `shoes-vz-agent`: the host agent, its VM processes, and the operator's commands.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::Parser as _;
use shoes_vz_agent::{
    cli::{Cli, Command, RunArgs, TemplateCommand, from_go},
    commands, run,
    settings::{LogFormat, Raw, Settings, log_format},
    template_build, template_install, warm,
};
use shoes_vz_vm::{process, template::TemplateDir};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before anything else of ours is: these two are not the agent.
    match args.get(1).and_then(|a| a.to_str()) {
        Some("exec-with-parent") => return process::exec_with_parent(args.into_iter().skip(2)),
        Some("vm") => return vm(args),
        _ => {}
    }
    let cli = match Cli::try_parse_from(from_go(args)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let is_exec = matches!(cli.command, Command::Exec(_));
    match runtime(tokio::runtime::Builder::new_multi_thread(), dispatch(cli.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shoes-vz-agent: {error:#}");
            ExitCode::from(if is_exec { commands::exec::OWN_FAILURE } else { 1 })
        }
    }
}

/// One thread: the hypervisor dies with the thread that started it, and this one lives as long as the process.
fn vm(args: Vec<OsString>) -> ExitCode {
    let bundle: PathBuf = match Cli::try_parse_from(args) {
        Ok(Cli { command: Command::Vm { bundle } }) => bundle,
        Ok(_) => return ExitCode::from(2),
        Err(error) => error.exit(),
    };
    let window = process::needs_main_loop(&bundle);
    let run = move || {
        let body = async { Ok(process::run(&bundle).await) };
        runtime(tokio::runtime::Builder::new_current_thread(), body).unwrap_or(ExitCode::FAILURE)
    };
    if !window {
        return run();
    }
    // AppKit wants the first thread for itself, and never gives it back.
    let vm = std::thread::Builder::new()
        .name("vm".into())
        .spawn(move || std::process::exit(i32::from(run() != ExitCode::SUCCESS)));
    if let Err(error) = vm {
        eprintln!("shoes-vz-agent: starting the VM's thread: {error}");
        return ExitCode::FAILURE;
    }
    process::main_loop();
    ExitCode::FAILURE
}

fn runtime(
    mut builder: tokio::runtime::Builder,
    body: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(body);
    // Nothing that still runs is worth waiting for: VMs live in processes of their own.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => serve(&args).await?,
        Command::List(args) => commands::list::run(&args).await?,
        Command::Start(args) => commands::power::start(&args).await?,
        Command::Stop(args) => commands::power::stop(&args).await?,
        Command::Delete(args) => commands::power::delete(&args).await?,
        Command::Exec(args) => return Ok(commands::exec::run(&args).await?.into()),
        Command::Template { command: TemplateCommand::BuildLinux(args) } => {
            template_build::run(*args).await?
        }
        Command::Template { command: TemplateCommand::InstallMacos(args) } => {
            template_install::run(*args).await?
        }
        Command::Template { command: TemplateCommand::RestoreImage { ipsw } } => {
            template_install::look(ipsw.as_deref()).await?
        }
        Command::Template { command: TemplateCommand::Warm(args) } => {
            warm::run(Settings::check(&Raw::of_run(&args))?).await?
        }
        Command::Template { command: TemplateCommand::Check { path } } => {
            let template = TemplateDir::open(&path)?;
            let os = template.meta.os.as_str();
            commands::print(&format!("the template {:?} ({os}) has all it needs", template.name))?;
        }
        Command::Vm { .. } | Command::ExecWithParent { .. } => {
            anyhow::bail!("this subcommand must be the first argument")
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &RunArgs) -> anyhow::Result<()> {
    let raw = Raw::of_run(args);
    log_to_stdout(log_format(&raw).unwrap_or(LogFormat::Text));
    run::run(Settings::check(&raw)?).await
}

fn log_to_stdout(format: LogFormat) {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stdout())).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
