//! What becomes of the process when the program finds itself wrong: it ends.
//!
//! A panic may leave a request sent whose reply nobody is noted down for, and from then on each reply on that connection would go to the
//! next client: another tenant, perhaps. So no thread goes on after one; whoever supervises the process starts it again.

use std::{io::Write as _, panic, process, thread, time::Duration};

use crate::log::Handle;

/// By then the last lines of the log are written, or cannot be.
const LAST_LINES: Duration = Duration::from_secs(2);

/// From now on a panic on any thread is logged, with the place in the source and without what it says, which may be a client's, and ends the
/// process by SIGABRT.
pub fn end_on_panic(log: Handle) {
    panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        // The log could be what has failed.
        #[expect(clippy::disallowed_methods, reason = "a thread of its own, which serves nobody")]
        let _ = thread::Builder::new().spawn(|| {
            thread::sleep(LAST_LINES);
            process::abort();
        });
        let _ = writeln!(std::io::stderr(), "keyfence: internal error at {place}: stopped. Please report it");
        tracing::error!(place, "internal error: stopped, so that no reply can go to the wrong client");
        log.clone().finish();
        process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        os::unix::process::ExitStatusExt as _,
        process::Command,
        sync::{Arc, atomic::AtomicU64},
    };

    use tracing::level_filters::LevelFilter;

    use super::*;
    use crate::config::{Log, LogFormat};

    const SIGABRT: i32 = 6;
    const CHILD: &str = "CRASHES_HERE";

    #[test]
    fn a_panic_on_any_thread_ends_the_process_and_tells_where() {
        if env::var_os(CHILD).is_some() {
            let settings = Log { format: LogFormat::Json, level: LevelFilter::ERROR, access_sample: 0 };
            end_on_panic(crate::log::start(settings, Arc::<AtomicU64>::default()).expect("log"));
            let _ = thread::spawn(|| assert_eq!("a client's", "value")).join();
            process::exit(0);
        }
        let child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "crash::tests::a_panic_on_any_thread_ends_the_process_and_tells_where", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("child");
        let said = String::from_utf8_lossy(&child.stderr).into_owned() + &String::from_utf8_lossy(&child.stdout);
        assert_eq!(child.status.signal(), Some(SIGABRT), "{said}");
        assert!(
            said.contains("internal error at src/crash.rs:") && said.contains(r#""place":"src/crash.rs:"#),
            "{said}"
        );
        assert!(!said.contains("a client's"), "{said}");
    }
}
