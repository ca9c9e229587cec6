//! The float arithmetic of the forward pass: every operation defined once, in scalar code.
//!
//! Each vector kernel equals the function here bit for bit (`to_bits`), so that text never depends
//! on the CPU, the profile, the number of threads or the batch. To make that possible every
//! operation is one of two kinds:
//!
//! - *elementwise*: output i depends on input i alone (and on scalars), through the written
//!   sequence of single roundings; `f32::mul_add` is always fused;
//! - a *reduction over 16 virtual lanes*: element i belongs to lane i % 16, each lane accumulates
//!   its elements in order, starting at +0, and [`reduce`] folds the lanes by a fixed tree. A
//!   lane without a further element is left untouched.
//!
//! `max(a, b)` is `if a > b { a } else { b }` throughout, which is what `maxps a, b` computes:
//! b when either is NaN. A NaN stays a NaN where a test says so, but its bits are not defined.
//!
//! Lengths are checked by assertion: callers derive them from the validated model.

use half::f16;

/// Virtual lanes of a reduction.
pub const LANES: usize = 16;
/// KV positions of one softmax chunk; chunks are merged left to right.
pub const CHUNK: usize = 256;
/// Weights or activations that share a scale in the quantised heads.
pub const BLOCK: usize = 32;

/// The larger of two numbers; `b` when either is NaN.
#[inline]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The smaller of two numbers; `b` when either is NaN.
#[inline]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Folds 16 lanes by the fixed tree: i + (i+8), then +4, +2, +1.
#[inline]
#[must_use]
pub fn reduce(mut lanes: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

/// Sum over 16 lanes of n terms; `step(i, acc)` adds term i to a lane.
#[inline]
fn accumulate(n: usize, step: impl Fn(usize, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for i in 0..n {
        lanes[i % LANES] = step(i, lanes[i % LANES]);
    }
    reduce(lanes)
}

/// The sum of x: each lane `acc + x[i]`.
#[must_use]
pub fn sum(x: &[f32]) -> f32 {
    accumulate(x.len(), |i, acc| acc + x[i])
}

/// The dot product: each lane `fma(a[i], b[i], acc)`.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    dot_with(a, |i| b[i])
}

/// Dot product as in [`dot`], with `b(i)` for `b[i]`.
#[inline]
pub(crate) fn dot_with(a: &[f32], b: impl Fn(usize) -> f32) -> f32 {
    accumulate(a.len(), |i, acc| a[i].mul_add(b(i), acc))
}

/// The sum of squares: each lane `fma(x[i], x[i], acc)`.
#[must_use]
pub fn sum_squares(x: &[f32]) -> f32 {
    dot(x, x)
}

/// The largest `|x[i]|`, 0 for an empty slice; NaNs are passed over.
#[must_use]
pub fn max_abs(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, &v| max(v.abs(), m))
}

/// RMSNorm: `r = 1 / sqrt(sum_squares(x) / n + eps)`, `out[i] = (x[i] * r) * w[i]`. Where the sum is not
/// finite all of `out` is NaN.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == w.len() && x.len() == out.len());
    let sum = sum_squares(x);
    let sum = if sum == f32::INFINITY { f32::NAN } else { sum };
    let r = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(w) {
        *out = (x * r) * w;
    }
}

/// `v` rounded to the nearest integer, ties to even, clamped to int8; NaN gives -128.
///
/// Clamping first changes no result (the bounds are integers) and keeps the conversion in range.
#[inline]
fn round_to_i8(v: f32) -> i8 {
    min(max(v, -128.0), 127.0).round_ties_even() as i8
}

/// Quantises the activations of one token to int8 for a ternary matmul and returns the scale s:
/// `m = max(max|x|, 1e-5)`, `s = 127 / m`, `q = round-half-even(x * s)` clamped to -128..=127. Where an
/// element is not finite `s` is NaN, and so is whatever is computed with it.
///
/// The rule of bitnet.cpp's I2_S, here for every format.
pub fn quantise_activations(x: &[f32], q: &mut [i8]) -> f32 {
    assert_eq!(x.len(), q.len());
    let is_finite = x.iter().all(|x| x.is_finite());
    let s = if is_finite { 127.0 / max(max_abs(x), 1e-5) } else { f32::NAN };
    for (q, &x) in q.iter_mut().zip(x) {
        *q = round_to_i8(x * s);
    }
    s
}

/// Quantises the activations of one token to int8 in blocks of `width`, each as
/// [`quantise_activations`] does, for a ternary matrix with as wide blocks. `x` and `q` are `[n]`, `scales`
/// is `[n / width]`: the reciprocals `1 / s` of what that returns.
pub fn quantise_in_blocks(x: &[f32], width: usize, q: &mut [i8], scales: &mut [f32]) {
    assert!(x.len() == q.len() && x.len() == scales.len() * width);
    for ((x, q), scale) in x.chunks(width).zip(q.chunks_mut(width)).zip(scales) {
        *scale = 1.0 / quantise_activations(x, q);
    }
}

/// The dot product of activations in blocks ([`quantise_in_blocks`]: `q` `[n]`, `scales` `[n / width]`)
/// with a row of a ternary matrix with a scale for each block: codes `[n]` of 0, 1, 2, 3 for -1, 0, +1, +2,
/// and `weight_scales` `[n / width]`. Block b adds `fma(dot as f32, weight_scales[b] * scales[b], acc)` to
/// the row's only sum, from +0, where `dot` is the block's exact integer.
#[must_use]
pub fn dot_scaled_blocks(
    (q, scales): (&[i8], &[f32]),
    (codes, weight_scales): (&[u8], &[f32]),
) -> f32 {
    assert!(q.len() == codes.len() && scales.len() == weight_scales.len());
    let width = q.len() / scales.len();
    let blocks = q.chunks_exact(width).zip(codes.chunks_exact(width));
    blocks.zip(scales.iter().zip(weight_scales)).fold(
        0.0,
        |acc: f32, ((q, codes), (scale, weight_scale))| {
            let dot = idot(q, |i| i32::from(codes[i]) - 1);
            (dot as f32).mul_add(weight_scale * scale, acc)
        },
    )
}

/// Turns the integer dots of one token into outputs: `out[i] = ((dots[i] as f32) / s) * wscale`.
pub fn scale_output(dots: &[i32], s: f32, wscale: f32, out: &mut [f32]) {
    assert_eq!(dots.len(), out.len());
    for (out, &dot) in out.iter_mut().zip(dots) {
        *out = (dot as f32 / s) * wscale;
    }
}

/// Adding and subtracting this rounds |x| < 2^22 to an integer, ties to even; the integer also
/// stands in the low bits of the sum.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
/// ln 2 in two parts; the first has few enough bits that k * LN2_HIGH is exact for |k| <= 128.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Largest x with a finite exp(x), and the smallest x with a normal one.
const EXP_MAX: f32 = 88.722_83;
const EXP_MIN: f32 = -87.336_54;
/// Minimax polynomial: exp(r) = 1 + r + r^2 * (sum of EXP_C[i] * r^i), |r| <= ln(2) / 2, relative
/// error 3.1e-9 before rounding (Remez exchange, weight r^2 / exp(r)).
const EXP_C: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_717, 0.001_381_459_9];

/// e^x. Relative error below 0.65 * 2^-23 where the result is a normal number (every f32 beyond 2^-30 tried);
/// below that (x < -87.33654) exactly 0, above f32 infinity. exp(0) is exactly 1; NaN gives NaN.
///
/// `k = round(x / ln 2)`, `r = x - k ln 2` in two fused steps, a polynomial in r by Horner's rule,
/// and a scaling by 2^k in two halves, so that k = 128 needs no special case.
#[inline]
#[must_use]
pub fn exp(x: f32) -> f32 {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let k = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let kf = shifted - ROUND;
    let r = kf.mul_add(-LN2_HIGH, x);
    let r = kf.mul_add(-LN2_LOW, r);
    let mut p = EXP_C[4];
    for c in [EXP_C[3], EXP_C[2], EXP_C[1], EXP_C[0], 1.0, 1.0] {
        p = p.mul_add(r, c);
    }
    // Out of range k is garbage here; the two selections below replace such results.
    let half = k >> 1;
    let power = |k: i32| f32::from_bits((k.wrapping_add(127) as u32) << 23);
    let y = (p * power(half)) * power(k.wrapping_sub(half));
    if x > EXP_MAX {
        f32::INFINITY
    } else if x < EXP_MIN {
        0.0
    } else {
        y
    }
}

/// SiLU: `x / (1 + exp(-x))`.
#[inline]
#[must_use]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Gated SiLU: `out[i] = silu(gate[i]) * up[i]`.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = silu(gate) * up;
    }
}

/// GELU by its approximation with tanh, `x * (1 + tanh(z)) / 2` where
/// `z = sqrt(2 / pi) * (x + 0.044715 x^3)`, written without one: `x / (1 + exp(-2 z))`.
#[inline]
#[must_use]
pub fn gelu(x: f32) -> f32 {
    /// 2 sqrt(2 / pi).
    const TWICE: f32 = 1.595_769;
    let z = TWICE * (0.044_715 * (x * x)).mul_add(x, x);
    x / (1.0 + exp(-z))
}

/// Gated GELU: `out[i] = gelu(gate[i]) * up[i]`.
pub fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gelu(gate) * up;
    }
}

/// Gated squared ReLU: `g = max(0, gate[i])`, `out[i] = (g * g) * up[i]`; a NaN gate gives NaN.
pub fn relu2_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        let g = max(0.0, gate);
        *out = (g * g) * up;
    }
}

/// Writes the indices of the elements above 0, in order, and returns their number. NaN does not
/// count.
pub fn list_positive(x: &[f32], list: &mut [u32]) -> usize {
    let positive = x.iter().zip(0..).filter(|(v, _)| **v > 0.0);
    list.iter_mut().zip(positive).map(|(number, (_, i))| *number = i).count()
}

/// Writes the indices of the elements other than 0, in order, and beside them the elements, and
/// returns their number.
pub fn list_nonzero(q: &[i8], list: &mut [u32], values: &mut [i8]) -> usize {
    let nonzero = q.iter().zip(0..).filter(|(q, _)| **q != 0);
    let out = list.iter_mut().zip(values);
    out.zip(nonzero).map(|((number, value), (&q, i))| (*number, *value) = (i, q)).count()
}

/// Bound that the logits of rows are compared with, and the error terms of their estimates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Factor of the row's residual.
    pub norm: f32,
    /// Added to this product.
    pub slack: f32,
    /// The bound, a number.
    pub least: f32,
}

/// True if a logit that is at most `upper` may be as large as `least`; a NaN is no bound, so it
/// may.
#[must_use]
pub fn reaches(upper: f32, least: f32) -> bool {
    upper >= least || upper.is_nan()
}

/// Writes the numbers of the rows, the first of which is `first`, that may reach `least`, in order,
/// and returns how many they are: those for which `estimates[i] + (residuals[i] * norm + slack)`
/// [`reaches`] it.
pub fn list_reaching(
    (estimates, residuals): (&[f32], &[f32]),
    Reach { norm, slack, least }: Reach,
    first: u32,
    list: &mut [u32],
) -> usize {
    assert_eq!(estimates.len(), residuals.len());
    let rows = estimates.iter().zip(residuals).zip(first..);
    let upper = |estimate: f32, residual: f32| estimate + (residual * norm + slack);
    let reaching =
        rows.filter(|((estimate, residual), _)| reaches(upper(**estimate, **residual), least));
    list.iter_mut().zip(reaching).map(|(number, (_, row))| *number = row).count()
}

/// The residual addition: `x[i] = x[i] + y[i]`.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// One rotation: `(fma(a, cos, -(b * sin)), fma(a, sin, b * cos))`.
#[inline]
fn rotate(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (a.mul_add(cos, -(b * sin)), a.mul_add(sin, b * cos))
}

/// Rotary embedding of one head in place, rotate-half (NEOX) convention: element i is paired with
/// i + n, where n = `cos.len()` = `sin.len()`; elements from 2n on stay as they are.
pub fn rope_neox(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let n = cos.len();
    assert!(n == sin.len() && 2 * n <= x.len());
    let (low, high) = x.split_at_mut(n);
    for i in 0..n {
        (low[i], high[i]) = rotate(low[i], high[i], cos[i], sin[i]);
    }
}

/// Rotary embedding of one head in place, interleaved (NORM) convention: element 2i is paired with
/// 2i + 1, n = `cos.len()` = `sin.len()` pairs; elements from 2n on stay as they are.
pub fn rope_norm(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let n = cos.len();
    assert!(n == sin.len() && 2 * n <= x.len());
    for ((pair, &cos), &sin) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        (pair[0], pair[1]) = rotate(pair[0], pair[1], cos, sin);
    }
}

/// Type of the elements of the KV cache.
pub trait KvElement: Copy + Default {
    /// Converts a head and returns the scale of its elements.
    fn convert(x: &[f32], out: &mut [Self]) -> f32;
    /// Returns the exact value, without the scale.
    fn to_f32(self) -> f32;
}

/// Rounds to nearest, ties to even; the scale is 1.
impl KvElement for f16 {
    fn convert(x: &[f32], out: &mut [Self]) -> f32 {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = f16::from_f32(x);
        }
        1.0
    }
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

/// Copies; the scale is 1.
impl KvElement for f32 {
    fn convert(x: &[f32], out: &mut [Self]) -> f32 {
        out.copy_from_slice(x);
        1.0
    }
    fn to_f32(self) -> f32 {
        self
    }
}

/// Quantises to codes as [`quantise_activations`] does; the scale is `1 / s`.
impl KvElement for i8 {
    fn convert(x: &[f32], out: &mut [Self]) -> f32 {
        1.0 / quantise_activations(x, out)
    }
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

/// Converts a head for the KV cache and returns the scale of its elements.
pub fn to_kv<T: KvElement>(x: &[f32], out: &mut [T]) -> f32 {
    assert_eq!(x.len(), out.len());
    T::convert(x, out)
}

/// The running state of a softmax over a row of scores, beside the weighted sum of values.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// The largest score so far. If it is zero its sign is not defined: no other number shows it.
    pub max: f32,
    /// The sum of exp(score - max).
    pub sum: f32,
}

/// Attention of one query head over one chunk of n = `k.len() / q.len()` <= [`CHUNK`] positions.
///
/// `q` is `[d]`, `k` and `v` are `[n][d]` with scales `[n]`, `scores` is scratch of at least n, `out` is
/// `[d]`: `s[j] = (dot(q, k[j]) * scale) * k_scale[j]`, `m = max s`, `p[j] = exp(s[j] - m)`,
/// `sum = sum(p)`, and `out[c]` accumulates `fma(p[j] * v_scale[j], v[j][c], out[c])` over j in order,
/// from +0. `out` is not yet divided by the sum: see [`attention_finish`]. A scale of 1, which floats
/// have, changes no number.
pub fn attention_chunk<T: KvElement>(
    q: &[f32],
    (k, k_scale): (&[T], &[f32]),
    (v, v_scale): (&[T], &[f32]),
    scale: f32,
    scores: &mut [f32],
    out: &mut [f32],
) -> Softmax {
    let d = q.len();
    let n = k.len() / d;
    assert!(k.len() == n * d && v.len() == n * d && out.len() == d && n <= CHUNK);
    assert!(k_scale.len() == n && v_scale.len() == n);
    let scores = &mut scores[..n];
    for ((score, row), &key) in scores.iter_mut().zip(k.chunks_exact(d)).zip(k_scale) {
        let dot = accumulate(d, |i, acc| q[i].mul_add(row[i].to_f32(), acc));
        *score = (dot * scale) * key;
    }
    let top = scores.iter().fold(f32::NEG_INFINITY, |m, &s| max(s, m));
    for score in scores.iter_mut() {
        *score = exp(*score - top);
    }
    out.fill(0.0);
    for ((&p, row), &value) in scores.iter().zip(v.chunks_exact(d)).zip(v_scale) {
        let weight = p * value;
        for (out, &v) in out.iter_mut().zip(row) {
            *out = weight.mul_add(v.to_f32(), *out);
        }
    }
    Softmax { max: top, sum: sum(scores) }
}

/// Merges the next chunk into the state of those before it: `m = max(state.max, chunk.max)`,
/// `a = exp(state.max - m)`, `b = exp(chunk.max - m)`, `sum = fma(state.sum, a, chunk.sum * b)`,
/// `out[c] = fma(out[c], a, chunk_out[c] * b)`. The first chunk is the first state.
pub fn attention_merge(state: &mut Softmax, out: &mut [f32], chunk: Softmax, chunk_out: &[f32]) {
    assert_eq!(out.len(), chunk_out.len());
    let m = max(state.max, chunk.max);
    let a = exp(state.max - m);
    let b = exp(chunk.max - m);
    for (out, &c) in out.iter_mut().zip(chunk_out) {
        *out = out.mul_add(a, c * b);
    }
    *state = Softmax { max: m, sum: state.sum.mul_add(a, chunk.sum * b) };
}

/// Ends an attention: `r = 1 / sum`, `out[c] = out[c] * r`.
pub fn attention_finish(state: Softmax, out: &mut [f32]) {
    let r = 1.0 / state.sum;
    for out in out {
        *out *= r;
    }
}

/// Quantises the activations of a quantised head, per block of 32: `m = max(max|x|, 1e-30)`,
/// `d[b] = m / 127`, `q = round-half-even(x * (127 / m))` clamped to -128..=127.
/// `x` and `q` are `[n]`, `d` is `[n / 32]`. The floor keeps zero blocks free of 0 * infinity.
pub fn quantise_blocks(x: &[f32], q: &mut [i8], d: &mut [f32]) {
    assert!(x.len() == q.len() && x.len() == d.len() * BLOCK);
    for ((x, q), d) in x.chunks_exact(BLOCK).zip(q.chunks_exact_mut(BLOCK)).zip(d) {
        let m = max(max_abs(x), 1e-30);
        *d = m / 127.0;
        let s = 127.0 / m;
        for (q, &x) in q.iter_mut().zip(x) {
            *q = round_to_i8(x * s);
        }
    }
}

/// The activations of a quantised head, as [`quantise_blocks`] gives them.
pub(crate) fn in_blocks(x: &[f32]) -> (Vec<i8>, Vec<f32>) {
    let (mut q, mut d) = (vec![0; x.len()], vec![0.0; x.len() / BLOCK]);
    quantise_blocks(x, &mut q, &mut d);
    (q, d)
}

/// The dot product of activations in blocks ([`quantise_blocks`]: `q` `[n]`, `d` `[n / 32]`) with a
/// quantised row: block b goes to lane b % 16 as `fma(d_weight * d[b], idot as f32, acc)`, where
/// `(d_weight, idot) = block(b, its q)`.
#[inline]
pub(crate) fn dot_blocks(q: &[i8], d: &[f32], block: impl Fn(usize, &[i8]) -> (f32, i32)) -> f32 {
    assert_eq!(q.len(), d.len() * BLOCK);
    accumulate(d.len(), |b, acc| {
        let (weight_scale, idot) = block(b, &q[b * BLOCK..][..BLOCK]);
        (weight_scale * d[b]).mul_add(idot as f32, acc)
    })
}

/// Dot product as in [`dot_blocks`], of weights that are counted from a minimum: after its product each
/// lane takes `fma(minimum, d[b] * (sum of the block's q), acc)`, where `(d_weight, idot, minimum) =
/// block(b, its q)`.
#[inline]
pub(crate) fn dot_blocks_with_minima(
    q: &[i8],
    d: &[f32],
    block: impl Fn(usize, &[i8]) -> (f32, i32, f32),
) -> f32 {
    assert_eq!(q.len(), d.len() * BLOCK);
    accumulate(d.len(), |b, acc| {
        let q = &q[b * BLOCK..][..BLOCK];
        let (weight_scale, dot, minimum) = block(b, q);
        let acc = (weight_scale * d[b]).mul_add(dot as f32, acc);
        minimum.mul_add(d[b] * idot(q, |_| 1) as f32, acc)
    })
}

/// Exact integer dot product of a block.
#[inline]
pub(crate) fn idot(q: &[i8], weight: impl Fn(usize) -> i32) -> i32 {
    q.iter().enumerate().map(|(i, &q)| i32::from(q) * weight(i)).sum()
}

/// Scales `d` relative to the largest of them, `d[b] / max`, which is returned; of zeros 0.
pub fn relative_scales(d: &[f32], relative: &mut [f32]) -> f32 {
    assert_eq!(d.len(), relative.len());
    let largest = max_abs(d);
    for (relative, d) in relative.iter_mut().zip(d) {
        *relative = if largest == 0.0 { 0.0 } else { d / largest };
    }
    largest
}

/// Dot product of activations in blocks ([`quantise_blocks`]: `q` `[n]`; `d` `[n / 32]` and `scale` as
/// [`relative_scales`] gives them) with a row of a sketch ([`SketchFormat`](bitnet_profiles::SketchFormat)):
/// `codes` `[n]`, `scales` `[n / 32]`, the scale of the row. Block b adds
/// `fma(int as f32, scale as f32 * d[b], acc)` to the row's only sum, from +0, where `int` is the sum of
/// `(2 code - (2^bits - 1)) * q`, exact; the result is `(acc * row_scale) * scale`. The sum is twice
/// what the format says, which `row_scale` undoes.
#[must_use]
pub fn dot_sketch_row(
    (q, d, scale): (&[i8], &[f32], f32),
    bits: usize,
    codes: &[u8],
    scales: &[u8],
    row_scale: f32,
) -> f32 {
    assert!(q.len() == codes.len() && q.len() == scales.len() * BLOCK && d.len() == scales.len());
    let offset = (1 << bits) - 1;
    let blocks = q.chunks_exact(BLOCK).zip(codes.chunks_exact(BLOCK)).zip(scales.iter().zip(d));
    let sum = blocks.fold(0.0, |acc: f32, ((q, codes), (&scale, &d))| {
        let terms =
            q.iter().zip(codes).map(|(&q, &code)| (2 * i32::from(code) - offset) * i32::from(q));
        (terms.sum::<i32>() as f32).mul_add(f32::from(scale) * d, acc)
    });
    (sum * row_scale) * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns deterministic numbers in -1..1 (splitmix64).
    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&v| f64::from(v)).collect()
    }

    fn dot64(a: &[f32], b: &[f32]) -> f64 {
        wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum()
    }

    #[track_caller]
    fn close(found: f32, expected: f64, tolerance: f64) {
        let error = (f64::from(found) - expected).abs();
        assert!(
            error <= tolerance,
            "{found} is not within {tolerance:e} of {expected}: off by {error:e}"
        );
    }

    const LENGTHS: [usize; 10] = [0, 1, 2, 15, 16, 17, 31, 64, 100, 1536];

    #[test]
    fn reductions_are_near_the_exact_sums() {
        for n in LENGTHS {
            let (a, b) = (random(n, 1), random(n, 2));
            let tolerance = 1e-6 * (n as f64).sqrt().max(1.0);
            close(sum(&a), wide(&a).iter().sum(), tolerance);
            close(dot(&a, &b), dot64(&a, &b), tolerance);
            close(sum_squares(&a), dot64(&a, &a), 1e-6 * n as f64);
        }
    }

    #[test]
    fn reductions_follow_the_lanes_and_the_tree() {
        // 2^24 + 1 is not an f32: the lane and the step at which a 1 meets 2^24 decide the result.
        let big = 16_777_216.0;
        let mut x = [0.0; 33];
        (x[0], x[16], x[32]) = (big, 1.0, 1.0); // one lane, in order: each 1 is lost
        assert_eq!(sum(&x), big);
        let mut x = [0.0; 33];
        (x[16], x[32], x[0]) = (1.0, big, 1.0); // one lane: 1 + 1 first
        assert_eq!(sum(&x), big + 2.0);
        let mut x = [0.0; 16];
        (x[0], x[8], x[4], x[12]) = (big, 1.0, 1.0, 1.0); // (0+8), (4+12), then together
        assert_eq!(sum(&x), big + 2.0);
        // Fused: (1 + e)^2 - (1 + 2e) keeps e^2, which a rounded product would lose.
        let e = f32::EPSILON;
        let mut a = [0.0; 17];
        let mut b = [0.0; 17];
        (a[0], b[0], a[16], b[16]) = (-1.0, 1.0 + 2.0 * e, 1.0 + e, 1.0 + e);
        assert_eq!(dot(&a, &b), e * e);
    }

    #[test]
    fn max_abs_passes_over_nan() {
        assert_eq!(max_abs(&[]), 0.0);
        assert_eq!(max_abs(&[1.0, -3.0, 2.0]), 3.0);
        assert_eq!(max_abs(&[f32::NAN, 1.0, f32::NAN]), 1.0);
    }

    #[test]
    fn rms_norm_is_near_f64() {
        for n in [1, 16, 33, 384, 2560] {
            let (x, w) = (random(n, 3), random(n, 4));
            let mut out = vec![0.0; n];
            rms_norm(&x, &w, 1e-5, &mut out);
            let r = 1.0 / (dot64(&x, &x) / n as f64 + f64::from(1e-5f32)).sqrt();
            for i in 0..n {
                close(out[i], f64::from(x[i]) * r * f64::from(w[i]), 2e-6);
            }
        }
    }

    #[test]
    fn activations_are_quantised_to_nearest_even() {
        let mut q = [0i8; 6];
        // max 127: s is exactly 1, so the values show the rounding itself.
        let s = quantise_activations(&[127.0, 0.5, 1.5, -0.5, -2.5, -126.6], &mut q);
        assert_eq!((s, q), (1.0, [127, 0, 2, 0, -2, -127]));
        // The floor: an all-zero row has a finite scale.
        let s = quantise_activations(&[0.0; 6], &mut q);
        assert_eq!((s, q), (127.0 / 1e-5, [0; 6]));
        let s = quantise_activations(&[1e-6, 0.0, 0.0, 0.0, 0.0, -1e-5], &mut q);
        assert_eq!((s, q), (127.0 / 1e-5, [13, 0, 0, 0, 0, -127]));
        // What is not finite is not lost: it is in the scale.
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let s = quantise_activations(&[odd, 1.0, -1.0, 0.0, 0.5, 0.25], &mut q);
            assert!(s.is_nan(), "{odd}");
            assert_eq!(q, [-128; 6]);
        }
        let s = quantise_activations(&[f32::MAX, 1.0, 0.0, 0.0, 0.0, 0.0], &mut q);
        assert_eq!((s, q[0], q[1]), (127.0 / f32::MAX, 127, 0));
    }

    #[test]
    fn outputs_are_divided_then_scaled() {
        let mut out = [0.0; 3];
        scale_output(&[10, -7, i32::MAX], 3.0, 0.7, &mut out);
        let by_hand = |dot: f32| (dot / 3.0) * 0.7;
        assert_eq!(out, [by_hand(10.0), by_hand(-7.0), by_hand(2_147_483_648.0)]);
    }

    #[test]
    fn blocks_of_a_ternary_row_have_their_scales() {
        let x = [[127.0, 63.5, -1.0, 0.0], [-0.5, 0.25, 0.0, 0.5]].concat();
        let (mut q, mut scales) = ([0i8; 8], [0.0; 2]);
        quantise_in_blocks(&x, 4, &mut q, &mut scales);
        assert_eq!(q, [127, 64, -1, 0, -127, 64, 0, 127]);
        assert_eq!(scales, [1.0, 1.0 / 254.0]);
        // Weights +1 -1 0 +2, then 0 +1 +2 -1.
        let codes = [2, 0, 1, 3, 1, 2, 3, 0];
        let dot = dot_scaled_blocks((&q, &scales), (&codes, &[0.5, 4.0]));
        assert_eq!(dot, (64.0f32 - 127.0).mul_add(4.0 * scales[1], 0.5 * (127.0 - 64.0)));
        let x = [1.0, f32::NAN, 0.0, 0.0];
        quantise_in_blocks(&x, 2, &mut q[..4], &mut scales);
        assert!(scales[0].is_nan() && scales[1].is_finite());
    }

    #[test]
    fn exp_keeps_its_error_bound() {
        // A stride over all bit patterns from 2^-30 to the ends of the range, both signs.
        let mut worst = 0.0f64;
        for bits in (0x3080_0000..EXP_MAX.to_bits()).step_by(61) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                if x >= EXP_MIN {
                    let exact = f64::from(x).exp();
                    worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
                }
            }
        }
        assert!(worst < 0.65 / f64::from(1 << 23), "relative error {worst:e}");
    }

    #[test]
    fn exp_at_the_ends_of_its_range() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(1e-30), 1.0);
        assert!(exp(EXP_MAX).is_finite());
        assert_eq!(exp(EXP_MAX.next_up()), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(EXP_MIN).is_normal());
        assert_eq!(exp(EXP_MIN.next_down()).to_bits(), 0);
        assert_eq!(exp(-1e30).to_bits(), 0);
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn activation_functions_are_near_f64() {
        let gate: Vec<f32> = random(1000, 5).iter().map(|v| v * 20.0).collect();
        let up = random(1000, 6);
        let (mut silu_out, mut relu_out) = (vec![0.0; 1000], vec![0.0; 1000]);
        silu_mul(&gate, &up, &mut silu_out);
        relu2_mul(&gate, &up, &mut relu_out);
        for i in 0..1000 {
            let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
            close(silu_out[i], g / (1.0 + (-g).exp()) * u, 5e-6);
            close(relu_out[i], g.max(0.0).powi(2) * u, 5e-5);
        }
        assert_eq!(silu(-200.0), 0.0);
        assert_eq!(silu(200.0), 200.0);
        let mut out = [0.0; 2];
        relu2_mul(&[f32::NAN, -1.0], &[1.0, 5.0], &mut out);
        assert!(out[0].is_nan() && out[1] == 0.0);
    }

    #[test]
    fn residual_addition() {
        let mut x = [1.0, 2.0];
        add(&mut x, &[0.5, -2.0]);
        assert_eq!(x, [1.5, 0.0]);
    }

    #[test]
    fn rope_pairs_and_turns() {
        // A quarter turn: (a, b) -> (-b, a).
        let (cos, sin) = ([0.0, 0.0], [1.0, 1.0]);
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0];
        rope_neox(&mut x, &cos, &sin);
        assert_eq!(x, [-3.0, -4.0, 1.0, 2.0, 5.0]);
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0];
        rope_norm(&mut x, &cos, &sin);
        assert_eq!(x, [-2.0, 1.0, -4.0, 3.0, 5.0]);
        // The two conventions are one rotation under a permutation of the elements.
        let angle = 0.3f32;
        let (cos, sin) = ([angle.cos()], [angle.sin()]);
        let (mut a, mut b) = ([0.6, 0.8], [0.6, 0.8]);
        rope_neox(&mut a, &cos, &sin);
        rope_norm(&mut b, &cos, &sin);
        assert_eq!(a, b);
        close(a[0], 0.6 * 0.3f64.cos() - 0.8 * 0.3f64.sin(), 1e-7);
        close(a[1], 0.6 * 0.3f64.sin() + 0.8 * 0.3f64.cos(), 1e-7);
    }

    #[test]
    fn cache_elements_round_to_even() {
        let mut out = [f16::ZERO; 4];
        // 2049 and 2051 lie half-way between neighbours in f16.
        to_kv(&[2049.0, 2051.0, 65520.0, -1.0], &mut out);
        assert_eq!(out.map(f16::to_f32), [2048.0, 2052.0, f32::INFINITY, -1.0]);
        let mut out = [0.0f32; 2];
        to_kv(&[2049.0, 1e-40], &mut out);
        assert_eq!(out, [2049.0, 1e-40]);
    }

    #[test]
    fn codes_of_the_cache_have_a_scale() {
        let mut codes = [0i8; 4];
        let scale = to_kv(&[1.0, -0.5, 0.0, 0.003_937], &mut codes);
        assert_eq!((codes, scale), ([127, -64, 0, 0], 1.0 / 127.0));
        assert_eq!((to_kv(&[0.0; 4], &mut codes), codes), (1.0 / (127.0 / 1e-5), [0; 4]));
        // The value's scale is beside its weight, the key's beside its score.
        let (mut scores, mut out) = ([0.0; 2], [0.0]);
        let (k, v) = ([2i8, 4], [8i8, 100]);
        let state = attention_chunk(
            &[1.0],
            (&k, &[500.0, 0.5]),
            (&v, &[0.25, 9.0]),
            0.5,
            &mut scores,
            &mut out,
        );
        assert_eq!((state, out), (Softmax { max: 500.0, sum: 1.0 }, [2.0]));
    }

    /// Computes attention over chunks as the forward pass does, of elements whose scale is 1.
    fn attention<T: KvElement>(q: &[f32], k: &[T], v: &[T], scale: f32) -> Vec<f32> {
        let d = q.len();
        let ones = vec![1.0; k.len() / d];
        let (ones_k, ones_v) = (ones.chunks(CHUNK), ones.chunks(CHUNK));
        let mut scores = [0.0; CHUNK];
        let (mut out, mut part) = (vec![0.0; d], vec![0.0; d]);
        let mut state = None;
        let (k, v) = (k.chunks(CHUNK * d).zip(ones_k), v.chunks(CHUNK * d).zip(ones_v));
        for (k, v) in k.zip(v) {
            match &mut state {
                None => state = Some(attention_chunk(q, k, v, scale, &mut scores, &mut out)),
                Some(state) => {
                    let chunk = attention_chunk(q, k, v, scale, &mut scores, &mut part);
                    attention_merge(state, &mut out, chunk, &part);
                }
            }
        }
        attention_finish(state.unwrap(), &mut out);
        out
    }

    #[test]
    fn gelu_is_near_f64() {
        let exact = |x: f64| {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + z.tanh())
        };
        for i in -4000..4000 {
            let x = i as f32 / 400.0;
            let (found, exact) = (f64::from(gelu(x)), exact(x.into()));
            assert!((found - exact).abs() <= 3e-6 * exact.abs().max(1e-3), "{x}: {found}, {exact}");
        }
        assert_eq!((gelu(0.0), gelu(1e30), gelu(-1e30)), (0.0, 1e30, 0.0));
        assert!(gelu(f32::NAN).is_nan());
        let mut out = [0.0; 2];
        gelu_mul(&[1.0, -2.0], &[3.0, 0.5], &mut out);
        assert_eq!(out, [gelu(1.0) * 3.0, gelu(-2.0) * 0.5]);
    }

    #[test]
    fn attention_is_near_f64() {
        let d = 64;
        for n in [1, 2, 255, 256, 257, 513, 1000] {
            let q: Vec<f32> = random(d, 7).iter().map(|v| v * 8.0).collect();
            let mut k = vec![f16::ZERO; n * d];
            let mut v = vec![f16::ZERO; n * d];
            to_kv(&random(n * d, 8), &mut k);
            to_kv(&random(n * d, 9), &mut v);
            let found = attention(&q, &k, &v, 0.125);

            let score = |j: usize| -> f64 {
                (0..d).map(|c| f64::from(q[c]) * k[j * d + c].to_f64()).sum::<f64>() * 0.125
            };
            let p: Vec<f64> = (0..n).map(|j| score(j).exp()).collect();
            let total: f64 = p.iter().sum();
            for c in 0..d {
                let exact: f64 = (0..n).map(|j| p[j] / total * v[j * d + c].to_f64()).sum();
                close(found[c], exact, 1e-6);
            }
        }
    }

    #[test]
    fn attention_survives_scores_far_apart() {
        // The second chunk's only score is 1000 below (then above) the first's.
        for (first, second, winner) in [(1.0, -1.0, 3.0), (-1.0, 1.0, 5.0)] {
            let mut k = vec![f16::from_f32(first); CHUNK];
            k.push(f16::from_f32(second));
            let mut v = vec![f16::from_f32(3.0); CHUNK];
            v.push(f16::from_f32(5.0));
            assert_eq!(attention(&[1.0], &k, &v, 500.0), [winner]);
        }
    }

    #[test]
    fn blocks_are_quantised_apart() {
        let mut x = random(96, 12);
        x[32..64].fill(0.0);
        x[64..].iter_mut().for_each(|v| *v *= 1000.0);
        let (mut q, mut d) = ([0i8; 96], [0.0; 3]);
        quantise_blocks(&x, &mut q, &mut d);
        assert_eq!(&q[32..64], &[0; 32]);
        for i in 0..96 {
            close(x[i], f64::from(d[i / 32]) * f64::from(q[i]), f64::from(d[i / 32]) * 0.501);
        }
    }
}
