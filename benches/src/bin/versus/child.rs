//! A server in a separate process. This module starts the process, reads its processor time and
//! memory, and kills it.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child as Process, Command, Stdio};
use std::time::Duration;

use crate::named::Named;
use crate::servers::{Kind, Service};

/// A server process. It is killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    pub(crate) addr: SocketAddr,
}

impl Child {
    /// Starts this program again as a server, on `core` if given, and waits until it listens.
    pub(crate) fn start(kind: Kind, service: Service, core: Option<usize>) -> io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["serve", kind.name(), service.mode.name()])
            .args(["--deadline", &service.deadline.as_secs().to_string()])
            .args(core.map(|core| format!("--core={core}")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take();
        // From here on, dropping `child` kills the process on every path.
        let mut child = Self { process, addr: (Ipv4Addr::LOCALHOST, 0).into() };
        let mut line = String::new();
        stdout.map(BufReader::new).map(|mut stdout| stdout.read_line(&mut line)).transpose()?;
        let port = line.trim().parse().map_err(|_| {
            io::Error::other(format!("{} did not start; see its error above", kind.name()))
        })?;
        child.addr.set_port(port);
        Ok(child)
    }

    /// Returns the processor time of all threads of the server, from the accounting of the
    /// scheduler. The time is exact if the threads sleep.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let account = fs::read_to_string(task?.path().join("schedstat"))?;
            nanoseconds += number(account.split_whitespace().next())?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Returns the resident bytes. They are read from `smaps_rollup`, which the kernel computes on
    /// each read. `VmRSS` in `status` may be wrong by some pages per core.
    pub(crate) fn resident(&self) -> io::Result<u64> {
        let account = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let line = account.lines().find_map(|line| line.strip_prefix("Rss:"));
        Ok(number(line.and_then(|line| line.split_whitespace().next()))? * 1024)
    }
}

fn number(text: Option<&str>) -> io::Result<u64> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Drop for Child {
    fn drop(&mut self) {
        // The process may have ended already. The client has then seen an error.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
