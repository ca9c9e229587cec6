//! A model whose weights are multiplied as they lie in the file: to the bit the one that is packed.

use std::path::Path;
use std::sync::Arc;

use bitnet_profiles::Isa;
use bitnet_runtime::cpu::kernels::Selection;
use bitnet_runtime::cpu::memory::Pages;
use bitnet_runtime::cpu::model::{
    HeadMode, HeadOptions, KvType, LoadOptions, Model, Needs, Session, SessionOptions,
};
use bitnet_runtime::cpu::threads::Pool;
use bitnet_runtime::file::gguf::{Gguf, TensorType};

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bard-11m.i2_s.gguf"))
}

fn load(gguf: &Arc<Gguf>, pack: bool, isa: Isa) -> bitnet_runtime::Result<Model> {
    let pool = Pool::new(2).unwrap();
    let selection = Selection::new(Some(isa), None, None).unwrap();
    let options = LoadOptions { pack, ..LoadOptions::new(&pool, &selection) };
    Model::from_gguf(Arc::clone(gguf), &options)
}

fn session(model: &Arc<Model>, threads: usize, options: SessionOptions) -> Session {
    Session::new(Arc::clone(model), Arc::new(Pool::new(threads).unwrap()), options).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i * 31 + i * i * 7) % 4093 + 1) as u32).collect()
}

#[test]
fn logits_are_those_of_packed_weights() {
    let gguf = Arc::new(Gguf::open(demo()).unwrap());
    let packed = Arc::new(load(&gguf, true, Isa::Scalar).unwrap());
    for isa in [Isa::Scalar, Isa::best()] {
        let in_file = Arc::new(load(&gguf, false, isa).unwrap());
        for tokens in [1, 2, 15, 130] {
            let prompt = prompt(tokens);
            let wanted = {
                let mut session = session(&packed, 2, SessionOptions::default());
                [bits(session.prefill(&prompt).unwrap()), bits(session.decode(7).unwrap())]
            };
            for threads in 1..=3 {
                let mut session = session(&in_file, threads, SessionOptions::default());
                let found =
                    [bits(session.prefill(&prompt).unwrap()), bits(session.decode(7).unwrap())];
                assert!(found == wanted, "{isa} {tokens} tokens, {threads} threads");
            }
        }
    }
}

/// What a session holds stays when packed weights, and copies of the head, take over.
#[test]
fn a_session_goes_on_with_packed_weights() {
    let gguf = Arc::new(Gguf::open(demo()).unwrap());
    let in_file = Arc::new(load(&gguf, false, Isa::best()).unwrap());
    let pool = Arc::new(Pool::new(2).unwrap());
    let head = HeadOptions {
        mode: HeadMode::Exact,
        count: 1,
        ceiling: Isa::best(),
        pages: Pages::Huge,
        lock: false,
    };
    let packed = {
        let selection = Selection::default();
        let options = LoadOptions { copy_head: false, ..LoadOptions::new(&pool, &selection) };
        let model = Model::from_gguf(Arc::clone(&gguf), &options).unwrap();
        Arc::new(model.choose_head(&pool, &head).unwrap())
    };
    for kv_type in KvType::ALL {
        let options = SessionOptions { kv_type: Some(kv_type), ..SessionOptions::default() };
        // The best token after each, with a change of models before the `change`th.
        let text = |change: usize| -> Vec<usize> {
            let mut session = session(&in_file, 2, options);
            let mut ids = prompt(20);
            for i in 0..12 {
                if i == change {
                    let position = session.position();
                    session.continue_with(Arc::clone(&packed)).unwrap();
                    assert_eq!(session.position(), position);
                    assert!(Arc::ptr_eq(session.model(), &packed));
                }
                let new = if i == 0 { ids.clone() } else { ids[ids.len() - 1..].to_vec() };
                let logits = session.prefill_for(&new, Needs::GREEDY).unwrap();
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                ids.push(best.unwrap() as u32);
            }
            assert_eq!(session.head_stats().scanned > 0, change < 12);
            ids.into_iter().map(|id| id as usize).collect()
        };
        let unchanged = text(usize::MAX);
        for change in [0, 1, 2, 11] {
            assert_eq!(text(change), unchanged, "{} {change}", kv_type.name());
        }
    }
}

/// Another model to go on with: of half the context. And code 3 in a matrix, of which both ways say the same.
#[test]
fn what_does_not_fit_is_refused() {
    let bytes = std::fs::read(demo()).unwrap();
    let gguf = Arc::new(Gguf::open(demo()).unwrap());
    let in_file = Arc::new(load(&gguf, false, Isa::best()).unwrap());

    let key = b"bitnet-b1.58.context_length";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    let mut shorter = bytes.clone();
    assert_eq!(shorter[at..at + 4], 1024u32.to_le_bytes());
    shorter[at..at + 4].copy_from_slice(&512u32.to_le_bytes());
    let shorter = Arc::new(Gguf::from_bytes("shorter.gguf", shorter).unwrap());
    let other = Arc::new(load(&shorter, true, Isa::best()).unwrap());
    let mut session = session(&in_file, 2, SessionOptions::default());
    let wanted = bits(session.prefill(&prompt(5)).unwrap());
    let message = session.continue_with(other).unwrap_err().to_string();
    assert!(message.contains("shorter.gguf"), "{message}");
    session.truncate(0);
    assert_eq!(bits(session.prefill(&prompt(5)).unwrap()), wanted);

    let ternary = |tensor: &&bitnet_runtime::file::gguf::TensorInfo| tensor.ty == TensorType::I2_S;
    for tensor in gguf.tensors().iter().filter(ternary) {
        let mut damaged = bytes.clone();
        // The last code.
        damaged[(tensor.offset + tensor.elements() / 4 - 1) as usize] |= 3;
        let damaged = Arc::new(Gguf::from_bytes("damaged.gguf", damaged).unwrap());
        let [packed, in_file] =
            [true, false].map(|pack| load(&damaged, pack, Isa::best()).unwrap_err().to_string());
        assert!(in_file.contains(&tensor.name) && in_file.contains("code 3"), "{in_file}");
        assert_eq!(in_file, packed);
    }
}
