//! Kernels made on the host: they are generated, compiled, kept, loaded, and compute what the
//! built-in ones do. What is damaged, foreign or open to others is refused with its reason.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use bitnet_codegen::candidates;
use bitnet_kernels as builtin;
use bitnet_profiles::{Isa, KernelId, Layout, Op, Shape};
use bitnet_runtime::cpu::kernels::cache::Cache;
use bitnet_runtime::cpu::kernels::verify::{self, Oracle};
use bitnet_runtime::cpu::kernels::{Kernel, Library, Unusable};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_trials::{Need, Suite, Tested, suite};
use bitnet_tuner::compile::{Toolchain, Workplace};

/// Long enough for a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// Columns of the demo model's matrices.
const COLS: usize = 384;

/// A folder that is trusted, whatever the umask.
fn private_folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap()
}

fn toolchain() -> &'static Toolchain {
    static TOOLCHAIN: OnceLock<Toolchain> = OnceLock::new();
    TOOLCHAIN.get_or_init(|| Toolchain::find(Workplace::default()).expect("cargo has a compiler"))
}

/// The last kernel of every op on the best tier that has one: ternary ones of both phases.
fn ids() -> Vec<KernelId> {
    let supported = Isa::ALL.iter().filter(|isa| isa.is_supported() && **isa != Isa::Scalar);
    let all: Vec<KernelId> =
        supported.flat_map(|&isa| candidates(isa, Some(Shape::new(384, COLS)))).collect();
    let mut ids: Vec<KernelId> = Vec::new();
    for id in all.into_iter().rev() {
        let block = if let Op::Head(format) = id.op { format.block_weights() } else { 1 };
        let kind = |id: &KernelId| (id.op, id.tile.tokens == 1);
        if COLS.is_multiple_of(block) && ids.iter().all(|other| kind(other) != kind(&id)) {
            ids.push(id);
        }
    }
    ids
}

/// A library of [`ids`].
fn library() -> &'static [u8] {
    static LIBRARY: OnceLock<Vec<u8>> = OnceLock::new();
    LIBRARY.get_or_init(|| toolchain().compile(&ids(), LIMIT).unwrap())
}

fn a_library_computes_what_is_built_in() -> Tested {
    Need::vectors()?;
    let folder = private_folder();
    let cache = Cache::at(folder.path().join("bitnet/kernels"));
    let sha256 = cache.store(library()).unwrap();
    let loaded = Library::load(&cache.open(&sha256).unwrap(), Isa::best()).unwrap();
    let mut found: Vec<KernelId> = loaded.ternary().iter().map(|k| *k.id()).collect();
    found.extend(loaded.blocks().iter().map(|k| *k.id()));
    found.extend(loaded.heads().iter().map(|k| *k.id()));
    found.extend(loaded.attention().iter().map(|k| *k.id()));
    found.extend(loaded.lines().iter().map(|k| *k.id()));
    found.sort();
    let mut expected = ids();
    expected.sort();
    assert_eq!(found, expected);

    let pool = Pool::new(1).unwrap();
    let tokens = loaded.ternary().iter().map(Kernel::tokens).max().unwrap();
    let oracle = Oracle::new(COLS, tokens);
    for &layout in Layout::ALL {
        let kernels: Vec<Kernel> =
            loaded.ternary().iter().filter(|k| k.layout() == layout).copied().collect();
        assert_eq!(oracle.check(layout, &kernels, &pool, &mut |_| ()).unwrap(), []);
    }
    for kernel in loaded.blocks() {
        assert_eq!(verify::blocks(kernel, COLS).unwrap(), None);
    }
    for kernel in loaded.heads() {
        assert_eq!(verify::head(kernel, COLS).unwrap(), None);
    }
    for kernel in loaded.attention() {
        assert_eq!(verify::attention(kernel, COLS).unwrap(), None);
    }
    for kernel in loaded.lines() {
        assert_eq!(verify::lines(kernel, COLS).unwrap(), None);
    }
    Ok(())
}

fn the_same_ids_give_the_same_bytes() -> Tested {
    Need::vectors()?;
    assert!(toolchain().compile(&ids(), LIMIT).unwrap() == library());
    assert!(toolchain().compile(&ids()[1..], LIMIT).unwrap() != library());
    Ok(())
}

/// A cache in a folder of its own, and what is in it.
struct Stored {
    folder: tempfile::TempDir,
    cache: Cache,
    sha256: String,
}

impl Stored {
    fn new(library: &[u8]) -> Self {
        let folder = private_folder();
        let cache = Cache::at(folder.path().join("bitnet/kernels"));
        let sha256 = cache.store(library).unwrap();
        Self { folder, cache, sha256 }
    }

    fn path(&self) -> PathBuf {
        self.cache.folder().join(format!("{}.so", self.sha256))
    }

    fn open(&self) -> Result<(), String> {
        self.cache.open(&self.sha256).map(drop).map_err(|reason| one_line(&reason))
    }

    fn load(&self, ceiling: Isa) -> Result<Library, Unusable> {
        Library::load(&self.cache.open(&self.sha256)?, ceiling)
    }
}

fn one_line(reason: &Unusable) -> String {
    let text = reason.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    text
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// No library: what only concerns files needs none.
const BYTES: &[u8] = &[7; 5000];

/// C01, C02: what was cut short or changed has another hash.
fn damaged_content_is_refused() {
    let stored = Stored::new(BYTES);
    stored.open().unwrap();
    let mut flipped = BYTES.to_vec();
    flipped[4321] ^= 1;
    for damaged in [&BYTES[..4999], &[], &flipped, &[BYTES, &[0]].concat()] {
        fs::write(stored.path(), damaged).unwrap();
        let reason = stored.open().unwrap_err();
        assert!(reason.contains("damaged"), "{reason}");
        // Whoever stores it again repairs it.
        assert_eq!(stored.cache.store(BYTES).unwrap(), stored.sha256);
        stored.open().unwrap();
    }
    fs::write(stored.path(), vec![0; Cache::MAX_BYTES as usize + 1]).unwrap();
    let reason = stored.open().unwrap_err();
    assert!(reason.contains("more than"), "{reason}");
    fs::remove_file(stored.path()).unwrap();
    let reason = stored.open().unwrap_err();
    assert!(reason.contains("cannot open"), "{reason}");
    for name in ["../../x", "", &stored.sha256[1..]] {
        let reason = one_line(&stored.cache.open(name).unwrap_err());
        assert!(reason.contains("no SHA-256"), "{reason}");
    }
}

/// C03: of another ABI, of other templates. C04: for a better CPU. And what has no valid id.
fn a_library_for_another_program_or_cpu_is_refused() -> Tested {
    Need::vectors()?;
    let at = |needle: &[u8]| library().windows(needle.len()).position(|w| w == needle).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = library().to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        Stored::new(&changed).load(Isa::best()).map_err(|reason| one_line(&reason))
    };
    let header = at(builtin::FINGERPRINT.as_bytes());
    assert!(with(header, b"").is_ok());
    let version = builtin::abi::VERSION + 1;
    let reason = with(header - 4, &version.to_le_bytes()).unwrap_err();
    let expected = format!("made for ABI {version}, but this program has {}", version - 1);
    assert!(reason.contains(&expected), "{reason}");
    let reason = with(header, b"0123456789abcdef").unwrap_err();
    assert!(reason.contains("generator 0123456789abcdef"), "{reason}");
    let reason = with(header, b"\n\x1b[2J").unwrap_err();
    assert!(reason.contains(r"\n\x1b[2J"), "{reason}");

    let id = at(ids()[0].to_string().as_bytes());
    let reason = with(id, b"x").unwrap_err();
    assert!(reason.contains("is no kernel id"), "{reason}");
    let reason = with(id, b"\0").unwrap_err();
    assert!(reason.contains("without a name"), "{reason}");

    let below = Isa::ALL.iter().copied().rfind(|&isa| isa < ids()[0].isa).unwrap();
    let reason = one_line(&Stored::new(library()).load(below).unwrap_err());
    assert!(reason.contains(&format!("runs up to {below}")), "{reason}");

    // Nothing that a loader takes for a library, and a library of something else.
    let reason = one_line(&Stored::new(BYTES).load(Isa::best()).unwrap_err());
    assert!(reason.contains("invalid ELF header"), "{reason}");
    let mut renamed = library().to_vec();
    let symbol = at(b"BITNET_KERNELS_HEADER");
    renamed[symbol] = b'X';
    let reason = one_line(&Stored::new(&renamed).load(Isa::best()).unwrap_err());
    assert!(reason.contains("BITNET_KERNELS_HEADER"), "{reason}");
    Ok(())
}

/// C05: where others may write, nothing is trusted. A sticky folder such as /tmp is no harm.
fn folders_and_files_open_to_others_are_refused() {
    let stored = Stored::new(BYTES);
    let (top, folder, file) = (stored.folder.path(), stored.cache.folder(), &stored.path());
    let bits = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!([bits(folder), bits(file)], [0o700, 0o600]);
    for (path, good, bad) in [
        (folder, [0o700, 0o755], [0o777, 0o770, 0o1777]),
        (file, [0o600, 0o644], [0o666, 0o660, 0o602]),
        (folder.parent().unwrap(), [0o700, 0o1777], [0o777, 0o770, 0o702]),
        (top, [0o755, 0o1770], [0o777, 0o770, 0o702]),
    ] {
        for bad in bad {
            mode(path, bad);
            let reason = stored.open().unwrap_err();
            assert!(reason.contains(&format!("mode {bad:04o}")), "{reason}");
            assert!(reason.contains(path.to_str().unwrap()), "{reason}");
        }
        for good in good {
            mode(path, good);
            stored.open().unwrap();
        }
    }
    mode(folder, 0o777);
    assert!(stored.cache.store(b"more").is_err());
}

/// C06
fn what_belongs_to_another_user_is_refused() -> Tested {
    let stored = Stored::new(BYTES);
    let folder = stored.cache.folder();
    let own = fs::metadata(folder).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap();
    Need::Root.met(chown(folder, Some(own + 4242), None))?;
    chown(folder, Some(own), None).unwrap();
    for path in [folder, &stored.path(), folder.parent().unwrap()] {
        chown(path, Some(own + 4242), None).unwrap();
        let reason = stored.open().unwrap_err();
        assert!(reason.contains(&format!("belongs to user {}", own + 4242)), "{reason}");
        chown(path, Some(own), None).unwrap();
        stored.open().unwrap();
    }
    Ok(())
}

/// C07: neither the folder nor the file is a link, or anything but a folder and a file.
fn links_and_pipes_are_refused() {
    let stored = Stored::new(BYTES);
    let (folder, file) = (stored.cache.folder(), stored.path());
    let aside = stored.folder.path().join("aside");
    let refused = |what: &str| {
        let reason = stored.open().unwrap_err();
        assert!(reason.contains(what), "{reason}");
    };
    fs::rename(&file, &aside).unwrap();
    symlink(&aside, &file).unwrap();
    refused("a symbolic link, but only a plain file");
    fs::remove_file(&file).unwrap();
    symlink(&file, &file).unwrap();
    refused("a symbolic link");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    refused("a folder, but only a plain file");
    fs::remove_dir(&file).unwrap();
    // Nobody writes to it: it must not be waited for.
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    refused("pipe");
    fs::remove_file(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    stored.open().unwrap();

    fs::rename(folder, &aside).unwrap();
    symlink(&aside, folder).unwrap();
    refused("a symbolic link, but only a plain folder");
    assert!(stored.cache.store(b"more").is_err());
    fs::remove_file(folder).unwrap();
    fs::rename(&aside, folder).unwrap();
    // Further up a link is as good as what it leads to.
    symlink(stored.folder.path(), stored.folder.path().join("link")).unwrap();
    let linked = Cache::at(stored.folder.path().join("link/bitnet/kernels"));
    assert!(linked.open(&stored.sha256).is_ok());
}

/// C09: many who store the same and other things at once.
fn writers_do_not_disturb_each_other() {
    let folder = private_folder();
    let cache = Cache::at(folder.path().join("bitnet/kernels"));
    let contents: Vec<Vec<u8>> = (0..4).map(|i| vec![i; 100_000]).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            for content in &contents {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let sha256 = cache.store(content).unwrap();
                        cache.open(&sha256).unwrap();
                    }
                });
            }
        }
    });
    // The libraries and nothing else.
    assert_eq!(names(cache.folder()).len(), contents.len());
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

fn used(path: &Path, seconds_ago: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds_ago);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

fn libraries_that_nobody_has_used_for_long_go() {
    let folder = private_folder();
    let cache = Cache::at(folder.path().join("bitnet/kernels"));
    let store = |number: usize| cache.store(&number.to_le_bytes()).unwrap();
    let path = |sha256: &str| cache.folder().join(format!("{sha256}.so"));
    let stored: Vec<String> = (0..Cache::MOST).map(store).collect();
    for (number, sha256) in stored.iter().enumerate() {
        used(&path(sha256), 10_000 - number as u64);
    }
    // Others' files count for nothing, however old, and nor do links.
    let foreign = ["notes.txt", "x.so", &format!("{}.so", "A".repeat(64))];
    foreign.iter().for_each(|name| fs::write(cache.folder().join(name), "x").unwrap());
    let link = path(&"0".repeat(64));
    symlink(path(&stored[5]), &link).unwrap();
    // The first one is used again, so the second is the oldest.
    cache.open(&stored[0]).unwrap();
    let new = store(Cache::MOST);
    let gone: Vec<usize> =
        (0..Cache::MOST).filter(|&number| !path(&stored[number]).exists()).collect();
    assert_eq!(gone, [1]);
    cache.open(&new).unwrap();
    // Storing again what is there is a use.
    assert_eq!(store(2), stored[2]);
    store(Cache::MOST + 1);
    assert!(path(&stored[2]).exists() && !path(&stored[3]).exists());
    // Sizes count too: these are holes, and take no room.
    for sha256 in &stored[10..20] {
        fs::File::options().write(true).open(path(sha256)).unwrap().set_len(40 << 20).unwrap();
        used(&path(sha256), 20_000);
    }
    let last = store(Cache::MOST + 2);
    let left = stored[10..20].iter().filter(|sha256| path(sha256).exists()).count();
    assert_eq!(left as u64, Cache::MOST_BYTES / (40 << 20));
    cache.open(&last).unwrap();
    assert!(foreign.iter().all(|name| cache.folder().join(name).exists()));
    assert!(fs::symlink_metadata(link).is_ok());
}

/// Files kept while a process lives go with it: by itself, or when the next one begins.
fn what_killed_processes_left_in_a_cache_goes_and_nothing_else() {
    let folder = private_folder();
    let cache = Cache::at(folder.path().join("bitnet/kernels"));
    let scratch = cache.scratch().unwrap();
    let live = scratch.path().to_path_buf();
    assert_eq!(fs::metadata(&live).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(live.parent().unwrap(), cache.folder().canonicalize().unwrap());
    fs::create_dir(live.join("below")).unwrap();
    fs::write(live.join("below/kernels.so"), "x").unwrap();
    // It serves as a cache of its own.
    let sha256 = Cache::at(&live).store(BYTES).unwrap();
    Cache::at(&live).open(&sha256).unwrap();
    used(&live, 1_000_000);

    let at = |name: &str| cache.folder().join(name);
    let aside = folder.path().join("aside");
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("file"), "x").unwrap();
    let temporary = |random: &str| format!("{sha256}.so.{random}.bitnet.tmp");
    let make = |name: &str, is_folder: bool, seconds: u64| {
        match is_folder {
            true => {
                fs::create_dir(at(name)).unwrap();
                fs::write(at(name).join("kernels.so"), "x").unwrap();
                symlink(&aside, at(name).join("link")).unwrap();
            }
            false => fs::write(at(name), "x").unwrap(),
        }
        used(&at(name), seconds);
    };
    let gone = ["run-abandoned000", &temporary("abandoned000")];
    let kept = [
        "run-young0000000",
        &temporary("young0000000"),
        "run-abandoned00",
        "run-abandoned00-",
        "Run-abandoned000",
        "abandoned000",
        &format!("{}.so.abandoned000.bitnet.tmp", "x".repeat(64)),
        "run-file00000000",
    ];
    for name in gone.iter().chain(&kept) {
        let seconds = if name.contains("young") { 10 } else { 1_000_000 };
        make(name, !name.contains("tmp") && !name.contains("file"), seconds);
    }
    symlink(&aside, at("run-link00000000")).unwrap();

    let second = cache.scratch().unwrap();
    assert!(gone.iter().all(|name| fs::symlink_metadata(at(name)).is_err()));
    assert!(kept.iter().all(|name| at(name).exists()));
    assert!(fs::symlink_metadata(at("run-link00000000")).is_ok() && aside.join("file").exists());
    assert!(live.join("below/kernels.so").exists() && second.path() != live);
    let own = second.path().to_path_buf();
    drop((scratch, second));
    assert!(!live.exists() && !own.exists());
    // In a folder that is not trusted nothing is made, and nothing removed.
    make(gone[0], true, 1_000_000);
    mode(cache.folder(), 0o777);
    cache.remove_leftovers();
    assert!(cache.scratch().is_err() && at(gone[0]).exists());
    mode(cache.folder(), 0o700);
    cache.remove_leftovers();
    assert!(!at(gone[0]).exists());
    // Where there is none, none comes into being.
    let none = Cache::at(folder.path().join("none"));
    none.remove_leftovers();
    assert!(!none.folder().exists());
}

/// C11: what was checked is what is loaded, whatever the file has become. And the loader never takes
/// one library for another.
fn a_file_swapped_after_the_check_changes_nothing() -> Tested {
    Need::vectors()?;
    let few = toolchain().compile(&ids()[..1], LIMIT).unwrap();
    let stored = Stored::new(library());
    let checked = stored.cache.open(&stored.sha256).unwrap();
    fs::write(stored.path(), &few).unwrap();
    let of = |library: &Library| {
        let others = library.heads().len() + library.attention().len() + library.lines().len();
        library.ternary().len() + library.blocks().len() + others
    };
    let loaded = Library::load(&checked, Isa::best()).unwrap();
    assert_eq!(of(&loaded), ids().len());
    assert_eq!(of(&Stored::new(&few).load(Isa::best()).unwrap()), 1);
    assert_eq!(of(&Library::load(&checked, Isa::best()).unwrap()), ids().len());
    assert_eq!(of(&loaded), ids().len());
    Ok(())
}

/// C12
fn without_a_home_there_is_no_cache() {
    assert!(matches!(Cache::of_user(|_| None), Err(Unusable::NoFolder)));
    let relative = |name: &str| (name == "HOME").then(|| "home".into());
    let reason = one_line(&Cache::of_user(relative).unwrap_err());
    assert!(reason.contains("neither XDG_CACHE_HOME nor HOME"), "{reason}");

    let folder = private_folder();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let home = |name: &str| (name == "HOME").then(|| file.clone().into());
    let reason = one_line(&Cache::of_user(home).unwrap().store(BYTES).unwrap_err());
    assert!(reason.contains("cannot create"), "{reason}");
}

/// Runs a test of this file that is ignored in the ordinary run, by a shell script that ends with
/// `"$@"`, or with status 77 where there are no mount namespaces.
fn in_shell(script: &str, test: &str) -> Tested {
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .output()
        .unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|x| String::from_utf8_lossy(x));
    let mounted = if output.status.code() == Some(77) { Err(stderr.trim()) } else { Ok(()) };
    Need::Mounts.met(mounted)?;
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
    Ok(())
}

/// Runs a test on a file system of its own, which nobody else sees.
fn mounted(options: &str, test: &str) -> Tested {
    let folder = private_folder();
    let path = folder.path().to_str().unwrap();
    let script = format!(
        "unshare --mount true 2>/dev/null || {{ echo 'no mount namespaces here' >&2; exit 77; }}; \
         exec unshare --mount sh -c 'mount -t tmpfs -o mode=700,{options} none {path} || \
         exit 77; export BITNET_TEST_FOLDER={path}; exec \"$@\"' sh \"$@\""
    );
    in_shell(&script, test)
}

/// C08
fn a_file_system_that_is_noexec() -> Tested {
    mounted("noexec", "on_a_noexec_mount")
}

/// C10
fn a_file_system_that_is_full() -> Tested {
    mounted("size=64k", "on_a_full_disk")
}

/// C12
fn a_file_system_that_is_read_only() -> Tested {
    mounted("ro", "on_a_read_only_mount")
}

/// C10 without a file system of its own.
fn a_limit_on_the_size_of_files_is_a_full_disk() {
    let folder = private_folder();
    let path = folder.path().to_str().unwrap();
    // 16 KiB; the signal is ignored, so that writing fails.
    let script =
        format!("trap '' XFSZ; ulimit -f 32; export BITNET_TEST_FOLDER={path}; exec \"$@\"");
    assert_eq!(in_shell(&script, "on_a_full_disk"), Ok(()));
}

/// A cache where the test that runs this one wants it.
fn test_cache() -> Cache {
    let folder =
        std::env::var_os("BITNET_TEST_FOLDER").expect("set by the test that runs this one");
    Cache::at(Path::new(&folder).join("bitnet/kernels"))
}

fn on_a_noexec_mount() {
    let cache = test_cache();
    let reason = one_line(&cache.store(BYTES).unwrap_err());
    assert!(reason.contains("mounted noexec; set XDG_CACHE_HOME"), "{reason}");
}

fn on_a_full_disk() {
    let cache = test_cache();
    let sha256 = cache.store(BYTES).unwrap();
    let reason = one_line(&cache.store(&[1; 100_000]).unwrap_err());
    assert!(reason.contains("cannot write"), "{reason}");
    // Neither half a library nor a temporary file is left, and what was there is whole.
    assert_eq!(names(cache.folder()), [format!("{sha256}.so")]);
    cache.open(&sha256).unwrap();
}

fn on_a_read_only_mount() {
    let cache = test_cache();
    let reason = one_line(&cache.store(BYTES).unwrap_err());
    assert!(reason.contains("cannot create"), "{reason}");
}

/// The tests of this file.
pub fn tests() -> Suite {
    let mut suite = suite![
        a_library_computes_what_is_built_in,
        the_same_ids_give_the_same_bytes,
        damaged_content_is_refused,
        a_library_for_another_program_or_cpu_is_refused,
        folders_and_files_open_to_others_are_refused,
        what_belongs_to_another_user_is_refused,
        links_and_pipes_are_refused,
        writers_do_not_disturb_each_other,
        libraries_that_nobody_has_used_for_long_go,
        what_killed_processes_left_in_a_cache_goes_and_nothing_else,
        a_file_swapped_after_the_check_changes_nothing,
        without_a_home_there_is_no_cache,
        a_file_system_that_is_noexec,
        a_file_system_that_is_full,
        a_file_system_that_is_read_only,
        a_limit_on_the_size_of_files_is_a_full_disk,
    ];
    let why = "run by another test, in an environment of its own";
    suite.add_ignored(why, "on_a_noexec_mount", on_a_noexec_mount);
    suite.add_ignored(why, "on_a_full_disk", on_a_full_disk);
    suite.add_ignored(why, "on_a_read_only_mount", on_a_read_only_mount);
    suite
}
