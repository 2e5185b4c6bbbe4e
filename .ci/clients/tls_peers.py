"""Clients that the openssl command cannot provide: a ClientHello byte by byte, a slow handshake,
1,000 handshakes. Python's ssl is OpenSSL on memory buffers, which this script sends and fills."""

import socket
import ssl
import sys
import time

host, port = sys.argv[1].rsplit(":", 1)
addr = (host, int(port))
context = ssl.create_default_context(cafile=sys.argv[2])


class Peer:
    """A session over a socket. Sends at most `chunk` bytes at a time."""

    def __init__(self, chunk):
        self.socket = socket.create_connection(addr, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.chunk = chunk
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.into, self.out, server_hostname="localhost")

    def do(self, call):
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                self.send()
                got = self.socket.recv(65536)
                self.into.write(got) if got else self.into.write_eof()
            finally:
                self.send()

    def send(self):
        data = self.out.read()
        for at in range(0, len(data), self.chunk):
            self.socket.sendall(data[at : at + self.chunk])

    def echoes(self, text):
        self.do(lambda: self.tls.write(text))
        reply = b""
        while len(reply) < len(text):
            reply += self.do(lambda: self.tls.read(65536))
        assert reply == text, reply

    def close(self):
        self.do(self.tls.unwrap)
        self.socket.close()


peer = Peer(chunk=1)
peer.do(peer.tls.do_handshake)
peer.echoes(b"byte by byte")
peer.close()
print("a session with each byte in a separate segment:", peer.tls.version())

began = time.monotonic()
with socket.create_connection(addr, timeout=10) as slow:
    try:
        slow.sendall(b"\x16\x03\x01\x02\x00")
        while time.monotonic() - began < 8:
            slow.sendall(b"\x01")
            time.sleep(0.05)
    except OSError:
        pass
took = time.monotonic() - began
assert 1.4 < took < 5, took
print(f"a slow handshake was closed after {took:.1f} s")

began = time.monotonic()
for number in range(1000):
    peer = Peer(chunk=65536)
    peer.do(peer.tls.do_handshake)
    peer.echoes(b"%d" % number)
    peer.close()
took = time.monotonic() - began
print(f"1000 handshakes, each with an echo and a close_notify both ways, in {took:.1f} s")
