//! A child process that is killed and reaped when its handle goes, and whose output lines can be waited for.
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::HANG;

/// The lines a child has written so far.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

/// A running child.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: Arc<(Mutex<Log>, Condvar)>,
}

impl Process {
    /// Starts it; `command` must have piped the stream that `output` takes out of the child.
    pub(crate) fn start<R: Read + Send + 'static>(
        command: &mut Command,
        output: impl FnOnce(&mut Child) -> Option<R>,
    ) -> Self {
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let log = Arc::new((Mutex::new(Log::default()), Condvar::new()));
        if let Some(stream) = output(&mut child) {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    log.0.lock().unwrap().lines.push(line);
                    log.1.notify_all();
                }
                log.0.lock().unwrap().ended = true;
                log.1.notify_all();
            });
        }
        Self { name: command.get_program().to_string_lossy().into_owned(), child, log }
    }

    /// Waits for an output line for which `wanted` holds; panics with the whole output if the child ends first.
    pub(crate) fn wait_for_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let (lock, changed) = &*self.log;
        let log = lock.lock().unwrap();
        let found = |log: &Log| log.lines.iter().find(|line| wanted(line)).cloned();
        let (log, _) = changed.wait_timeout_while(log, HANG, |log| found(log).is_none() && !log.ended).unwrap();
        found(&log).unwrap_or_else(|| panic!("the line never came; output so far:\n{}", log.lines.join("\n")))
    }

    /// How many lines with `text` in them there are.
    pub(crate) fn lines_with(&self, text: &str) -> usize {
        self.log.0.lock().unwrap().lines.iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until there are that many.
    pub(crate) fn wait_for_lines(&self, count: usize, text: &str) {
        let (lock, changed) = &*self.log;
        let found = |log: &Log| log.lines.iter().filter(|line| line.contains(text)).count();
        let log = lock.lock().unwrap();
        let (log, _) = changed.wait_timeout_while(log, HANG, |log| found(log) < count && !log.ended).unwrap();
        assert!(found(&log) >= count, "not {count} lines with {text:?}:\n{}", log.lines.join("\n"));
    }

    /// Sends it a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {name}");
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Everything it has written so far.
    pub(crate) fn output(&self) -> String {
        self.log.0.lock().unwrap().lines.join("\n")
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A field of `/proc/PID/status` in KiB, such as `VmRSS` or `VmHWM`.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line =
            status.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("no {field} in\n{status}"));
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Starts `VmHWM` again from the present size.
    pub(crate) fn reset_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.id()), "5").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let output = self.output();
            let end: Vec<&str> = output.lines().rev().take(20).collect();
            eprintln!(
                "--- end of the output of {}:\n{}",
                self.name,
                end.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
    }
}
