//! The float operations on one row of activations: norms, quantisation, gates, rotary embedding,
//! conversions.
//!
//! Every function equals its scalar definition (`model/numerics.rs` in the runtime, where the
//! formulas stand) bit for bit. Elementwise operations round each element on its own, so vectors
//! change nothing. Reductions run over 16 virtual lanes, element `i` in lane `i % 16`: exactly the
//! lanes of `isa::F32`, whatever registers it is made of. Elements beyond the last 16 go to their
//! lanes one by one, as a fused product with a padded zero could turn -0 into +0.

use crate::abi::{Reach, Softmax, VectorEntry};
use crate::isa::scalar as isa;

/// Virtual lanes.
const LANES: usize = 16;

/// Rows that are looked at together for one that may reach something.
const REACHING: usize = 4 * LANES;

/// Every function of this module.
pub const ENTRY: VectorEntry = VectorEntry {
    rms_norm,
    quantise_activations,
    quantise_blocks,
    scale_output,
    silu_mul,
    list_positive,
    list_nonzero,
    list_reaching,
    relu2_mul,
    add,
    rope_neox,
    rope_norm,
    to_f16,
    attention_merge,
    attention_finish,
};

/// `out[i] = f(x[i], y[i])`.
///
/// # Safety
/// `x` and `y` are readable and `out` is writable for `n` floats.
#[inline]
unsafe fn elementwise(
    x: *const f32,
    y: *const f32,
    out: *mut f32,
    n: usize,
    f: impl Fn(isa::F32, isa::F32) -> isa::F32,
) {
    // SAFETY: every access stays below n.
    unsafe {
        let mut i = 0;
        while i + LANES <= n {
            isa::f32_store(out.add(i), f(isa::f32_load(x.add(i)), isa::f32_load(y.add(i))));
            i += LANES;
        }
        if i < n {
            let (mut a, mut b) = ([0f32; LANES], [0f32; LANES]);
            x.add(i).copy_to_nonoverlapping(a.as_mut_ptr(), n - i);
            y.add(i).copy_to_nonoverlapping(b.as_mut_ptr(), n - i);
            let last = f(isa::f32_load(a.as_ptr()), isa::f32_load(b.as_ptr()));
            isa::f32_store(a.as_mut_ptr(), last);
            out.add(i).copy_from_nonoverlapping(a.as_ptr(), n - i);
        }
    }
}

/// The sum of squares.
///
/// # Safety
/// `x` is readable for `n` floats.
#[inline]
unsafe fn sum_squares(x: *const f32, n: usize) -> f32 {
    // SAFETY: every access stays below n.
    unsafe {
        let mut sum = isa::f32_splat(0.0);
        let mut i = 0;
        while i + LANES <= n {
            let v = isa::f32_load(x.add(i));
            sum = isa::f32_fma(v, v, sum);
            i += LANES;
        }
        let mut lanes = [0f32; LANES];
        isa::f32_store(lanes.as_mut_ptr(), sum);
        for lane in 0..n - i {
            let v = x.add(i + lane).read();
            lanes[lane] = isa::mul_add(v, v, lanes[lane]);
        }
        isa::f32_reduce_add(isa::f32_load(lanes.as_ptr()))
    }
}

/// The largest magnitude, 0 if there is none; NaNs are passed over. Beside it 0, or NaN if any element is
/// not finite: `x - x` is, in time that the maximum leaves.
///
/// # Safety
/// `x` is readable for `n` floats.
#[inline]
unsafe fn max_abs(x: *const f32, n: usize) -> (f32, f32) {
    // SAFETY: every access stays below n.
    unsafe {
        let (mut top, mut odd) = (isa::f32_splat(0.0), isa::f32_splat(0.0));
        let mut i = 0;
        while i + LANES <= n {
            let v = isa::f32_load(x.add(i));
            top = isa::f32_max(isa::f32_abs(v), top);
            odd = isa::f32_add(odd, isa::f32_sub(v, v));
            i += LANES;
        }
        let (mut most, mut odd) = (isa::f32_reduce_max(top), isa::f32_reduce_add(odd));
        while i < n {
            let v = x.add(i).read();
            most = if v.abs() > most { v.abs() } else { most };
            odd = if v.is_finite() { odd } else { f32::NAN };
            i += 1;
        }
        (most, odd)
    }
}

/// Rounds `x * s` to int8.
///
/// # Safety
/// `x` is readable and `q` writable for `n` elements.
#[inline]
unsafe fn quantise(x: *const f32, s: f32, q: *mut i8, n: usize) {
    let scale = isa::f32_splat(s);
    let (low, high) = (isa::f32_splat(-128.0), isa::f32_splat(127.0));
    // SAFETY: every access stays below n.
    unsafe {
        let mut i = 0;
        while i + LANES <= n {
            let v = isa::f32_mul(isa::f32_load(x.add(i)), scale);
            isa::f32_store_i8(q.add(i), isa::f32_min(isa::f32_max(v, low), high));
            i += LANES;
        }
        if i < n {
            let (mut a, mut b) = ([0f32; LANES], [0i8; LANES]);
            x.add(i).copy_to_nonoverlapping(a.as_mut_ptr(), n - i);
            let v = isa::f32_mul(isa::f32_load(a.as_ptr()), scale);
            isa::f32_store_i8(b.as_mut_ptr(), isa::f32_min(isa::f32_max(v, low), high));
            q.add(i).copy_from_nonoverlapping(b.as_ptr(), n - i);
        }
    }
}

/// See `VectorEntry`.
unsafe extern "C" fn rms_norm(x: *const f32, w: *const f32, eps: f32, out: *mut f32, n: usize) {
    // SAFETY: the contract of VectorEntry.
    unsafe {
        let sum = sum_squares(x, n);
        // Not 1 / inf, which would make all of them 0.
        let sum = if sum == f32::INFINITY { f32::NAN } else { sum };
        let r = 1.0 / isa::sqrt(sum / n as f32 + eps);
        let r = isa::f32_splat(r);
        elementwise(x, w, out, n, |x, w| isa::f32_mul(isa::f32_mul(x, r), w));
    }
}

/// See `VectorEntry`.
///
/// # Safety
/// See `VectorEntry`.
pub unsafe extern "C" fn quantise_activations(x: *const f32, q: *mut i8, n: usize) -> f32 {
    // SAFETY: the contract of VectorEntry.
    unsafe {
        let (m, odd) = max_abs(x, n);
        let s = 127.0 / (if m > 1e-5 { m } else { 1e-5 } + odd);
        quantise(x, s, q, n);
        s
    }
}

/// See `VectorEntry`.
///
/// # Safety
/// See `VectorEntry`.
pub unsafe extern "C" fn quantise_blocks(x: *const f32, q: *mut i8, d: *mut f32, n: usize) {
    const BLOCK: usize = 32;
    for block in 0..n / BLOCK {
        // SAFETY: the contract of VectorEntry; n is a multiple of the block.
        unsafe {
            let x = x.add(block * BLOCK);
            let (m, _) = max_abs(x, BLOCK);
            let m = if m > 1e-30 { m } else { 1e-30 };
            d.add(block).write(m / 127.0);
            quantise(x, 127.0 / m, q.add(block * BLOCK), BLOCK);
        }
    }
}

/// See `VectorEntry`.
unsafe extern "C" fn scale_output(dots: *const i32, s: f32, wscale: f32, out: *mut f32, n: usize) {
    let (divisor, factor) = (isa::f32_splat(s), isa::f32_splat(wscale));
    // SAFETY: the contract of VectorEntry.
    unsafe {
        let mut i = 0;
        while i + LANES <= n {
            let v = isa::f32_div(isa::f32_load_i32(dots.add(i)), divisor);
            isa::f32_store(out.add(i), isa::f32_mul(v, factor));
            i += LANES;
        }
        while i < n {
            out.add(i).write((dots.add(i).read() as f32 / s) * wscale);
            i += 1;
        }
    }
}

/// e^x, as `numerics::exp` defines it.
#[inline]
pub fn exp(x: isa::F32) -> isa::F32 {
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const C: [f32; 7] =
        [0.001_381_459_9, 0.008_368_717, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0, 1.0];
    let shifted = isa::f32_fma(x, isa::f32_splat(core::f32::consts::LOG2_E), isa::f32_splat(ROUND));
    let k = isa::f32_sub(shifted, isa::f32_splat(ROUND));
    let r = isa::f32_fma(k, isa::f32_splat(-LN2_HIGH), x);
    let r = isa::f32_fma(k, isa::f32_splat(-LN2_LOW), r);
    let mut p = isa::f32_splat(C[0]);
    for c in 1..C.len() {
        p = isa::f32_fma(p, r, isa::f32_splat(C[c]));
    }
    let y = isa::f32_scale_by_bits(p, shifted, ROUND);
    let y = isa::f32_select_gt(isa::f32_splat(-87.336_54), x, isa::f32_splat(0.0), y);
    isa::f32_select_gt(x, isa::f32_splat(88.722_83), isa::f32_splat(f32::INFINITY), y)
}

/// See `VectorEntry`.
unsafe extern "C" fn silu_mul(gate: *const f32, up: *const f32, out: *mut f32, n: usize) {
    let (zero, one) = (isa::f32_splat(0.0), isa::f32_splat(1.0));
    // SAFETY: the contract of VectorEntry.
    unsafe {
        elementwise(gate, up, out, n, |gate, up| {
            // -0 becomes +0 here, which exp does not see.
            let e = exp(isa::f32_sub(zero, gate));
            isa::f32_mul(isa::f32_div(gate, isa::f32_add(one, e)), up)
        });
    }
}

/// See `VectorEntry`.
unsafe extern "C" fn list_positive(x: *const f32, out: *mut u32, n: usize) -> usize {
    let mut count = 0;
    let mut i = 0;
    // SAFETY: the contract of VectorEntry; of the elements before `i` at most `i` were listed, and
    // no more than whole groups of 16 are written.
    unsafe {
        while i + LANES <= n {
            count += isa::list_positive(x.add(i), i as u32, out.add(count));
            i += LANES;
        }
        if i < n {
            let mut last = [0f32; LANES];
            x.add(i).copy_to_nonoverlapping(last.as_mut_ptr(), n - i);
            count += isa::list_positive(last.as_ptr(), i as u32, out.add(count));
        }
    }
    count
}

/// See `VectorEntry`.
unsafe extern "C" fn list_nonzero(q: *const i8, out: *mut u32, values: *mut i8, n: usize) -> usize {
    let mut count = 0;
    let mut i = 0;
    // SAFETY: as above.
    unsafe {
        while i + LANES <= n {
            count += isa::list_nonzero(q.add(i), i as u32, out.add(count), values.add(count));
            i += LANES;
        }
        if i < n {
            let mut last = [0i8; LANES];
            q.add(i).copy_to_nonoverlapping(last.as_mut_ptr(), n - i);
            count += isa::list_nonzero(last.as_ptr(), i as u32, out.add(count), values.add(count));
        }
    }
    count
}

/// The rows of a group that may reach something, as 1 or 0, and 1 if any may.
///
/// # Safety
/// `estimates` and `residuals` are readable for a group.
#[inline]
unsafe fn reaching(
    estimates: *const f32,
    residuals: *const f32,
    reach: &Reach,
    flags: &mut [f32; REACHING],
) -> bool {
    let (norm, slack) = (isa::f32_splat(reach.norm), isa::f32_splat(reach.slack));
    let (zero, one) = (isa::f32_splat(0.0), isa::f32_splat(1.0));
    let mut any = zero;
    for v in 0..REACHING / LANES {
        // SAFETY: within the group.
        unsafe {
            let residual = isa::f32_load(residuals.add(v * LANES));
            let more = isa::f32_add(isa::f32_mul(residual, norm), slack);
            let upper = isa::f32_add(isa::f32_load(estimates.add(v * LANES)), more);
            let flag = isa::f32_select_gt(isa::f32_splat(reach.least), upper, zero, one);
            isa::f32_store(flags.as_mut_ptr().add(v * LANES), flag);
            any = isa::f32_max(flag, any);
        }
    }
    isa::f32_reduce_max(any) > 0.0
}

/// See `VectorEntry`.
unsafe extern "C" fn list_reaching(
    estimates: *const f32,
    residuals: *const f32,
    reach: &Reach,
    first: u32,
    out: *mut u32,
    n: usize,
) -> usize {
    let mut flags = [0f32; REACHING];
    let mut count = 0;
    let mut i = 0;
    // SAFETY: the contract of VectorEntry; as for `list_positive`.
    unsafe {
        while i < n {
            let found = if i + REACHING <= n {
                reaching(estimates.add(i), residuals.add(i), reach, &mut flags)
            } else {
                let (mut e, mut r) = ([0f32; REACHING], [0f32; REACHING]);
                estimates.add(i).copy_to_nonoverlapping(e.as_mut_ptr(), n - i);
                residuals.add(i).copy_to_nonoverlapping(r.as_mut_ptr(), n - i);
                let found = reaching(e.as_ptr(), r.as_ptr(), reach, &mut flags);
                for beyond in n - i..REACHING {
                    flags[beyond] = 0.0;
                }
                found
            };
            // Most groups have none.
            if found {
                for at in (0..REACHING.min(n - i)).step_by(LANES) {
                    let number = first + (i + at) as u32;
                    count += isa::list_positive(flags.as_ptr().add(at), number, out.add(count));
                }
            }
            i += REACHING;
        }
    }
    count
}

/// See `VectorEntry`.
unsafe extern "C" fn relu2_mul(gate: *const f32, up: *const f32, out: *mut f32, n: usize) {
    let zero = isa::f32_splat(0.0);
    // SAFETY: the contract of VectorEntry.
    unsafe {
        elementwise(gate, up, out, n, |gate, up| {
            let g = isa::f32_max(zero, gate);
            isa::f32_mul(isa::f32_mul(g, g), up)
        });
    }
}

/// See `VectorEntry`.
unsafe extern "C" fn add(x: *mut f32, y: *const f32, n: usize) {
    // SAFETY: the contract of VectorEntry.
    unsafe { elementwise(x, y, x, n, |x, y| isa::f32_add(x, y)) }
}

/// See `VectorEntry`.
unsafe extern "C" fn rope_neox(x: *mut f32, cos: *const f32, sin: *const f32, n: usize) {
    for i in 0..n {
        // SAFETY: the contract of VectorEntry.
        unsafe {
            let (a, b) = (x.add(i).read(), x.add(n + i).read());
            let (cos, sin) = (cos.add(i).read(), sin.add(i).read());
            x.add(i).write(isa::mul_add(a, cos, -(b * sin)));
            x.add(n + i).write(isa::mul_add(a, sin, b * cos));
        }
    }
}

/// See `VectorEntry`.
unsafe extern "C" fn rope_norm(x: *mut f32, cos: *const f32, sin: *const f32, n: usize) {
    for i in 0..n {
        // SAFETY: the contract of VectorEntry.
        unsafe {
            let (a, b) = (x.add(2 * i).read(), x.add(2 * i + 1).read());
            let (cos, sin) = (cos.add(i).read(), sin.add(i).read());
            x.add(2 * i).write(isa::mul_add(a, cos, -(b * sin)));
            x.add(2 * i + 1).write(isa::mul_add(a, sin, b * cos));
        }
    }
}

/// See `VectorEntry`.
unsafe extern "C" fn to_f16(x: *const f32, out: *mut u16, n: usize) {
    // SAFETY: the contract of VectorEntry.
    unsafe {
        let mut i = 0;
        while i + LANES <= n {
            isa::f32_store_f16(out.add(i), isa::f32_load(x.add(i)));
            i += LANES;
        }
        if i < n {
            let (mut a, mut b) = ([0f32; LANES], [0u16; LANES]);
            x.add(i).copy_to_nonoverlapping(a.as_mut_ptr(), n - i);
            isa::f32_store_f16(b.as_mut_ptr(), isa::f32_load(a.as_ptr()));
            out.add(i).copy_from_nonoverlapping(b.as_ptr(), n - i);
        }
    }
}

/// See `VectorEntry`.
///
/// # Safety
/// See `VectorEntry`.
pub unsafe extern "C" fn attention_merge(
    state: *mut Softmax,
    out: *mut f32,
    chunk: &Softmax,
    chunk_out: *const f32,
    n: usize,
) {
    // SAFETY: the contract of VectorEntry.
    unsafe {
        let before = state.read();
        let max = if before.max > chunk.max { before.max } else { chunk.max };
        let mut lanes = [0f32; LANES];
        (lanes[0], lanes[1]) = (before.max - max, chunk.max - max);
        isa::f32_store(lanes.as_mut_ptr(), exp(isa::f32_load(lanes.as_ptr())));
        let (a, b) = (lanes[0], lanes[1]);
        state.write(Softmax { max, sum: isa::mul_add(before.sum, a, chunk.sum * b) });
        let (a, b) = (isa::f32_splat(a), isa::f32_splat(b));
        elementwise(out, chunk_out, out, n, |out, chunk| {
            isa::f32_fma(out, a, isa::f32_mul(chunk, b))
        });
    }
}

/// See `VectorEntry`.
unsafe extern "C" fn attention_finish(state: &Softmax, out: *mut f32, n: usize) {
    let r = isa::f32_splat(1.0 / state.sum);
    // SAFETY: the contract of VectorEntry.
    unsafe { elementwise(out, out, out, n, |out, _| isa::f32_mul(out, r)) }
}
