//! One HTTP request at a time, as bytes.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::HANG;

/// An answer.
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case, a line each.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sends `request` and reads until the peer closes; none if it closes without an answer.
pub(crate) fn exchange(at: SocketAddr, request: &[u8]) -> Option<Response> {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    // A peer that has refused already may not read on.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let head = head.replace('\r', "");
    Some(Response { status, head, body: body.to_owned() })
}

/// GET of a path.
pub(crate) fn get(at: SocketAddr, path: &str) -> Response {
    exchange(at, format!("GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n").as_bytes()).unwrap()
}

/// Asks again until `wanted` holds of the answer.
pub(crate) fn until(at: SocketAddr, path: &str, wanted: impl Fn(&Response) -> bool) -> Response {
    let began = std::time::SystemTime::now();
    loop {
        let response = get(at, path);
        if wanted(&response) {
            return response;
        }
        assert!(began.elapsed().unwrap() < HANG, "{path} stays {} {}", response.status, response.body);
    }
}
