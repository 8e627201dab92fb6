//! Layer `landlock`: the second lock on the doors of the layer `mounts`, from the same configuration; landlock(7).
//!
//! What is visible may be read and executed, what is the child's own may be written too, and nothing else. Where the kernel has it, abstract
//! unix sockets and processes outside are out of reach as well. Each kernel's ABI knows more than the one before: the caller finds out
//! which it is, and the child applies just that one, or fails.

use std::error::Error;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::error::{FailAt, Failure, Step};
use crate::layer::Layer;
use crate::protocol::{Filesystem, View};
use crate::sys::kernel::landlock_abi;

/// The first ABI that knows every way to change a file's content: before it, truncate(2) is not refused.
pub const MIN_WITHOUT_NAMESPACES: u8 = 3;

/// What of `/proc` a child without namespaces may read, beside its own: facts about the machine. A rule belongs to an inode, and this
/// filesystem's are made anew when memory is short: somebody who lives on must have them open.
pub(crate) const FACTS: [&CStr; 6] =
    [c"/proc/cpuinfo", c"/proc/meminfo", c"/proc/stat", c"/proc/loadavg", c"/proc/uptime", c"/proc/version"];

/// The devices that every child has.
const DEVICES: [&CStr; 5] = [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom"];

/// The ABI of this kernel, at most `most`. 0: it has no Landlock.
#[must_use]
pub fn abi(most: Option<u8>) -> u8 {
    landlock_abi().min(most.unwrap_or(u8::MAX))
}

/// What `child.layers` says of this layer.
#[must_use]
pub fn describe(abi: u8) -> String {
    if abi == 0 {
        return "off: this kernel has none (Linux 5.13, and landlock in its list of security modules)"
            .to_owned();
    }
    // What an earlier one lacks.
    let lacking = [
        (2, "; renames between directories are all refused"),
        (3, "; no lock on truncation"),
        (5, "; no lock on ioctl of devices"),
        (6, "; no lock on signals and abstract unix sockets"),
    ];
    let lacking = lacking.into_iter().filter_map(|(since, what)| (abi < since).then_some(what));
    format!("ABI {abi}{}", lacking.collect::<String>())
}

/// Locks the doors of the root that the child has built.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn enter(abi: u8, view: &View, private: &[&CStr]) -> Result<(), Failure> {
    let mut rules = Rules::new(abi)?;
    let everything = AccessFs::from_all(rules.abi);
    rules.allow(c"/", AccessFs::from_read(rules.abi))?;
    if !view.chroot {
        rules.allow(c"/dev", rules.device())?;
        for directory in private {
            rules.allow(directory, everything)?;
        }
    }
    for mount in &view.mounts {
        match mount.filesystem {
            Filesystem::Sent | Filesystem::Tmpfs { .. } | Filesystem::Overlay { .. } => {
                rules.allow(&mount.target, everything)?;
            }
            Filesystem::Dev { .. } => {
                rules.allow(&mount.target, rules.device())?;
                let shm = [mount.target.to_bytes(), b"/shm"].concat();
                rules.allow(&CString::new(shm).unwrap_or_default(), everything)?;
            }
            Filesystem::Tree { .. } | Filesystem::Proc => {}
        }
    }
    rules.enter()
}

/// Locks the doors of the host's own tree, of which only `visible` stays open, for reading.
///
/// # Errors
///
/// What the kernel refused.
pub(crate) fn enter_without_namespaces(abi: u8, visible: &[CString]) -> Result<(), Failure> {
    let mut rules = Rules::new(abi)?;
    for path in visible.iter().map(CString::as_c_str).chain(FACTS).chain([c"/proc/self"]) {
        rules.allow(path, AccessFs::from_read(rules.abi))?;
    }
    for device in DEVICES {
        rules.allow(device, rules.device())?;
    }
    rules.enter()
}

struct Rules {
    abi: ABI,
    ruleset: RulesetCreated,
}

impl Rules {
    fn new(abi: u8) -> Result<Self, Failure> {
        let abi = ABI::from(i32::from(abi));
        let scopes = Scope::from_all(abi);
        // Nothing less than this ABI.
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let ruleset = ruleset.handle_access(AccessFs::from_all(abi)).map_err(|error| refused(&error))?;
        let ruleset = if scopes.is_empty() {
            ruleset
        } else {
            ruleset.scope(scopes).map_err(|error| refused(&error))?
        };
        // An own layer sets no_new_privs.
        let ruleset = ruleset.create().map_err(|error| refused(&error))?.no_new_privs(false);
        Ok(Self { abi, ruleset })
    }

    fn device(&self) -> BitFlags<AccessFs> {
        AccessFs::from_file(self.abi) | AccessFs::ReadDir
    }

    /// Allows `access` to `path` and all below it, if there is such a path.
    fn allow(&mut self, path: &CStr, access: BitFlags<AccessFs>) -> Result<(), Failure> {
        let opened = match openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT | Errno::ACCESS) => return Ok(()),
            opened => opened.fail_at(Layer::Landlock, Step::OpenRule)?,
        };
        let access = if is_directory(&opened)? { access } else { access & AccessFs::from_file(self.abi) };
        let rule = PathBeneath::new(opened, access);
        (&mut self.ruleset).add_rule(rule).map_err(|error| refused(&error)).map(drop)
    }

    fn enter(self) -> Result<(), Failure> {
        self.ruleset.restrict_self().map_err(|error| refused(&error)).map(drop)
    }
}

fn is_directory(file: &OwnedFd) -> Result<bool, Failure> {
    let stat = fstat(file).fail_at(Layer::Landlock, Step::OpenRule)?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// The kernel's answer, where there is one below the crate's.
fn refused(error: &RulesetError) -> Failure {
    let mut below: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = below {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Failure::new(Layer::Landlock, Step::RestrictSelf, errno);
        }
        below = error.source();
    }
    Failure::new(Layer::Landlock, Step::RestrictSelf, libc::EOPNOTSUPP)
}
