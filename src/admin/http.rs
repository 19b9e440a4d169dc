//! One request and its answer.

use std::{fmt::Write as _, net::IpAddr};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{self, HeaderValue},
};

use super::{Board, exposition, status};

/// The page, in which [`NONCE`] stands where its style and its script are let through.
const PAGE: &str = include_str!("page.html");
/// See [`PAGE`].
const NONCE: &str = "{{nonce}}";
/// What Prometheus's own parser takes for what is sent.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";

/// Answers. `local`: the address that was connected to is a loopback one.
pub(super) fn answer<B>(request: &Request<B>, board: &Board, local: bool) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".into());
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    if local && !names_this_machine(request) {
        return reply(StatusCode::MISDIRECTED_REQUEST, TEXT, "the Host is not this machine\n".into());
    }
    match request.uri().path() {
        "/" => page(),
        "/healthz" => reply(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => ready(board),
        "/metrics" => reply(StatusCode::OK, OPEN_METRICS, exposition::render(board).into()),
        "/api/status" => reply(StatusCode::OK, JSON, status::render(board)),
        _ => reply(StatusCode::NOT_FOUND, TEXT, "there are /, /healthz, /readyz, /metrics and /api/status\n".into()),
    }
}

/// A name that an attacker's DNS may have turned to 127.0.0.1 is no address and not `localhost`. A client that names no host is no browser.
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let named = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
    named.chain(request.uri().authority().map(hyper::http::uri::Authority::as_str)).all(|host| {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
            _ => host,
        };
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
    })
}

fn ready(board: &Board) -> Response<Full<Bytes>> {
    let (ready, amiss) = board.readiness();
    let mut text = String::from(if ready { "ready\n" } else { "not ready\n" });
    amiss.iter().for_each(|what| {
        let _ = writeln!(text, "{what}");
    });
    reply(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, TEXT, text.into())
}

fn page() -> Response<Full<Bytes>> {
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the system gives no random bytes\n".into());
    }
    let nonce: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut page = reply(StatusCode::OK, HTML, PAGE.replace(NONCE, &nonce).into());
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    page
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_by_its_own_name() {
        let allowed = |host: &str| {
            let request = Request::builder().uri("/").header("host", host).body(()).expect("a request");
            names_this_machine(&request)
        };
        for host in ["localhost", "LOCALHOST:9180", "127.0.0.1:9180", "127.0.0.1", "[::1]:9180", "[::1]", "10.0.0.1:80"]
        {
            assert!(allowed(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:9180", "evil.example:9180", "", "127.0.0.1.evil.example"] {
            assert!(!allowed(host), "{host}");
        }
        assert!(names_this_machine(&Request::builder().uri("/").body(()).expect("a request")));
        let absolute = Request::builder().uri("http://evil.example/").header("host", "localhost").body(());
        assert!(!names_this_machine(&absolute.expect("a request")));
    }

    #[test]
    fn the_page_is_whole_in_itself() {
        for outside in ["src=", "href=", "@import", "url(", "http:", "https:"] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        // Handlers and styles in attributes would need a policy that lets through what was injected, too.
        for line in PAGE.lines() {
            let inline = [" onclick=", " onload=", " oninput=", " onchange=", " style=\"", "innerHTML", "eval("];
            assert!(inline.iter().all(|word| !line.contains(word)), "{line}");
        }
        assert_eq!(PAGE.matches(NONCE).count(), 2, "a style and a script");
    }
}
