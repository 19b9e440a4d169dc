//! The command line: what may be typed, and what it says about settings. Nothing but this file, its `man.rs` and `main.rs` names clap.

mod man;

use crate::config::CliOverrides;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::PathBuf;

/// Exit status for bad settings or arguments.
pub const EXIT_USAGE: u8 = 64;

/// A Redis protocol-compatible proxy that gives every tenant a private Redis behind one key prefix.
#[derive(Debug, Parser)]
#[command(name = "keyfence", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

/// What keyfence can be told to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve clients (also without a subcommand)
    Run,
    /// Check the settings and the upstream, print what will and will not work, serve nothing
    Check,
    /// Show what would be done with a command: its class, what is sent upstream, or why it is refused
    Explain {
        /// The tenant that sends it; without tenants, leave it out
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
        /// The command and its arguments, after `--`
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Read a password from standard input and print its hash for the settings
    HashPassword {
        /// A SHA-256 instead of argon2id: no work to check, so for long random passwords only
        #[arg(long)]
        sha256: bool,
    },
    /// Move keys that exist upstream already into a tenant's prefix; never overwrites
    Adopt {
        /// Whose they shall be; without tenants, `default`
        #[arg(long, value_name = "T")]
        tenant: String,
        /// Which, by their names upstream
        #[arg(long = "match", value_name = "GLOB", allow_hyphen_values = true)]
        pattern: OsString,
        /// Count them, move nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete everything a tenant has, in all its databases; does not ask
    Purge {
        /// Whose keys; without tenants, `default`
        #[arg(long, value_name = "T")]
        tenant: String,
    },
    /// Print the table of commands as implemented
    Commands {
        /// How to print it
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Print what a shell needs to complete these words
    Completions {
        /// Which shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page keyfence(1), as roff
    Man,
}

/// What `shell` needs to complete the command line, to be put where it looks for such files.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keyfence", &mut script);
    script
}

/// The manual page keyfence(1), to be put where `man` looks for such files, or into `man -l`.
pub fn manual() -> Vec<u8> {
    let mut page = Vec::new();
    // A vector takes every byte.
    let _ = man::render(Cli::command(), &mut page);
    page
}

/// How the table of commands is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns
    Text,
    /// One JSON document
    Json,
    /// A Markdown table
    Markdown,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Settings (each goes before the environment and the file)")]
struct Settings {
    /// The settings file [default: ./config.toml if it is there]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect: host:port, unix:/path or tls:host:port; may be repeated
    #[arg(long, global = true, value_name = "ADDR")]
    listen: Vec<String>,
    /// The Redis behind: redis://host:port/db, rediss://, unix:///path or "managed"
    #[arg(long, global = true, value_name = "URL")]
    upstream: Option<String>,
    /// What every key begins with upstream
    #[arg(long, global = true, value_name = "P")]
    prefix: Option<String>,
    /// Worker threads; 0: one per core
    #[arg(long, global = true, value_name = "N", allow_hyphen_values = true)]
    workers: Option<String>,
    /// Turns the in-process tier on, with this much memory
    #[arg(long, global = true, value_name = "SIZE")]
    tier: Option<String>,
    /// The admin listener; "" turns it off
    #[arg(long, global = true, value_name = "ADDR")]
    admin: Option<String>,
    /// off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// Why there is nothing to run: the text to print, where, and the exit status.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 for help and version, [`EXIT_USAGE`] for bad arguments.
    pub status: u8,
    /// What to print: on standard output if `status` is 0, else on standard error.
    pub text: String,
}

/// Reads the arguments, the program's name first.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Command, CliOverrides), Exit> {
    let cli = Cli::try_parse_from(args)
        .map_err(|e| Exit { status: if e.use_stderr() { EXIT_USAGE } else { 0 }, text: e.render().to_string() })?;
    let s = cli.settings;
    let overrides = CliOverrides {
        config: s.config,
        listen: s.listen,
        upstream: s.upstream,
        prefix: s.prefix,
        workers: s.workers,
        tier: s.tier,
        admin: s.admin,
        log_level: s.log_level,
        log_format: s.log_format,
    };
    Ok((cli.command.unwrap_or(Command::Run), overrides))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(Command, CliOverrides), Exit> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_subcommand_is_run() {
        for line in ["keyfence", "keyfence run"] {
            let (command, overrides) = read(line).unwrap();
            assert_eq!(command, Command::Run);
            assert!(overrides.listen.is_empty() && overrides.config.is_none());
        }
    }

    #[test]
    fn settings_stand_before_or_after_the_subcommand() {
        let flags = "-c f --listen a:1 --listen unix:/b --upstream managed --prefix p: --workers 2 --tier 1MiB --admin c:3 \
                     --log-level warn --log-format json";
        for line in [format!("keyfence {flags}"), format!("keyfence run {flags}"), format!("keyfence {flags} run")] {
            let (command, o) = read(&line).unwrap();
            assert_eq!(command, Command::Run);
            assert_eq!((o.config, o.listen), (Some("f".into()), vec!["a:1".to_string(), "unix:/b".to_string()]));
            assert_eq!((o.upstream.as_deref(), o.prefix.as_deref()), (Some("managed"), Some("p:")));
            assert_eq!((o.workers.as_deref(), o.tier.as_deref()), (Some("2"), Some("1MiB")));
            assert_eq!((o.admin.as_deref(), o.log_level.as_deref()), (Some("c:3"), Some("warn")));
            assert_eq!(o.log_format.as_deref(), Some("json"));
        }
    }

    #[test]
    fn explain_takes_the_command_whole() {
        let (command, _) = read("keyfence explain --tenant acme -- SET k --version -c").unwrap();
        let words = ["SET", "k", "--version", "-c"].map(OsString::from).to_vec();
        assert_eq!(command, Command::Explain { tenant: Some("acme".into()), command: words });
    }

    #[test]
    fn tenants_are_named() {
        let (command, o) = read("keyfence adopt --tenant acme --match -a* --dry-run -c f").unwrap();
        assert_eq!(o.config, Some("f".into()));
        assert_eq!(command, Command::Adopt { tenant: "acme".into(), pattern: "-a*".into(), dry_run: true });
        assert_eq!(read("keyfence purge --tenant a").unwrap().0, Command::Purge { tenant: "a".into() });
        assert_eq!(read("keyfence hash-password --sha256").unwrap().0, Command::HashPassword { sha256: true });
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let Command::Completions { shell } = read(&format!("keyfence completions {shell}")).unwrap().0 else {
                panic!("another command");
            };
            let script = String::from_utf8(completions(shell)).unwrap();
            for word in ["keyfence", "explain", "hash-password", "--log-level", "--admin"] {
                assert!(script.contains(word.trim_start_matches('-')), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn the_manual_names_every_command_and_option() {
        let page = String::from_utf8(manual()).unwrap().replace("\\-", "-").replace("\\*(Aq", "'");
        let mut command = Cli::command();
        command.build();
        for part in std::iter::once(&command).chain(command.get_subcommands()) {
            assert!(page.contains(part.get_name()), "no command {}", part.get_name());
            for arg in part.get_arguments().filter(|arg| arg.get_id() != "help") {
                let name = arg.get_long().map(|long| format!("--{long}"));
                let name = name.unwrap_or_else(|| arg.get_value_names().unwrap_or_default().join(" "));
                assert!(page.contains(&name), "no {name} of {}", part.get_name());
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('…', "");
                assert!(part.get_name() == "help" || page.contains(help.trim_end_matches('.')), "{name}: {help}");
            }
        }
        for heading in
            ["NAME", "SYNOPSIS", "COMMANDS", "OPTIONS", "EXIT STATUS", "SIGNALS", "FILES", "ENVIRONMENT", "SEE ALSO"]
        {
            assert!(
                page.contains(&format!("\n.SH {heading}\n")) || page.contains(&format!("\n.SH \"{heading}\"\n")),
                "{heading}"
            );
        }
    }

    #[test]
    fn exits() {
        for line in ["keyfence --help", "keyfence --version", "keyfence explain --help"] {
            assert_eq!(read(line).unwrap_err().status, 0, "{line}");
        }
        for line in [
            "keyfence nope",
            "keyfence --nope",
            "keyfence --listen",
            "keyfence explain",
            "keyfence explain GET k",
            "keyfence commands --format xml",
            "keyfence completions",
            "keyfence completions csh",
            "keyfence run x",
            "keyfence adopt --tenant a",
            "keyfence adopt --match *",
            "keyfence purge",
            "keyfence hash-password secret",
            "keyfence -c a -c b",
        ] {
            assert_eq!(read(line).unwrap_err().status, EXIT_USAGE, "{line}");
        }
    }
}
