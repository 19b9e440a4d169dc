//! The commands about libraries, which keyfence itself sends: no tenant's user may load, list or delete any.
//!
//! After each load, and whenever the list of a tenant's functions is made, every library with the tenant's tag is looked at: one with a
//! function under any other name is deleted. The code of a library has no way to the server's own `register_function` on servers where
//! functions are on ([`crate::upstream::wall::Holes::functions_apart`]); this holds should one be found.

use std::sync::Arc;

use redis::{Cmd, Value as Reply};
use tokio::time::Instant;

use super::{
    errors,
    library::{self, Tag},
    own::Own,
};
use crate::{error::UpstreamError, glob, resp::Value, upstream::control::Control};

/// Most libraries of one tenant.
const LIBRARIES: usize = 64;
/// Most bytes of their code, as it is upstream.
const BYTES: usize = 8 * 1024 * 1024;
const NOT_FOUND: &str = "ERR Library not found";
const NOT_BUSY: &str = "NOTBUSY No scripts in execution right now.";

/// Work on the libraries of one tenant.
#[derive(Debug)]
pub struct Work {
    /// Its list.
    pub own: Arc<Own>,
    /// What its keys begin with.
    pub prefix: Box<[u8]>,
    /// What is to be done.
    pub task: Task,
}

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// The list is to be made anew.
    Look,
    /// FUNCTION LOAD.
    Load {
        /// The library's name.
        name: String,
        /// As it is sent upstream.
        code: Vec<u8>,
        /// REPLACE.
        replace: bool,
    },
    /// FUNCTION LIST.
    List {
        /// LIBRARYNAME.
        pattern: Vec<u8>,
        /// WITHCODE.
        with_code: bool,
    },
    /// FUNCTION DELETE.
    Delete(Vec<u8>),
    /// FUNCTION FLUSH.
    Flush,
    /// FUNCTION STATS.
    Stats,
    /// FUNCTION KILL.
    Kill,
}

/// A library as the upstream lists it, names as the tenant has them.
#[derive(Debug)]
struct Library {
    name: Vec<u8>,
    engine: Vec<u8>,
    functions: Vec<Function>,
    code: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Function {
    name: Vec<u8>,
    description: Option<Vec<u8>>,
    flags: Vec<String>,
}

impl Work {
    /// Whether it waits for its turn among the tenant's: not what is for a busy upstream.
    pub fn waits(&self) -> bool {
        !matches!(self.task, Task::Stats | Task::Kill)
    }

    /// The command that asks for it.
    pub fn command(&self) -> &'static str {
        match self.task {
            Task::Look => "FCALL",
            Task::Load { .. } => "FUNCTION LOAD",
            Task::List { .. } => "FUNCTION LIST",
            Task::Delete(_) => "FUNCTION DELETE",
            Task::Flush => "FUNCTION FLUSH",
            Task::Stats => "FUNCTION STATS",
            Task::Kill => "FUNCTION KILL",
        }
    }

    /// Does it: the answer for the client.
    ///
    /// # Errors
    /// When the upstream cannot be asked; that it refuses is an answer.
    pub async fn run(&self, control: &Control) -> Result<Value, UpstreamError> {
        let done = match &self.task {
            Task::Look => match self.look(control).await {
                // The connection may have been to what was there before: it is opened again.
                Err(UpstreamError::Lost) => self.look(control).await,
                other => other,
            }
            .map(|_| Value::ok()),
            Task::Load { name, code, replace } => self.load(control, name, code, *replace).await,
            Task::List { pattern, with_code } => self.list(control, pattern, *with_code).await,
            Task::Delete(name) => self.delete(control, name).await,
            Task::Flush => self.flush(control).await,
            Task::Stats => self.stats(control).await,
            Task::Kill => self.kill(control).await,
        };
        match done {
            Err(UpstreamError::Refused(text)) if !matches!(self.task, Task::Look) => {
                Ok(Value::error(errors::said(&text, &self.own.tag)))
            }
            other => other,
        }
    }

    /// The tenant's libraries whose names match `pattern`; one that is not as it must be is deleted, and left out.
    async fn libraries(
        &self,
        control: &Control,
        pattern: &[u8],
        with_code: bool,
    ) -> Result<Vec<Library>, UpstreamError> {
        let mut cmd = function("LIST");
        cmd.arg("LIBRARYNAME").arg([&glob::escape(self.own.tag.as_str().as_bytes()), pattern].concat());
        if with_code {
            cmd.arg("WITHCODE");
        }
        let reply: Reply = control.query(0, &cmd).await?;
        let Reply::Array(items) = reply else { return Err(unexpected("LIST")) };
        let mut libraries = Vec::with_capacity(items.len());
        for item in &items {
            let name = field(item, "library_name").and_then(text).ok_or_else(|| unexpected("LIST"))?;
            // The server matches names in either case.
            let Some(own) = self.own.tag.strip(name) else { continue };
            match self.library(item, own) {
                Some(library) => libraries.push(library),
                None => {
                    tracing::error!(
                        library = %name.escape_ascii(),
                        "a library of a tenant's has functions that do not carry its tag: deleted"
                    );
                    remove(control, name).await?;
                }
            }
        }
        Ok(libraries)
    }

    /// `None`: some function of it is not called as the tenant's are.
    fn library(&self, item: &Reply, name: &[u8]) -> Option<Library> {
        let (Reply::Array(functions) | Reply::Set(functions)) = field(item, "functions")? else { return None };
        let function = |item: &Reply| {
            let flags = match field(item, "flags") {
                Some(Reply::Array(flags) | Reply::Set(flags)) => {
                    flags.iter().filter_map(text).map(|flag| String::from_utf8_lossy(flag).into_owned()).collect()
                }
                _ => Vec::new(),
            };
            Some(Function {
                name: self.own.tag.strip(field(item, "name").and_then(text)?)?.to_vec(),
                description: field(item, "description").and_then(text).map(<[u8]>::to_vec),
                flags,
            })
        };
        Some(Library {
            name: name.to_vec(),
            engine: field(item, "engine").and_then(text).unwrap_or_default().to_vec(),
            functions: functions.iter().map(function).collect::<Option<_>>()?,
            code: field(item, "library_code").and_then(text).map(<[u8]>::to_vec),
        })
    }

    /// Makes the tenant's list anew: its libraries, without their code.
    async fn look(&self, control: &Control) -> Result<Vec<Library>, UpstreamError> {
        let since = Instant::now();
        let libraries = self.libraries(control, b"*", false).await?;
        let functions = libraries.iter().flat_map(|library| &library.functions);
        self.own.set(functions.map(|function| function.name.clone()), libraries.len(), since);
        Ok(libraries)
    }

    async fn load(&self, control: &Control, name: &str, code: &[u8], replace: bool) -> Result<Value, UpstreamError> {
        let before = self.libraries(control, b"*", true).await?;
        let (same, others): (Vec<_>, Vec<_>) = before.iter().partition(|library| library.name == name.as_bytes());
        if !same.is_empty() && !replace {
            return Ok(Value::error(format!("ERR Library '{name}' already exists")));
        }
        let bytes: usize = others.iter().filter_map(|library| library.code.as_ref()).map(Vec::len).sum();
        if others.len() >= LIBRARIES || bytes + code.len() > BYTES {
            let text = format!("BUSY a tenant may have {LIBRARIES} libraries at the most, and {BYTES} bytes of them");
            return Ok(Value::error(text));
        }
        let mut cmd = function("LOAD");
        if replace {
            cmd.arg("REPLACE");
        }
        let began = Instant::now();
        let loaded = control.query::<Reply>(0, cmd.arg(code)).await;
        self.own.charge_load(began.elapsed(), Instant::now());
        loaded?;
        // Nobody may call what was not looked at: it is not in the list.
        let stands = self.look(control).await?.iter().any(|library| library.name == name.as_bytes());
        Ok(if stands {
            Value::bulk(name)
        } else {
            Value::error(format!("NOPERM library '{name}' does not stand: it has functions that are not its tenant's"))
        })
    }

    async fn list(&self, control: &Control, pattern: &[u8], with_code: bool) -> Result<Value, UpstreamError> {
        let libraries = self.libraries(control, pattern, with_code).await?;
        let flag = |flag: String| Value::simple(flag);
        let function = |function: Function| {
            Value::Map(vec![
                (Value::bulk("name"), Value::Bulk(function.name)),
                (Value::bulk("description"), function.description.map_or(Value::Null, Value::Bulk)),
                (Value::bulk("flags"), Value::Set(function.flags.into_iter().map(flag).collect())),
            ])
        };
        let library = |library: Library| {
            let functions = library.functions.into_iter().map(function).collect();
            let mut fields = vec![
                (Value::bulk("library_name"), Value::Bulk(library.name)),
                (Value::bulk("engine"), Value::Bulk(library.engine)),
                (Value::bulk("functions"), Value::Array(functions)),
            ];
            if let Some(code) = library.code {
                let source = library::unwrap(&code).unwrap_or(code);
                fields.push((Value::bulk("library_code"), Value::Bulk(source)));
            }
            Value::Map(fields)
        };
        Ok(Value::Array(libraries.into_iter().map(library).collect()))
    }

    async fn delete(&self, control: &Control, name: &[u8]) -> Result<Value, UpstreamError> {
        if name.is_empty() || !name.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'_') {
            return Ok(Value::error(NOT_FOUND));
        }
        let ours = [self.own.tag.as_str().as_bytes(), name].concat();
        let deleted = control.query::<Reply>(0, function("DELETE").arg(ours)).await;
        self.look(control).await?;
        deleted.map(|_| Value::ok())
    }

    async fn flush(&self, control: &Control) -> Result<Value, UpstreamError> {
        for library in self.libraries(control, b"*", false).await? {
            remove(control, &[self.own.tag.as_str().as_bytes(), &library.name].concat()).await?;
        }
        self.look(control).await?;
        Ok(Value::ok())
    }

    async fn stats(&self, control: &Control) -> Result<Value, UpstreamError> {
        let running = self.running(control).await?;
        match self.look(control).await {
            // As it was: a busy upstream lists nothing.
            Err(UpstreamError::Refused(text)) if text.starts_with("BUSY") => {}
            other => drop(other?),
        }
        let running = running.map_or(Value::Null, |(name, command, duration)| {
            Value::Map(vec![
                (Value::bulk("name"), Value::Bulk(name)),
                (Value::bulk("command"), Value::Array(command.into_iter().map(Value::Bulk).collect())),
                (Value::bulk("duration_ms"), Value::Int(duration)),
            ])
        });
        let (libraries, functions) = self.own.size();
        let count = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        let engine = Value::Map(vec![
            (Value::bulk("libraries_count"), count(libraries)),
            (Value::bulk("functions_count"), count(functions)),
        ]);
        Ok(Value::Map(vec![
            (Value::bulk("running_script"), running),
            (Value::bulk("engines"), Value::Map(vec![(Value::bulk("LUA"), engine)])),
        ]))
    }

    /// The function that runs upstream, if it is the tenant's: its name, the command, and for how many milliseconds.
    async fn running(&self, control: &Control) -> Result<Option<(Vec<u8>, Vec<Vec<u8>>, i64)>, UpstreamError> {
        let reply: Reply = control.query(0, &function("STATS")).await?;
        let running = match field(&reply, "running_script") {
            Some(Reply::Nil) => return Ok(None),
            Some(running) => running,
            None => return Err(unexpected("STATS")),
        };
        let ours = field(running, "name").and_then(text).ok_or_else(|| unexpected("STATS"))?;
        let Some(name) = self.own.tag.strip(ours) else { return Ok(None) };
        let (Some(Reply::Array(command)), Some(Reply::Int(duration))) =
            (field(running, "command"), field(running, "duration_ms"))
        else {
            return Err(unexpected("STATS"));
        };
        let mut command: Vec<Vec<u8>> = command.iter().filter_map(text).map(<[u8]>::to_vec).collect();
        let keys = command.get(2).and_then(|n| std::str::from_utf8(n).ok()?.parse().ok()).unwrap_or(0);
        if let Some(word) = command.get_mut(1) {
            *word = name.to_vec();
        }
        for key in command.iter_mut().skip(3).take(keys) {
            *key = key.strip_prefix(&*self.prefix).ok_or_else(|| unexpected("STATS"))?.to_vec();
        }
        Ok(Some((name.to_vec(), command, *duration)))
    }

    /// The upstream kills whatever function it runs. It is asked to only when that was this tenant's at the answer before: another one
    /// would have to be busy for longer than `busy-reply-threshold` in the time of one round trip to be killed in its place.
    async fn kill(&self, control: &Control) -> Result<Value, UpstreamError> {
        if self.running(control).await?.is_none() {
            return Ok(Value::error(NOT_BUSY));
        }
        control.query::<Reply>(0, &function("KILL")).await.map(|_| Value::ok())
    }
}

/// Deletes every library of the tenant with this tag, for `keyfence purge`: how many.
///
/// # Errors
/// When the upstream cannot be asked or refuses; an upstream without functions has none.
pub async fn purge(control: &Control, prefix: &[u8]) -> Result<usize, UpstreamError> {
    let tag = Tag::of(prefix);
    let mut cmd = function("LIST");
    let reply: Reply = control.query(0, cmd.arg("LIBRARYNAME").arg(format!("{}*", tag.as_str()))).await?;
    let Reply::Array(items) = reply else { return Err(unexpected("LIST")) };
    let names = items.iter().filter_map(|item| field(item, "library_name").and_then(text));
    let mut deleted = 0;
    for name in names.filter(|name| tag.strip(name).is_some()) {
        remove(control, name).await?;
        deleted += 1;
    }
    Ok(deleted)
}

/// Deletes a library, by its name upstream, that may have gone already.
async fn remove(control: &Control, name: &[u8]) -> Result<(), UpstreamError> {
    match control.query::<Reply>(0, function("DELETE").arg(name)).await {
        Err(UpstreamError::Refused(text)) if text == NOT_FOUND => Ok(()),
        other => other.map(drop),
    }
}

fn function(word: &str) -> Cmd {
    let mut cmd = redis::cmd("FUNCTION");
    cmd.arg(word);
    cmd
}

fn unexpected(word: &str) -> UpstreamError {
    UpstreamError::Unreachable(format!("unexpected reply to FUNCTION {word}"))
}

/// What stands behind `name` in a list of names and values.
fn field<'a>(reply: &'a Reply, name: &str) -> Option<&'a Reply> {
    match reply {
        Reply::Array(items) => {
            items.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name.as_bytes())).map(|pair| &pair[1])
        }
        Reply::Map(pairs) => pairs.iter().find(|(key, _)| text(key) == Some(name.as_bytes())).map(|(_, value)| value),
        _ => None,
    }
}

fn text(reply: &Reply) -> Option<&[u8]> {
    match reply {
        Reply::BulkString(bytes) => Some(bytes),
        Reply::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}
