//! Malformed GGUF files: each is refused with one line that names file, item, found and allowed,
//! quickly, and without allocating what the file merely claims.
//!
//! The ids G01 to G62 are those of the project's list of hostile inputs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use bitnet_runtime::Error;
use bitnet_runtime::file::gguf::{Array, Gguf, GgufWriter, TensorType, Value};
use bitnet_runtime::text::tokenizer::Tokenizer;

/// Remembers the largest allocation of each thread, and counts them.
struct Watch;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

fn seen(size: usize) {
    // A thread that is ending has no cell any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        seen(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        seen(size);
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watch = Watch;

const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A file put together field by field, each of which may be wrong.
#[derive(Clone, Default)]
struct Raw {
    kv: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    n_kv: Option<u64>,
    n_tensors: Option<u64>,
    data: usize,
}

fn le64(n: u64) -> Vec<u8> {
    n.to_le_bytes().into()
}

fn string(s: &[u8]) -> Vec<u8> {
    [&le64(s.len() as u64), s].concat()
}

fn array(element: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &count.to_le_bytes(), items].concat()
}

impl Raw {
    fn kv_bytes(mut self, bytes: Vec<u8>) -> Raw {
        self.kv.push(bytes);
        self
    }

    fn kv(self, key: &str, ty: u32, value: &[u8]) -> Raw {
        self.kv_bytes([&string(key.as_bytes()), &ty.to_le_bytes()[..], value].concat())
    }

    fn tensor_named(mut self, name: &[u8], dims: &[u64], ty: u32, offset: u64) -> Raw {
        let mut t = string(name);
        t.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| t.extend(d.to_le_bytes()));
        t.extend(ty.to_le_bytes());
        t.extend(offset.to_le_bytes());
        self.tensors.push(t);
        self
    }

    fn tensor(self, dims: &[u64], ty: u32, offset: u64) -> Raw {
        let name = format!("t{}", self.tensors.len());
        self.tensor_named(name.as_bytes(), dims, ty, offset)
    }

    /// Bytes of tensor data.
    fn data(mut self, bytes: usize) -> Raw {
        self.data = bytes;
        self
    }

    fn counts(mut self, n_tensors: u64, n_kv: u64) -> Raw {
        (self.n_tensors, self.n_kv) = (Some(n_tensors), Some(n_kv));
        self
    }

    fn bytes(self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend(le64(self.n_tensors.unwrap_or(self.tensors.len() as u64)));
        out.extend(le64(self.n_kv.unwrap_or(self.kv.len() as u64)));
        out.extend(self.kv.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }
}

fn raw() -> Raw {
    Raw::default()
}

fn with_version(version: [u8; 4]) -> Vec<u8> {
    let mut bytes = raw().bytes();
    bytes[4..8].copy_from_slice(&version);
    bytes
}

type Case = (&'static str, Vec<u8>, &'static [&'static str]);

fn wrong_files() -> Vec<Case> {
    let padded = |start: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.resize(200, b' ');
        bytes
    };
    let safetensors = [&le64(60)[..], br#"{"__metadata__":{}}"#].concat();
    vec![
        ("G01", vec![], &["empty", "GGUF"]),
        ("G02", raw().bytes()[..23].to_vec(), &["only 23 bytes"]),
        ("G03", padded(b"ABCD"), &["'ABCD'", "GGUF"]),
        ("G03 escape", padded(b"\x1b[2J"), &["'\\u{1b}[2J'"]),
        ("G04 safetensors", padded(&safetensors), &["safetensors"]),
        ("G04 zip", padded(b"PK\x03\x04"), &["zip"]),
        ("G04 gzip", padded(b"\x1f\x8b\x08"), &["gzip"]),
        ("G04 zstd", padded(b"\x28\xb5\x2f\xfd"), &["zstd"]),
        ("G04 html", padded(b"\n<!DOCTYPE html>"), &["HTML"]),
        ("G04 lfs", padded(b"version https://git-lfs.github.com/spec/v1"), &["git-lfs pointer"]),
        ("G04 ggjt", padded(b"tjgg\x03\0\0\0"), &["GGJT"]),
        ("G05", with_version([0, 0, 0, 0]), &["version 0", "2 or 3"]),
        ("G06", with_version([1, 0, 0, 0]), &["version 1", "2 or 3"]),
        ("G07", with_version([4, 0, 0, 0]), &["version 4", "2 or 3"]),
        ("G08", with_version([0, 0, 0, 3]), &["big-endian"]),
        ("G08 magic", padded(b"FUGG"), &["big-endian"]),
        ("G09", raw().counts(u64::MAX, 0).bytes(), &["number of tensors", "18446744073709551615"]),
        (
            "G10",
            raw().counts(1 << 40, 0).data(5 << 20).bytes(),
            &["number of tensors", "1099511627776", "65536"],
        ),
        (
            "G11",
            raw().counts(0, u64::MAX).bytes(),
            &["number of metadata keys", "18446744073709551615"],
        ),
        (
            "G12",
            raw().counts(0, 500_000_000).bytes()[..24].to_vec(),
            &["number of metadata keys", "500000000", "24 bytes"],
        ),
        ("more tensors than told", raw().counts(2, 0).data(300).bytes(), &["tensor 0"]),
    ]
}

fn bad_metadata() -> Vec<Case> {
    let kv = |ty: u32, value: &[u8]| raw().kv("k", ty, value).bytes();
    let alignment = |ty: u32, a: u32| raw().kv("general.alignment", ty, &a.to_le_bytes()).bytes();
    let key = |bytes: Vec<u8>| raw().kv_bytes(bytes).data(64).bytes();
    let mut nested = Vec::new();
    for _ in 0..1_000_000 {
        nested.extend(array(ARRAY, 1, &[]));
    }
    vec![
        ("G15", key(le64(u64::MAX)), &["metadata key 0", "at most 65536"]),
        ("G16", key(le64(60_000)), &["metadata key 0", "cut off"]),
        ("G17", key(string(b"")), &["metadata key 0", "empty key"]),
        ("G18", raw().kv("k", U8, &[1]).kv("k", U8, &[1]).bytes(), &["key 'k'", "twice"]),
        ("G19", key(string(b"a\xff")), &["metadata key 0", "UTF-8", "position 1"]),
        ("G20", kv(13, &[0; 8]), &["key 'k'", "value type 13", "0 to 12"]),
        ("G20 -1", kv(u32::MAX, &[0; 8]), &["key 'k'", "value type 4294967295"]),
        ("G21", kv(STRING, &le64(u64::MAX)), &["key 'k'", "at most 16777216"]),
        ("G22", kv(STRING, &le64(1 << 30)), &["1073741824 bytes", "at most 16777216"]),
        ("G22 small", kv(STRING, &le64(1 << 23)), &["8388608 bytes", "cut off"]),
        ("G24", kv(ARRAY, &array(ARRAY, 65_537, &[0; 8])), &["65537 arrays", "at most 65536"]),
        ("G24 cut off", kv(ARRAY, &array(ARRAY, 9, &array(U8, 1, &[0]))), &["cut off"]),
        ("G25", kv(ARRAY, &nested), &["nested deeper", "at most 4"]),
        ("G26", kv(ARRAY, &array(13, 1, &[0; 8])), &["array element type 13"]),
        ("G27", kv(ARRAY, &array(U8, u64::MAX, &[0; 8])), &["at most 16777216 items"]),
        ("G28", kv(ARRAY, &array(10, 1 << 61, &[0; 8])), &["at most 16777216 items"]),
        ("G29", kv(ARRAY, &array(10, 100, &[0; 8])), &["800 bytes", "cut off"]),
        ("G30", kv(ARRAY, &array(STRING, 1 << 40, &[0; 8])), &["at most 16777216 items"]),
        ("G30 in the limit", kv(ARRAY, &array(STRING, 1 << 24, &[0; 8])), &["16777216 strings"]),
        ("G31", kv(BOOL, &[2]), &["key 'k'", "bool 2", "0 or 1"]),
        ("G31 array", kv(ARRAY, &array(BOOL, 2, &[1, 7])), &["bool 7"]),
        ("G32", alignment(U32, 0), &["general.alignment", "u32 0", "power of two"]),
        ("G33", alignment(U32, 13), &["general.alignment", "u32 13", "power of two"]),
        ("G34", alignment(U32, 1 << 31), &["u32 2147483648", "1048576"]),
        ("G35", alignment(I32, 32), &["i32 32", "u32"]),
        (
            "G36",
            raw()
                .kv("general.alignment", U32, &4096u32.to_le_bytes())
                .tensor(&[8], 0, 0)
                .data(64)
                .bytes(),
            &["tensor 't0'", "cut off"],
        ),
    ]
}

fn bad_tensors() -> Vec<Case> {
    let one = |dims: &[u64], ty: u32| raw().tensor(dims, ty, 0).data(4096).bytes();
    let named = |name: &[u8]| raw().tensor_named(name, &[8], 0, 0).data(4096).bytes();
    let at = |offset: u64| raw().tensor(&[8], 0, offset).data(4096).bytes();
    let name_length = |n: u64| {
        let mut r = raw().data(4096);
        r.tensors.push(le64(n));
        r.bytes()
    };
    let many_dims = |n: u32| {
        let mut r = raw().data(4096);
        r.tensors.push([&string(b"t0"), &n.to_le_bytes()[..]].concat());
        r.bytes()
    };
    let huge = (1 << 63) - 64;
    vec![
        ("G37", name_length(u64::MAX), &["tensor 0, name", "at most 65536"]),
        ("G38", named(&[b'x'; 64]), &["tensor 0, name", "64 bytes", "1 to 63"]),
        (
            "G39",
            raw().tensor_named(b"x", &[8], 0, 0).tensor_named(b"x", &[8], 0, 32).data(64).bytes(),
            &["tensor 'x'", "twice"],
        ),
        ("G40", named(b""), &["tensor 0, name", "0 bytes"]),
        ("name not UTF-8", named(b"\xff"), &["tensor 0, name", "UTF-8"]),
        (
            "name with a line break",
            raw().tensor_named(b"a\nb", &[], 0, 0).data(64).bytes(),
            &["'a\\nb'", "0 dimensions"],
        ),
        ("G41", many_dims(0), &["tensor 't0'", "0 dimensions", "1 to 4"]),
        ("G42", many_dims(5), &["5 dimensions", "1 to 4"]),
        ("G42 2^32-1", many_dims(u32::MAX), &["4294967295 dimensions"]),
        ("G43", one(&[8, 0], 0), &["tensor 't0'", "[8, 0]", "at least 1"]),
        ("G44", one(&[1 << 63], 0), &["9223372036854775808", "2^63"]),
        ("G45", one(&[(1 << 63) - 1, 2], 0), &["2^63"]),
        ("G46", one(&[(1 << 42) + 1, 1 << 22, 1], 0), &["2^63"]),
        ("G46 wraps to 1", one(&[1 << 32, 1 << 32, 1], 24), &["2^63"]),
        ("G47", one(&[1 << 62], 0), &["2^63"]),
        ("G48 overflow", one(&[1 << 40, 1 << 40], 9999), &["tensor 't0'", "2^63"]),
        (
            "G48 nothing",
            raw().tensor(&[8], 9999, 0).tensor(&[8], 0, 0).data(64).bytes(),
            &["tensor 't0'", "no data, of type 9999"],
        ),
        ("G51 q6_K", one(&[128, 2], 14), &["multiple of 256", "128"]),
        ("G51 q8_0", one(&[48], 8), &["multiple of 32", "48"]),
        ("G51 i2_s", one(&[100, 1], 36), &["multiple of 128", "100"]),
        ("G52", at(8), &["offset 8", "alignment 32"]),
        ("G53", at(1 << 40), &["offset 1099511627776", "4096"]),
        ("G54", at(4096), &["32 bytes of f32", "cut off"]),
        ("G55", at(u64::MAX - 31), &["offset 18446744073709551584"]),
        (
            "G56",
            raw().tensor(&[64], 0, 0).tensor(&[8], 0, 32).data(4096).bytes(),
            &["tensor 't1'", "offset 32", "256", "'t0'"],
        ),
        (
            "G56 same place",
            raw().tensor(&[8], 0, 0).tensor(&[8], 0, 0).data(64).bytes(),
            &["offset 0", "32"],
        ),
        (
            "G58",
            raw().tensor(&[huge], 24, 0).tensor(&[huge], 24, huge).data(64).bytes(),
            &["tensor 't0'", "bytes of i8"],
        ),
        (
            "G59",
            raw().tensor(&[8], 0, 0).data(31).bytes(),
            &["32 bytes of f32", "at most 31", "cut off"],
        ),
        ("G60 i2_s", raw().tensor(&[128], 36, 0).data(200).bytes(), &["200 bytes", "64 (i2_s)"]),
        (
            // 4.5 bits each: what ggml once meant by 36.
            "G61",
            raw().tensor(&[256, 4], 36, 0).tensor(&[8], 0, 576).data(608).bytes(),
            &["tensor 't0'", "576 bytes", "288 (i2_s)"],
        ),
        (
            "G62 neither",
            raw().tensor(&[1024, 4], 42, 0).tensor(&[8], 0, 1024).data(1056).bytes(),
            &["1024 bytes", "1152 (q2_0)", "1088 (q2_0 (128"],
        ),
    ]
}

#[test]
fn malformed_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [wrong_files(), bad_metadata(), bad_tensors()].concat();
    for (id, bytes, words) in cases {
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, &bytes).unwrap();
        LARGEST.set(0);
        COUNT.set(0);
        let error = Gguf::open(&path).err().unwrap_or_else(|| panic!("{id}: accepted"));
        let limit = 4 * bytes.len() + 4096;
        assert!(LARGEST.get() <= limit, "{id}: allocated {}", LARGEST.get());
        // Refused at the first fault: what a large claim would take is never begun.
        assert!(COUNT.get() <= 100, "{id}: {} allocations", COUNT.get());
        assert_eq!(error.exit_code(), 3, "{id}: {error}");
        let message = error.to_string();
        assert!(message.starts_with(path.to_str().unwrap()), "{id}: {message}");
        assert_eq!(message.lines().count(), 1, "{id}: {message}");
        assert!(message.len() < 700, "{id}: {message}");
        for word in words.iter().chain(&["found ", "expected "]) {
            assert!(message.contains(word), "{id}: {message:?} lacks {word:?}");
        }
    }
}

/// Id, file, and the tensors it is taken for.
type Accepted = (&'static str, Raw, &'static [(TensorType, u64)]);

#[test]
fn unusual_files_are_read() {
    let cases: Vec<Accepted> = vec![
        // A vocabulary-only file has no tensor; what else is missing the model's loader tells.
        ("G13", raw().kv("k", U8, &[1]), &[]),
        ("G14", raw(), &[]),
        // What nobody reads may be in any encoding.
        ("G23", raw().kv("k", STRING, &string(b"\xc3(")), &[]),
        (
            "G23 a string of an array",
            raw().kv("k", ARRAY, &array(STRING, 2, &[string(b"a"), string(b"\xff")].concat())),
            &[],
        ),
        (
            "G57 a hole",
            raw().tensor(&[8], 0, 0).tensor(&[8], 0, 1024).data(1056),
            &[(TensorType::F32, 32), (TensorType::F32, 32)],
        ),
        (
            "G57 any order",
            raw().tensor(&[8], 0, 64).tensor(&[16], 0, 0).data(96),
            &[(TensorType::F32, 32), (TensorType::F32, 64)],
        ),
        ("G60", raw().tensor(&[8], 0, 0).data(500), &[(TensorType::F32, 32)]),
        (
            "G62 64 weights a block",
            raw().tensor(&[1024, 4], 42, 0).tensor(&[8], 0, 1152).data(1184),
            &[(TensorType::Q2_0, 1152), (TensorType::F32, 32)],
        ),
        (
            "G62 128 weights a block, last and not padded",
            raw().tensor(&[128, 5], 42, 0).data(170),
            &[(TensorType::Q2_0_G128, 170)],
        ),
        (
            "39 as MXFP4",
            raw().tensor(&[512, 32], 39, 0).data(512 * 32 / 32 * 17),
            &[(TensorType::MXFP4, 8704)],
        ),
        ("39 as TL2", raw().tensor(&[512, 32], 39, 0).data(3808), &[(TensorType::TL2, 3808)]),
        // Who needs such a tensor refuses it. Its data goes on to the next tensor, or to the end.
        (
            "G48",
            raw().tensor(&[8], 9999, 0).tensor(&[8], 0, 96).data(128),
            &[(TensorType::Unknown(9999), 96), (TensorType::F32, 32)],
        ),
        ("G49", raw().tensor(&[8], 4, 0).data(50), &[(TensorType::Unknown(4), 50)]),
        (
            "I2_S of rows that are no multiple of 128",
            raw().tensor(&[64, 6], 36, 0).data(128),
            &[(TensorType::I2_S, 128)],
        ),
    ];
    for (id, file, expected) in cases {
        let gguf = Gguf::from_bytes("m.gguf", file.bytes()).unwrap_or_else(|e| panic!("{id}: {e}"));
        let found: Vec<_> = gguf.tensors().iter().map(|t| (t.ty, t.bytes)).collect();
        assert_eq!(found, expected, "{id}");
    }
}

/// G23: what is read is UTF-8, or refused.
#[test]
fn r6_only_text_that_is_read_must_be_utf_8() {
    let file = raw().kv("k", STRING, &string(b"\xc3(")).kv(
        "list",
        ARRAY,
        &array(STRING, 2, &[string(b"a"), string(b"\xffb")].concat()),
    );
    let gguf = Gguf::from_bytes("m.gguf", file.bytes()).unwrap();
    assert_eq!(gguf.get("k"), Some(&Value::Bytes(b"\xc3(".to_vec())));
    let shown = gguf.get_array("list").unwrap().unwrap();
    assert_eq!(shown.get(1), Some(Value::Str("\u{fffd}b".into())));
    for (result, words) in [
        (gguf.get_str("k").map(|_| ()), ["key k", "'\u{fffd}('", "not UTF-8", "a string"]),
        (
            gguf.get_strings("list").map(|_| ()),
            ["key list[1]", "'\u{fffd}b'", "UTF-8 text", "m.gguf"],
        ),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn version_2_is_read() {
    assert_eq!(Gguf::from_bytes("m", with_version([2, 0, 0, 0])).unwrap().version(), 2);
}

#[test]
fn what_is_no_file_is_an_io_error() {
    let dir = tempfile::tempdir().unwrap();
    let expect = |path: &Path, word: &str| {
        let error = Gguf::open(path).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains(word), "{error}");
    };
    expect(&dir.path().join("missing.gguf"), "missing.gguf: cannot open");
    expect(dir.path(), "directory");
    #[cfg(unix)]
    {
        expect(Path::new("/dev/zero"), "regular file");
        let knot = dir.path().join("loop.gguf");
        std::os::unix::fs::symlink(&knot, &knot).unwrap();
        expect(&knot, "cannot open");
        let fifo = dir.path().join("fifo.gguf");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        expect(&fifo, "regular file");
    }
}

/// A small model-like file: vocabulary, hyperparameters and tensors of several types.
fn valid() -> Vec<u8> {
    let mut w = GgufWriter::new();
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "<0x41>"];
    let strings = |v: &[&str]| Value::Array(Array::Str(v.iter().collect()));
    for (key, value) in [
        ("general.architecture", Value::Str("bitnet-b1.58".into())),
        ("bitnet-b1.58.block_count", Value::U32(1)),
        ("bitnet-b1.58.rope.freq_base", Value::F32(1e4)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.model", Value::Str("llama".into())),
        ("tokenizer.ggml.pre", Value::Str("gpt-2".into())),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.merges", strings(&["a b"])),
        ("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.5; tokens.len()]))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![2, 3, 3, 1, 1, 1, 4, 6]))),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ] {
        w.kv(key, &value);
    }
    w.tensor("token_embd.weight", &[32, 8], TensorType::Q8_0).unwrap();
    w.tensor("blk.0.attn_q.weight", &[128, 2], TensorType::I2_S).unwrap();
    w.tensor("output_norm.weight", &[8], TensorType::F32).unwrap();
    let mut bytes = w.header();
    bytes.resize(bytes.len() + w.data_bytes() as usize, 0);
    bytes
}

#[test]
fn every_prefix_is_refused() {
    let bytes = valid();
    Gguf::from_bytes("m.gguf", bytes.clone()).unwrap();
    for n in 0..bytes.len() {
        let error = Gguf::from_bytes("m.gguf", bytes[..n].to_vec())
            .err()
            .unwrap_or_else(|| panic!("the first {n} bytes of {} are accepted", bytes.len()));
        assert_eq!(error.exit_code(), 3, "{error}");
    }
}

/// Seeded mutants of valid files: whatever comes out, nothing panics and nothing large is made.
#[test]
fn mutants_never_panic() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    let extremes = [0, 1, 0x7f, 0x80, 0xff, u64::MAX, 1 << 63, 1 << 40, 65_537, 16 << 20];
    let mut gpt2 = valid();
    // The same file as byte-level BPE.
    let at = gpt2.windows(5).position(|w| w == b"llama").unwrap();
    gpt2.splice(at - 8..at + 5, string(b"gpt2"));
    let (mut accepted, mut tokenizers) = (0, 0);
    for i in 0..20_000 {
        let mut bytes = if i % 2 == 0 { valid() } else { gpt2.clone() };
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(5) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = extremes[random(5)] as u8,
                2 => {
                    let value = extremes[random(extremes.len())].to_le_bytes();
                    let n = (bytes.len() - at).min(8);
                    bytes[at..at + n].copy_from_slice(&value[..n]);
                }
                3 => {
                    let end = (at + 1 + random(16)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                _ => {
                    let end = (at + 1 + random(16)).min(bytes.len() - 1).max(at);
                    bytes.drain(at..end);
                }
            }
        }
        LARGEST.set(0);
        let size = bytes.len();
        if let Ok(gguf) = Gguf::from_bytes("m.gguf", bytes) {
            accepted += 1;
            for tensor in gguf.tensors() {
                assert_eq!(gguf.tensor_bytes(tensor).len() as u64, tensor.bytes);
            }
            if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
                tokenizers += 1;
                if let Ok(ids) = tokenizer.encode("ab <s> A\u{e9}", true, true) {
                    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                    assert!(tokenizer.decode(&ids).len() <= 64 * ids.len());
                }
            }
        }
        assert!(LARGEST.get() < 4 * size + (1 << 20), "mutant {i}: {}", LARGEST.get());
    }
    // The mutants are worth something only when some get through to each layer.
    assert!(accepted > 200 && tokenizers > 100, "{accepted}, {tokenizers}");
}

/// Its strings are kept in one piece of memory, not each in its own.
#[test]
fn a_large_vocabulary_takes_few_allocations() {
    const N: usize = 262_144;
    let mut w = GgufWriter::new();
    let tokens = (0..N).map(|i| format!("token{i}")).collect();
    w.kv("tokenizer.ggml.tokens", &Value::Array(Array::Str(tokens)));
    let scores = Value::Array(Array::F32(vec![1.0; N]));
    w.kv("tokenizer.ggml.scores", &scores);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.gguf");
    std::fs::write(&path, w.header()).unwrap();
    COUNT.set(0);
    let gguf = Gguf::open(&path).unwrap();
    assert!(COUNT.get() <= 200, "{} allocations", COUNT.get());
    let tokens = gguf.get_strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(tokens.get(N - 1), Some("token262143"));
}

/// The tensor data of a 1 GB file is a hole in the file system; reading it would map its pages.
#[cfg(target_os = "linux")]
#[test]
fn opening_touches_no_tensor_page() {
    // Pages of files count as RssFile, those of a tmpfs as RssShmem.
    let resident = || -> u64 {
        std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .filter(|l| l.starts_with("RssFile:") || l.starts_with("RssShmem:"))
            .map(|l| l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap())
            .sum()
    };
    let mut w = GgufWriter::new();
    w.tensor("t", &[1 << 28], TensorType::F32).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let file = std::fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut &file, &w.header()).unwrap();
    file.set_len(w.header().len() as u64 + w.data_bytes()).unwrap();
    let before = resident();
    let gguf = Gguf::open(&path).unwrap();
    let opened = resident();
    assert!(opened < before + 8192, "{before} kB, then {opened} kB");
    // And drop_pages gives back what was read.
    let tensor = gguf.tensor("t").unwrap();
    let part = &gguf.tensor_bytes(tensor)[..64 << 20];
    assert_eq!(part.iter().map(|&b| u64::from(b)).sum::<u64>(), 0);
    let read = resident();
    assert!(read > opened + 32_768, "{opened} kB, then {read} kB");
    gguf.drop_pages(tensor, true);
    let dropped = resident();
    assert!(dropped < before + 8192, "{before} kB, then {dropped} kB");
}
