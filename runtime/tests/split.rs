//! R5: models that were split into several files.

mod demo;
mod editor;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Gguf, TensorType, Value};
use editor::Parts;

/// The parts of a model, as llama-gguf-split writes them, and their folder.
struct Split {
    folder: tempfile::TempDir,
    parts: Vec<Parts>,
}

impl Split {
    /// The demo model in three parts.
    fn new() -> Self {
        let whole = Parts::of(&Gguf::open(demo::path()).unwrap());
        let parts = whole.split(3).into_iter().map(|(_, part)| part).collect();
        Self { folder: tempfile::tempdir().unwrap(), parts }
    }

    fn path(&self, i: usize) -> PathBuf {
        self.folder.path().join(format!("m-{:05}-of-00003.gguf", i + 1))
    }

    /// Writes all parts and returns the path of the first.
    fn write(&self) -> PathBuf {
        for (i, part) in self.parts.iter().enumerate() {
            std::fs::write(self.path(i), part.bytes()).unwrap();
        }
        self.path(0)
    }
}

fn load(gguf: Gguf) -> bitnet_runtime::Result<Model> {
    let (pool, selection) = (Pool::new(2)?, Selection::default());
    Model::from_gguf(gguf, &LoadOptions::new(&pool, &selection))
}

fn logits(model: Model) -> Vec<u32> {
    let pool = Arc::new(Pool::new(2).unwrap());
    let mut session = Session::new(Arc::new(model), pool, SessionOptions::default()).unwrap();
    demo::bits(session.prefill(&[1, 2, 3, 70]).unwrap())
}

#[test]
fn r5_a_model_in_parts_is_the_model() {
    let whole = Gguf::open(demo::path()).unwrap();
    let mut split = Split::new();
    let path = split.write();
    let expected = logits(load(Gguf::open(demo::path()).unwrap()).unwrap());
    for open in [Gguf::open, Gguf::read] as [fn(PathBuf) -> _; 2] {
        let gguf: Gguf = open(path.clone()).unwrap();
        assert_eq!((gguf.path(), gguf.files().len()), (&*path, 3));
        let sizes = (0..3).map(|i| std::fs::metadata(split.path(i)).unwrap().len());
        assert_eq!(gguf.file_bytes(), sizes.sum::<u64>());
        assert_eq!(gguf.get_str("general.architecture").unwrap(), Some("bitnet-b1.58"));
        assert_eq!(gguf.tensors().len(), whole.tensors().len());
        let mut buffer = Vec::new();
        for (i, own) in whole.tensors().iter().enumerate() {
            let tensor = gguf.tensor(&own.name).unwrap();
            assert_eq!(tensor.part, (0..3).rfind(|p| whole.tensors().len() * p / 3 <= i).unwrap());
            assert_eq!(gguf.path_of(tensor), split.path(tensor.part));
            let bytes = whole.tensor_bytes(own);
            assert!(gguf.tensor_bytes(tensor) == bytes, "{}", own.name);
            assert!(gguf.read_part(tensor, 8..16, &mut buffer) == &bytes[8..16]);
            gguf.drop_part(tensor, 0..bytes.len(), true);
            assert!(gguf.tensor_bytes(tensor) == bytes, "{}, dropped", own.name);
        }
        gguf.drop_all();
        assert!(logits(load(gguf).unwrap()) == expected);
    }
    assert!(Gguf::open(&path).unwrap().is_mapped());
    assert!(!Gguf::read(&path).unwrap().is_mapped());

    // The first part may hold metadata only.
    let tensors = std::mem::take(&mut split.parts[0].tensors);
    split.parts[1].tensors.extend(tensors);
    assert!(logits(load(Gguf::open(split.write()).unwrap()).unwrap()) == expected);
}

/// Each fault is told by the name of the file that has it.
#[test]
fn r5_parts_that_do_not_fit_together_are_refused() {
    type Change = fn(&mut Split);
    let cases: [(&str, Change, usize, &[&str]); 9] = [
        (
            "another number",
            |s| s.parts[2].set("split.no", Value::U16(1)),
            2,
            &["split.no", "u16 1", "2, by its name"],
        ),
        (
            "another count",
            |s| s.parts[1].set("split.count", Value::U16(4)),
            1,
            &["split.count", "u16 4", "3, by its name"],
        ),
        ("no number", |s| s.parts[1].remove("split.no"), 1, &["split.no", "no such key"]),
        ("no count", |s| s.parts[2].remove("split.count"), 2, &["split.count", "no such key"]),
        ("no number in the first", |s| s.parts[0].remove("split.no"), 0, &["split.no"]),
        (
            "a tensor twice",
            |s| {
                let tensor = s.parts[0].tensors[4].clone();
                s.parts[2].tensors.push(tensor);
            },
            2,
            &["it again, after ", "m-00001-of-00003.gguf", "each name once"],
        ),
        (
            "a tensor missing",
            |s| drop(s.parts[1].tensors.pop()),
            0,
            &["split.tensors.count", "i32 68", "67, the tensors of all parts"],
        ),
        (
            "a tensor of another shape",
            |s| {
                let tensor = s.parts[2].tensors.last_mut().unwrap();
                assert_eq!(tensor.ty, TensorType::F32, "{}", tensor.name);
                (tensor.dims, tensor.data) = (vec![2], vec![0; 8]);
            },
            2,
            &["found dimensions [2]"],
        ),
        ("a part that is no GGUF file", |s| drop(s.parts.pop()), 2, &["file format", "'none'"]),
    ];
    for (id, change, at_fault, words) in cases {
        let mut split = Split::new();
        change(&mut split);
        if split.parts.len() < 3 {
            std::fs::write(split.path(2), "none of these twenty-four bytes").unwrap();
        }
        let error = Gguf::open(split.write()).and_then(load).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 3, "{id}: {message}");
        assert!(message.starts_with(split.path(at_fault).to_str().unwrap()), "{id}: {message}");
        for word in words {
            assert!(message.contains(word), "{id}: {message} lacks {word}");
        }
    }
}

#[test]
fn r5_a_part_that_is_not_there_is_named() {
    let split = Split::new();
    let path = split.write();
    for missing in [1, 2] {
        std::fs::remove_file(split.path(missing)).unwrap();
        for open in [Gguf::open, Gguf::read] as [fn(PathBuf) -> _; 2] {
            let error = open(path.clone()).map(|_: Gguf| ()).unwrap_err();
            let message = error.to_string();
            assert_eq!(error.exit_code(), 6, "{message}");
            assert!(message.starts_with(split.path(missing).to_str().unwrap()), "{message}");
            assert!(message.contains(&format!("part {} of 3", missing + 1)), "{message}");
        }
        split.write();
    }
}

/// All parts together, before any is read; a map takes no memory.
#[cfg(target_os = "linux")]
#[test]
fn r5_parts_that_memory_does_not_hold_are_told_at_once() {
    let split = Split::new();
    let path = split.write();
    std::fs::File::options().write(true).open(split.path(2)).unwrap().set_len(1 << 42).unwrap();
    let error = Gguf::read(&path).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 6, "{message}");
    assert!(message.starts_with(path.to_str().unwrap()), "{message}");
    assert!(message.contains("bytes of its other parts do not fit into memory"), "{message}");
    assert!(Gguf::open(&path).unwrap().file_bytes() > 1 << 42);
}

/// As in llama.cpp a model is opened by its first part, which another part names.
#[test]
fn r5_a_model_is_opened_by_its_first_part() {
    let split = Split::new();
    let first = split.write();
    let refused = |path: &Path, words: &[&str]| {
        let error = Gguf::open(path).unwrap_err();
        let message = error.to_string();
        assert_eq!(error.exit_code(), 3, "{message}");
        for word in words {
            assert!(message.contains(word), "{message} lacks {word}");
        }
    };
    let words = ["split.no", "2, part 3 of 3", "the first part", first.to_str().unwrap()];
    refused(&split.path(2), &words);
    let renamed = split.folder.path().join("other.gguf");
    std::fs::copy(split.path(1), &renamed).unwrap();
    refused(&renamed, &["split.no", "1, part 2 of 3", "the first part; give that one"]);
    std::fs::copy(&first, &renamed).unwrap();
    refused(&renamed, &["file name", "'other.gguf'", "-00001-of-00003.gguf", "--merge"]);

    // A part alone can be looked at; it is no model.
    let part = Gguf::open_part(split.path(2)).unwrap();
    assert_eq!(part.files().len(), 1);
    let error = load(Gguf::open_part(&first).unwrap()).unwrap_err();
    assert!(error.to_string().contains("one file alone is open"), "{error}");
}
