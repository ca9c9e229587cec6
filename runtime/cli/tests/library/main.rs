//! Profiles whose kernels were made on this host.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
#[path = "../program/mod.rs"]
mod program;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    return linux::tests().run();
    #[cfg(not(target_os = "linux"))]
    bitnet_trials::Suite::default().run()
}
