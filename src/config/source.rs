//! Where settings come from: the file, the environment and the command line, laid over each other with the place each
//! value was written, so that every later error can name it.

use super::table::{self, SETTINGS, Setting, VARIABLES};
use super::value::{self, Kind, Value, Written};
use super::{CliOverrides, ConfigError, Line};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value was written; what is later in this list goes before what is earlier.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    Default,
    File { name: PathBuf, line: usize },
    Variable(String),
    Flag(&'static str),
}

impl Origin {
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Variable(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("defaults"),
            Self::File { name, line } => write!(f, "{}:{line}", name.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Checked values by path, and the places they were written.
#[derive(Debug, Default)]
pub(super) struct Layers {
    values: BTreeMap<String, (Value, Origin)>,
    /// Names under `tenants` and `upstreams`, with the first place that names them.
    named: BTreeMap<(&'static str, String), Origin>,
}

/// The sections whose keys are names that the operator chooses.
const NAMING: [&str; 2] = ["tenants", "upstreams"];

impl Layers {
    /// Everything that was set, the higher place winning.
    pub(super) fn collect(
        file: Option<(&Path, &str)>,
        env: impl Iterator<Item = (String, String)>,
        cli: &CliOverrides,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self::default();
        if let Some((name, text)) = file {
            layers.add_file(name, text)?;
        }
        layers.add_env(env)?;
        layers.add_cli(cli)?;
        Ok(layers)
    }

    /// Every key but those of tenants, with where its value is from; further upstreams' as far as they were set.
    pub(super) fn shown(&self) -> Vec<Line> {
        let plain = SETTINGS.iter().map(|row| row.path).filter(|path| !path.contains('*')).map(String::from);
        let named = self.values.keys().filter(|path| path.starts_with("upstreams.")).cloned();
        let line = |key: String| {
            let value = match self.value(&key) {
                Value::Text(text) if text.is_empty() => text,
                Value::Texts(list) if list.is_empty() => String::new(),
                _ if row(&key).kind.is_secret() => "***".into(),
                value => value.to_string(),
            };
            Line { value, from: self.origin(&key).to_string(), key }
        };
        plain.chain(named).map(line).collect()
    }

    /// The names given under `section` (`tenants` or `upstreams`).
    pub(super) fn names<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a str> {
        self.named.keys().filter(move |(above, _)| *above == section).map(|(_, name)| name.as_str())
    }

    /// Whether `path` was set anywhere.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.values.contains_key(path)
    }

    pub(super) fn origin(&self, path: &str) -> &Origin {
        self.values.get(path).map_or_else(|| self.origin_of_section(path), |(_, origin)| origin)
    }

    /// Where the tenant or upstream of a key that was not set is named.
    fn origin_of_section(&self, path: &str) -> &Origin {
        let mut parts = table::split(path).into_iter();
        let section = parts.next().and_then(|part| NAMING.into_iter().find(|n| *n == part));
        section.zip(parts.next()).and_then(|key| self.named.get(&key)).unwrap_or(&Origin::Default)
    }

    /// An error about `path`, naming the place where it was set.
    pub(super) fn error(&self, path: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::at(self.origin(path), path, message)
    }

    /// The first thing that this version parses but does not serve.
    pub(super) fn unserved(&self) -> Result<(), ConfigError> {
        for (path, (value, _)) in &self.values {
            let row = row(path);
            if row.later && *value != default_of(row) {
                return Err(self.error(path, NOT_SERVED));
            }
        }
        Ok(())
    }

    pub(super) fn bool(&self, path: &str) -> bool {
        match self.value(path) {
            Value::Bool(b) => b,
            other => wrong_kind(path, &other),
        }
    }

    /// A whole number or a size.
    pub(super) fn number<T: TryFrom<u64>>(&self, path: &str) -> Result<T, ConfigError> {
        match self.value(path) {
            Value::Int(n) | Value::Size(n) => T::try_from(n).map_err(|_| self.error(path, format!("{n} is too large"))),
            other => wrong_kind(path, &other),
        }
    }

    pub(super) fn duration(&self, path: &str) -> Duration {
        match self.value(path) {
            Value::Duration(d) => d,
            other => wrong_kind(path, &other),
        }
    }

    pub(super) fn text(&self, path: &str) -> String {
        match self.value(path) {
            Value::Text(s) => s,
            other => wrong_kind(path, &other),
        }
    }

    pub(super) fn texts(&self, path: &str) -> Vec<String> {
        match self.value(path) {
            Value::Texts(list) => list,
            other => wrong_kind(path, &other),
        }
    }

    fn value(&self, path: &str) -> Value {
        self.values.get(path).map_or_else(|| default_of(row(path)), |(value, _)| value.clone())
    }

    fn add_file(&mut self, name: &Path, text: &str) -> Result<(), ConfigError> {
        let ends: Vec<usize> = memchr::memchr_iter(b'\n', text.as_bytes()).collect();
        let place = |at: usize| Origin::File { name: name.into(), line: 1 + ends.partition_point(|end| *end < at) };
        let root = DeTable::parse(text).map_err(|e| {
            let at = place(e.span().map_or(0, |span| span.start));
            ConfigError::at(&at, "", e.message().replace('\n', ", "))
        })?;
        self.add_table(&mut Vec::new(), root.get_ref(), &place)
    }

    fn add_table(
        &mut self,
        path: &mut Vec<String>,
        table: &DeTable<'_>,
        place: &impl Fn(usize) -> Origin,
    ) -> Result<(), ConfigError> {
        for (key, item) in table {
            let at = place(key.span().start);
            path.push(key.get_ref().to_string());
            let parts: Vec<&str> = path.iter().map(String::as_str).collect();
            if table::is_section(&parts) {
                let DeValue::Table(inner) = item.get_ref() else {
                    return Err(ConfigError::at(&at, &table::join(path), "expected a section with keys of its own"));
                };
                self.add_name(&parts, &at)?;
                self.add_table(path, inner, place)?;
            } else if let Some(setting) = table::find(&parts) {
                let written = written(item);
                self.set(table::join(path), setting, &written, at)?;
            } else if let Some((setting, canonical)) = secret_file(&parts) {
                let DeValue::String(file) = item.get_ref() else {
                    return Err(ConfigError::at(&at, &table::join(path), "expected the name of a file"));
                };
                let written = read_secret(setting, file).map_err(|e| ConfigError::at(&at, &table::join(path), e))?;
                self.set(canonical, setting, &written, at)?;
            } else {
                return Err(ConfigError::at(&at, &table::join(path), unknown_key(&parts)));
            }
            path.pop();
        }
        Ok(())
    }

    fn add_env(&mut self, env: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
        let mut variables: Vec<_> = env.filter(|(name, _)| name.starts_with(VARIABLES) && !is_foreign(name)).collect();
        variables.sort();
        for (name, text) in variables {
            let at = Origin::Variable(name.clone());
            let (path, setting, in_file) = self
                .path_of_variable(&name)
                .map_err(|e| ConfigError::at(&at, "", e))?
                .ok_or_else(|| ConfigError::at(&at, "", unknown_variable(&name)))?;
            let parts = table::split(&path);
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            self.add_name(parts.get(..2).unwrap_or_default(), &at)?;
            // PASSWORD is one password whole, commas and all.
            let alone = setting.kind == Kind::Secrets && name.ends_with("PASSWORD");
            let written = if in_file {
                read_secret(setting, &text).map_err(|e| ConfigError::at(&at, "", e))?
            } else if alone {
                Written::Texts(vec![text])
            } else {
                Written::Bare(text)
            };
            self.set(path, setting, &written, at)?;
        }
        Ok(())
    }

    fn add_cli(&mut self, cli: &CliOverrides) -> Result<(), ConfigError> {
        let mut set = |path: &str, flag, written: Written| {
            let at = Origin::Flag(flag);
            self.set(path.to_string(), row(path), &written, at)
        };
        if !cli.listen.is_empty() {
            set("listen", "--listen", Written::Texts(cli.listen.clone()))?;
        }
        for (path, flag, text) in [
            ("upstream.url", "--upstream", &cli.upstream),
            ("key_prefix", "--prefix", &cli.prefix),
            ("workers", "--workers", &cli.workers),
            ("tier.max_memory", "--tier", &cli.tier),
            ("admin.listen", "--admin", &cli.admin),
            ("log.level", "--log-level", &cli.log_level),
            ("log.format", "--log-format", &cli.log_format),
        ] {
            if let Some(text) = text {
                set(path, flag, Written::Bare(text.clone()))?;
            }
        }
        if cli.tier.is_some() {
            set("tier.enabled", "--tier", Written::Bool(true))?;
        }
        Ok(())
    }

    /// Checks one value and lays it over what was there, unless the same source says it twice.
    fn set(&mut self, path: String, setting: &Setting, written: &Written, at: Origin) -> Result<(), ConfigError> {
        let value = value::read(setting.kind, written).map_err(|e| ConfigError::at(&at, &path, e))?;
        if let Some((_, before)) = self.values.get(&path)
            && before.rank() == at.rank()
        {
            return Err(ConfigError::at(&at, &path, format!("set a second time; the first is {before}")));
        }
        self.values.insert(path, (value, at));
        Ok(())
    }

    fn add_name(&mut self, parts: &[&str], at: &Origin) -> Result<(), ConfigError> {
        let [section, name] = parts else { return Ok(()) };
        let Some(section) = NAMING.into_iter().find(|known| known == section) else { return Ok(()) };
        let wrong = |message: &str| Err(ConfigError::at(at, &table::join(parts), message));
        // A tenant's name is what its users log in with, and stands in lines of CLIENT LIST; that of an upstream is ours alone.
        let bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if section == "tenants" {
            if name.is_empty() || name.len() > 128 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return wrong("a tenant's name has 1 to 128 bytes, and no spaces or control characters");
            }
        } else if name.is_empty() || name.len() > 64 || !name.chars().all(bare) {
            return wrong("an upstream's name has 1 to 64 letters, digits, '_' and '-'");
        } else if *name == "default" {
            return wrong("'default' is the name of [upstream]: write its keys there, or choose another name");
        }
        self.named.entry((section, (*name).to_string())).or_insert_with(|| at.clone());
        Ok(())
    }

    /// What a variable sets, and whether it names a file that holds the value.
    fn path_of_variable(&self, name: &str) -> Result<Option<(String, &'static Setting, bool)>, String> {
        let parts: Vec<&str> = name.strip_prefix(VARIABLES).unwrap_or(name).split("__").collect();
        let mut path: Vec<String> = parts.iter().map(|p| p.to_ascii_lowercase()).collect();
        if let [section, chosen, ..] = path.as_mut_slice()
            && let [_, written, ..] = parts.as_slice()
            && NAMING.contains(&section.as_str())
        {
            // Capitals and '_' stand for whatever the file's name has there.
            let mut known = self.names(section).filter(|known| as_variable(known) == *written);
            if let Some(first) = known.next() {
                if let Some(second) = known.next() {
                    let (first, second) = (value::quoted(first), value::quoted(second));
                    return Err(format!("may mean {first} or {second}: set it in the file"));
                }
                *chosen = first.to_string();
            }
        }
        if let [section, _, password] = path.as_mut_slice()
            && section == "tenants"
            && matches!(password.as_str(), "password" | "password_file")
        {
            *password = password.replace("password", "passwords");
        }
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        Ok(match table::find(&parts) {
            Some(setting) => Some((table::join(&path), setting, false)),
            None => secret_file(&parts).map(|(setting, path)| (path, setting, true)),
        })
    }
}

pub(super) const NOT_SERVED: &str = "not served by this version yet";

/// The environment, as [`super::Config::load`] takes it.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

/// Variables that begin like ours and are not settings: Kubernetes describes a service called `keyfence` to every pod in
/// these words, and the tests have one of their own.
fn is_foreign(name: &str) -> bool {
    let rest = name.strip_prefix(VARIABLES).unwrap_or(name);
    rest == "BLESS" || rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

fn as_variable(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

fn row(path: &str) -> &'static Setting {
    let parts = table::split(path);
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    table::find(&parts).unwrap_or_else(|| unreachable!("{path} has no row: every path in the code is read by a test"))
}

/// The default of a row, read once.
fn default_of(row: &Setting) -> Value {
    static READ: LazyLock<HashMap<&str, Value>> =
        LazyLock::new(|| SETTINGS.iter().map(|row| (row.path, read_default(row))).collect());
    READ.get(row.path).cloned().unwrap_or_else(|| read_default(row))
}

fn read_default(row: &Setting) -> Value {
    let text = format!("default = {}", row.default);
    DeTable::parse(&text)
        .ok()
        .and_then(|table| value::read(row.kind, &written(table.get_ref().get("default")?)).ok())
        .unwrap_or_else(|| unreachable!("the default of {} is of its kind: a test reads every row", row.path))
}

fn wrong_kind(path: &str, value: &Value) -> ! {
    unreachable!("{path} is read as another kind than {value:?}: a test reads every key")
}

/// The row that `…_file` stands for, and its path, if it is a secret.
fn secret_file(path: &[&str]) -> Option<(&'static Setting, String)> {
    let (last, before) = path.split_last()?;
    let mut plain = before.to_vec();
    plain.push(last.strip_suffix("_file")?);
    table::find(&plain).filter(|s| s.kind.is_secret()).map(|s| (s, table::join(&plain)))
}

fn read_secret(setting: &Setting, file: &str) -> Result<Written, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", value::quoted(file)))?;
    if setting.kind == Kind::Secrets {
        return Ok(Written::Texts(text.lines().filter(|line| !line.is_empty()).map(String::from).collect()));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Written::Text(text.strip_suffix('\r').unwrap_or(text).to_string()))
}

fn written(item: &Spanned<DeValue<'_>>) -> Written {
    match item.get_ref() {
        DeValue::String(s) => Written::Text(s.to_string()),
        DeValue::Boolean(b) => Written::Bool(*b),
        DeValue::Integer(n) => i64::from_str_radix(n.as_str(), n.radix())
            .map_or(Written::Other("a number that is too large"), Written::Int),
        DeValue::Array(list) => list
            .iter()
            .map(|item| item.get_ref().as_str().map(String::from))
            .collect::<Option<_>>()
            .map_or(Written::Other("a list of other things than texts"), Written::Texts),
        DeValue::Float(_) => Written::Other("a fraction"),
        DeValue::Datetime(_) => Written::Other("a date"),
        DeValue::Table(_) => Written::Other("a section"),
    }
}

fn unknown_key(path: &[&str]) -> String {
    let (last, section) = path.split_last().unwrap_or((&"", &[]));
    let siblings = SETTINGS.iter().filter_map(|s| {
        let mut parts = s.path.split('.');
        section.iter().all(|p| parts.next().is_some_and(|part| part == "*" || part == *p)).then(|| parts.next())?
    });
    let files = SETTINGS.iter().filter(|s| s.kind.is_secret()).filter_map(|s| {
        let (above, name) = s.path.rsplit_once('.')?;
        table::matches(above, section).then(|| format!("{name}_file"))
    });
    if let Some(near) = nearest(last, siblings.map(String::from).chain(files)) {
        return format!("unknown key; did you mean '{near}'?");
    }
    // A key in the wrong section, most often one of the top level after a section began.
    match SETTINGS.iter().find(|s| s.path.rsplit('.').next() == Some(last)) {
        Some(other) if other.path.contains('.') => format!("unknown key; did you mean '{}'?", other.path),
        Some(other) => format!("unknown key; did you mean '{}', which stands above the first section?", other.path),
        None => "unknown key".into(),
    }
}

fn unknown_variable(name: &str) -> String {
    let chosen = name.split("__").nth(1).unwrap_or_default();
    let all = SETTINGS.iter().flat_map(|s| {
        let variable = s.variable().replace("<NAME>", chosen);
        let file = s.kind.is_secret().then(|| format!("{variable}_FILE"));
        [Some(variable), file].into_iter().flatten()
    });
    nearest(name, all)
        .map_or_else(|| "unknown variable".into(), |near| format!("unknown variable; did you mean '{near}'?"))
}

/// The candidate fewest edits away, if that is a third of the word at most.
pub(super) fn nearest(word: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let (distance, near) =
        candidates.map(|c| (strsim::damerau_levenshtein(word, &c), c)).min_by_key(|(distance, _)| *distance)?;
    // Long names share long beginnings: a third of the part after `__` is what counts.
    let weight = word.rsplit("__").next().unwrap_or(word).len().max(3);
    (distance <= weight.div_ceil(3)).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_of_its_kind() {
        for row in SETTINGS {
            drop(default_of(row));
        }
    }

    #[test]
    fn suggestions() {
        assert_eq!(unknown_key(&["upstream", "hots"]), "unknown key; did you mean 'host'?");
        assert_eq!(unknown_key(&["upstrem"]), "unknown key; did you mean 'upstream'?");
        assert_eq!(unknown_key(&["upstream", "passwordfile"]), "unknown key; did you mean 'password_file'?");
        assert_eq!(unknown_key(&["tenants", "a", "prefx"]), "unknown key; did you mean 'prefix'?");
        assert_eq!(
            unknown_key(&["log", "key_prefix"]),
            "unknown key; did you mean 'key_prefix', which stands above the first section?"
        );
        assert_eq!(unknown_key(&["socket_timeout"]), "unknown key; did you mean 'upstream.socket_timeout'?");
        assert_eq!(unknown_key(&["zzzzzz"]), "unknown key");
        assert_eq!(
            unknown_variable("KEYFENCE_UPSTREAM__HOTS"),
            "unknown variable; did you mean 'KEYFENCE_UPSTREAM__HOST'?"
        );
        assert_eq!(
            unknown_variable("KEYFENCE_TENANTS__ACME__PASWORDS"),
            "unknown variable; did you mean 'KEYFENCE_TENANTS__ACME__PASSWORDS'?"
        );
        assert_eq!(unknown_variable("KEYFENCE_QQQQQQQQQ"), "unknown variable");
    }
}
