//! Every float kernel of every ISA equals its scalar definition, `to_bits`.

use std::env;
use std::process::ExitCode;

use bitnet_kernel_tests::Random;
use bitnet_profiles::{Isa, KernelId, Op};
use bitnet_runtime::cpu::kernels::{HeadKernel, SketchKernel, VectorOps, verify};
use bitnet_runtime::numerics;
use bitnet_trials::{Need, Suite, Tested};
use half::f16;

/// Lengths that fill whole vectors, leave tails, or are shorter than one.
const LENGTHS: &[usize] = &[1, 2, 15, 16, 17, 31, 32, 48, 63, 64, 96, 100, 384, 640, 2560, 2563];

/// Floats of all magnitudes, with zeros of both signs, subnormals and extremes among them.
fn floats(n: usize, kind: usize, random: &mut Random) -> Vec<f32> {
    const SPECIAL: &[f32] =
        &[0.0, -0.0, 1e-40, -1e-45, 3e38, -3e38, 1.0, -1.0, 0.5, 127.5, 65504.0];
    (0..n)
        .map(|_| {
            let unit = (random.next_u64() >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0;
            match kind {
                0 => unit,
                1 => unit * 100.0,
                2 => unit * (2f32).powi(random.below(200) as i32 - 100),
                3 => SPECIAL[random.below(SPECIAL.len() as u64) as usize],
                _ => -0.0,
            }
        })
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    // One NaN is as good as another: which one an operation gives is not part of the contract.
    x.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// Calls `f` for every length and kind of numbers.
fn for_all(f: impl Fn(usize, usize, &mut Random)) {
    for &n in LENGTHS {
        for kind in 0..5 {
            f(n, kind, &mut Random::new((n * 10 + kind) as u64));
        }
    }
}

fn elementwise_operations(ops: &VectorOps) {
    for_all(|n, kind, random| {
        let (x, y) = (floats(n, kind, random), floats(n, kind, random));
        let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
        let what = |name| format!("{name}: n {n}, kind {kind}");

        numerics::silu_mul(&x, &y, &mut a);
        ops.silu_mul(&x, &y, &mut b);
        assert_eq!(bits(&a), bits(&b), "{}", what("silu_mul"));

        numerics::relu2_mul(&x, &y, &mut a);
        ops.relu2_mul(&x, &y, &mut b);
        assert_eq!(bits(&a), bits(&b), "{}", what("relu2_mul"));

        let (mut a, mut b) = (vec![0; n + 15], vec![u32::MAX; n + 15]);
        let count = numerics::list_positive(&x, &mut a);
        assert_eq!(ops.list_positive(&x, &mut b), count, "{}", what("list_positive"));
        assert_eq!(a[..count], b[..count], "{}", what("list_positive"));
        let (mut estimates, residuals) = (x.clone(), floats(n, 0, random));
        if let Some(middle) = estimates.get_mut(n / 2) {
            *middle = f32::NAN;
        }
        for least in [x.first().map_or(0.0, |x| *x), 0.0, f32::NEG_INFINITY, f32::INFINITY] {
            let reach = numerics::Reach { norm: 0.5, slack: 0.25, least };
            let count = numerics::list_reaching((&estimates, &residuals), reach, 7, &mut a);
            let found = ops.list_reaching((&estimates, &residuals), reach, 7, &mut b);
            assert_eq!(found, count, "{} {least}", what("list_reaching"));
            assert_eq!(a[..count], b[..count], "{} {least}", what("list_reaching"));
        }
        // From no zeros to nothing but zeros.
        let zeros = kind as u64 * 25;
        let byte = |random: &mut Random| (random.below(255) + 1) as u8 as i8;
        let q = |random: &mut Random| if random.below(100) < zeros { 0 } else { byte(random) };
        let q: Vec<i8> = (0..n).map(|_| q(random)).collect();
        let (mut values, mut own) = (vec![0; n], vec![1; n + 15]);
        let count = numerics::list_nonzero(&q, &mut a, &mut values);
        assert_eq!(ops.list_nonzero(&q, &mut b, &mut own), count, "{}", what("list_nonzero"));
        assert_eq!(a[..count], b[..count], "{}", what("list_nonzero"));
        assert_eq!(values[..count], own[..count], "{}", what("list_nonzero"));

        let (mut a, mut b) = (x.clone(), x.clone());
        numerics::add(&mut a, &y);
        ops.add(&mut b, &y);
        assert_eq!(bits(&a), bits(&b), "{}", what("add"));

        let dots: Vec<i32> = (0..n).map(|_| random.next_u64() as i32 >> random.below(31)).collect();
        numerics::scale_output(&dots, 12.7, y[0], &mut a);
        ops.scale_output(&dots, 12.7, y[0], &mut b);
        assert_eq!(bits(&a), bits(&b), "{}", what("scale_output"));

        let (mut a, mut b) = (vec![f16::ZERO; n], vec![f16::ZERO; n]);
        numerics::to_kv(&x, &mut a);
        ops.to_f16(&x, &mut b);
        assert_eq!(a, b, "{}", what("to_f16"));
    });
}

fn every_half_float_boundary_rounds_alike(ops: &VectorOps) {
    // All half floats, the midpoints between neighbours, and what lies just beside those.
    let mut x = Vec::new();
    for bits in 0..0x7c00u16 {
        let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
        let middle = if high.is_finite() { (low + high) / 2.0 } else { 65520.0 };
        let near = [middle.to_bits() - 1, middle.to_bits(), middle.to_bits() + 1];
        x.extend(near.into_iter().map(f32::from_bits).chain([low, -low, -middle]));
    }
    let mut expected = vec![f16::ZERO; x.len()];
    numerics::to_kv(&x, &mut expected);
    let mut got = vec![f16::ZERO; x.len()];
    ops.to_f16(&x, &mut got);
    let wrong = (0..x.len()).find(|&i| got[i].to_bits() != expected[i].to_bits());
    assert_eq!(wrong.map(|i| (x[i], got[i], expected[i])), None);
}

fn reductions_and_quantisation(ops: &VectorOps) {
    for_all(|n, kind, random| {
        let (x, w) = (floats(n, kind, random), floats(n, 0, random));
        let what = |name| format!("{name}: n {n}, kind {kind}");

        let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
        numerics::rms_norm(&x, &w, 1e-5, &mut a);
        ops.rms_norm(&x, &w, 1e-5, &mut b);
        assert_eq!(bits(&a), bits(&b), "{}", what("rms_norm"));

        let (mut a, mut b) = (vec![0; n], vec![0; n]);
        let s = numerics::quantise_activations(&x, &mut a);
        let t = ops.quantise_activations(&x, &mut b);
        assert_eq!((s.to_bits(), a), (t.to_bits(), b), "{}", what("quantise_activations"));

        if n % 32 == 0 {
            let (mut a, mut b) = (vec![0; n], vec![0; n]);
            let (mut s, mut t) = (vec![0.0; n / 32], vec![0.0; n / 32]);
            numerics::quantise_blocks(&x, &mut a, &mut s);
            ops.quantise_blocks(&x, &mut b, &mut t);
            assert_eq!((bits(&s), a), (bits(&t), b), "{}", what("quantise_blocks"));
        }
    });
}

fn ties_round_to_even(ops: &VectorOps) {
    // 127 as the largest makes the scale 1: the halves stay halves.
    let mut x: Vec<f32> = (-126..126).map(|i| i as f32 + 0.5).collect();
    x.push(127.0);
    let mut expected = vec![0; x.len()];
    assert_eq!(numerics::quantise_activations(&x, &mut expected), 1.0);
    assert_eq!((expected[126], expected[127], expected[125]), (0, 2, 0));
    let mut got = vec![0; x.len()];
    ops.quantise_activations(&x, &mut got);
    assert_eq!(got, expected);
}

fn rotary_embedding(ops: &VectorOps) {
    for_all(|n, kind, random| {
        let x = floats(2 * n + 3, kind, random);
        let (cos, sin) = (floats(n, 0, random), floats(n, 0, random));
        let what = |name| format!("{name}: n {n}, kind {kind}");
        let (mut a, mut b) = (x.clone(), x.clone());
        numerics::rope_neox(&mut a, &cos, &sin);
        ops.rope_neox(&mut b, &cos, &sin);
        assert_eq!(bits(&a), bits(&b), "{}", what("rope_neox"));
        let (mut a, mut b) = (x.clone(), x);
        numerics::rope_norm(&mut a, &cos, &sin);
        ops.rope_norm(&mut b, &cos, &sin);
        assert_eq!(bits(&a), bits(&b), "{}", what("rope_norm"));
    });
}

fn exp_over_its_whole_range(ops: &VectorOps) {
    // silu with gate x and up 1 shows exp(-x) for every exponent and some mantissas of each.
    let x: Vec<f32> = (0..=u32::MAX >> 12).map(|i| f32::from_bits(i << 12 | i & 0xfff)).collect();
    let one = vec![1.0; x.len()];
    let mut expected = vec![0.0; x.len()];
    numerics::silu_mul(&x, &one, &mut expected);
    let mut got = vec![0.0; x.len()];
    ops.silu_mul(&x, &one, &mut got);
    let (got, expected) = (bits(&got), bits(&expected));
    let wrong = (0..x.len()).find(|&i| got[i] != expected[i]);
    assert_eq!(wrong.map(|i| x[i]), None);
}

fn head(id: &KernelId) -> Tested {
    Need::isa(id.isa)?;
    let kernel = HeadKernel::find(id).expect("every build holds the grid");
    let lengths: &[usize] = match kernel.format().block_weights() {
        1 => &[1, 15, 16, 17, 96, 100, 384, 2560],
        32 => &[32, 96, 384, 512, 544, 1536, 3200],
        128 => &[128, 256, 384, 640, 2560, 4224],
        _ => &[256, 512, 768, 1280, 2560],
    };
    for &cols in lengths {
        assert_eq!(verify::head(&kernel, cols).unwrap(), None);
    }
    Ok(())
}

fn sketch(id: &KernelId) -> Tested {
    Need::isa(id.isa)?;
    let mut kernels = SketchKernel::builtin();
    let kernel = kernels.find(|kernel| kernel.id() == id).expect("every build holds the grid");
    for cols in [1, 31, 32, 33, 96, 384, 2560, 2568] {
        assert_eq!(verify::sketch(&kernel, cols), None);
    }
    Ok(())
}

/// A property of the float operations of one ISA.
type Property = fn(&VectorOps);

fn main() -> ExitCode {
    let properties: [(&str, Property); 6] = [
        ("elementwise_operations", elementwise_operations),
        ("every_half_float_boundary_rounds_alike", every_half_float_boundary_rounds_alike),
        ("reductions_and_quantisation", reductions_and_quantisation),
        ("ties_round_to_even", ties_round_to_even),
        ("rotary_embedding", rotary_embedding),
        ("exp_over_its_whole_range", exp_over_its_whole_range),
    ];
    let isas = Isa::of_arch(env::consts::ARCH);
    let mut suite = Suite::default();
    for (name, property) in properties {
        for &isa in isas.iter().filter(|isa| isa.float_tier() == **isa) {
            suite.add(format!("{name}::{isa}"), move || {
                Need::isa(isa)?;
                let ops = VectorOps::best(isa);
                assert_eq!(ops.isa(), isa);
                property(&ops);
                Ok(())
            });
        }
    }
    for id in bitnet_codegen::grid(isas) {
        match id.op {
            Op::Head(_) => suite.add(format!("head::{id}"), move || head(&id)),
            Op::Sketch(_) => suite.add(format!("sketch::{id}"), move || sketch(&id)),
            _ => (),
        }
    }
    suite.run()
}
