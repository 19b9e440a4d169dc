//! The page's script, run by Node with a document of jsdom's, against a keyfence with many tenants.
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use crate::support::{Fence, Redis};
use crate::{call, is};

#[test]
fn the_page_shows_many_tenants_as_text_and_draws_those_in_sight() {
    let redis = Redis::start();
    let mut config = String::from(
        "[admin]\nslowlog_threshold = '0s'\n[tenants.'<b>x</b>']\nprefix = 'x:'\npasswords = ['planted']\n",
    );
    for n in 1..400 {
        writeln!(config, "[tenants.t{n}]\npasswords = ['planted']\nlimits = {{ ops_per_second = 10 }}").unwrap();
    }
    let fence = Fence::with_admin(redis.addr(), &config, &[]);
    let mut client = fence.client();
    is!(client, ["AUTH", "<b>x</b>", "planted"], "+OK\r\n");
    for _ in 0..20 {
        is!(client, ["SET", "planted", "planted"], "+OK\r\n");
    }
    let _ = call!(client, "LPUSH", "planted", "planted");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/page.js");
    let run = Command::new("node").arg(script).arg(format!("http://{}/", fence.admin())).output().unwrap();
    assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
}
