//! The progress line on stderr. There is none if stderr is not a terminal.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bench::client::Progress;
use bench::human;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// Draws on a separate thread, so that a slow or stopped terminal does not delay the client. In the
/// report, a delayed client would look like a slow server.
pub(super) struct Live(Option<(SyncSender<Progress>, JoinHandle<()>)>);

impl Live {
    pub(super) fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        Self(Some((sender, thread::spawn(move || draw(&receiver)))))
    }

    pub(super) fn show(&self, progress: Progress) {
        if let Some((sender, _)) = &self.0 {
            // The update is dropped if the previous one is not drawn yet.
            let _ = sender.try_send(progress);
        }
    }

    /// Clears the line.
    pub(super) fn finish(self) {
        if let Some((sender, drawing)) = self.0 {
            drop(sender);
            let _ = drawing.join();
        }
    }
}

fn draw(updates: &Receiver<Progress>) {
    let style = "{bar:32.cyan/dim} {percent:>3}%  {wide_msg}";
    let style = ProgressStyle::with_template(style).expect("the template is a constant");
    let bar = ProgressBar::new(1_000).with_style(style.progress_chars("━╸━"));
    let mut before = (Duration::ZERO, 0);
    for now in updates {
        let rate = (now.requests.saturating_sub(before.1)) as f64
            / now.elapsed.saturating_sub(before.0).as_secs_f64().max(1e-3);
        before = (now.elapsed, now.requests);
        let connections = HumanCount(now.connections as u64);
        bar.set_message(if now.elapsed.is_zero() {
            format!("{connections} connections")
        } else {
            format!("{} requests/s, {connections} connections", human::amount(rate))
        });
        bar.set_position(per_mille(now.done));
    }
    bar.finish_and_clear();
}

#[expect(clippy::cast_sign_loss, reason = "from 0 to 1")]
fn per_mille(done: f64) -> u64 {
    (done * 1e3) as u64
}
