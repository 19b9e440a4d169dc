//! The `keyfence` binary: log, settings, runtime, then one of the library's commands; and the exit status.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin, stdout},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
};

use tokio::runtime::{Builder, LocalOptions};

use keyfence::{
    adopt, check,
    cli::{self, Command, EXIT_USAGE, Format},
    command::render,
    config::{Config, DEFAULT_FILE, Tenant, environment},
    crash, explain, log, purge, server,
    tenant::password,
    walk,
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
    if let Command::Completions { shell } = command {
        say(&String::from_utf8_lossy(&cli::completions(shell)));
        return ExitCode::SUCCESS;
    }
    if command == Command::Man {
        say(&String::from_utf8_lossy(&cli::manual()));
        return ExitCode::SUCCESS;
    }
    if let Command::HashPassword { sha256 } = command {
        return match read_password()
            .and_then(|given| if sha256 { Ok(password::sha256_of(&given)) } else { password::argon2id(&given) })
        {
            Ok(hash) => {
                say(&(hash + "\n"));
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain(&format!("keyfence: {error}"));
                ExitCode::from(EXIT_USAGE)
            }
        };
    }
    let config = match Config::load(&overrides, environment()) {
        Ok(config) => config,
        Err(error) => {
            complain(&format!("keyfence: {error}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match command {
        Command::Explain { tenant, command } => {
            let Some(name) = tenant.as_deref().or_else(|| config.unnamed_tenant()) else {
                complain("keyfence: whose command? There are tenants in the settings: name one with --tenant");
                return ExitCode::from(EXIT_USAGE);
            };
            match config.tenant(name) {
                Ok(tenant) => {
                    let words: Vec<Vec<u8>> = command.into_iter().map(|w| w.into_vec()).collect();
                    say(&explain::explain(&tenant, &words));
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    complain(&format!("keyfence: {error}"));
                    ExitCode::from(EXIT_USAGE)
                }
            }
        }
        Command::Check => on_runtime(async {
            let (target, child) =
                server::upstream(&config.upstream, None).await.map_err(|e| status(&e, EXIT_UNAVAILABLE))?;
            let report = check::report(&config, &target).await;
            if let Some(child) = child {
                let (stop, stopping) = tokio::sync::watch::channel(true);
                child.supervise(stopping).await;
                drop(stop);
            }
            say(&report.map_err(|e| (EXIT_UNAVAILABLE, e))?);
            Ok(())
        }),
        Command::Adopt { tenant, pattern, dry_run } => on_tenant(&config, &tenant, async |tenant| {
            if tenant.prefix.is_none() {
                return Err((
                    EXIT_USAGE,
                    format!("tenant '{}' has no prefix: the keys there are its own", tenant.name),
                ));
            }
            adopt::adopt(&config, &tenant, pattern.as_bytes(), dry_run).await.map_err(|e| status(&e, EXIT_UNAVAILABLE))
        }),
        Command::Purge { tenant } => on_tenant(&config, &tenant, async |tenant| {
            purge::purge(&config, &tenant).await.map_err(|e| status(&e, EXIT_UNAVAILABLE))
        }),
        Command::Run
        | Command::Commands { .. }
        | Command::Completions { .. }
        | Command::Man
        | Command::HashPassword { .. } => {
            let given = match server::Inherited::from_env() {
                Ok(given) => given,
                Err(error) => {
                    complain(&format!("keyfence: {error}"));
                    return ExitCode::from(EXIT_USAGE);
                }
            };
            let lost = Arc::<AtomicU64>::default();
            let log = match log::start(config.log, Arc::clone(&lost)) {
                Ok(log) => log,
                Err(error) => {
                    complain(&format!("keyfence: no log: {error}"));
                    return ExitCode::FAILURE;
                }
            };
            crash::end_on_panic(log.clone());
            config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            let file = overrides.config.clone().or_else(|| Some(DEFAULT_FILE.into()).filter(|f: &PathBuf| f.exists()));
            let again = || Config::load(&overrides, environment()).map_err(|e| e.to_string());
            let outcome = run_on_runtime(async {
                server::run(config, file, lost, given, again).await.map_err(|e| status(&e, 1))
            });
            log.finish();
            told(outcome)
        }
    }
}

/// Does `work` on the tenant of this name, and tells what came of it.
fn on_tenant(
    config: &Config,
    name: &str,
    work: impl AsyncFnOnce(Tenant) -> Result<walk::Report, (u8, String)>,
) -> ExitCode {
    on_runtime(async {
        let report = work(config.tenant(name).map_err(|e| (EXIT_USAGE, e))?).await?;
        report.notes.iter().for_each(|note| complain(note));
        say(&(report.summary + "\n"));
        Ok(())
    })
}

/// One line of standard input; asked for, and not shown, at a terminal.
fn read_password() -> Result<Vec<u8>, String> {
    let mut given = Vec::new();
    if stdin().is_terminal() {
        complain("password:");
        given = rpassword::read_password().map_err(|e| format!("no password could be read: {e}"))?.into_bytes();
    } else {
        stdin().lock().read_until(b'\n', &mut given).map_err(|e| format!("no password could be read: {e}"))?;
        if given.pop_if(|c| *c == b'\n').is_some() {
            given.pop_if(|c| *c == b'\r');
        }
    }
    if given.is_empty() { Err("no password on standard input".into()) } else { Ok(given) }
}

/// Runs `work` and turns its end into an exit status.
fn on_runtime(work: impl Future<Output = Result<(), (u8, String)>>) -> ExitCode {
    told(run_on_runtime(work))
}

fn run_on_runtime(work: impl Future<Output = Result<(), (u8, String)>>) -> Result<(), (u8, String)> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.map_err(|error| (1, format!("no runtime: {error}")))?.block_on(work)
}

/// The exit status of a failure, and what is said of it; `other` is that of one that is not the settings'.
fn status(failure: &server::Failure, other: u8) -> (u8, String) {
    let status = if matches!(failure, server::Failure::Settings(_)) { EXIT_USAGE } else { other };
    (status, failure.to_string())
}

/// The exit status of an outcome, which is said if it is none to be glad of.
fn told(outcome: Result<(), (u8, String)>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, text)) => {
            complain(&format!("keyfence: {text}"));
            ExitCode::from(status)
        }
    }
}

/// Standard output may be a closed pipe; then nobody listens.
fn say(text: &str) {
    let _ = stdout().lock().write_all(text.as_bytes());
}

fn complain(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}
