//! The `keyfence` binary: log, settings, runtime, then one of the library's commands; and the exit status.

use std::{
    io::{IsTerminal as _, Write as _, stderr, stdout},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
    process::ExitCode,
};

use tokio::runtime::{Builder, LocalOptions};

use keyfence::{
    check,
    cli::{self, Command, EXIT_USAGE, Format},
    command::render,
    config::{Config, DEFAULT_FILE, LogFormat, environment},
    explain, server,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The upstream cannot be reached, for commands that need it.
const EXIT_UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    let (command, overrides) = match cli::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(exit) => {
            if exit.status == 0 {
                say(&exit.text);
            } else {
                complain(exit.text.trim_end());
            }
            return ExitCode::from(exit.status);
        }
    };
    if let Command::Commands { format } = command {
        say(&match format {
            Format::Text => render::text(),
            Format::Json => render::json(),
            Format::Markdown => render::markdown(),
        });
        return ExitCode::SUCCESS;
    }
    let config = match Config::load(&overrides, environment()) {
        Ok(config) => config,
        Err(error) => {
            complain(&format!("keyfence: {error}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match command {
        Command::Explain { tenant: Some(tenant), .. } => {
            complain(&format!("keyfence: no tenant '{tenant}': the settings have no [tenants]"));
            ExitCode::from(EXIT_USAGE)
        }
        Command::Explain { command, .. } => {
            let words: Vec<Vec<u8>> = command.into_iter().map(|w| w.into_vec()).collect();
            say(&explain::explain(&config, &words));
            ExitCode::SUCCESS
        }
        Command::Check => on_runtime(async {
            let (target, child) = server::upstream(&config.upstream).await.map_err(|e| (EXIT_UNAVAILABLE, e))?;
            let report = check::report(&config, &target).await;
            if let Some(child) = child {
                let (stop, stopping) = tokio::sync::watch::channel(true);
                child.supervise(stopping).await;
                drop(stop);
            }
            say(&report.map_err(|e| (EXIT_UNAVAILABLE, e))?);
            Ok(())
        }),
        Command::Run | Command::Commands { .. } => {
            start_log(&config);
            config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            let file = overrides.config.clone().or_else(|| Some(DEFAULT_FILE.into()).filter(|f: &PathBuf| f.exists()));
            let again = || Config::load(&overrides, environment()).map_err(|e| e.to_string());
            on_runtime(async { server::run(config, file, again).await.map_err(|e| (1, e)) })
        }
    }
}

/// Runs `work` and turns its end into an exit status.
fn on_runtime(work: impl Future<Output = Result<(), (u8, String)>>) -> ExitCode {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("keyfence: no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, text)) => {
            complain(&format!("keyfence: {text}"));
            ExitCode::from(status)
        }
    }
}

fn start_log(config: &Config) {
    let log = tracing_subscriber::fmt().with_max_level(config.log.level).with_writer(stderr).with_target(false);
    match config.log.format {
        LogFormat::Json => log.json().init(),
        LogFormat::Text => log.with_ansi(stderr().is_terminal()).init(),
    }
}

/// Standard output may be a closed pipe; then nobody listens.
fn say(text: &str) {
    let _ = stdout().lock().write_all(text.as_bytes());
}

fn complain(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}
