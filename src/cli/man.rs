//! The manual page, keyfence(1): from the definition of the command line, and what it cannot say. `dist/keyfence.1` is the same page as a file.

use std::io::{self, Write};

use clap::{Arg, Command};
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};

/// A heading, and terms with their explanations.
type Section = (&'static str, &'static [(&'static str, &'static str)]);

const DESCRIPTION: &[&str] = &[
    "keyfence stands between Redis clients and a Redis or Valkey server. Every key and channel that a client names gets its tenant's prefix on its way to the \
     server, and loses it again on the way back, so that each tenant sees a private Redis.",
    "Without a command it serves clients, as run does. Settings come from the command line, the environment, a file and the defaults; the former go before the latter.",
];

/// What follows the options and commands.
const SECTIONS: &[Section] = &[
    (
        "EXIT STATUS",
        &[
            ("0", "Done; of run: stopped by a signal."),
            ("1", "Anything that is not below: an address that cannot be had, a managed server that does not start."),
            ("64", "Settings or arguments are wrong; one line on standard error names the file, the line and the key."),
            ("69", "The upstream cannot be reached (check, adopt, purge)."),
            (
                "134 (SIGABRT)",
                "keyfence found itself wrong, and did not go on for fear of giving a reply to the wrong client; the log names the place. Start it again, and report it.",
            ),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGTERM, SIGINT",
                "Drain and end: listeners close, what is in flight is answered, blocking commands end with -UNBLOCKED; after shutdown_grace what is left is cut off.",
            ),
            (
                "SIGHUP",
                "Read the settings and certificates again: all of them, or none if anything is wrong. A change of the file does so within two seconds.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            ("./config.toml", "The settings, if it is there and --config names no other file."),
            ("/etc/keyfence/config.toml", "The settings of the service of the Debian package."),
            ("/etc/default/keyfence", "Variables of that service, one a line."),
            ("keyfence-data/", "The data of a managed server (upstream.managed.dir), from where keyfence starts."),
            ("/usr/share/doc/keyfence/", "Documents: configuration.md, operations.md, security.md and others."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            (
                "KEYFENCE_*",
                "Every setting has a variable: its path in capitals, with __ between levels, such as KEYFENCE_UPSTREAM__URL for upstream.url or KEYFENCE_ADMIN__LISTEN for \
                 admin.listen. Lists are separated by commas. One that begins so and names no setting is an error.",
            ),
            (
                "KEYFENCE_*_FILE",
                "Of a secret: the name of a file that holds it, such as KEYFENCE_UPSTREAM__PASSWORD_FILE.",
            ),
        ],
    ),
];

/// The page, as roff.
///
/// # Errors
/// None but those of the writer.
pub(super) fn render(mut command: Command, to: &mut dyn Write) -> io::Result<()> {
    command.build();
    let page = Man::new(command.clone()).title("KEYFENCE").manual("keyfence");
    page.render_title(to)?;
    page.render_name_section(to)?;
    page.render_synopsis_section(to)?;
    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    for (at, paragraph) in DESCRIPTION.iter().enumerate() {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*paragraph)]);
    }
    to.write_all(roff.to_roff().as_bytes())?;
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for sub in command.get_subcommands_mut() {
        describe(&mut roff, sub);
    }
    to.write_all(roff.to_roff().as_bytes())?;
    page.render_options_section(to)?;
    let mut roff = Roff::new();
    for (heading, terms) in SECTIONS {
        roff.control("SH", [*heading]);
        for (term, text) in *terms {
            item(&mut roff, term, text);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("redis-cli"),
        roman("(1), "),
        bold("redis-server"),
        roman("(1), "),
        bold("systemctl"),
        roman("(1)"),
    ]);
    to.write_all(roff.to_roff().as_bytes())
}

/// A command: how it is called, what it does, and the options that are its own.
fn describe(roff: &mut Roff, command: &mut Command) {
    let usage = command.render_usage().to_string();
    roff.control("SS", [usage.trim_start_matches("Usage: ").trim()]);
    roff.text([roman(sentence(command.get_about().map(ToString::to_string)))]);
    for arg in command.get_arguments().filter(|arg| !arg.is_global_set() && !matches!(arg.get_id().as_str(), "help")) {
        item(roff, arg.to_string().trim(), &about(arg));
    }
}

fn about(arg: &Arg) -> String {
    let mut text = sentence(arg.get_help().map(ToString::to_string));
    let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if arg.get_action().takes_values() && !values.is_empty() {
        text.push_str(&format!(" One of {}.", values.join(", ")));
    }
    text
}

fn sentence(text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    if text.is_empty() || text.ends_with('.') { text } else { text + "." }
}

fn item(roff: &mut Roff, term: &str, text: &str) {
    roff.control("TP", []);
    roff.text([bold(term)]);
    roff.text([roman(text)]);
}
