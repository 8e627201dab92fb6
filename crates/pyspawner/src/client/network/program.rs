//! Programs of the host's that a managed network needs.

use std::env;
use std::path::PathBuf;

use rustix::fs::{Access, access};

/// Where programs of an administrator's are, for those whose `PATH` has no such directories.
const ELSEWHERE: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The path of a program that the caller can run.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(ELSEWHERE.map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|program| {
        program.is_absolute() && program.is_file() && access(program, Access::EXEC_OK).is_ok()
    })
}
