//! Faults while tuning.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
mod linux;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    return linux::tests().run();
    #[cfg(not(target_os = "linux"))]
    bitnet_trials::Suite::default().run()
}
