//! Choice of the tuning profile for a model on this CPU.

use std::path::{Path, PathBuf};

use bitnet_profiles::{Format, Isa, Profile, ProfileError, Provenance, Tool, paths, registry};
use serde::Serialize;

use super::options::ProfileChoice;
use super::trust::Trust;
use crate::arch::config::{Config, JobShapes};
use crate::cpu::host::Host;
use crate::cpu::kernels;
use crate::error::{Error, Result};
use crate::note::Note;

/// Origin of the choice of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileSource {
    /// A file that was named.
    File,
    /// Found in the user's folder.
    User,
    /// The defaults that ship with the library.
    Shipped,
}

/// The profile that serves a model.
#[derive(Clone, Debug, Serialize)]
pub struct ProfileInUse {
    /// Its origin.
    pub source: ProfileSource,
    /// Its file, or the name of the defaults.
    pub name: String,
    /// Reason for which it was taken.
    pub reason: String,
    /// The profile, unless the defaults serve.
    #[serde(skip)]
    pub profile: Option<Profile>,
}

impl ProfileInUse {
    /// The name without the folder.
    #[must_use]
    pub fn short_name(&self) -> String {
        let file = Path::new(&self.name).file_name();
        file.map_or_else(|| self.name.clone(), |file| file.to_string_lossy().into_owned())
    }

    /// Worker threads that the profile was tuned with.
    #[must_use]
    pub fn threads(&self) -> Option<usize> {
        Some(self.profile.as_ref()?.run.threads as usize)
    }
}

/// A profile that the user named, read and checked.
#[derive(Clone, Debug)]
pub struct NamedProfile {
    /// Its file.
    pub path: PathBuf,
    /// Its content.
    pub profile: Profile,
}

impl NamedProfile {
    /// Reads a profile; one that needs more than this CPU has is refused whole.
    ///
    /// # Errors
    /// [`Error::Profile`] when it is refused, [`Error::Io`] when it cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let profile = load(path).map_err(|e| Error::profile(path, e))?;
        Ok(Self { path: path.to_path_buf(), profile })
    }

    /// Returns the model that the profile was made for, if it names one. A relative path is
    /// resolved from the profile's folder.
    #[must_use]
    pub fn model(&self) -> Option<PathBuf> {
        let path = self.profile.model.path.as_ref()?;
        Some(self.path.parent().unwrap_or(Path::new("")).join(path))
    }
}

/// Chooses the profile for a model: the named one, the user's, or the defaults; a forced ISA or
/// format overrides any.
///
/// # Errors
/// Those of [`NamedProfile::load`].
pub(super) fn choose(
    choice: &ProfileChoice,
    (isa, format): (Option<Isa>, Option<Format>),
    config: &Config,
    host: &Host,
    notes: &mut Vec<Note>,
) -> Result<ProfileInUse> {
    let named = match choice {
        ProfileChoice::File(path) => Some(NamedProfile::load(path)?),
        ProfileChoice::Named(named) => Some((**named).clone()),
        ProfileChoice::Auto | ProfileChoice::Shipped => None,
    };
    if let Some(named) = &named {
        notes.extend(Trust::of(&named.path).warning(&named.path));
    }
    let shapes = config.shapes_hash();
    let forced = match (isa, format) {
        (None, None) => None,
        (Some(_), None) => Some("isa"),
        (None, Some(_)) => Some("format"),
        (Some(_), Some(_)) => Some("isa and format"),
    };
    let defaults = |mut reason: String| {
        let shipped = kernels::shipped();
        let ceiling = isa.unwrap_or_else(Isa::best);
        let (name, default) = shipped.ternary(format, ceiling);
        if forced.is_none() {
            reason += &format!("; {}", origin(shipped.shipped(), config));
        }
        let pair = |job: &JobShapes| shipped.pair(job.role, &job.parts, format, ceiling);
        let serving = config.jobs().first().map_or(default, pair);
        let name = format!("{name} for {}", serving.isa());
        ProfileInUse { source: ProfileSource::Shipped, name, reason, profile: None }
    };
    if let Some(forced) = forced {
        let what = match &named {
            Some(named) => named.path.display().to_string(),
            None => "any profile".into(),
        };
        return Ok(defaults(format!("{forced} given, which overrides {what}")));
    }
    if let Some(NamedProfile { path, profile }) = named {
        let mut reason = String::from("asked for");
        if profile.model.shapes != shapes {
            reason += "; made for other shapes";
        }
        if !is_of(&profile, host) {
            reason += &format!("; made on another CPU, {}", profile.host.cpu);
        }
        let name = path.display().to_string();
        return Ok(ProfileInUse {
            source: ProfileSource::File,
            name,
            reason,
            profile: Some(profile),
        });
    }
    if matches!(choice, ProfileChoice::Shipped) {
        return Ok(defaults("no tuned profile wanted".into()));
    }
    Ok(match users(&shapes, host, notes) {
        Some((path, profile)) => ProfileInUse {
            source: ProfileSource::User,
            name: path.display().to_string(),
            reason: "tuned on this CPU for these shapes".into(),
            profile: Some(profile),
        },
        None => defaults(
            "nothing tuned for these shapes on this CPU; bitnet-tune --model makes a profile"
                .into(),
        ),
    })
}

/// Describes the origin of a shipped profile, and if it covers the model.
fn origin(shipped: &registry::Shipped, config: &Config) -> String {
    let profile = shipped.profile();
    let Tool { provenance, date, .. } = &profile.tool;
    let how = match provenance {
        Provenance::Measured => format!("measured on {}, {date}", profile.host.cpu),
        Provenance::Modelled => format!("modelled for {}", profile.host.cpu),
    };
    let listed = config.jobs().iter().all(|job| profile.choice(job.role, &job.parts).is_some());
    let shapes = if listed { "lists these shapes" } else { "does not list these shapes" };
    format!("{how}, {shapes}")
}

/// True if the profile was made on this kind of CPU.
pub(super) fn is_of(profile: &Profile, host: &Host) -> bool {
    let own = &profile.host;
    (&own.vendor, own.family, own.model) == (&host.vendor, host.family, host.model)
}

/// Reads a profile; one that needs more than this CPU has is refused whole.
fn load(path: &Path) -> std::result::Result<Profile, ProfileError> {
    let profile = Profile::load(path)?;
    profile.check_isa(Isa::is_supported)?;
    Ok(profile)
}

/// Returns the user's own profile for these shapes and this CPU. A refused one is set aside, with a
/// note.
fn users(shapes: &str, host: &Host, notes: &mut Vec<Note>) -> Option<(PathBuf, Profile)> {
    let folder = paths::user_folder(|name| std::env::var_os(name))?;
    let name = paths::user_file_name(shapes, &host.vendor, host.family, host.model);
    let path = folder.join(name);
    if !path.exists() {
        return None;
    }
    let wrong =
        |item: &str, problem: String| Err(ProfileError::Content { item: item.into(), problem });
    let trust = Trust::of(&path);
    let profile = load(&path).and_then(|profile| {
        if let Some(doubt) = trust.forbids() {
            wrong("file", format!("{doubt}, so it is used only if named"))
        } else if profile.model.shapes != shapes {
            let problem = format!("{}, but this model's are {shapes}", profile.model.shapes);
            wrong("model.shapes", problem)
        } else if !is_of(&profile, host) {
            wrong("host", format!("made on another CPU, {}", profile.host.cpu))
        } else {
            Ok(profile)
        }
    });
    match profile {
        Ok(profile) => {
            notes.extend(trust.warning(&path));
            Some((path, profile))
        }
        Err(error) => {
            let error = Error::profile(&path, error);
            notes.push(Note::warning(format!("profile set aside: {error}")));
            None
        }
    }
}
