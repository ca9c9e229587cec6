//! What becomes of everything that a file says: honoured, neutral, or refused by its name.

use bitnet_runtime::arch::Activation;
use bitnet_runtime::arch::config::Config;
use bitnet_runtime::arch::mask::{Mask, Window};
use bitnet_runtime::arch::policy::{Treatment, treatment};
use bitnet_runtime::engine::{Engine, Options};

use super::names;
use super::*;

fn opened(parts: &Parts) -> Gguf {
    Gguf::from_bytes("tiny.gguf", parts.bytes()).unwrap()
}

impl Parts {
    fn config(&self) -> bitnet_runtime::Result<Config> {
        Config::from_gguf(&opened(self))
    }
}

fn changed(architecture: &str, change: impl FnOnce(&mut Parts)) -> Parts {
    let mut parts = sound(architecture);
    change(&mut parts);
    parts
}

fn with_key(architecture: &str, key: &str, value: Value) -> Parts {
    changed(architecture, |parts| parts.set(key, value))
}

fn with_tensor(architecture: &str, name: &str, value: f32) -> Parts {
    changed(architecture, |parts| parts.add(name, vec![value; 4]))
}

/// What is refused, by the exit code of a bad model and a line that names it.
fn refusal<T>(result: bitnet_runtime::Result<T>, words: &[&str]) -> String {
    let Err(error) = result else { panic!("{words:?} was accepted") };
    let message = error.to_string();
    assert_eq!(error.exit_code(), 3, "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    for word in words.iter().chain(&["tiny.gguf"]) {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
    message
}

/// Every key of llama.cpp's list is read, or may say anything, or is refused at a value that would
/// change the arithmetic. There is a value at which each of the latter changes nothing, but for those
/// that would not be there for nothing.
#[test]
fn w3_every_key_of_llama_cpp_is_decided() {
    let plain = sound("llama").config().unwrap();
    let keys = |list: &'static str| list.split_whitespace().map(|key| key.replace("%s", "llama"));
    for key in keys(names::READ) {
        assert!(matches!(treatment("llama", &key), Some(Treatment::Read)), "{key}");
    }
    let odd = [Value::U32(7), Value::F32(0.5), Value::Str("seven".into()), Value::Bool(true)];
    for key in keys(names::DESCRIPTIONS) {
        assert!(matches!(treatment("llama", &key), Some(Treatment::Description)), "{key}");
        for value in &odd {
            assert_eq!(with_key("llama", &key, value.clone()).config().unwrap(), plain, "{key}");
        }
    }
    let neutral = [
        Value::U32(0),
        Value::F32(1.0),
        Value::F32(0.25),
        Value::Bool(true),
        Value::U32(64),
        Value::Str("model".into()),
        Value::Array(Array::I32(vec![])),
    ];
    for key in keys(names::REFUSED) {
        for value in [Value::U32(7), Value::F32(0.5), Value::Str("seven".into())] {
            let found = value.to_string();
            refusal(with_key("llama", &key, value).config(), &[&key, &found, "expected"]);
        }
        let accepted: Vec<Config> = neutral
            .iter()
            .filter_map(|value| with_key("llama", &key, value.clone()).config().ok())
            .collect();
        assert!(accepted.iter().all(|config| *config == plain), "{key}");
        let never = key.starts_with("general.tensor_extra.");
        assert_eq!(accepted.is_empty(), never, "{key}: {accepted:?}");
    }
    let count = [names::READ, names::DESCRIPTIONS, names::REFUSED].map(|list| keys(list).count());
    assert_eq!(count.iter().sum::<usize>(), 248);
}

/// The values at which a key changes nothing are those that llama.cpp takes for nothing.
#[test]
fn w3_neutral_values_are_exactly_these() {
    let accepts = |name: &str, value: Value| {
        with_key("llama", &format!("llama.{name}"), value).config().is_ok()
    };
    let cases = [
        ("attention.sliding_window", Value::U32(64), true),
        ("attention.sliding_window", Value::U32(63), false),
        ("attention.sliding_window", Value::U32(0), true),
        ("attention.sliding_window", Value::Array(Array::U32(vec![0, 64])), true),
        ("attention.sliding_window", Value::Array(Array::U32(vec![64, 63])), false),
        // Heads of 16.
        ("attention.scale", Value::F32(0.25), true),
        ("attention.scale", Value::F32(0.0), true),
        ("attention.scale", Value::F32(1.0), false),
        ("logit_scale", Value::F32(1.0), true),
        ("logit_scale", Value::F64(2.0), false),
        ("residual_scale", Value::F32(1.0), true),
        ("residual_scale", Value::F32(0.5), false),
        ("expert_count", Value::I32(0), true),
        ("expert_count", Value::U16(8), false),
        ("attention.recurrent_layers", Value::Array(Array::Bool(vec![false; 2])), true),
        ("attention.recurrent_layers", Value::Array(Array::Bool(vec![false, true])), false),
        ("embedding_length_out", Value::U32(32), true),
    ];
    for (name, value, fits) in cases {
        assert_eq!(accepts(name, value.clone()), fits, "{name} {value}");
    }
    refusal(
        with_key("llama", "tokenizer.ggml.suppress_tokens", Value::Array(Array::I32(vec![0])))
            .config(),
        &["suppress_tokens", "an empty list"],
    );
    for key in ["prism.hadamard.block_size", "general.tensor_extra.name"] {
        refusal(with_key("llama", key, Value::U32(0)).config(), &[key]);
    }
}

/// What a token sees is read, and in architectures that have windows the size of these.
#[test]
fn w3_masks_are_read() {
    let mask = |architecture: &str, keys: &[(&str, Value)]| {
        let parts = changed(architecture, |parts| {
            for (name, value) in keys {
                parts.set(&format!("{architecture}.{name}"), value.clone());
            }
        });
        parts.config().map(|config| config.mask)
    };
    assert_eq!(mask("gemma3", &[]).unwrap(), Mask::CAUSAL);
    let own = mask("gemma-embedding", &[]).unwrap();
    assert_eq!(own, Mask { causal: false, window: None });
    assert_eq!(mask("llama", &[("attention.causal", Value::Bool(false))]).unwrap(), own);

    let size = |n| ("attention.sliding_window", Value::U32(n));
    let window = |architecture: &str, keys: &[(&str, Value)]| {
        mask(architecture, keys).unwrap().window.unwrap()
    };
    // The own position is one of nine; half of ten are on either side.
    let behind = window("gemma3", &[size(9)]);
    assert_eq!(behind, Window { reach: 8, layers: vec![true; 2], rope_base: 1e4 });
    assert_eq!(window("gemma-embedding", &[size(10)]), Window { reach: 5, ..behind });
    assert_eq!(mask("gemma3", &[size(0)]).unwrap(), Mask::CAUSAL);
    let pattern = |value: Value| ("attention.sliding_window_pattern", value);
    let patterns = [
        (Value::U32(0), [true, true]),
        (Value::U32(1), [false, false]),
        (Value::U32(2), [true, false]),
        (Value::Array(Array::Bool(vec![false, true])), [false, true]),
    ];
    for (value, layers) in patterns {
        assert_eq!(window("gemma3", &[size(9), pattern(value)]).layers, layers);
    }
    let base = |base| ("rope.freq_base_swa", Value::F32(base));
    assert_eq!(window("gemma3", &[size(9), base(5e5)]).rope_base, 5e5);
    let refused: [(&str, Value, &str); 7] = [
        ("attention.causal", Value::Bool(false), "sliding_window"),
        ("attention.sliding_window_pattern", Value::Array(Array::Bool(vec![true; 3])), "2 layers"),
        ("attention.sliding_window_pattern", Value::F32(0.5), "truth values"),
        ("rope.freq_base_swa", Value::F32(f32::NAN), "1 to 1e12"),
        ("attention.key_length_swa", Value::U32(32), "16"),
        ("attention.value_length_swa", Value::U32(8), "16"),
        ("rope.dimension_count_swa", Value::U32(8), "16"),
    ];
    for (name, value, expected) in refused {
        refusal(mask("gemma3", &[size(9), (name, value)]), &[name, expected]);
    }
    let same = [("attention.key_length_swa", Value::U32(16)), size(9)];
    assert!(mask("gemma3", &same).unwrap().window.is_some());
}

/// Gemma 3 27B is known by its number of layers alone, and scales its scores as no key says.
#[test]
fn w3_gemma_27b_is_refused() {
    let gemma = |layers: u32, length: u32| {
        let parts = changed("gemma3", |parts| {
            parts.set("gemma3.block_count", Value::U32(layers));
            parts.set("gemma3.attention.key_length", Value::U32(length));
            parts.set("gemma3.attention.value_length", Value::U32(length));
            parts.set("gemma3.rope.dimension_count", Value::U32(8));
        });
        parts.config().map(|config| config.head_dim)
    };
    // A head of the fixture has 16 elements, the share of the embedding.
    refusal(gemma(62, 8), &["gemma3.block_count", "62", "sqrt(16)"]);
    assert_eq!(gemma(62, 16).unwrap(), 16);
    assert_eq!(gemma(61, 8).unwrap(), 8);
}

#[test]
fn w3_unknown_keys_are_named_in_one_line() {
    let parts = changed("bitnet", |parts| {
        for i in 0..9 {
            parts.set(&format!("bitnet.new_{i}"), Value::U32(i));
        }
        parts.set("qwen3.block_count", Value::U32(1));
        parts.set("general.tags", Value::Array(Array::Str(["a"].into_iter().collect())));
    });
    let options = Options { tokenizer: false, ..Options::default() };
    let engine = Engine::from_gguf(opened(&parts), options.clone()).unwrap();
    let notes = engine.take_notes();
    let unknown: Vec<_> = notes.iter().filter(|note| note.text.contains("not known")).collect();
    assert_eq!(unknown.len(), 1, "{notes:?}");
    for words in ["'bitnet.new_0', 'bitnet.new_1'", "and 2 more"] {
        assert!(unknown[0].text.contains(words), "{notes:?}");
    }
    assert!(!unknown[0].text.contains("general.tags"), "{notes:?}");
    let engine = Engine::from_gguf(opened(&sound("bitnet")), options).unwrap();
    assert!(engine.take_notes().iter().all(|note| !note.text.contains("not known")));
}

/// Every tensor of llama.cpp's list has a part in the computation, or is refused.
#[test]
fn w3_every_tensor_of_llama_cpp_is_decided() {
    let sound = sound("bitnet");
    let used = |name: &str| sound.tensors.iter().any(|t| t.name == name) || name == "output.weight";
    let (mut have, mut refused) = (0, 0);
    for name in names::TENSORS.split_whitespace() {
        let name = format!("{}.weight", name.replace("%d", "0"));
        if used(&name) {
            have += 1;
        } else if name == "blk.0.attn_rot_embd.weight" {
            with_tensor("bitnet", &name, 3.0).load().unwrap();
        } else {
            refusal(with_tensor("bitnet", &name, 3.0).load(), &[&format!("'{name}'")]);
            refused += 1;
        }
    }
    assert_eq!((have, refused), (14, 269 - 15));
    // Norms of ones are norms; the layers are counted from 0.
    for name in ["blk.0.attn_q_norm.weight", "blk.2.attn_q.weight", "attn_q.weight", "x"] {
        refusal(with_tensor("bitnet", name, 1.0).load(), &[&format!("'{name}'"), "no such tensor"]);
    }
}

/// Tensors that only shift or scale may be there where they do neither.
#[test]
fn w3_tensors_that_change_nothing_may_be_there() {
    let plain = logits(sound("bitnet").load().unwrap());
    let cases = [
        ("blk.2.attn_q.bias", 0.0, 3.0),
        ("output.bias", 0.0, f32::NAN),
        ("blk.0.attn_norm.bias", 0.0, 1e-9),
        ("output.scale", 1.0, 0.0),
        ("blk.0.attn_q.input_scale", 1.0, 0.5),
        ("rope_freqs.weight", 1.0, 2.0),
        ("rope_factors_long.weight", 1.0, 2.0),
    ];
    for (name, neutral, other) in cases {
        let model = with_tensor("bitnet", name, neutral).load().unwrap();
        assert!(model.warnings().is_empty(), "{:?}", model.warnings());
        assert_eq!(logits(model), plain, "{name}");
        let words = [&format!("'{name}'")[..], &format!("{neutral} throughout")];
        refusal(with_tensor("bitnet", name, other).load(), &words);
    }
}

/// W2: the file decides over the architecture.
#[test]
fn w2_the_activation_of_the_file_is_honoured() {
    let key = "bitnet.hidden_activation";
    let said = |name: &str| with_key("bitnet", key, Value::Str(name.into()));
    assert_eq!(sound("bitnet").config().unwrap().activation, Activation::Silu);
    for name in ["relu2", "relu_squared"] {
        assert_eq!(said(name).config().unwrap().activation, Activation::Relu2);
    }
    let plain = logits(sound("bitnet").load().unwrap());
    assert_eq!(logits(said("silu").load().unwrap()), plain);
    let squared = logits(sound("bitnet-b1.58").load().unwrap());
    assert_eq!(logits(said("relu2").load().unwrap()), squared);
    assert_ne!(squared, plain);
    refusal(said("gelu").config(), &[key, "'gelu'", "relu2, silu or gelu_pytorch_tanh"]);
}

/// R6: one value said layer by layer is that value; two are none.
#[test]
fn r6_values_may_be_given_layer_by_layer() {
    let plain = sound("bitnet").config().unwrap();
    let per_layer = [
        ("feed_forward_length", 64),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("rope.dimension_count", 16),
    ];
    for (name, value) in per_layer {
        let key = format!("bitnet.{name}");
        let set = |values: &[i32]| {
            with_key("bitnet", &key, Value::Array(Array::I32(values.to_vec()))).config()
        };
        assert_eq!(set(&[value, value]).unwrap(), plain, "{name}");
        refusal(set(&[value, 2 * value]), &[&key, &format!("i32 {}", 2 * value), "same for all"]);
        refusal(set(&[value]), &[&key, "array of 1 i32", "2 layers"]);
        refusal(set(&[]), &[&key, "array of 0 i32"]);
    }
    for (name, value) in [("rope.freq_base", 1e4), ("attention.layer_norm_rms_epsilon", 1e-5)] {
        let array = Value::Array(Array::F32(vec![value; 2]));
        let config = with_key("bitnet", &format!("bitnet.{name}"), array).config().unwrap();
        assert_eq!(config, plain, "{name}");
    }
}

/// R6: the width of a number does not matter, nor its kind where it is exact.
#[test]
fn r6_numbers_of_other_types_are_read_where_they_are_exact() {
    let plain = sound("bitnet").config().unwrap();
    let set =
        |name: &str, value: Value| with_key("bitnet", &format!("bitnet.{name}"), value).config();
    let same = [
        ("rope.freq_base", Value::U32(10_000)),
        ("rope.freq_base", Value::I64(10_000)),
        ("rope.freq_base", Value::F64(1e4)),
        ("attention.layer_norm_rms_epsilon", Value::F64(1e-5)),
        ("rope.scale_linear", Value::I8(1)),
        ("block_count", Value::U64(2)),
        ("embedding_length", Value::F32(32.0)),
        ("feed_forward_length", Value::F64(64.0)),
        ("attention.causal", Value::U8(1)),
    ];
    for (name, value) in same {
        assert_eq!(set(name, value.clone()).unwrap(), plain, "{name} {value}");
    }
    let refused = [
        ("rope.freq_base", Value::I32((1 << 24) + 1)),
        ("rope.freq_base", Value::Bool(true)),
        ("embedding_length", Value::F32(32.5)),
        ("embedding_length", Value::I32(-32)),
        ("feed_forward_length", Value::F64(f64::NAN)),
        ("attention.causal", Value::U8(2)),
    ];
    for (name, value) in refused {
        let found = value.to_string();
        refusal(set(name, value), &[name, &found]);
    }
}

/// R6: text that nobody reads may be in any encoding; what is read may not.
#[test]
fn r6_text_that_nobody_reads_may_be_latin_1() {
    let plain = sound("bitnet").config().unwrap();
    let latin = || Value::Bytes(b"J\xf6rg".to_vec());
    let author = with_key("bitnet", "general.author", latin());
    assert_eq!(author.config().unwrap(), plain);
    assert_eq!(opened(&author).get("general.author"), Some(&latin()));
    refusal(
        with_key("bitnet", "general.architecture", latin()).config(),
        &["general.architecture", "J\u{fffd}rg", "not UTF-8"],
    );
}

/// W7: a factor beyond what floats hold, anywhere in a layer, ends the text, and is named.
#[test]
fn w7_numbers_that_are_not_finite_are_noticed_where_they_arise() {
    let pool = Arc::new(Pool::new(2).unwrap());
    // One token alone, and several at once.
    let ends = |parts: &Parts, place: &str| {
        let model = Arc::new(parts.load().unwrap());
        for prompt in [&[1][..], &[1, 2, 3]] {
            let mut session =
                Session::new(Arc::clone(&model), Arc::clone(&pool), SessionOptions::default())
                    .unwrap();
            let error = session.prefill(prompt).expect_err(place);
            let message = error.to_string();
            assert_eq!(error.exit_code(), 1, "{message}");
            for words in ["tiny.gguf", place, "no numbers any more"] {
                assert!(message.contains(words), "{prompt:?}: no `{words}` in: {message}");
            }
            assert_eq!(session.position(), 0, "the tokens were not appended");
        }
    };
    for architecture in ["bitnet", "bitnet-b1.58", "llama"] {
        let matrices = [
            ("attn_q", "input of attention"),
            ("attn_k", "input of attention"),
            ("attn_v", "input of attention"),
            ("attn_output", "output of attention"),
            ("ffn_gate", "input of the feed-forward part"),
            ("ffn_up", "input of the feed-forward part"),
            ("ffn_down", "gated product"),
        ];
        for (name, place) in matrices {
            let parts = changed(architecture, |parts| {
                let tensor = parts.tensor(&format!("blk.1.{name}.weight"));
                let scales = tensor.data.len() - 32;
                tensor.data[scales..].copy_from_slice(&f32s([3.4e38; 8]));
            });
            ends(&parts, &format!("layer 1, {place}"));
        }
        let norms = [
            ("attn_norm", "layer 1, input of attention"),
            ("attn_sub_norm", "layer 1, output of attention"),
            ("ffn_norm", "layer 1, input of the feed-forward part"),
            ("ffn_sub_norm", "layer 1, gated product"),
        ];
        let sub_norms = architecture != "llama";
        for (name, place) in
            norms.into_iter().filter(|(name, _)| sub_norms || !name.contains("sub"))
        {
            let parts = changed(architecture, |parts| {
                let data = &mut parts.tensor(&format!("blk.1.{name}.weight")).data;
                let n = data.len() / 4;
                *data = f32s((0..n).map(|_| 3.4e38));
            });
            ends(&parts, place);
        }
        let with_row = |value: f32| {
            changed(architecture, |parts| {
                let row = HIDDEN as usize * 4;
                let embedding = &mut parts.tensor("token_embd.weight").data;
                embedding[row..row + 4].copy_from_slice(&value.to_le_bytes());
            })
        };
        for value in [f32::NAN, f32::INFINITY, 3.4e38] {
            ends(&with_row(value), "layer 0, input of attention");
        }
        let parts = changed(architecture, |parts| {
            parts.tensor("output_norm.weight").data = f32s((0..HIDDEN).map(|_| 3.4e38));
        });
        ends(&parts, "input of the head");
    }
}

/// H11: a factor of a projection that no training gives.
#[test]
fn h11_a_scale_of_a_projection_is_a_sensible_factor() {
    let with_scale =
        |value: f32| changed("bitnet", |parts| parts.add("blk.0.ffn_up.scale", vec![value]));
    for value in [0.0, -0.5, 3.4e38, 1e-30] {
        let words = ["'blk.0.ffn_up.scale'", &format!("found {value}"), "1e-12 to 1e12"];
        refusal(with_scale(value).load(), &words);
    }
    refusal(with_scale(f32::NAN).load(), &["'blk.0.ffn_up.scale'", "NaN at 0"]);
    with_scale(120.0).load().unwrap();
    let with_bias =
        |value: f32| changed("bitnet", |parts| parts.add("blk.0.attn_k.bias", vec![value; 16]));
    refusal(with_bias(-3.4e38).load(), &["'blk.0.attn_k.bias'", "magnitudes up to 1e12"]);
    with_bias(-120.0).load().unwrap();
}
