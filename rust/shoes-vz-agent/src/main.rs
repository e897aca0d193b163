//! `shoes-vz-agent`: the host agent, its VM processes, and commands for operators.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::Parser as _;
use shoes_vz_agent::{
    cli::{Cli, Command, TemplateCommand, with_default_command},
    commands, run,
    settings::Settings,
    template, warm,
};
use shoes_vz_process::{
    USAGE, log, say,
    settings::{Mistakes, Values, command_line},
};
use shoes_vz_vm::{process, template::TemplateDir};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // First of all: these two are not the agent.
    match args.get(1).and_then(|a| a.to_str()) {
        Some("exec-with-parent") => return process::exec_with_parent(args.into_iter().skip(2)),
        Some("vm") => return vm(args),
        _ => {}
    }
    let (cli, mistakes) = match command_line::read::<Cli>(with_default_command(args)) {
        Ok(read) => read,
        Err(error) => return command_line::explain(&error),
    };
    let is_exec = matches!(cli.command, Command::Exec(_));
    match runtime(tokio::runtime::Builder::new_multi_thread(), dispatch(cli.command, mistakes)) {
        Ok(code) => code,
        Err(error) => {
            say(format_args!("shoes-vz-agent: {error:#}"));
            ExitCode::from(match error.is::<Mistakes>() {
                _ if is_exec => commands::exec::NOT_RUN,
                true => USAGE,
                false => 1,
            })
        }
    }
}

/// In one thread: the hypervisor ends with the thread that started it, and this one lives as long as the process.
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
    // AppKit takes over the first thread, and never returns from it.
    let vm = std::thread::Builder::new()
        .name("vm".into())
        .spawn(move || std::process::exit(i32::from(run() != ExitCode::SUCCESS)));
    if let Err(error) = vm {
        say(format_args!("shoes-vz-agent: starting the thread of the VM failed: {error}"));
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
    // No task has to finish: VMs run in separate processes.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command, mistakes: Mistakes) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(flags) => return serve(Values::gather(&flags, std::env::vars_os(), mistakes)).await,
        Command::Template { command: TemplateCommand::Warm(flags) } => {
            let values = Values::gather(&flags, std::env::vars_os(), mistakes);
            warm::run(Settings::check(values)?).await?
        }
        _ if !mistakes.0.is_empty() => return Err(mistakes.into()),
        Command::List(args) => commands::list::run(&args).await?,
        Command::Start(args) => commands::power::start(&args).await?,
        Command::Stop(args) => commands::power::stop(&args).await?,
        Command::Delete(args) => commands::power::delete(&args).await?,
        Command::Exec(args) => return Ok(commands::exec::run(&args).await?.into()),
        Command::Template { command: TemplateCommand::BuildLinux(args) } => {
            template::build::run(*args).await?
        }
        Command::Template { command: TemplateCommand::InstallMacos(args) } => {
            template::install::run(*args).await?
        }
        Command::Template { command: TemplateCommand::RestoreImage { ipsw } } => {
            template::install::show_restore_image(ipsw.as_deref()).await?
        }
        Command::Template { command: TemplateCommand::Check { path } } => {
            let checked = TemplateDir::open(&path)?;
            let os = checked.meta.os.as_str();
            commands::print(&format!("the template {:?} ({os}) is valid", checked.name))?;
        }
        Command::Vm { .. } | Command::ExecWithParent { .. } => {
            anyhow::bail!("this subcommand must be the first argument")
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(mut values: Values) -> anyhow::Result<ExitCode> {
    let (filter, format) = values.log();
    let settings = Settings::check(values)?;
    let _log = log::start(&filter, format, log::Writer::Service);
    match run::run(settings).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(reason = format!("{error:#}"), "agent failed");
            Ok(ExitCode::FAILURE)
        }
    }
}
