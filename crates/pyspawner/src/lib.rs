//! The core of pyspawner: run untrusted Python in milliseconds.
//!
//! Three processes and a watchdog. The *caller* holds a [`client::Client`]; the *zygote* ([`zygote`]) imports the slow
//! modules once and clones itself; each *child* locks itself in ([`sandbox`]) before any user code runs. Imports point
//! one way: binding → client and zygote → sandbox → sys. This crate knows no Python.

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("pyspawner needs Linux on x86_64 or aarch64");

mod channel;
pub mod client;
pub mod config;
pub mod error;
mod failure;
pub mod layer;
pub mod protocol;
pub mod sandbox;
mod sys;
pub mod uncaught;
pub mod zygote;
