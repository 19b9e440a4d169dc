//! Scripts: the same straight to a server and through keyfence, and what a hostile one reaches.

pub(crate) mod adversarial;
mod cache;
mod transactions;

use crate::support::wire::show;
use crate::support::{Client, Fence, Redis};
use crate::{call, is};

/// One script of the corpus.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) name: String,
    keys: Vec<String>,
    args: Vec<String>,
    pub(crate) source: String,
}

impl Script {
    /// As a command, the script by its source or its SHA1.
    pub(crate) fn command(&self, name: &str, script: &str) -> Vec<Vec<u8>> {
        let count = self.keys.len().to_string();
        let head = [name, script, &count].map(|word| word.as_bytes().to_vec());
        head.into_iter().chain(self.keys.iter().chain(&self.args).map(|word| word.clone().into_bytes())).collect()
    }
}

/// The corpus: at least 60 scripts.
pub(crate) fn corpus() -> Vec<Script> {
    let text = include_str!("scripts/corpus.txt");
    let (_, blocks) = text.split_once("\n== ").expect("blocks");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    let mut scripts = Vec::new();
    for block in blocks.split("\n== ") {
        let (name, mut source) = block.split_once('\n').unwrap_or((block, ""));
        let mut script = Script { name: name.into(), keys: Vec::new(), args: Vec::new(), source: String::new() };
        for (label, list) in [("keys: ", &mut script.keys), ("args: ", &mut script.args)] {
            if let Some(rest) = source.strip_prefix(label) {
                let (line, rest) = rest.split_once('\n').expect("a source after it");
                *list = words(line);
                source = rest;
            }
        }
        script.source = source.trim_end_matches('\n').into();
        scripts.push(script);
    }
    assert!(scripts.len() >= 60, "{} scripts", scripts.len());
    scripts
}

pub(crate) fn seed(client: &mut Client) {
    is!(client, ["SET", "string", "value"], "+OK\r\n");
    is!(client, ["SET", "number", "5"], "+OK\r\n");
}

fn sha(client: &mut Client, source: &str) -> String {
    let reply = call!(client, "EVAL", "return redis.sha1hex(ARGV[1])", "0", source);
    String::from_utf8(reply[5..45].to_vec()).expect("digits")
}

pub(crate) fn ask(client: &mut Client, words: &[Vec<u8>]) -> Vec<u8> {
    client.call(&words.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Every script of the corpus, by source, by SHA1 and in a transaction, in both protocols.
fn same_as_redis(resp3: bool) {
    let (plain, upstream) = (Redis::start(), Redis::start());
    let fence = Fence::start(&upstream);
    let [mut a, mut b] = [plain.client(), fence.client()];
    if resp3 {
        call!(a, "HELLO", "3");
        call!(b, "HELLO", "3");
    }
    let mut wrong = Vec::new();
    for script in corpus() {
        let digest = sha(&mut a, &script.source);
        let mut compare = |how: &str, words: &[Vec<u8>], (a, b): (&mut Client, &mut Client)| {
            let (straight, fenced) = (ask(a, words), ask(b, words));
            if straight != fenced {
                wrong.push(format!(
                    "{} ({how})\n    straight {}\n    keyfence {}",
                    script.name,
                    show(&straight),
                    show(&fenced)
                ));
            }
        };
        for (how, name, what) in [
            ("EVAL", "EVAL", &script.source),
            ("EVALSHA", "EVALSHA", &digest),
            ("EVAL_RO", "EVAL_RO", &script.source),
            ("EVALSHA_RO", "EVALSHA_RO", &digest),
        ] {
            for client in [&mut a, &mut b] {
                is!(client, ["FLUSHALL"], "+OK\r\n");
                seed(client);
            }
            compare(how, &script.command(name, what), (&mut a, &mut b));
        }
        for client in [&mut a, &mut b] {
            is!(client, ["FLUSHALL"], "+OK\r\n");
            seed(client);
            is!(client, ["MULTI"], "+OK\r\n");
        }
        compare("queued", &script.command("EVAL", &script.source), (&mut a, &mut b));
        compare("queued", &script.command("EVALSHA", &digest), (&mut a, &mut b));
        compare("EXEC", &[b"EXEC".to_vec()], (&mut a, &mut b));
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn scripts_answer_as_redis_answers_in_resp2() {
    same_as_redis(false);
}

#[test]
fn scripts_answer_as_redis_answers_in_resp3() {
    same_as_redis(true);
}
