//! A mapped file that somebody cuts short, a model or one of its parts: pages beyond its new end are
//! gone, and the system ends the process that reads one by SIGBUS, which says nothing to its user.

use std::path::Path;

/// Lets a program say so: from now on, reading a page of a mapped file that is gone ends the process with
/// a line on stderr that names the `model`, and a file of `packed` weights if there is one, and says
/// `what_to_do`, and with the exit code of an I/O error.
/// The last call counts. For programs, not for libraries: it is of the whole process.
#[cfg(target_os = "linux")]
pub fn explain(model: &Path, packed: Option<&Path>, what_to_do: &str) {
    use std::io;
    use std::sync::Once;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use crate::Error;
    use crate::file::gguf::is_part_name;

    struct Words {
        line: String,
        code: i32,
    }

    static WORDS: AtomicPtr<Words> = AtomicPtr::new(std::ptr::null_mut());
    static REGISTER: Once = Once::new();

    extern "C" fn say(_signal: libc::c_int) {
        // One thread says it. Another that reads such a page meanwhile comes here again until the first has
        // ended the process.
        let words = WORDS.swap(std::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: a pointer that was stored below and is never freed, or null.
        if let Some(Words { line, code }) = unsafe { words.as_ref() } {
            // SAFETY: the line is readable for its length; a signal handler may call both.
            unsafe {
                libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
                libc::_exit(*code);
            }
        }
    }

    let mut what = match is_part_name(model) {
        true => "the file, or another part of the model,".to_owned(),
        false => "the file".to_owned(),
    };
    if let Some(packed) = packed {
        what += &format!(" or {}", packed.display());
    }
    let why = format!("{what} was cut short while it was mapped; {what_to_do}");
    let error = Error::io(model, "read", io::Error::other(why));
    let words = Words { line: format!("error: {error}\n"), code: error.exit_code().into() };
    // Never freed, as a handler may be reading it; a program opens few files.
    WORDS.store(Box::into_raw(Box::new(words)), Ordering::Release);
    REGISTER.call_once(|| {
        // Not beside the handler that was there: that of Rust's library, for overflows of the stack, gives the
        // signal its default action first, by which a second thread would end the process before the line is out.
        // SAFETY: zeros are a valid value, with no signal blocked; the handler takes the signal's number, as without
        // SA_SIGINFO it must, calls only what a handler may, and takes no lock and no memory.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = say as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_ONSTACK;
            // Where the system refuses, it ends the process as ever.
            let _ = libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    });
}

/// Does nothing: elsewhere the signal may mean something else.
#[cfg(not(target_os = "linux"))]
pub fn explain(_model: &Path, _packed: Option<&Path>, _what_to_do: &str) {}
