//! The program as its peers see it: those that mean well, and those that drip, cut off, talk
//! nonsense or are nobody it knows.

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

/// Somebody who issues certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// A certificate for `localhost`, and its key.
    fn issue(&self) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["localhost".into()]).expect("parameters");
        (params.signed_by(&key, &self.0).expect("a certificate"), key)
    }
}

/// The program with a certificate of its own.
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

    /// A client that trusts the server's authority.
    fn client(&self, adapt: impl FnOnce(&mut ClientConfig)) -> Client {
        self.client_of(None, adapt)
    }

    /// The same, with a certificate that `issuer` has issued.
    fn client_of(
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
                builder.with_client_auth_cert(chain, key).expect("a certificate of the client's")
            }
            None => builder.with_no_client_auth(),
        };
        adapt(&mut config);
        let name = "localhost".try_into().expect("a name");
        let session = ClientConnection::new(Arc::new(config), name).expect("a session");
        StreamOwned::new(session, self.socket())
    }

    /// Whether somebody who means well is served.
    #[track_caller]
    fn assert_well(&self) {
        assert_eq!(echoed(&mut self.client(|_| {}), "hello").expect("an echo"), "hello");
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

fn echoed(client: &mut Client, text: &str) -> io::Result<String> {
    client.write_all(text.as_bytes())?;
    let mut reply = vec![0; text.len()];
    client.read_exact(&mut reply)?;
    Ok(String::from_utf8(reply).expect("text"))
}

#[test]
fn both_versions_are_spoken_and_a_protocol_is_agreed_on() {
    let server = Server::run(&["--alpn", "echo/2,echo/1"]);
    for (offer, agreed) in [("echo/1", Some(&b"echo/1"[..])), ("", None)] {
        let mut client = server.client(|config| {
            config.alpn_protocols =
                if offer.is_empty() { Vec::new() } else { vec![offer.as_bytes().to_vec()] };
        });
        assert_eq!(echoed(&mut client, "hello").expect("an echo"), "hello");
        assert_eq!(client.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(client.conn.alpn_protocol(), agreed);
    }
    let mut stranger = server.client(|config| config.alpn_protocols = vec![b"h2".to_vec()]);
    let refused = echoed(&mut stranger, "hello").expect_err("no protocol in common");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    server.assert_well();
}

#[test]
fn megabytes_come_back_whole_and_in_order() {
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
        assert!(got == sent, "what comes back is not what went");
    }
}

#[test]
fn a_goodbye_is_answered_with_a_goodbye() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    client.write_all(b"the end").expect("send");
    client.conn.send_close_notify();
    client.flush().expect("flush");
    let mut reply = String::new();
    client.read_to_string(&mut reply).expect("an end that is said");
    assert_eq!(reply, "the end");
    server.program.stderr.find("the peer closed");
}

#[test]
fn a_stream_that_is_cut_off_is_not_taken_for_its_end() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    assert_eq!(echoed(&mut client, "hello").expect("an echo"), "hello");
    client.sock.shutdown(Shutdown::Write).expect("shutdown");
    let cut = client.read(&mut [0]).expect_err("who is cut off gets no goodbye either");
    assert!(matches!(cut.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{cut}");
    server.program.stderr.find("unexpected end of file");
    server.assert_well();
}

#[test]
fn a_dripped_handshake_gains_no_time_and_a_patient_client_is_heard() {
    let server = Server::run(&["--handshake-ms", "400", "--deadline-ms", "60000"]);
    let mut quiet = server.client(|_| {});
    assert_eq!(echoed(&mut quiet, "hello").expect("an echo"), "hello");
    let began = Instant::now();
    let mut socket = server.socket();
    // The head of a record of 512 bytes, and then a byte of it now and then.
    socket.write_all(&[22, 3, 1, 2, 0]).expect("send");
    while socket.write_all(&[0]).is_ok() {
        thread::sleep(Duration::from_millis(20));
        let kept = began.elapsed() < Duration::from_secs(5);
        assert!(kept, "a byte now and then keeps it open");
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    // Behind its first byte the other deadline holds.
    assert_eq!(echoed(&mut quiet, "still here").expect("an echo"), "still here");
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    let mut hello = Vec::new();
    client.conn.write_tls(&mut hello).expect("a ClientHello");
    for byte in hello {
        client.sock.write_all(&[byte]).expect("send");
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(echoed(&mut client, "hello").expect("an echo"), "hello");
}

#[test]
fn a_certificate_of_the_client_is_asked_for_and_looked_at() {
    let server = Server::run(&["--client-ca", "CA"]);
    let mut known = server.client_of(Some(&server.authority), |_| {});
    assert_eq!(echoed(&mut known, "hello").expect("an echo"), "hello");
    let stranger = Authority::new();
    // It calls itself as the authority does, but has another key.
    for (issuer, alert) in [(None, "CertificateRequired"), (Some(&stranger), "DecryptError")] {
        let refused = server.client_of(issuer, |_| {}).read(&mut [0]);
        let refused = refused.expect_err("nobody it knows").to_string();
        assert!(refused.contains(alert), "{refused}");
    }
    let lenient = Server::run(&["--client-auth", "optional", "--client-ca", "CA"]);
    lenient.assert_well();
    let refused = lenient.client_of(Some(&stranger), |_| {}).read(&mut [0]);
    let refused = refused.expect_err("a wrong one is worse than none").to_string();
    assert!(refused.contains("DecryptError"), "{refused}");
}

#[test]
fn nonsense_gets_an_alert_and_harms_nobody() {
    let server = Server::run(&[]);
    let mut socket = server.socket();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("send");
    let mut reply = Vec::new();
    let _ = socket.read_to_end(&mut reply);
    assert_eq!(reply.first(), Some(&21), "an alert: {reply:?}");
    server.program.stderr.find("invalid data");
    server.assert_well();
}

#[test]
fn a_stop_says_goodbye_to_who_is_idle() {
    let server = Server::run(&[]);
    let mut client = server.client(|_| {});
    assert_eq!(echoed(&mut client, "hello").expect("an echo"), "hello");
    server.program.signal("-TERM");
    assert_eq!(client.read(&mut [0]).expect("an end that is said"), 0);
    drop(client);
    server.program.stdout.find("stopped: 1 idle");
}

#[track_caller]
fn assert_fails(args: &[&str], code: i32, says: &str) {
    let (status, stdout, stderr) = Program::spawn(program().args(args)).end();
    assert_eq!((status.code(), stdout.len(), stderr.len()), (Some(code), 0, 1), "{stderr:?}");
    assert!(stderr[0].starts_with("tls_echo: ") && stderr[0].contains(says), "{stderr:?}");
}

#[test]
fn what_is_wrong_with_the_arguments_is_said_in_one_line() {
    assert_fails(&[], 2, "--cert and --key are needed; try --help");
    assert_fails(&["--client-auth", "perhaps"], 2, "required or optional");
    assert_fails(&["--alpn", "a,,b"], 2, "1 to 255 bytes");
    let none = ["--cert", "/nowhere/cert.pem", "--key", "/nowhere/key.pem"];
    assert_fails(&none, 1, "can't read /nowhere/cert.pem: No such file or directory");
    let not_pem = ["--cert", "Cargo.toml", "--key", "Cargo.toml"];
    assert_fails(&not_pem, 1, "no certificate in Cargo.toml");
}
