//! A child that is ready to run and knows nothing yet of what: it waits for the caller to wake it.
//!
//! Who runs this: a child, inside its sandbox and before any user code. What it has run is of the zygote's modules: their fork hooks, and the
//! function that warms it up.

use std::os::fd::{AsFd, OwnedFd};

use crate::channel::Channel;
use crate::protocol::{MAX_SUMMARY, Order, Report};
use crate::sandbox::rlimits;
use crate::sys::descriptors;
use crate::sys::kernel::exit_now;
use crate::sys::title::Title;

use super::clone::show_name;
use super::floor;

/// A child's end of its conversation with the caller, and what it needs to run.
#[derive(Debug)]
pub struct Parking {
    pub(super) private: Channel,
    pub(super) title: Option<Title>,
    /// What it may use from the moment when it is woken.
    pub(super) cpu_seconds: Option<u64>,
}

impl Parking {
    /// Parks, and answers the pickled args when it is woken. Its standard streams are its own then, and the caller knows that user code runs
    /// next. Ends the process where nobody will wake it.
    #[must_use]
    pub fn wait(self) -> OwnedFd {
        // What it has used until now does not count, and while it waits it uses nothing.
        let is_limited = rlimits::limit_cpu(self.cpu_seconds);
        if is_limited.is_err() || self.private.send(&Report::Parked, &[self.private.as_fd()]).is_err() {
            exit_now(1);
        }
        let Ok(Some(received)) = self.private.recv::<Order>() else { exit_now(1) };
        let Ok((Order::Wake { process_name }, [stdin, stdout, stderr, args])) = received.with() else {
            exit_now(1)
        };
        if descriptors::become_stdio(stdin, stdout, stderr).is_err() {
            exit_now(1);
        }
        show_name(&process_name, self.title);
        if self.private.send(&Report::Running, &[]).is_err() {
            exit_now(1);
        }
        args
    }

    /// Tells why it cannot, and ends the process.
    pub fn give_up(self, summary: &str) -> ! {
        let summary = summary[..floor(summary, MAX_SUMMARY)].to_owned();
        // A caller that is gone does not need it.
        let _ = self.private.send(&Report::WarmUpFailed { summary }, &[]);
        exit_now(1)
    }
}
