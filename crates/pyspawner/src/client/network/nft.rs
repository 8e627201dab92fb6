//! The program `nft`.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::error::NetworkError;
use crate::sys::command::enter_network;

use super::program::find;

/// Whose firewall it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Where<'a> {
    /// That of the network namespace that the calling thread is in.
    Here,
    /// A child's, in its own network namespace, by its pidfd.
    InChild(BorrowedFd<'a>),
}

/// All commands, or none.
pub(super) fn run(commands: &[Value], place: Where<'_>) -> Result<(), NetworkError> {
    nft(&["-j", "-f", "-"], &json!({"nftables": commands}).to_string(), place).map(drop)
}

/// Runs the program; its standard output.
pub(super) fn nft(arguments: &[&str], input: &str, place: Where<'_>) -> Result<String, NetworkError> {
    let mut command = Command::new(find("nft").ok_or(NetworkError::NoNft)?);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Where::InChild(pidfd) = place {
        enter_network(&mut command, pidfd);
    }
    let failed = |source: io::Error| NetworkError::Nft { said: source.to_string() };
    let mut process = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = process.stdin.take() {
        // One that does not read says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = process.wait_with_output().map_err(failed)?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    Err(NetworkError::Nft { said: String::from_utf8_lossy(&ended.stderr).trim().to_owned() })
}
