//! The same view as paths, for children without namespaces: they see the host itself, and Landlock is told what they may read of it.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::cover::kernels_own;
use super::hidden;
use super::needs::{Item, Needs, is_shut, outermost, walk, wanted};

/// Not part of the view: the layer gives its own rules for what a child may use of these.
const SPECIAL: [&str; 2] = ["/proc", "/dev"];

/// What children may read of the host: everything but what is hidden, and of that what the interpreter needs.
pub(in crate::zygote) fn visible(needs: &Needs, user: u32) -> Vec<CString> {
    let mut hidden = hidden::directories(user);
    hidden.extend(kernels_own().unwrap_or_default());
    let is_forbidden = |path: &Path| hidden.contains(path) || is_shut(path);
    let mut paths = Vec::new();
    collect(Path::new("/"), &hidden, &mut paths);
    let needed = wanted(needs, &is_forbidden).into_iter().flat_map(|path| walk(&path));
    paths.extend(needed.filter_map(|item| match item {
        Item::Bind { path } => outermost(&path, &is_forbidden).is_some().then_some(path),
        Item::Link { .. } => None,
    }));
    paths.into_iter().filter_map(|path| CString::new(path.into_os_string().into_vec()).ok()).collect()
}

/// The directories and files in `directory` that have nothing hidden in them; a link is as visible as what it leads to.
fn collect(directory: &Path, hidden: &BTreeSet<PathBuf>, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link || hidden.contains(&path) || SPECIAL.iter().any(|special| path == Path::new(special)) {
            continue;
        }
        if hidden.iter().any(|hidden| hidden.starts_with(&path)) {
            collect(&path, hidden, paths);
        } else {
            paths.push(path);
        }
    }
}
