//! A clone of the zygote that becomes a zygote itself: it has all the imports, and may make more.
//!
//! Who runs this: the zygote, and then its clone, with the caller as its parent. The clone begins where an interpreter begins that the caller
//! has started, but for what the zygote has done to itself in order to serve. So it goes back to the host's view, and takes a watchdog of its
//! own. Of children it learns what the zygote knows of them, which is nothing.

use std::ops::ControlFlow;
use std::os::fd::AsFd;

use rustix::process::{getpid, setsid};

use crate::channel::Channel;
use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::FromZygote;
use crate::sys::clone::{Cloned, clone_plain_sibling};
use crate::sys::kernel::exit_now;

use super::clone::{ExitOnUnwind, ForkHooks, Zygote};
use super::template::Rights;
use super::{Boot, Origin, ZygoteError, own_pidfd};

impl Zygote {
    /// Clones this process. The zygote goes on; the clone is the start of another one, which is told all else through `socket`.
    pub(super) fn derive(self, socket: Channel, hooks: &mut dyn ForkHooks) -> ControlFlow<Boot, Self> {
        hooks.before();
        let told = match self.clone_plainly() {
            Ok(Cloned::Child) => {
                let boot = self.become_boot(socket);
                hooks.after_in_child();
                return ControlFlow::Break(boot);
            }
            Ok(Cloned::Parent { pid, pidfd }) => socket.send(&FromZygote::Derived { pid }, &[pidfd.as_fd()]),
            Err(failure) => socket.send(&refusal(failure), &[]),
        };
        // A caller that is gone, or has given the clone up, does not need it.
        drop(told);
        hooks.after_in_parent();
        ControlFlow::Continue(self)
    }

    #[expect(unsafe_code, reason = "the fork guard")]
    fn clone_plainly(&self) -> Result<Cloned, Failure> {
        self.check_threads()?;
        // SAFETY: single-threaded: counted on the line above, after the last foreign code that has run here.
        unsafe { clone_plain_sibling(self.plan.thread) }.fail_at(Layer::Namespaces, Step::Clone)
    }

    /// The clone's half. Any failure ends the process here, before handlers run that would clean up after the zygote.
    fn become_boot(self, socket: Channel) -> Boot {
        let guard = ExitOnUnwind;
        let Ok(pidfd) = own_pidfd() else { exit_now(1) };
        let pid = getpid().as_raw_nonzero().get();
        // Whom nobody waits for ends. The zygote says the same, and its word will do.
        if socket.send(&FromZygote::Derived { pid }, &[pidfd.as_fd()]).is_err() {
            exit_now(1);
        }
        drop(pidfd);
        let title = self.title;
        let rights = self.leave().unwrap_or_else(|failure| {
            let _ = socket.send(&refusal(failure), &[]);
            exit_now(1)
        });
        match Boot::on(socket, title, Origin::Clone(rights)) {
            Ok(boot) => {
                std::mem::forget(guard);
                boot
            }
            Err(ZygoteError::CallerGone) => exit_now(1),
            Err(error) => {
                eprintln!("pyspawner: {error}");
                exit_now(1)
            }
        }
    }

    /// Gives up what is the zygote's: its session, its sockets, its view of the files.
    fn leave(self) -> Result<Rights, Failure> {
        let Self { plan, .. } = self;
        setsid().fail_at(Layer::Session, Step::SetSession)?;
        plan.leave()
    }
}

fn refusal(failure: Failure) -> FromZygote {
    FromZygote::Failed { summary: format!("cannot clone the zygote: {failure}"), traceback: String::new() }
}
