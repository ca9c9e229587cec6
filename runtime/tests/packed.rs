//! Packed weights that are kept in a file: texts are, to the bit, those of weights that were packed in
//! memory, and a file that does not fit is left alone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bitnet_profiles::Format;
use bitnet_runtime::engine::{Engine, Options, PackedWeights};
use bitnet_runtime::{ActivationSparsity, BatchToken, HeadMode, Needs, SessionOptions};

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf"))
}

/// Options that pack all there is: lines, and the copies of a head that is otherwise too small for them.
fn everything(packed: PackedWeights) -> Options {
    Options {
        packed,
        threads: Some(2),
        sparse: ActivationSparsity::On,
        lm_head: HeadMode::Exact,
        ..Options::default()
    }
}

/// Packs a model with `options` and returns the path of the file.
fn keep(model: &Path, folder: &Path, options: Options) -> PathBuf {
    let path = folder.join("a.packed");
    let options = Options { packed: PackedWeights::Never, ..options };
    let (written, bytes) = Engine::open(model, options).unwrap().keep_packed(Some(&path)).unwrap();
    assert_eq!(written, path);
    assert_eq!(bytes, fs::metadata(&path).unwrap().len());
    path
}

/// The bits of all logits after some tokens, and the three best after some more.
fn logits(engine: &Engine) -> Vec<Vec<u32>> {
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<u32>>();
    let mut found = vec![bits(session.prefill(&[1, 50, 700, 31, 4000]).unwrap())];
    found.push(bits(session.decode(99).unwrap()));
    let needs = Needs::Best { count: 3, ids: vec![] };
    for id in [7, 80, 900] {
        session.forward(&[BatchToken { sequence: 0, id, needs: Some(&needs) }]).unwrap();
        let mut best = bits(session.logits(0));
        best.sort_by(|a, b| f32::from_bits(*b).total_cmp(&f32::from_bits(*a)));
        found.push(best[..3].to_vec());
    }
    found
}

fn notes(engine: &Engine) -> String {
    engine.take_notes().iter().map(|note| format!("{note}\n")).collect()
}

#[test]
fn numbers_are_those_of_weights_packed_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    for (lm_head, sparse) in [
        (HeadMode::Exact, ActivationSparsity::On),
        (HeadMode::Full, ActivationSparsity::Off),
        (HeadMode::Auto, ActivationSparsity::Auto),
    ] {
        let options = Options { lm_head, sparse, ..everything(PackedWeights::Never) };
        let in_memory = Engine::open(demo(), options.clone()).unwrap();
        let path = keep(demo(), dir.path(), options.clone());
        let packed = PackedWeights::File(path.clone());
        let mapped = Engine::open(demo(), Options { packed, ..options }).unwrap();
        assert_eq!(mapped.packed_file(), Some(path), "{}", notes(&mapped));
        assert_eq!(mapped.pack_time(), None);
        let [a, b] = [&in_memory, &mapped].map(|engine| engine.model().unwrap());
        let kernels = |model: &bitnet_runtime::Model| format!("{:?}", model.kernels());
        assert_eq!(kernels(&a), kernels(&b));
        assert_eq!(a.sketch().is_some(), lm_head == HeadMode::Exact);
        assert_eq!(b.sketch().is_some(), lm_head == HeadMode::Exact);
        assert!(b.is_packed());
        assert_eq!(logits(&mapped), logits(&in_memory));
    }
}

/// What is not asked for is not used, and what is asked for beyond the file is made.
#[test]
fn a_file_serves_other_options_where_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let path = keep(demo(), dir.path(), everything(PackedWeights::Never));
    let wanted = logits(&Engine::open(demo(), everything(PackedWeights::Never)).unwrap());
    let file = || PackedWeights::File(path.clone());
    let open = |options| Engine::open(demo(), options).unwrap();

    let plain = Options { sparse: ActivationSparsity::Off, ..everything(file()) };
    let plain = open(Options { lm_head: HeadMode::Full, ..plain });
    assert!(plain.packed_file().is_some() && plain.model().unwrap().sketch().is_none());
    let lines =
        |engine: &Engine| engine.model().unwrap().kernels().iter().any(|k| k.sparse.is_some());
    assert!(!lines(&plain));
    assert_eq!(logits(&plain), wanted);

    // Without the copies of a head they are built; without lines the file is of no use.
    let bare = Options { lm_head: HeadMode::Full, ..everything(PackedWeights::Never) };
    keep(demo(), dir.path(), bare);
    let built = open(everything(file()));
    assert!(built.packed_file().is_some() && built.model().unwrap().sketch().is_some());
    assert_eq!(logits(&built), wanted);
    let bare = Options { sparse: ActivationSparsity::Off, ..everything(PackedWeights::Never) };
    keep(demo(), dir.path(), bare);
    let refused = open(everything(file()));
    assert_eq!(refused.packed_file(), None);
    assert!(notes(&refused).contains("rows in"), "{}", notes(&refused));
    assert!(lines(&refused));
    assert_eq!(logits(&refused), wanted);

    // No map, no file; and none where weights are to be locked.
    for options in [
        Options { mmap: false, ..everything(file()) },
        Options { mlock: true, ..everything(file()) },
    ] {
        assert_eq!(open(options).packed_file(), None);
    }
}

#[test]
fn a_file_that_does_not_fit_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    let time = SystemTime::now() - Duration::from_secs(1000);
    let write = |bytes: &[u8], seconds| {
        fs::write(&model, bytes).unwrap();
        let file = File::options().write(true).open(&model).unwrap();
        file.set_modified(time + Duration::from_secs(seconds)).unwrap();
    };
    let bytes = fs::read(demo()).unwrap();
    write(&bytes, 0);
    let path = keep(&model, dir.path(), everything(PackedWeights::Never));
    let file = || everything(PackedWeights::File(path.clone()));
    let wanted = logits(&Engine::open(&model, file()).unwrap());

    // The same bytes at another time are read whole, once more each time.
    write(&bytes, 1);
    let touched = Engine::open(&model, file()).unwrap();
    assert_eq!(touched.packed_file(), Some(path.clone()));
    assert!(notes(&touched).contains("read whole"));
    assert_eq!(logits(&touched), wanted);

    // A weight of the same model changed: its numbers are its own, and one note says so.
    let mut other = bytes.clone();
    let gguf = bitnet_runtime::file::gguf::Gguf::open(&model).unwrap();
    let tensor = gguf.tensor("blk.0.ffn_down.weight").unwrap().clone();
    drop(gguf);
    other[tensor.offset as usize..][..64].fill(0);
    write(&other, 1);
    let own = Engine::open(&model, everything(PackedWeights::Never)).unwrap();
    let refused = Engine::open(&model, file()).unwrap();
    assert_eq!(refused.packed_file(), None);
    let said = notes(&refused);
    assert_eq!(said.matches("packed weights are not used").count(), 1, "{said}");
    assert!(said.contains("another content") && said.contains("bitnet-run pack"), "{said}");
    assert_eq!(logits(&refused), logits(&own));
    assert_ne!(logits(&refused), wanted);

    // Other kernels.
    write(&bytes, 0);
    for format in [Format::T5, Format::Tl1] {
        let options = Options { format: Some(format), ..file() };
        let refused = Engine::open(&model, options).unwrap();
        let said = notes(&refused);
        assert_eq!(refused.packed_file(), None, "{said}");
        assert!(said.contains("blk.0.") && said.contains(format.name()), "{said}");
        assert_eq!(logits(&refused), wanted);
    }

    // A damaged file, and none.
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let refused = Engine::open(&model, file()).unwrap();
    assert!(notes(&refused).contains("packed weights are not used"));
    assert_eq!(logits(&refused), wanted);
    fs::remove_file(&path).unwrap();
    assert_eq!(Engine::open(&model, file()).unwrap_err().exit_code(), 6);
}

/// Whatever the data of a file holds, a text comes out of it.
#[test]
fn any_data_can_be_computed_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = keep(demo(), dir.path(), everything(PackedWeights::Never));
    let whole = fs::read(&path).unwrap();
    let data = 2 << 20;
    for fill in [0xff, 0x7f, 0x55] {
        let mut damaged = whole.clone();
        damaged[data..].fill(fill);
        fs::write(&path, damaged).unwrap();
        let options = everything(PackedWeights::File(path.clone()));
        let engine = Engine::open(demo(), options).unwrap();
        assert!(engine.packed_file().is_some());
        let mut session = engine.session(SessionOptions::default()).unwrap();
        // A number that is not finite would be told.
        match session.prefill_for(&[1, 50, 700], Needs::GREEDY) {
            Ok(logits) => assert_eq!(logits.len(), 4096),
            Err(error) => assert_eq!(error.exit_code(), 3, "{error}"),
        }
    }
}
