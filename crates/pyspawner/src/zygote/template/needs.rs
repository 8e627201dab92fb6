//! What of the host a child's interpreter must be able to read, wherever it lies.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

/// What a child's interpreter must be able to read.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// The executable, and what `sys.prefix` and its siblings name.
    pub installation: Vec<PathBuf>,
    /// The entries of `sys.path`.
    pub search_path: Vec<PathBuf>,
}

/// Where names are looked up, for children that have a network. It may be a link to where children see nothing.
const RESOLVER: &str = "/etc/resolv.conf";

/// What kind of processors there are, for libraries that choose their code by it.
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// The paths to make readable: an installation whole; of another directory that strangers cannot read, only what can be imported.
pub(super) fn wanted(needs: &Needs, is_forbidden: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let is_closed =
        |path: &Path| is_closed(path) || fs::canonicalize(path).is_ok_and(|path| is_forbidden(&path));
    let mut paths = vec![PathBuf::from(RESOLVER), PathBuf::from(PROCESSORS)];
    let installation: Vec<PathBuf> = needs.installation.iter().flat_map(|path| aliases(path)).collect();
    for path in &needs.installation {
        paths.extend(if is_closed(path) {
            chosen(path, is_part_of_installation)
        } else {
            vec![path.clone()]
        });
    }
    for path in &needs.search_path {
        let Ok(path) = std::path::absolute(path) else { continue };
        let is_installed =
            aliases(&path).iter().any(|path| installation.iter().any(|prefix| path.starts_with(prefix)));
        let closed = is_closed(&path)
            || !is_installed && aliases(&path).iter().any(|path| outermost(path, is_forbidden).is_some());
        // A zip file is as importable as a directory, and has nothing beside it.
        paths.extend(if closed && path.is_dir() { chosen(&path, is_importable) } else { vec![path] });
    }
    paths.retain(|path| path.exists());
    paths
}

/// The path as it is written, and as it is with its links followed.
fn aliases(path: &Path) -> Vec<PathBuf> {
    [std::path::absolute(path), fs::canonicalize(path)].into_iter().flatten().collect()
}

/// Whether it is a directory that a stranger may not list or enter.
fn is_closed(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_dir() && metadata.permissions().mode() & 0o005 != 0o005)
}

fn chosen(directory: &Path, belongs: fn(&Path) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|entry| belongs(entry)).collect()
}

fn is_part_of_installation(path: &Path) -> bool {
    let names = ["bin", "include", "lib", "lib64", "share", "pyvenv.cfg"];
    path.file_name().is_some_and(|name| names.iter().any(|part| name == *part))
}

/// What `import` would find in a directory, and the metadata and shared libraries that packages bring along.
fn is_importable(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension {
        Some("py" | "pyc" | "so" | "zip" | "egg" | "libs" | "dist-info" | "egg-info") => true,
        Some(_) => false,
        None => is_package(path, NAMESPACE_DEPTH),
    }
}

/// How deep a package without `__init__.py` may lie in others of its kind.
const NAMESPACE_DEPTH: usize = 3;

/// A package, or one of a namespace, which has no file of its own to tell it by.
fn is_package(path: &Path, depth: usize) -> bool {
    let is_name = |name: &str| name.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    if !path.file_name().and_then(|name| name.to_str()).is_some_and(is_name) {
        return false;
    }
    path.join("__init__.py").exists()
        || fs::read_dir(path).into_iter().flatten().flatten().any(|entry| {
            let entry = entry.path();
            match entry.extension().and_then(|extension| extension.to_str()) {
                Some("py" | "so") => true,
                Some(_) => false,
                None => depth > 0 && is_package(&entry, depth - 1),
            }
        })
}

/// Something to show in a replaced directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    Link { path: PathBuf, target: PathBuf },
    Bind { path: PathBuf },
}

impl Item {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Link { path, .. } | Self::Bind { path } => path,
        }
    }
}

/// Follows `path` one component at a time: every symbolic link on the way, then what it leads to.
pub(super) fn walk(path: &Path) -> Vec<Item> {
    const MAX_LINKS: usize = 40;
    let mut items = Vec::new();
    let mut at = PathBuf::from("/");
    let mut rest: Vec<PathBuf> = reversed_components(path);
    while let Some(component) = rest.pop() {
        if component.as_os_str() == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&component);
        match fs::read_link(&next) {
            Ok(target) if items.len() < MAX_LINKS => {
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                rest.extend(reversed_components(&target));
                items.push(Item::Link { path: next, target });
            }
            Ok(_) => return Vec::new(),
            Err(_) => at = next,
        }
    }
    if at.exists() {
        items.push(Item::Bind { path: at });
    }
    items
}

fn reversed_components(path: &Path) -> Vec<PathBuf> {
    let kept = path
        .components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir));
    let mut components: Vec<PathBuf> = kept.map(|component| PathBuf::from(component.as_os_str())).collect();
    components.reverse();
    components
}

/// The outermost directory above `path` that is forbidden.
pub(super) fn outermost(path: &Path, is_forbidden: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    above.into_iter().find(|directory| is_forbidden(directory)).map(Path::to_path_buf)
}

/// Whether a stranger may not enter `directory`.
pub(super) fn is_shut(directory: &Path) -> bool {
    directory.parent().is_some()
        && fs::metadata(directory).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 == 0)
}
