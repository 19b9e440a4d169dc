//! Unix sockets: one that replaces another is made beside it, and takes its path in one step once it listens.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixListener as StdUnixListener,
    },
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep},
};

use super::Manner;

/// How long the queue of a socket may stay full before it cannot be said whose it is.
const FULL_FOR: Duration = Duration::from_secs(1);
/// Between two looks at it.
const AGAIN: Duration = Duration::from_millis(10);

/// Which file a path leads to, however it is written: the device and number of its folder, and its name there.
pub(super) type Place = (u64, u64, OsString);

/// The place that `path` is.
///
/// # Errors
/// The folder's.
pub(super) fn place(path: &Path) -> io::Result<Place> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let (about, name) = (fs::metadata(folder)?, path.file_name().unwrap_or_default());
    Ok((about.dev(), about.ino(), name.to_owned()))
}

/// The file of a unix socket of ours, which goes when this does, unless it is another process's by then.
#[derive(Debug)]
pub(super) struct Bed {
    /// Where it is.
    at: PathBuf,
    /// Where it is to be.
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl Bed {
    /// Puts it where clients look for it, once it listens.
    ///
    /// # Errors
    /// The file system's; `AddrInUse` when it was there and another process took its place.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if self.at == self.path {
            return if self.stands() { Ok(()) } else { Err(ErrorKind::AddrInUse.into()) };
        }
        fs::rename(&self.at, &self.path)?;
        self.at.clone_from(&self.path);
        Ok(())
    }

    /// Whether its file is where it was put.
    fn stands(&self) -> bool {
        fs::symlink_metadata(&self.at).is_ok_and(|m| (m.dev(), m.ino()) == (self.dev, self.ino))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.stands() {
            let _ = fs::remove_file(&self.at);
        }
    }
}

/// A socket for `path` that does not listen yet, nor is at that path while another one listens there. It is never more open than it is meant
/// to be: nobody can connect before it listens. `number` tells it from the others of this process.
///
/// # Errors
/// What is at `path`, or the file system's.
pub(super) async fn bind(path: &Path, manner: Manner, number: usize) -> io::Result<(StdUnixListener, Bed)> {
    let theirs = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(e),
        Ok(m) if !m.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket"));
        }
        Ok(_) if manner.shared => may_be_replaced(path).await?,
        Ok(_) => match probe(path)? {
            Answer::Nobody => false,
            Answer::Open(_) | Answer::Full => return Err(ErrorKind::AddrInUse.into()),
        },
    };
    // A short name: that of the path may be as long as one of a socket can be.
    let beside = path.with_file_name(format!(".kf{}-{number}", process::id()));
    remove(&beside)?;
    let at = if theirs { &*beside } else { path };
    if !theirs {
        clear(path, &beside)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(at)?)?;
    let about = fs::symlink_metadata(at)?;
    let bed = Bed { at: at.to_owned(), path: path.to_owned(), dev: about.dev(), ino: about.ino() };
    if let Some(mode) = manner.mode {
        fs::set_permissions(at, fs::Permissions::from_mode(mode))?;
    }
    socket.set_nonblocking(true)?;
    Ok((socket.into(), bed))
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// Takes away the socket at `path` that nobody listens on, by way of `aside`. Whoever else starts now has bound it and listens by the time it is
/// aside, and then keeps it, or listens later, and then finds that it is gone ([`Bed::settle`]): no two end up with one path.
///
/// # Errors
/// The file system's; `AddrInUse` when somebody listens on it after all.
fn clear(path: &Path, aside: &Path) -> io::Result<()> {
    match fs::rename(path, aside) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    let socket = fs::symlink_metadata(aside)?.file_type().is_socket();
    if socket && matches!(probe(aside), Ok(Answer::Nobody)) {
        return remove(aside);
    }
    // A link replaces nothing that has come to the path meanwhile.
    fs::hard_link(aside, path)?;
    remove(aside)?;
    Err(ErrorKind::AddrInUse.into())
}

/// Whether a process of the same user listens at `path`, which may be taken over from.
///
/// # Errors
/// It is another user's, or nobody can say whose.
async fn may_be_replaced(path: &Path) -> io::Result<bool> {
    let until = Instant::now() + FULL_FOR;
    loop {
        match probe(path)? {
            Answer::Nobody => return Ok(false),
            Answer::Open(stream) => {
                let theirs = UnixStream::from_std(stream.into())?.peer_cred()?.uid();
                let own = UnixStream::pair()?.0.peer_cred()?.uid();
                if theirs == own {
                    return Ok(true);
                }
                return Err(io::Error::other(format!("a process of another user, {theirs}, listens there")));
            }
            Answer::Full if Instant::now() < until => sleep(AGAIN).await,
            Answer::Full => return Err(io::Error::other("another process listens there, and accepts nobody")),
        }
    }
}

/// Who listens at a path.
enum Answer {
    /// None does: a socket there is what a killed process left behind.
    Nobody,
    /// One that accepts.
    Open(Socket),
    /// One whose queue is full.
    Full,
}

fn probe(path: &Path) -> io::Result<Answer> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue must not keep us waiting.
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(Answer::Open(socket)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Answer::Full),
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(Answer::Nobody),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;

    use super::*;

    const MANNER: Manner = Manner { workers: 1, shared: false, mode: None };

    #[tokio::test]
    async fn of_two_that_start_over_a_dead_socket_one_has_the_path() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("kf.sock");
        drop(StdUnixListener::bind(&path).expect("a socket, left behind"));
        // The second one comes between the first one's two steps.
        let (_first, mut lost) = bind(&path, MANNER, 0).await.expect("bound");
        let (second, mut kept) = bind(&path, MANNER, 1).await.expect("bound, too");
        socket2::SockRef::from(&second).listen(16).expect("listens");
        kept.settle().expect("the second has it");
        assert_eq!(lost.settle().expect_err("the first").kind(), ErrorKind::AddrInUse);
        drop(lost);
        StdUnixStream::connect(&path).expect("the first left what is not its own");
        // One that takes it for dead, and is late.
        let aside = dir.path().join("aside");
        assert_eq!(clear(&path, &aside).expect_err("it is alive").kind(), ErrorKind::AddrInUse);
        StdUnixStream::connect(&path).expect("it is where it was");
        assert!(!aside.exists());
        kept.settle().expect("and whose it was");
    }

    #[test]
    fn a_file_that_took_the_place_of_a_dead_socket_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("kf.sock");
        fs::write(&path, "precious").expect("a file");
        assert_eq!(clear(&path, &dir.path().join("aside")).expect_err("no socket").kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "precious");
    }
}
