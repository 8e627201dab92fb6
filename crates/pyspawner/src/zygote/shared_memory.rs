//! Memory that a clone does not copy: what one child writes there, all others and the zygote read.

use std::fs;
use std::io;

/// Every shared mapping of this process that is writable, or could be made so: `ADDRESS NAME`. See `proc_pid_smaps(5)`.
pub(super) fn writable() -> io::Result<Vec<String>> {
    Ok(in_table(&String::from_utf8_lossy(&fs::read("/proc/self/smaps")?)))
}

fn in_table(smaps: &str) -> Vec<String> {
    let mut mapping = "";
    let mut found = Vec::new();
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("VmFlags", flags)) => {
                let mut flags = flags.split_ascii_whitespace();
                if flags.clone().any(|flag| flag == "sh") && flags.any(|flag| flag == "mw") {
                    let mut fields = mapping.split_ascii_whitespace();
                    let address = fields.next().unwrap_or_default();
                    let name: Vec<_> = fields.skip(4).collect();
                    found.push(format!("{address} {}", name.join(" ")));
                }
            }
            Some((field, _)) if field.chars().all(|letter| letter.is_alphanumeric() || letter == '_') => {}
            // The first line of a mapping: its address range, permissions, offset, device (with a colon), inode and name.
            _ => mapping = line,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000001000 rw-s 00000000 00:01 1234                       /dev/zero (deleted)
Size:                  4 kB
VmFlags: rd wr sh mr mw me ms sd 
7f0000002000-7f0000003000 r--s 00000000 fe:00 77                         /usr/lib/gconv-modules.cache
Pss_Dirty:             0 kB
VmFlags: rd mr me ms sd 
7f0000004000-7f0000005000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me ac sd 
7f0000006000-7f0000007000 r--s 00000000 fe:00 78                         /tmp/a b
VmFlags: rd sh mr mw me ms sd 
";

    #[test]
    fn shared_mappings_that_are_or_can_be_made_writable_are_found() {
        let found = in_table(SMAPS);
        assert_eq!(
            found,
            ["7f0000000000-7f0000001000 /dev/zero (deleted)", "7f0000006000-7f0000007000 /tmp/a b"]
        );
    }

    #[test]
    fn this_process_has_a_table() {
        assert!(writable().is_ok());
    }
}
