//! A test harness, by libtest-mimic, for tests that are listed at run time, such as one for each kernel,
//! and for tests that need what a machine may lack.
//!
//! A test file with `harness = false` in its `Cargo.toml` lists its tests in `main`:
//!
//! ```no_run
//! use bitnet_profiles::Isa;
//! use bitnet_trials::{Need, Tested, suite};
//!
//! fn sums_are_right() {
//!     assert_eq!(1 + 1, 2);
//! }
//!
//! fn runs_on(isa: Isa) -> Tested {
//!     Need::isa(isa)?;
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let mut suite = suite![sums_are_right];
//!     for &isa in Isa::of_arch(std::env::consts::ARCH) {
//!         suite.add(format!("runs_on::{isa}"), move || runs_on(isa));
//!     }
//!     suite.run()
//! }
//! ```
//!
//! A test that lacks something counts as ignored, with the reason in its line. Where `BITNET_REQUIRE`
//! names what it lacks (`BITNET_REQUIRE=avx2,rustc`) it fails instead. Output is not captured.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::env;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::process::ExitCode;

use bitnet_profiles::Isa;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// The environment variable that lists needs, separated by commas: a test that lacks one of these
/// fails.
pub const REQUIRE: &str = "BITNET_REQUIRE";

/// The environment variable that names a folder of data that may not be shipped.
const TEST_DATA: &str = "BITNET_TEST_DATA";

/// A property that a test needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// A CPU that runs the tier.
    Isa(Isa),
    /// A Rust compiler, which makes kernels on the host.
    Rustc,
    /// Vocabularies that may not be shipped, in the folder that `BITNET_TEST_DATA` names.
    Vocabularies,
    /// A vocabulary of llama.cpp's models folder, with its vectors, in the same folder.
    FurtherVocabularies,
    /// Models of other engines, which are too large to be shipped, in the folder that
    /// `BITNET_TEST_DATA` names.
    Models,
    /// A kernel that has transparent huge pages.
    HugePages,
    /// A user that may lock memory.
    LockedMemory,
    /// A user that may give files away.
    Root,
    /// A user that may mount file systems in a namespace of its own.
    Mounts,
    /// A Python that has gguf-py, at the path in `GGUF_PYTHON`.
    GgufPy,
    /// bitnet.cpp's `llama-cli`, at the path in `BITNET_CPP`.
    BitnetCpp,
}

impl Need {
    /// Needs other than ISA tiers.
    const OTHERS: &[Self] = &[
        Self::Rustc,
        Self::Vocabularies,
        Self::FurtherVocabularies,
        Self::Models,
        Self::HugePages,
        Self::LockedMemory,
        Self::Root,
        Self::Mounts,
        Self::GgufPy,
        Self::BitnetCpp,
    ];

    /// The needs that a test may have on this architecture.
    fn all() -> impl Iterator<Item = Self> {
        let isas = Isa::of_arch(env::consts::ARCH).iter().map(|&isa| Self::Isa(isa));
        isas.chain(Self::OTHERS.iter().copied())
    }

    /// The name, as in `BITNET_REQUIRE`.
    fn name(self) -> &'static str {
        match self {
            Self::Isa(isa) => isa.name(),
            Self::Rustc => "rustc",
            Self::Vocabularies => "vocabularies",
            Self::FurtherVocabularies => "further-vocabularies",
            Self::Models => "models",
            Self::HugePages => "huge-pages",
            Self::LockedMemory => "locked-memory",
            Self::Root => "root",
            Self::Mounts => "mounts",
            Self::GgufPy => "gguf-py",
            Self::BitnetCpp => "bitnet.cpp",
        }
    }

    /// The value that was found, or that this need is not met, and why.
    ///
    /// # Errors
    /// [`Lacking`] when `found` is an error.
    pub fn met<T>(self, found: Result<T, impl Display>) -> Tested<T> {
        found.map_err(|why| Lacking { need: self, why: why.to_string() })
    }

    /// Requires that this CPU runs a tier.
    ///
    /// # Errors
    /// [`Lacking`] when it does not.
    pub fn isa(isa: Isa) -> Tested {
        let supported = if isa.is_supported() { Ok(()) } else { Err("this CPU lacks it") };
        Self::Isa(isa).met(supported)
    }

    /// Requires that this CPU runs a tier better than scalar: only for these are kernels made on the
    /// host.
    ///
    /// # Errors
    /// [`Lacking`] when it does not: the least such tier of the architecture.
    pub fn vectors() -> Tested {
        Self::isa(Isa::of_arch(env::consts::ARCH).get(1).copied().unwrap_or(Isa::Avx2))
    }

    /// Requires a folder or file of the one that `BITNET_TEST_DATA` names, and returns its path.
    ///
    /// # Errors
    /// [`Lacking`] when the variable is not set, or there is no such path.
    pub fn data(self, path: &str) -> Tested<PathBuf> {
        let folder = self.met(env::var_os(TEST_DATA).ok_or(format!("{TEST_DATA} is not set")))?;
        let path = PathBuf::from(folder).join(path);
        let missing = format!("{} does not exist", path.display());
        self.met(path.exists().then_some(path).ok_or(missing))
    }

    /// Requires a program that an environment variable has the path of, and returns that.
    ///
    /// # Errors
    /// [`Lacking`] when the variable is not set.
    pub fn program(self, variable: &str) -> Tested<PathBuf> {
        let path = env::var_os(variable).map(PathBuf::from);
        self.met(path.ok_or(format!("{variable} is not set")))
    }
}

impl Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A need that the machine does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    need: Need,
    why: String,
}

impl Lacking {
    /// The outcome of a test that ended with this.
    fn outcome(&self, required: &BTreeSet<Need>) -> Result<Completion, Failed> {
        let Self { need, why } = self;
        if required.contains(need) {
            Err(format!("needs {need}, which {REQUIRE} names: {why}").into())
        } else {
            Ok(Completion::ignored_with(format_args!("needs {need}: {why}")))
        }
    }
}

/// The result of a test that did not panic, or of a part of it: it passed, or the machine lacks what it needs.
pub type Tested<T = ()> = Result<T, Lacking>;

/// The result types of tests: `()` and [`Tested`].
pub trait Outcome {
    /// As the other type.
    #[allow(clippy::missing_errors_doc, reason = "it converts, and does nothing that may fail")]
    fn tested(self) -> Tested;
}

impl Outcome for () {
    fn tested(self) -> Tested {
        Ok(())
    }
}

impl Outcome for Tested {
    fn tested(self) -> Tested {
        self
    }
}

/// The tests of a program.
#[derive(Debug)]
pub struct Suite {
    required: Result<BTreeSet<Need>, String>,
    trials: Vec<Trial>,
}

impl Default for Suite {
    fn default() -> Self {
        let names = env::var_os(REQUIRE).unwrap_or_default();
        Self { required: parse(&names.to_string_lossy()), trials: Vec::new() }
    }
}

/// The needs of a list of names, separated by commas.
fn parse(names: &str) -> Result<BTreeSet<Need>, String> {
    let one = |name: &str| {
        Need::all().find(|need| need.name() == name).ok_or_else(|| {
            let known: Vec<&str> = Need::all().map(Need::name).collect();
            let arch = env::consts::ARCH;
            format!("{REQUIRE}: {name:?} is unknown on {arch}, which has {}", known.join(", "))
        })
    };
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(one).collect()
}

impl Suite {
    fn trial<T: Outcome>(
        &self,
        name: impl Into<String>,
        test: impl FnOnce() -> T + Send + 'static,
    ) -> Trial {
        let required = self.required.clone().unwrap_or_default();
        Trial::ignorable_test(name, move || match test().tested() {
            Ok(()) => Ok(Completion::Completed),
            Err(lacking) => lacking.outcome(&required),
        })
    }

    /// Adds a test.
    pub fn add<T: Outcome>(
        &mut self,
        name: impl Into<String>,
        test: impl FnOnce() -> T + Send + 'static,
    ) {
        self.trials.push(self.trial(name, test));
    }

    /// Adds a test that is run only with `--ignored` or `--include-ignored`; `why` is shown before
    /// its name.
    pub fn add_ignored<T: Outcome>(
        &mut self,
        why: &str,
        name: impl Into<String>,
        test: impl FnOnce() -> T + Send + 'static,
    ) {
        self.trials.push(self.trial(name, test).with_ignored_flag(true).with_kind(why));
    }

    /// Runs the tests that the command line selects, as libtest does, and gives the exit code of the
    /// program.
    ///
    /// # Panics
    /// When two tests have one name.
    pub fn run(self) -> ExitCode {
        let mut names = BTreeSet::new();
        for trial in &self.trials {
            assert!(names.insert(trial.name()), "two tests are named {}", trial.name());
        }
        if let Err(message) = self.required {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
        libtest_mimic::run(&Arguments::from_args(), self.trials).exit_code()
    }
}

/// A [`Suite`] of functions, which have their own names as tests: `suite![one, two]`.
#[macro_export]
macro_rules! suite {
    ($($(#[$attribute:meta])* $test:ident),* $(,)?) => {{
        let mut suite = $crate::Suite::default();
        $($(#[$attribute])* suite.add(stringify!($test), $test);)*
        suite
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_have_names_and_unknown_ones_are_refused() {
        let all: BTreeSet<Need> = Need::all().collect();
        let names: Vec<String> = all.iter().map(Need::to_string).collect();
        assert_eq!(parse(&names.join(",")), Ok(all));
        assert_eq!(parse(" scalar, rustc,"), Ok([Need::Isa(Isa::Scalar), Need::Rustc].into()));
        assert_eq!(parse(""), Ok(BTreeSet::new()));
        let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        for unknown in ["avx3", "AVX2", foreign] {
            let message = parse(&format!("rustc,{unknown}")).unwrap_err();
            let expected = format!("BITNET_REQUIRE: {unknown:?} is unknown on ");
            assert!(message.starts_with(&expected), "{message}");
            assert!(message.contains("scalar, ") && message.contains(", rustc, "), "{message}");
        }
    }

    #[test]
    fn what_is_lacking_is_ignored_unless_it_is_required() {
        let lacking = Need::Root.met::<()>(Err("of user 1000")).unwrap_err();
        let other = [Need::Rustc].into();
        let reason = match lacking.outcome(&other) {
            Ok(Completion::Ignored { reason }) => reason,
            _ => None,
        };
        assert_eq!(reason.as_deref(), Some("needs root: of user 1000"));
        let failed = lacking.outcome(&[Need::Root].into()).err().unwrap();
        let expected = "needs root, which BITNET_REQUIRE names: of user 1000";
        assert_eq!(failed.message(), Some(expected));
        assert_eq!(Need::Root.met::<_>(Ok::<_, String>(7)), Ok(7));
        for &isa in Isa::ALL {
            assert_eq!(Need::isa(isa).is_ok(), isa.is_supported());
        }
        assert_eq!(Need::vectors().is_ok(), Isa::best() != Isa::Scalar);
    }
}
