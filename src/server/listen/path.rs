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
    /// Puts it where clients look for it.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if self.at != self.path {
            fs::rename(&self.at, &self.path)?;
            self.at.clone_from(&self.path);
        }
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.at).is_ok_and(|m| (m.dev(), m.ino()) == (self.dev, self.ino)) {
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
    let at = if theirs { &*beside } else { path };
    if let Err(e) = fs::remove_file(at)
        && e.kind() != ErrorKind::NotFound
    {
        return Err(e);
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
