//! A mapped file that somebody cuts short, a model or one of its parts: pages beyond its new end are
//! gone, and the system ends the process that reads one by SIGBUS, which says nothing to its user.

use std::path::Path;

/// From now on, reading a page of a mapped file that is gone ends the process with a line that names
/// the `model` and says `what_to_do`, and with the exit code of an I/O error.
#[cfg(target_os = "linux")]
pub fn explain(model: &Path, what_to_do: &str) {
    use bitnet_runtime::Error;
    use bitnet_runtime::file::gguf::is_part_name;
    use std::io;

    let what = match is_part_name(model) {
        true => "the file, or another part of the model,",
        false => "the file",
    };
    let why = format!("{what} was cut short while it was mapped; {what_to_do}");
    let error = Error::io(model, "read", io::Error::other(why));
    let (line, code) = (format!("error: {error}\n"), error.exit_code());
    let stderr = io::stderr();
    let action = move || {
        let _ = rustix::io::write(&stderr, line.as_bytes());
        signal_hook::low_level::exit(code.into())
    };
    // SAFETY: the action takes no lock and no memory: it calls `write` and `_exit`, which a signal
    // handler may.
    let registered =
        unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, action) };
    // Where the system refuses, it ends the process as ever.
    drop(registered);
}

/// Elsewhere the signal may mean something else.
#[cfg(not(target_os = "linux"))]
pub fn explain(_model: &Path, _what_to_do: &str) {}
