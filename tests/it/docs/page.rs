//! A page of Markdown as blocks: what it tells the reader to type, to write into a file, or only to look at.
use std::path::Path;

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Of its first line inside the fence, from 1.
    pub(super) line: usize,
    pub(super) kind: Kind,
    /// What `<!-- run: … -->` above it says is to be done first.
    pub(super) first: Option<String>,
    /// Its lines, each with its end.
    pub(super) text: String,
}

/// What the fence's info string, and a comment above it, say of a block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `sh`: commands.
    Shell,
    /// `console`: commands after `$ `, and what they print.
    Console,
    /// `toml`: settings; with `<!-- file: NAME -->` above it, the content of that file.
    Settings(Option<String>),
    /// `text`: a figure, an error, an excerpt.
    Text,
}

/// A command of a [`Kind::Console`] block and the lines below it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Typed {
    pub(super) line: usize,
    pub(super) command: String,
    pub(super) shown: String,
}

/// What stands for anything: inside a line for a part of it, alone on a line for any number of lines.
const ANYTHING: &str = "…";

/// The blocks of a page.
///
/// # Errors
/// A fence without an end, or with an info string that says nothing here.
pub(super) fn blocks(page: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let (mut file, mut first) = (None, None);
    let mut lines = page.lines().enumerate().map(|(at, line)| (at + 1, line));
    while let Some((at, line)) = lines.next() {
        let said = |word: &str| line.strip_prefix("<!-- ")?.strip_prefix(word)?.strip_suffix(" -->").map(str::to_owned);
        if let Some(name) = said("file: ") {
            file = Some(name);
        } else if let Some(command) = said("run: ") {
            first = Some(command);
        } else if let Some(info) = line.trim_start().strip_prefix("```") {
            let kind = match info {
                "sh" => Kind::Shell,
                "console" => Kind::Console,
                "toml" => Kind::Settings(file.take()),
                "text" => Kind::Text,
                _ => return Err(format!("line {at}: a fence is sh, console, toml or text, not '{info}'")),
            };
            let mut text = String::new();
            loop {
                let (_, line) = lines.next().ok_or_else(|| format!("line {at}: this fence has no end"))?;
                if line.trim_start() == "```" {
                    break;
                }
                text.push_str(line);
                text.push('\n');
            }
            found.push(Block { line: at + 1, kind, first: first.take(), text });
        } else if file.is_some() || first.is_some() {
            return Err(format!("line {at}: a comment that speaks of a block has to stand right above it"));
        }
    }
    Ok(found)
}

impl Block {
    /// The commands of a console block.
    ///
    /// # Errors
    /// Lines before the first command.
    pub(super) fn typed(&self) -> Result<Vec<Typed>, String> {
        let mut found: Vec<Typed> = Vec::new();
        for (at, line) in self.text.lines().enumerate() {
            if let Some(command) = line.strip_prefix("$ ") {
                found.push(Typed { line: self.line + at, command: command.to_owned(), shown: String::new() });
            } else {
                let last = found.last_mut().ok_or_else(|| format!("line {}: before any command", self.line + at))?;
                last.shown.push_str(line);
                last.shown.push('\n');
            }
        }
        Ok(found)
    }
}

/// Whether `said` is what `shown` leads to expect.
pub(super) fn matches(shown: &str, said: &str) -> bool {
    let (shown, said): (Vec<&str>, Vec<&str>) = (shown.lines().collect(), said.lines().collect());
    all_match(&shown, &said)
}

fn all_match(shown: &[&str], said: &[&str]) -> bool {
    match shown {
        [] => said.is_empty(),
        [ANYTHING, rest @ ..] => (0..=said.len()).any(|skipped| all_match(rest, &said[skipped..])),
        [line, rest @ ..] => {
            said.split_first().is_some_and(|(first, after)| one_matches(line, first) && all_match(rest, after))
        }
    }
}

fn one_matches(shown: &str, said: &str) -> bool {
    let mut parts = shown.split(ANYTHING);
    let Some(mut rest) = parts.next().and_then(|start| said.strip_prefix(start)) else { return false };
    let Some((last, middle)) = parts.clone().collect::<Vec<_>>().split_last().map(|(l, m)| (*l, m.to_vec())) else {
        return rest.is_empty();
    };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// The words of a block that name files of this repository, and are not there.
pub(super) fn missing_files(root: &Path, text: &str) -> Vec<String> {
    let ours = ["dist/", "docs/", "tools/", "benches/", "config.toml", "Dockerfile"];
    let word = |c: char| c.is_whitespace() || "\"';".contains(c);
    let named = text.split(word).filter(|word| ours.iter().any(|start| word.starts_with(start)));
    named.filter(|name| !root.join(name).exists()).map(str::to_owned).collect()
}

#[test]
fn blocks_are_found() {
    let page =
        "x\n<!-- run: a -->\n```sh\nb\n```\n<!-- file: f -->\n```toml\nc = 1\n```\n```console\n$ d\ne\n$ f\n```\n";
    let found = blocks(page).unwrap();
    let block = |line, kind, first: Option<&str>, text: &str| Block {
        line,
        kind,
        first: first.map(str::to_owned),
        text: text.to_owned(),
    };
    let console = block(11, Kind::Console, None, "$ d\ne\n$ f\n");
    let typed = |line, command: &str, shown: &str| Typed { line, command: command.to_owned(), shown: shown.to_owned() };
    assert_eq!(console.typed().unwrap(), [typed(11, "d", "e\n"), typed(13, "f", "")]);
    let settings = block(8, Kind::Settings(Some("f".to_owned())), None, "c = 1\n");
    assert_eq!(found, [block(4, Kind::Shell, Some("a"), "b\n"), settings, console]);
    for wrong in ["```\nx\n```\n", "```sh\nx\n", "```python\n```\n", "<!-- run: a -->\n\n```sh\n```\n"] {
        assert!(blocks(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn what_is_shown_is_compared() {
    for (shown, said) in [
        ("", ""),
        ("a\n", "a\n"),
        ("a … c\n", "a b c\n"),
        ("a…\n", "a\n"),
        ("…z\n", "xyz\n"),
        ("a…b…c\n", "a1b2c\n"),
        ("…\nb\n…\n", "a\nb\n"),
        ("a\n…\n", "a\nb\nc\n"),
    ] {
        assert!(matches(shown, said), "{shown:?} {said:?}");
    }
    for (shown, said) in [
        ("", "a\n"),
        ("a\n", ""),
        ("a\n", "a\nb\n"),
        ("a … c\n", "a b d\n"),
        ("ab…b\n", "ab\n"),
        ("a…b…c\n", "a1c\n"),
        ("…\nb\n", "a\n"),
    ] {
        assert!(!matches(shown, said), "{shown:?} {said:?}");
    }
}
