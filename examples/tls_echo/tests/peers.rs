//! The `tls_echo` example as its peers see it. Some peers are well-behaved. Others send byte by
//! byte, truncate the stream, send invalid data, or have no valid certificate.

#[path = "../../../tests/support/examples.rs"]
mod examples;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use examples::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned};

type Client = StreamOwned<ClientConnection, TcpStream>;

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Issues a certificate for `localhost`. Returns the certificate and its key.
    fn issue(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["localhost".into()]).expect("parameters");
        (params.signed_by(&key, &self.0).expect("a certificate"), key)
    }
}

/// The running program, with a certificate from `authority`.
struct Server {
    program: Program,
    addr: SocketAddr,
    authority: Authority,
    directory: PathBuf,
}

impl Server {
    fn run(args: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tls-echo-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).expect("a directory");
        let authority = Authority::new();
        let (cert, key) = authority.issue();
        let [ca, cert, key] = [
            ("ca.pem", authority.0.pem()),
            ("cert.pem", cert.pem()),
            ("key.pem", key.serialize_pem()),
        ]
        .map(|(name, pem)| {
            let path = directory.join(name);
            fs::write(&path, pem).expect("a file");
            path
        });
        let mut command = program();
        command.args(LOOPBACK).arg("--cert").arg(cert).arg("--key").arg(key).arg("--debug");
        let args = args.iter().map(|&arg| if arg == "CA" { ca.as_os_str() } else { arg.as_ref() });
        let program = Program::spawn(command.args(args));
        let addr = program.addr();
        Self { program, addr, authority, directory }
    }

    fn socket(&self) -> TcpStream {
        let socket = connect(self.addr);
        socket.set_nodelay(true).expect("nodelay");
        socket
    }

    /// Returns a client that trusts the server's authority.
    fn client(&self, adapt: impl FnOnce(&mut ClientConfig)) -> Client {
        self.client_with_certificate(None, adapt)
    }

    /// As [`Server::client`], with a client certificate from `issuer`.
    fn client_with_certificate(
        &self,
        issuer: Option<&Authority>,
        adapt: impl FnOnce(&mut ClientConfig),
    ) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.0.der().clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match issuer.map(Authority::issue) {
            Some((cert, key)) => {
                let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(chain, key).expect("a client certificate")
            }
            None => builder.with_no_client_auth(),
        };
        adapt(&mut config);
        let name = "localhost".try_into().expect("a name");
        let session = ClientConnection::new(Arc::new(config), name).expect("a session");
        StreamOwned::new(session, self.socket())
    }

    /// Checks that a well-behaved client is served.
    #[track_caller]
    fn assert_serves(&self) {
        assert_eq!(exchange(&mut self.client(|_| {}), "hello").expect("a reply"), "hello");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls_echo"));
    command.env_remove("RUST_LOG").env_remove("RUST_LOG_STYLE");
    command
}

/// Sends `text`, and returns the same number of bytes of the reply.
fn exchange(client: &mut Client, text: &str) -> io::Result<String> {
    client.write_all(text.as_bytes())?;
    let mut reply = vec![0; text.len()];
    client.read_exact(&mut reply)?;
    Ok(String::from_utf8(reply).expect("text"))
}

#[test]
fn alpn_selects_a_common_protocol_over_tls_1_3() {
    let server = Server::run(&["--alpn", "echo/2,echo/1"]);
    for (offer, agreed) in [("echo/1", Some(&b"echo/1"[..])), ("", None)] {
        let mut client = server.client(|config| {
            config.alpn_protocols =
                if offer.is_empty() { Vec::new() } else { vec![offer.as_bytes().to_vec()] };
        });
        assert_eq!(exchange(&mut client, "hello").expect("a reply"), "hello");
        assert_eq!(client.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(client.conn.alpn_protocol(), agreed);
    }
    let mut other = server.client(|config| config.alpn_protocols = vec![b"h2".to_vec()]);
    let refused = exchange(&mut other, "hello").expect_err("no protocol in common");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    server.assert_serves();
}

#[test]
fn megabytes_are_echoed_complete_and_in_order() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    let mut counter = 0u32;
    for _ in 0..16 {
        let sent: Vec<u8> = std::iter::repeat_with(|| {
            counter += 1;
            counter.to_le_bytes()
        })
        .take(64 << 10)
        .flatten()
        .collect();
        let mut got = vec![0; sent.len()];
        client.write_all(&sent).expect("send");
        client.read_exact(&mut got).expect("receive");
        assert!(got == sent, "the reply differs from the request");
    }
}

#[test]
fn close_notify_is_answered_with_close_notify() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    client.write_all(b"the end").expect("send");
    client.conn.send_close_notify();
    client.flush().expect("flush");
    let mut reply = String::new();
    client.read_to_string(&mut reply).expect("a close_notify");
    assert_eq!(reply, "the end");
    server.program.stderr.find("the peer closed");
}

#[test]
fn a_truncated_stream_is_an_error() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    assert_eq!(exchange(&mut client, "hello").expect("a reply"), "hello");
    client.sock.shutdown(Shutdown::Write).expect("shutdown");
    let cut = client.read(&mut [0]).expect_err("no close_notify after a truncated stream");
    assert!(matches!(cut.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{cut}");
    server.program.stderr.find("unexpected end of file");
    server.assert_serves();
}

#[test]
fn a_slow_handshake_is_closed_and_an_idle_session_stays_open() {
    let server = Server::run(&["--handshake-ms", "400", "--deadline-ms", "60000"]);
    let mut idle = server.client(|_| {});
    assert_eq!(exchange(&mut idle, "hello").expect("a reply"), "hello");
    let began = Instant::now();
    let mut socket = server.socket();
    // Sends the header of a record of 512 bytes, then one byte of it every 20 ms.
    socket.write_all(&[22, 3, 1, 2, 0]).expect("send");
    while socket.write_all(&[0]).is_ok() {
        thread::sleep(Duration::from_millis(20));
        let in_time = began.elapsed() < Duration::from_secs(5);
        assert!(in_time, "single bytes keep the connection open");
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    // After the first plaintext byte, the idle deadline applies instead of the handshake deadline.
    assert_eq!(exchange(&mut idle, "still here").expect("a reply"), "still here");
}

#[test]
fn a_client_hello_sent_byte_by_byte_is_accepted() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    let mut hello = Vec::new();
    client.conn.write_tls(&mut hello).expect("a ClientHello");
    for byte in hello {
        client.sock.write_all(&[byte]).expect("send");
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(exchange(&mut client, "hello").expect("a reply"), "hello");
}

#[test]
fn a_client_certificate_is_required_and_verified() {
    let server = Server::run(&["--client-ca", "CA"]);
    let mut known = server.client_with_certificate(Some(&server.authority), |_| {});
    assert_eq!(exchange(&mut known, "hello").expect("a reply"), "hello");
    let other_authority = Authority::new();
    // The other authority has the same name as the first, but another key.
    for (issuer, alert) in [(None, "CertificateRequired"), (Some(&other_authority), "DecryptError")]
    {
        let refused = server.client_with_certificate(issuer, |_| {}).read(&mut [0]);
        let refused = refused.expect_err("no valid certificate").to_string();
        assert!(refused.contains(alert), "{refused}");
    }
    let optional = Server::run(&["--client-auth", "optional", "--client-ca", "CA"]);
    optional.assert_serves();
    let refused = optional.client_with_certificate(Some(&other_authority), |_| {}).read(&mut [0]);
    let refused = refused.expect_err("an invalid certificate").to_string();
    assert!(refused.contains("DecryptError"), "{refused}");
}

#[test]
fn invalid_data_is_answered_with_an_alert() {
    let server = Server::run(&[]);
    let mut socket = server.socket();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("send");
    let mut reply = Vec::new();
    let _ = socket.read_to_end(&mut reply);
    assert_eq!(reply.first(), Some(&21), "an alert: {reply:?}");
    server.program.stderr.find("invalid data");
    server.assert_serves();
}

#[test]
fn a_stop_sends_close_notify_to_idle_clients() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    assert_eq!(exchange(&mut client, "hello").expect("a reply"), "hello");
    server.program.signal("-TERM");
    assert_eq!(client.read(&mut [0]).expect("a close_notify"), 0);
    drop(client);
    server.program.stdout.find("stopped: 1 idle");
}

#[track_caller]
fn assert_fails(args: &[&str], code: i32, message: &str) {
    let (status, stdout, stderr) = Program::spawn(program().args(args)).end();
    assert_eq!((status.code(), stdout.len(), stderr.len()), (Some(code), 0, 1), "{stderr:?}");
    assert!(stderr[0].starts_with("tls_echo: ") && stderr[0].contains(message), "{stderr:?}");
}

#[test]
fn bad_usage_is_reported_in_one_line() {
    assert_fails(&[], 2, "--cert and --key are needed; try --help");
    assert_fails(&["--client-auth", "perhaps"], 2, "required or optional");
    assert_fails(&["--alpn", "a,,b"], 2, "1 to 255 bytes");
    let none = ["--cert", "/nowhere/cert.pem", "--key", "/nowhere/key.pem"];
    assert_fails(&none, 1, "can't read /nowhere/cert.pem: No such file or directory");
    let not_pem = ["--cert", "Cargo.toml", "--key", "Cargo.toml"];
    assert_fails(&not_pem, 1, "no certificate in Cargo.toml");
}
