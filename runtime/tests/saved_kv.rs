//! Sequences in files: what is restored goes on as what was saved, and nothing else is restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::model::{KvType, LoadOptions, Model, Session, SessionOptions};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::Gguf;
use bitnet_runtime::{Engine, Options, Override, Sampling, Sequence, SequenceOptions};

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bard-11m.i2_s.gguf")
}

struct Setting {
    model: Arc<Model>,
    pool: Arc<Pool>,
}

impl Setting {
    fn new() -> Self {
        Self::of(Gguf::open(path()).unwrap())
    }

    fn of(gguf: Gguf) -> Self {
        let pool = Arc::new(Pool::new(2).unwrap());
        let selection = Selection::default();
        let load = LoadOptions::new(&pool, &selection);
        Self { model: Arc::new(Model::from_gguf(gguf, &load).unwrap()), pool }
    }

    fn session(&self, kv_type: KvType, context: usize) -> Session {
        let options = SessionOptions {
            context: Some(context),
            kv_type: Some(kv_type),
            sequences: 2,
            ..SessionOptions::default()
        };
        Session::new(Arc::clone(&self.model), Arc::clone(&self.pool), options).unwrap()
    }
}

/// Tokens without a pattern.
fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 31 + i * i * 7) % 4093 + 1) as u32).collect()
}

/// The bits of the logits after each of 64 tokens that follow.
fn next_64(session: &mut Session) -> Vec<Vec<u32>> {
    let step = |i: u32| {
        let logits = session.decode(1 + i * 61 % 4000).unwrap();
        logits.iter().map(|logit| logit.to_bits()).collect()
    };
    (0..64).map(step).collect()
}

#[test]
fn ch11_what_is_restored_goes_on_as_what_was_saved() {
    let setting = Setting::new();
    let folder = tempfile::tempdir().unwrap();
    for kv_type in KvType::ALL {
        for n in [0, 1, 15, 16, 17, 255, 256, 257, 300] {
            let ids = tokens(n);
            let path = folder.path().join(format!("{}-{n}", kv_type.name()));
            let mut session = setting.session(kv_type, 400);
            if n > 0 {
                session.prefill(&ids).unwrap();
            }
            session.save(0, &ids, &path).unwrap();
            let expected = next_64(&mut session);
            // A session that held another text, and has another context.
            let mut other = setting.session(kv_type, 512);
            other.prefill(&tokens(310)[5..]).unwrap();
            assert_eq!(other.restore(0, &path).unwrap(), ids);
            assert_eq!([0, 1].map(|sequence| other.position_of(sequence)), [n, 0]);
            assert!(next_64(&mut other) == expected, "{kv_type:?}, {n} tokens");
            // A prefix of what the sequence holds by now, over the same file.
            other.save(0, &ids[..n / 2], &path).unwrap();
            assert_eq!(other.restore(1, &path).unwrap(), ids[..n / 2]);
            assert_eq!([0, 1].map(|sequence| other.position_of(sequence)), [n + 64, n / 2]);
        }
    }
}

#[test]
fn ch11_a_damaged_file_is_refused() {
    let setting = Setting::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let mut session = setting.session(KvType::Q8_0, 64);
    let ids = tokens(5);
    session.prefill(&ids).unwrap();
    session.save(0, &ids, &path).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut refuses = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = session.restore(0, &path).unwrap_err();
        assert_eq!(error.exit_code(), 6, "{what}: {error}");
        let line = error.to_string();
        assert!(line.contains("cannot restore") && line.lines().count() == 1, "{what}: {line}");
        assert!([0, 5].contains(&session.position_of(0)), "{what}");
    };
    // Every length up to the first keys, and some beyond.
    let lengths = (0..200).chain((200..whole.len()).step_by(97)).chain([whole.len() - 1]);
    for length in lengths {
        refuses(&whole[..length], &format!("{length} bytes"));
    }
    refuses(&[&whole[..], &[0]].concat(), "a byte more");
    let step = (whole.len() * 8 / 10_000).max(1);
    for bit in (0..200 * 8).chain((200 * 8..whole.len() * 8).step_by(step)) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refuses(&bytes, &format!("bit {bit}"));
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(session.restore(0, &path).unwrap(), ids);
}

#[test]
fn a_file_of_something_else_is_refused_and_kept() {
    let setting = Setting::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let mut session = setting.session(KvType::F32, 64);
    let ids = tokens(20);
    session.prefill(&ids).unwrap();
    session.save(0, &ids, &path).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    let refusal = |session: &mut Session, words: &str| {
        let held = session.position_of(0);
        let line = session.restore(0, &path).unwrap_err().to_string();
        assert!(line.contains(words), "{words}: {line}");
        assert_eq!(session.position_of(0), held, "{words}");
    };
    refusal(&mut setting.session(KvType::F16, 64), "another type than f16");
    refusal(&mut setting.session(KvType::F32, 19), "a larger context than 19");
    let mut gguf = Gguf::open(self::path()).unwrap();
    gguf.apply(&Override::list("general.name=str:another").unwrap()).unwrap();
    refusal(&mut Setting::of(gguf).session(KvType::F32, 64), "another model");

    for (sequence, found) in [(2, "sequence: found 2"), (0, "tokens: found 21")] {
        let many = tokens(21);
        let error = session.save(sequence, &many, &path).unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
    }
    // What is no saved cache is neither read nor written over.
    let other = folder.path().join("other");
    fs::write(&other, "a text").unwrap();
    for path in [other.as_path(), folder.path()] {
        assert!(session.save(0, &ids, path).unwrap_err().to_string().contains("something else"));
        assert!(session.restore(0, path).is_err());
    }
    assert_eq!(fs::read(&other).unwrap(), b"a text");
    assert_eq!(session.restore(0, &folder.path().join("none")).unwrap_err().exit_code(), 6);
    assert_eq!(session.position_of(0), 20);
}

/// A text that begins with what another session computed is the text of a cold start.
#[test]
fn a_text_goes_on_from_a_restored_prompt() {
    let engine = Engine::open(path(), Options::default()).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let prompt = tokenizer.prompt("KING RICHARD:\nMy lord, the duke is dead.\n").unwrap();
    let write = |session: &mut Session, held: usize| {
        let options = SequenceOptions { tokens: Some(20), ..SequenceOptions::default() };
        let sampling = Sampling { repeat_penalty: 1.2, seed: 3, ..Sampling::default() };
        let mut text = Sequence::new(Arc::clone(tokenizer), &prompt, sampling, options).unwrap();
        let used = text.reuse(held);
        assert_eq!(used, held.min(prompt.len() - 1));
        session.truncate(used);
        while text.step(session).unwrap() {}
        text.ids().to_vec()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let mut cold = engine.session(SessionOptions::default()).unwrap();
    let expected = write(&mut cold, 0);
    cold.save(0, &prompt, &path).unwrap();
    for held in [0, 1, prompt.len() - 1, prompt.len(), 1000] {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        assert_eq!(session.restore(0, &path).unwrap(), prompt);
        assert_eq!(write(&mut session, held), expected, "{held}");
    }
}

#[test]
fn what_is_taken_out_of_a_session_is_saved_and_restored_beside_it() {
    let setting = Setting::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("taken");
    let ids = tokens(40);
    let mut session = setting.session(KvType::F16, 300);
    session.prefill(&ids).unwrap();
    let expected = {
        let mut other = setting.session(KvType::F16, 300);
        other.prefill(&ids).unwrap();
        next_64(&mut other)
    };
    let taken = session.detach(0).unwrap();
    assert_eq!((taken.position(), session.position_of(0)), (40, 0));
    let saving = std::thread::spawn({
        let (path, ids) = (path.clone(), ids.clone());
        move || taken.save(&ids, &path).map(|()| taken)
    });
    // The session goes on with what is left in it.
    session.copy_prefix(0, 1, 0).unwrap();
    session.attach(0, saving.join().unwrap().unwrap()).unwrap();
    assert_eq!(session.position_of(0), 40);
    assert!(next_64(&mut session) == expected);
    let mut empty = session.detach(1).unwrap();
    assert_eq!(empty.restore(&path).unwrap(), ids);
    session.truncate(0);
    session.attach(0, empty).unwrap();
    assert!(next_64(&mut session) == expected);
    // What comes from a session of another shape has no place.
    let mut other = setting.session(KvType::F16, 200);
    other.attach(0, session.detach(0).unwrap()).unwrap_err();
    session.detach(2).unwrap_err();
}
