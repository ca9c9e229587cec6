//! The machine code of the built-in kernels, and of some that are made on the host.

use std::process::ExitCode;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86;

fn main() -> ExitCode {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return x86::tests().run();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    bitnet_trials::Suite::default().run()
}
