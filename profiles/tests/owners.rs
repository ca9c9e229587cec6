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

/// A device that a path names, or a link to it, is written into and stays a device.
#[cfg(target_os = "linux")]
fn h1_a_device_is_written_into() -> Tested {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use bitnet_profiles::{atomic_file, destination};
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

    let folder = tempfile::tempdir().unwrap();
    let [device, link] = ["null", "link"].map(|name| folder.path().join(name));
    // The numbers of /dev/null.
    let number = makedev(1, 3);
    let made = mknodat(CWD, &device, FileType::CharacterDevice, Mode::from_raw_mode(0o666), number);
    Need::Root.met(made)?;
    std::os::unix::fs::symlink("null", &link).unwrap();
    for path in [&device, &link] {
        assert!(destination::is_stream(path) && !destination::holds_contents(path));
        atomic_file::check_replaceable(path).unwrap();
        atomic_file::replace(path, b"new").unwrap();
    }
    let meta = fs::symlink_metadata(&device).unwrap();
    assert!(meta.file_type().is_char_device() && meta.rdev() == number);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    Ok(())
}

fn main() -> ExitCode {
    let mut suite = Suite::default();
    #[cfg(unix)]
    suite.add("what_another_user_left_stays", what_another_user_left_stays);
    #[cfg(target_os = "linux")]
    suite.add("h1_a_device_is_written_into", h1_a_device_is_written_into);
    suite.run()
}
