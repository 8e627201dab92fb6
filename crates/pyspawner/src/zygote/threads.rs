//! Who started which thread. A thread does not survive a clone, and a library that has *used* a pool of threads hangs after one, so users
//! want to know.

use std::collections::BTreeMap;
use std::fs;
use std::io;

/// The names of this process's threads but the first.
pub(super) fn others() -> io::Result<Vec<String>> {
    let mut tasks = tasks()?;
    tasks.remove(&std::process::id());
    Ok(tasks.into_values().collect())
}

fn tasks() -> io::Result<BTreeMap<u32, String>> {
    let mut tasks = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        let Some(id) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A thread that has just ended has no name any more, and is none of the living.
        if let Ok(name) = fs::read_to_string(task.path().join("comm")) {
            tasks.insert(id, name.trim_end().to_owned());
        }
    }
    Ok(tasks)
}

/// Attributes every new thread to the module whose import was under way.
#[derive(Debug)]
pub(super) struct Census {
    known: BTreeMap<u32, String>,
    importing: Option<String>,
    report: Vec<(String, Vec<String>)>,
}

impl Census {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { known: tasks()?, importing: None, report: Vec::new() })
    }

    pub(super) fn begin(&mut self, module: &str) -> io::Result<()> {
        self.end()?;
        self.importing = Some(module.to_owned());
        Ok(())
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        let now = tasks()?;
        if let Some(module) = self.importing.take() {
            let new: Vec<String> = now
                .iter()
                .filter(|(id, _)| !self.known.contains_key(id))
                .map(|(_, name)| name.clone())
                .collect();
            if !new.is_empty() {
                self.report.push((module, new));
            }
        }
        self.known = now;
        Ok(())
    }

    pub(super) fn report(&self) -> &[(String, Vec<String>)] {
        &self.report
    }

    pub(super) fn into_report(self) -> Vec<(String, Vec<String>)> {
        self.report
    }
}
