//! Kernels made on this host: one source for all of them, compiled by the user's rustc to one
//! library that needs neither `std` nor a C compiler.
//!
//! On 2 cores of Zen 5, 50 kernels of all kinds compile in 1.9 s, 300 in 9 s. Tried: one part for
//! the code generator instead of 4 takes 12 s; without optimisation across the parts (`-Clto=off`)
//! it is 7.5 s, but closures of `core` stay calls, and `prepare` takes 45 times as long.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_profiles::{KernelId, printable};
use bitnet_runtime::cpu::kernels::cache::{Cache, Scratch};

use crate::{Error, Result};

/// Oldest compiler that accepts the generated source: AVX-512 is stable in it.
const OLDEST: (u32, u32) = (1, 89);

/// Time limit for a compiler's answer about its version.
const INTRODUCTION: Duration = Duration::from_secs(20);

/// Expected seconds per kernel: half as much again as measured.
const SECONDS_PER_KERNEL: f64 = 0.045;

/// Makes libraries of kernels.
pub trait Compiler: std::fmt::Debug + Send + Sync {
    /// Compiles a library of `ids` and returns its content.
    ///
    /// # Errors
    /// There is no such kernel, or no library after `limit`.
    fn compile(&self, ids: &[KernelId], limit: Duration) -> Result<Vec<u8>>;

    /// Returns the expected time for a number of kernels.
    fn expected(&self, kernels: usize) -> Duration;
}

impl Compiler for Toolchain {
    fn compile(&self, ids: &[KernelId], limit: Duration) -> Result<Vec<u8>> {
        Toolchain::compile(self, ids, limit)
    }

    fn expected(&self, kernels: usize) -> Duration {
        Duration::from_secs_f64(SECONDS_PER_KERNEL * kernels as f64)
    }
}

/// Folder and stop flag of a compiler.
#[derive(Debug, Clone, Default)]
pub struct Workplace {
    /// Cache in a folder of which it works, so that a later run finds what a killed one left; else
    /// in the system's folder of temporary files.
    pub cache: Option<Cache>,
    /// Set to true, for example by a signal handler, to end it with [`Error::Stopped`].
    pub stop: Arc<AtomicBool>,
}

/// A compiler that can make kernels for this program.
#[derive(Debug, Clone)]
pub struct Toolchain {
    rustc: PathBuf,
    version: String,
    /// True if it brings a linker.
    has_linker: bool,
    place: Workplace,
}

impl Toolchain {
    /// Finds the compiler that `RUSTC` names, or else the first in `PATH`, or else in
    /// `~/.cargo/bin`.
    ///
    /// # Errors
    /// [`Error::NoToolchain`], with what to do, when there is none or it is not fit;
    /// [`Error::Stopped`].
    pub fn find(place: Workplace) -> Result<Self> {
        Self::find_with(|name| std::env::var_os(name), place)
    }

    /// Does as [`Toolchain::find`] with other environment variables.
    ///
    /// # Errors
    /// As [`Toolchain::find`].
    pub fn find_with(
        variable: impl Fn(&str) -> Option<OsString>,
        place: Workplace,
    ) -> Result<Self> {
        if let Some(rustc) = variable("RUSTC").filter(|name| !name.is_empty()) {
            return Self::introduce(locate(&rustc, &variable).unwrap_or(rustc.into()), place);
        }
        let rustc = locate(&program("rustc"), &variable).or_else(|| {
            let home = PathBuf::from(variable("HOME")?);
            let rustc = home.join(".cargo/bin").join(program("rustc"));
            (home.is_absolute() && rustc.is_file()).then_some(rustc)
        });
        let rustc = rustc.ok_or_else(|| Error::NoToolchain {
            reason: "no rustc in PATH or ~/.cargo/bin; https://rustup.rs installs one".into(),
        })?;
        Self::introduce(rustc, place)
    }

    /// Asks a compiler for its version, its host and where its linker would be.
    fn introduce(rustc: PathBuf, place: Workplace) -> Result<Self> {
        let unfit = |reason: String| Error::NoToolchain { reason };
        // Where it will compile: rustup chooses a toolchain by the folder.
        let folder = WorkFolder::new(place.cache.as_ref())?;
        let ask = |arguments: &[&str]| {
            let mut command = Command::new(&rustc);
            command.args(arguments);
            let done = run(command, folder.path(), INTRODUCTION, &place.stop)?
                .map_err(|problem| unfit(format!("{}: {problem}", rustc.display())))?;
            if done.status.success() {
                return Ok(done.output);
            }
            let first = first_error(&done.errors);
            Err(unfit(format!("{} fails: {first}", rustc.display())))
        };
        let about = ask(&["-vV"])?;
        let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name));
        let (Some(version), Some(host)) = (field("release: "), field("host: ")) else {
            return Err(unfit(format!("{} does not say its version", rustc.display())));
        };
        let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        if numbers.next().zip(numbers.next()).is_none_or(|numbers| numbers < OLDEST) {
            let (major, minor) = OLDEST;
            return Err(unfit(format!(
                "{} is version {}, but {major}.{minor} is needed; run `rustup update`",
                rustc.display(),
                one_line(version)
            )));
        }
        let arch = std::env::consts::ARCH;
        if host.split('-').next() != Some(arch) {
            return Err(unfit(format!(
                "{} compiles for {}, but this program runs on {arch}",
                rustc.display(),
                one_line(host)
            )));
        }
        let libraries = PathBuf::from(ask(&["--print", "target-libdir"])?.trim());
        let linker = libraries.parent().map(|target| target.join("bin").join(program("rust-lld")));
        // Elsewhere a linker needs to be told more than a library.
        let has_linker = cfg!(target_os = "linux") && linker.is_some_and(|path| path.is_file());
        Ok(Self { version: version.into(), has_linker, rustc, place })
    }

    /// Path of the compiler.
    pub fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles a library of `ids` and returns its content. The same ids give the same bytes with
    /// the same compiler, whatever this CPU is.
    ///
    /// # Errors
    /// [`Error::Codegen`] when there is no such kernel; [`Error::Compile`] when the compiler fails
    /// or is not done after `limit`, in which case it is ended; [`Error::Stopped`], likewise.
    pub fn compile(&self, ids: &[KernelId], limit: Duration) -> Result<Vec<u8>> {
        self.compile_source(&bitnet_codegen::emit_cdylib(ids)?, limit)
    }

    /// Compiles the source of a library, as [`bitnet_codegen::emit_cdylib`] writes it, and returns
    /// its content.
    ///
    /// # Errors
    /// As [`Toolchain::compile`].
    pub fn compile_source(&self, source: &str, limit: Duration) -> Result<Vec<u8>> {
        const SOURCE: &str = "kernels.rs";
        const LIBRARY: &str = "kernels.so";
        let folder = WorkFolder::new(self.place.cache.as_ref())?;
        let io = |name, action| {
            let path = folder.path().join(name);
            move |source| Error::from(bitnet_runtime::Error::io(&path, action, source))
        };
        fs::write(folder.path().join(SOURCE), source).map_err(io(SOURCE, "write"))?;
        let mut command = Command::new(&self.rustc);
        command.args([
            "--crate-name=kernels",
            "--crate-type=cdylib",
            "--edition=2024",
            "-Copt-level=3",
            "-Cpanic=abort",
            "-Cstrip=symbols",
            "-Ccodegen-units=4",
        ]);
        if self.has_linker {
            command.args(["-Clinker=rust-lld", "-Clinker-flavor=ld.lld"]);
        }
        // Relative names: the folder's own is another one every time.
        command.args(["-o", LIBRARY, SOURCE]);
        let failed = |problem| Error::Compile { rustc: self.rustc.clone(), problem };
        let done = run(command, folder.path(), limit, &self.place.stop)?.map_err(failed)?;
        if !done.status.success() {
            return Err(failed(first_error(&done.errors)));
        }
        fs::read(folder.path().join(LIBRARY)).map_err(io(LIBRARY, "read"))
    }
}

/// A folder that only this user can read, whatever the umask; removed when dropped.
#[derive(Debug)]
pub(crate) enum WorkFolder {
    /// In the cache.
    Cached(Scratch),
    /// In the system's folder of temporary files.
    Temporary(tempfile::TempDir),
}

impl WorkFolder {
    /// Creates one: in the cache, if that can be written and trusted.
    pub(crate) fn new(cache: Option<&Cache>) -> Result<Self> {
        if let Some(scratch) = cache.and_then(|cache| cache.scratch().ok()) {
            return Ok(Self::Cached(scratch));
        }
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
        let folder = builder.prefix("bitnet-").tempdir().map_err(|source| {
            bitnet_runtime::Error::io(&std::env::temp_dir(), "create a folder in", source)
        })?;
        Ok(Self::Temporary(folder))
    }

    /// Path of the folder.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Cached(scratch) => scratch.path(),
            Self::Temporary(folder) => folder.path(),
        }
    }
}

/// Returns the file name of a program.
fn program(name: &str) -> OsString {
    format!("{name}{}", std::env::consts::EXE_SUFFIX).into()
}

/// Finds a program by its path, or in the absolute folders of `PATH`; never in the current folder.
fn locate(name: &OsString, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return Some(std::path::absolute(path).unwrap_or_else(|_| path.into()));
    }
    let folders = variable("PATH")?;
    std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(path))
        .find(|path| path.is_file())
}

/// A command that has ended.
struct Done {
    status: ExitStatus,
    output: String,
    errors: String,
}

/// Runs a command in `folder`, and kills it, with all that it started, when it takes longer than
/// `limit`. The inner error says why it did not end by itself.
///
/// # Errors
/// [`Error::Stopped`] once `stop` is set; it is ended then too.
fn run(
    mut command: Command,
    folder: &Path,
    limit: Duration,
    stop: &AtomicBool,
) -> Result<std::result::Result<Done, String>> {
    command.current_dir(folder).stdin(Stdio::null());
    // Temporary files of a killed compiler and its linker go with the folder.
    command.env("TMPDIR", folder);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let start = Instant::now();
    let ([output, errors], mut child) = match start_in(folder, command) {
        Ok(started) => started,
        Err(error) => return Ok(Err(format!("cannot start: {error}"))),
    };
    let status = loop {
        let problem = match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if stop.load(Ordering::Relaxed) => None,
            Ok(None) if start.elapsed() < limit => {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            Ok(None) => Some(format!("not done after {:.1} s, and was ended", limit.as_secs_f64())),
            Err(error) => Some(error.to_string()),
        };
        end(&mut child);
        return problem.map_or_else(|| Err(Error::stopped()), |problem| Ok(Err(problem)));
    };
    let done = || Ok(Done { status, output: read_back(output)?, errors: read_back(errors)? });
    Ok(done().map_err(|error: io::Error| error.to_string()))
}

/// Starts a command with stdout and stderr in files, which nobody needs to empty while it runs.
fn start_in(folder: &Path, mut command: Command) -> io::Result<([File; 2], Child)> {
    let create = || tempfile::tempfile_in(folder);
    let files = [create()?, create()?];
    command.stdout(files[0].try_clone()?).stderr(files[1].try_clone()?);
    Ok((files, command.spawn()?))
}

/// Reads at most 1 MiB from the beginning of a file.
fn read_back(mut file: File) -> io::Result<String> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(1 << 20).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Kills a process and its group: a compiler starts a linker.
fn end(child: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Returns the first error line.
fn first_error(errors: &str) -> String {
    let mut lines = errors.lines().filter(|line| !line.trim().is_empty());
    let first = lines.clone().find(|line| line.starts_with("error"));
    first.or_else(|| lines.next()).map_or_else(|| "it says nothing".into(), one_line)
}

/// Returns a text on one line, cut short.
fn one_line(text: &str) -> String {
    printable(text).chars().take(300).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Writes a compiler, as a shell script, that answers by `about` and compiles by `compile`.
    fn fake(folder: &Path, about: &str, compile: &str) -> PathBuf {
        let path = folder.join("rustc");
        let script = format!(
            "#!/bin/sh\ncase $1 in\n-vV) {about};;\n--print) echo /nowhere/lib;;\n*) {compile};;\nesac\n"
        );
        // By another process: a script that a thread of this one has open for writing while another
        // thread starts a program is busy.
        let mut write = Command::new("sh");
        write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod 700 \"$2\"", "sh", &script]);
        assert!(write.arg(&path).status().unwrap().success());
        path
    }

    fn about(version: &str, arch: &str) -> String {
        format!("echo 'rustc {version}'; echo 'host: {arch}-a-b'; echo 'release: {version}'")
    }

    const ARCH: &str = std::env::consts::ARCH;

    #[test]
    fn a_compiler_is_found_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let rustc = fake(path, &about("1.95.0-nightly", ARCH), "exit 1");
        fs::create_dir_all(path.join(".cargo/bin")).unwrap();
        let at_home = path.join(".cargo/bin/rustc");
        fs::hard_link(&rustc, &at_home).unwrap();
        let of = |rustc: Option<&Path>, folders: Option<&str>, home: Option<&Path>| {
            let variable = |name: &str| match name {
                "RUSTC" => rustc.map(Into::into),
                "PATH" => folders.map(Into::into),
                "HOME" => home.map(Into::into),
                other => panic!("{other}"),
            };
            Toolchain::find_with(variable, Workplace::default())
        };
        let here = path.to_str().unwrap();
        let found = of(None, Some(&format!("relative::/nowhere:{here}")), None).unwrap();
        assert_eq!((found.rustc(), found.version()), (&*rustc, "1.95.0-nightly"));
        assert_eq!(of(Some(&rustc), Some("/nowhere"), None).unwrap().rustc(), rustc);
        assert_eq!(of(Some(Path::new("rustc")), Some(here), None).unwrap().rustc(), rustc);
        assert_eq!(of(Some(Path::new("")), Some(here), None).unwrap().rustc(), rustc);
        assert_eq!(of(None, None, Some(path)).unwrap().rustc(), at_home);
        let none = of(None, Some("/nowhere"), None).unwrap_err().to_string();
        assert!(none.contains("no rustc in PATH"), "{none}");
        // What the user names is not replaced by another one.
        let missing = of(Some(Path::new("/nowhere/rustc")), Some(here), None).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/rustc: cannot start"), "{missing}");
    }

    #[test]
    fn a_compiler_that_does_not_fit_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            (about("1.88.9", ARCH), "is version 1.88.9, but 1.89 is needed"),
            (about("0.99.0", ARCH), "is version 0.99.0, but 1.89"),
            (about("one", ARCH), "is version one, but 1.89"),
            (about("1.95.0", "pdp11"), "compiles for pdp11-a-b, but this program runs on"),
            ("echo hello".into(), "does not say its version"),
            ("echo 'error: no default is set' >&2; exit 1".into(), "fails: error: no default"),
            ("exit 3".into(), "fails: it says nothing"),
        ];
        for (about, reason) in cases {
            let rustc = fake(folder.path(), &about, "exit 1");
            let error = Toolchain::introduce(rustc, Workplace::default()).unwrap_err();
            assert!(matches!(error, Error::NoToolchain { .. }), "{error}");
            assert!(error.to_string().contains(reason), "{error} should say {reason}");
        }
    }

    #[test]
    fn what_becomes_of_a_compilation_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(60);
        let cases = [
            ("echo 'warning: x' >&2; echo 'error[E1]: y' >&2; exit 1", limit, "error[E1]: y"),
            ("printf 'a\\033[2Jb' >&2; exit 1", limit, "a\u{fffd}[2Jb"),
            ("kill -9 $$", limit, "it says nothing"),
            ("exit 0", limit, "kernels.so: cannot read"),
            ("exec sleep 1000", Duration::from_millis(200), "not done after 0.2 s"),
        ];
        for (compile, limit, problem) in cases {
            let rustc = fake(folder.path(), &about("1.95.0", ARCH), compile);
            let start = Instant::now();
            let toolchain = Toolchain::introduce(rustc, Workplace::default()).unwrap();
            let error = toolchain.compile(&[], limit).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(problem), "{message} should say {problem}");
            assert!(!message.chars().any(char::is_control), "{message:?}");
            // Long before the one that sleeps would end.
            assert!(start.elapsed() < Duration::from_secs(500), "{compile}");
        }
    }

    /// A toolchain without a linker of its own uses the system's.
    #[test]
    fn both_linkers_make_a_library() {
        let own = Toolchain::find(Workplace::default()).unwrap();
        for has_linker in [own.has_linker, false] {
            let toolchain = Toolchain { has_linker, ..own.clone() };
            let library = toolchain.compile(&[], Duration::from_secs(300)).unwrap();
            assert!(!library.is_empty());
        }
    }
}
