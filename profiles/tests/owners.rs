//! Files of other users, which only root can make.

use std::process::ExitCode;

use bitnet_trials::{Need, Suite, Tested};

/// A temporary file that another user left is not removed.
#[cfg(unix)]
fn what_another_user_left_stays() -> Tested {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    let folder = tempfile::tempdir().unwrap();
    let leave = |random: &str| {
        let path = folder.path().join(format!("host.toml.{random}.bitnet.tmp"));
        let old = SystemTime::now() - Duration::from_secs(120);
        File::create(&path).unwrap().set_modified(old).unwrap();
        path
    };
    let (own, other) = (leave("abandoned000"), leave("abandoned001"));
    Need::Root.met(std::os::unix::fs::chown(&other, Some(4242), None))?;
    bitnet_profiles::atomic_file::replace(&folder.path().join("host.toml"), b"new").unwrap();
    assert!(other.exists() && !own.exists());
    Ok(())
}

fn main() -> ExitCode {
    let mut suite = Suite::default();
    #[cfg(unix)]
    suite.add("what_another_user_left_stays", what_another_user_left_stays);
    suite.run()
}
