//! The float operations of one ISA, behind safe methods. [`crate::numerics`] defines each of them;
//! the results of every ISA are the same to the bit.

use bitnet_profiles::Isa;
use half::f16;

use crate::numerics::{Reach, Softmax};
use bitnet_kernels::{self as builtin, abi};

/// The float operations of one ISA that this CPU can run.
#[derive(Clone, Copy)]
pub struct VectorOps {
    isa: Isa,
    entry: &'static abi::VectorEntry,
}

impl std::fmt::Debug for VectorOps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VectorOps({})", self.isa)
    }
}

impl VectorOps {
    /// Returns the operations of every ISA that this CPU can run, the best last.
    pub fn supported() -> impl Iterator<Item = Self> {
        builtin::VECTOR.iter().filter_map(|(isa, entry)| {
            let isa: Isa = isa.parse().ok()?;
            isa.is_supported().then_some(Self { isa, entry })
        })
    }

    /// Returns those of the best ISA up to `ceiling`.
    pub fn best(ceiling: Isa) -> Self {
        let scalar = &builtin::VECTOR[0];
        Self::supported()
            .filter(|ops| ops.isa <= ceiling)
            .last()
            .unwrap_or(Self { isa: Isa::Scalar, entry: &scalar.1 })
    }

    /// Their ISA.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// [`numerics::rms_norm`](crate::numerics::rms_norm).
    pub fn rms_norm(&self, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == w.len() && x.len() == out.len());
        // SAFETY: the lengths are equal, the CPU was checked when the ops were chosen; so below.
        unsafe { (self.entry.rms_norm)(x.as_ptr(), w.as_ptr(), eps, out.as_mut_ptr(), x.len()) }
    }

    /// [`numerics::quantise_activations`](crate::numerics::quantise_activations).
    pub fn quantise_activations(&self, x: &[f32], q: &mut [i8]) -> f32 {
        assert_eq!(x.len(), q.len());
        // SAFETY: as above.
        unsafe { (self.entry.quantise_activations)(x.as_ptr(), q.as_mut_ptr(), x.len()) }
    }

    /// [`numerics::quantise_blocks`](crate::numerics::quantise_blocks).
    pub fn quantise_blocks(&self, x: &[f32], q: &mut [i8], d: &mut [f32]) {
        assert!(x.len() == q.len() && x.len() == d.len() * 32);
        // SAFETY: as above.
        unsafe {
            (self.entry.quantise_blocks)(x.as_ptr(), q.as_mut_ptr(), d.as_mut_ptr(), x.len());
        }
    }

    /// [`numerics::scale_output`](crate::numerics::scale_output).
    pub fn scale_output(&self, dots: &[i32], s: f32, wscale: f32, out: &mut [f32]) {
        assert_eq!(dots.len(), out.len());
        // SAFETY: as above.
        unsafe {
            (self.entry.scale_output)(dots.as_ptr(), s, wscale, out.as_mut_ptr(), out.len());
        }
    }

    /// [`numerics::silu_mul`](crate::numerics::silu_mul).
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len());
        // SAFETY: as above.
        unsafe {
            (self.entry.silu_mul)(gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len());
        }
    }

    /// [`numerics::list_positive`](crate::numerics::list_positive), into a list that is as long
    /// as `x`, rounded up to a multiple of 16.
    pub fn list_positive(&self, x: &[f32], list: &mut [u32]) -> usize {
        assert!(list.len() >= x.len().next_multiple_of(16) && u32::try_from(x.len()).is_ok());
        // SAFETY: as above; the list holds whole groups of 16.
        unsafe { (self.entry.list_positive)(x.as_ptr(), list.as_mut_ptr(), x.len()) }
    }

    /// [`numerics::list_nonzero`](crate::numerics::list_nonzero), into lists that are as long
    /// as `q`, rounded up to a multiple of 16.
    pub fn list_nonzero(&self, q: &[i8], list: &mut [u32], values: &mut [i8]) -> usize {
        let room = q.len().next_multiple_of(16);
        assert!(list.len() >= room && values.len() >= room && u32::try_from(q.len()).is_ok());
        // SAFETY: as above.
        unsafe {
            let (list, values) = (list.as_mut_ptr(), values.as_mut_ptr());
            (self.entry.list_nonzero)(q.as_ptr(), list, values, q.len())
        }
    }

    /// [`numerics::list_reaching`](crate::numerics::list_reaching), into a list that is as long as
    /// `estimates`, rounded up to a multiple of 16.
    pub fn list_reaching(
        &self,
        (estimates, residuals): (&[f32], &[f32]),
        reach: Reach,
        first: u32,
        list: &mut [u32],
    ) -> usize {
        let n = estimates.len();
        assert!(residuals.len() == n && list.len() >= n.next_multiple_of(16));
        assert!(u32::try_from(n).is_ok_and(|n| first.checked_add(n).is_some()));
        let Reach { norm, slack, least } = reach;
        let reach = abi::Reach { norm, slack, least };
        let (estimates, residuals) = (estimates.as_ptr(), residuals.as_ptr());
        // SAFETY: as above.
        unsafe {
            (self.entry.list_reaching)(estimates, residuals, &reach, first, list.as_mut_ptr(), n)
        }
    }

    /// [`numerics::relu2_mul`](crate::numerics::relu2_mul).
    pub fn relu2_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len());
        // SAFETY: as above.
        unsafe {
            (self.entry.relu2_mul)(gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), out.len());
        }
    }

    /// [`numerics::add`](crate::numerics::add).
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: as above.
        unsafe { (self.entry.add)(x.as_mut_ptr(), y.as_ptr(), x.len()) }
    }

    /// [`numerics::rope_neox`](crate::numerics::rope_neox).
    pub fn rope_neox(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(cos.len() == sin.len() && 2 * cos.len() <= x.len());
        // SAFETY: as above; `x` holds both halves.
        unsafe { (self.entry.rope_neox)(x.as_mut_ptr(), cos.as_ptr(), sin.as_ptr(), cos.len()) }
    }

    /// [`numerics::rope_norm`](crate::numerics::rope_norm).
    pub fn rope_norm(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(cos.len() == sin.len() && 2 * cos.len() <= x.len());
        // SAFETY: as above; `x` holds all pairs.
        unsafe { (self.entry.rope_norm)(x.as_mut_ptr(), cos.as_ptr(), sin.as_ptr(), cos.len()) }
    }

    /// [`numerics::to_kv`](crate::numerics::to_kv).
    pub fn to_f16(&self, x: &[f32], out: &mut [f16]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: as above; f16 is a transparent u16.
        unsafe { (self.entry.to_f16)(x.as_ptr(), out.as_mut_ptr().cast(), x.len()) }
    }

    /// [`numerics::attention_merge`](crate::numerics::attention_merge).
    pub fn attention_merge(
        &self,
        state: &mut Softmax,
        out: &mut [f32],
        chunk: Softmax,
        chunk_out: &[f32],
    ) {
        assert_eq!(out.len(), chunk_out.len());
        let Softmax { max, sum } = chunk;
        let (chunk, n) = (abi::Softmax { max, sum }, out.len());
        let mut before = abi::Softmax { max: state.max, sum: state.sum };
        // SAFETY: as above.
        unsafe {
            let (out, chunk_out) = (out.as_mut_ptr(), chunk_out.as_ptr());
            (self.entry.attention_merge)(&mut before, out, &chunk, chunk_out, n);
        }
        *state = Softmax { max: before.max, sum: before.sum };
    }

    /// [`numerics::attention_finish`](crate::numerics::attention_finish).
    pub fn attention_finish(&self, state: Softmax, out: &mut [f32]) {
        let state = abi::Softmax { max: state.max, sum: state.sum };
        // SAFETY: as above.
        unsafe { (self.entry.attention_finish)(&state, out.as_mut_ptr(), out.len()) }
    }
}
