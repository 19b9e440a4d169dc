//! An upstream that records what reaches it and does as the test says with each request: usually it hands it to a real server.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::wire::command;
use super::{Client, free_addr};

/// One request as it arrived.
pub(crate) type Request = Vec<Vec<u8>>;

/// What to do with a request.
pub(crate) enum Act {
    /// Let the real server answer.
    Forward,
    /// Let the real server answer, then add bytes nobody asked for.
    ForwardAnd(Vec<u8>),
    /// Answer with these bytes.
    Reply(Vec<u8>),
    /// Write these bytes and close.
    Close(Vec<u8>),
    /// Say nothing, and read on.
    Silence,
}

/// A listening scripted upstream.
pub(crate) struct Scripted {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Scripted {
    /// In front of the server at `real`; `act` is asked about every request of every connection.
    pub(crate) fn start(real: SocketAddr, act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let addr = free_addr();
        let listener = TcpListener::bind(addr).unwrap();
        let (seen, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let act = Arc::new(act);
        let this = Self { addr, seen: Arc::clone(&seen), open: Arc::clone(&open) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let (act, seen) = (Arc::clone(&act), Arc::clone(&seen));
                thread::spawn(move || serve(stream, real, &*act, &seen));
            }
        });
        this
    }

    /// Where keyfence finds it.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Every request so far, of all connections.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Closes every connection there is; new ones are welcome.
    pub(crate) fn drop_connections(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// One connection: its requests in order, each answered before the next is looked at.
fn serve(
    mut stream: TcpStream,
    real: SocketAddr,
    act: &(dyn Fn(&Request) -> Act + Send + Sync),
    seen: &Mutex<Vec<Request>>,
) {
    let mut real = Client::connect(real);
    let mut input = Input { stream: stream.try_clone().unwrap(), buf: Vec::new(), pos: 0 };
    while let Some(request) = input.request() {
        seen.lock().unwrap().push(request.clone());
        let forward = |real: &mut Client| {
            real.send(&command(&request));
            real.try_reply().unwrap_or_default()
        };
        let reply = match act(&request) {
            Act::Forward => forward(&mut real),
            Act::ForwardAnd(extra) => [forward(&mut real), extra].concat(),
            Act::Reply(bytes) => bytes,
            Act::Close(bytes) => {
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            Act::Silence => continue,
        };
        if stream.write_all(&reply).is_err() {
            return;
        }
    }
}

/// Requests in the one form a proxy may send them: arrays of bulk strings with exact lengths.
struct Input {
    stream: TcpStream,
    buf: Vec<u8>,
    pos: usize,
}

impl Input {
    fn request(&mut self) -> Option<Request> {
        let count = self.header(b'*')?;
        (0..count)
            .map(|_| {
                let len = self.header(b'$')?;
                let bytes = self.take(len)?;
                assert_eq!(self.take(2)?, b"\r\n", "a bulk string must end where it says");
                Some(bytes)
            })
            .collect()
    }

    fn header(&mut self, kind: u8) -> Option<usize> {
        loop {
            if let Some(end) = self.buf[self.pos..].windows(2).position(|w| w == b"\r\n") {
                let line = self.take(end)?;
                self.take(2)?;
                assert_eq!(line[0], kind, "a request must be an array of bulk strings, not {line:?}");
                return Some(std::str::from_utf8(&line[1..]).unwrap().parse().unwrap());
            }
            self.fill()?;
        }
    }

    fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buf.len() - self.pos < n {
            self.fill()?;
        }
        let bytes = self.buf[self.pos..self.pos + n].to_vec();
        self.pos += n;
        Some(bytes)
    }

    fn fill(&mut self) -> Option<()> {
        self.buf.drain(..self.pos);
        self.pos = 0;
        let mut chunk = [0; 1 << 16];
        let n = self.stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        self.buf.extend_from_slice(&chunk[..n]);
        Some(())
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.drop_connections();
    }
}
