//! Data for tests of kernels. They need no program, so that they build fast for emulated CPUs.
#![forbid(unsafe_code)]

/// A small deterministic generator of test data (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for every seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((self.next_u64() >> 32) * n) >> 32
    }
}

/// Ternary codes and activations that provoke overflow, sign and padding faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Uniform codes and activations.
    Random,
    /// Every code and every activation the same.
    Constant {
        /// Code 0, 1 or 2.
        code: u8,
        /// Any int8.
        activation: i8,
    },
    /// Codes that follow the sign of the activations: the largest sums there are.
    Aligned,
}

impl Pattern {
    /// Inputs that every kernel must survive.
    pub const ALL: &[Self] = &[
        Self::Random,
        Self::Constant { code: 2, activation: 127 },
        Self::Constant { code: 2, activation: -128 },
        Self::Constant { code: 0, activation: 127 },
        Self::Constant { code: 0, activation: -128 },
        Self::Constant { code: 1, activation: -128 },
        Self::Constant { code: 2, activation: 0 },
        Self::Aligned,
    ];

    /// `rows * cols` codes and `tokens * cols` activations.
    pub fn fill(self, rows: usize, cols: usize, tokens: usize) -> (Vec<u8>, Vec<i8>) {
        let mut random = Random::new((rows * 31 + cols) as u64);
        let mut codes = vec![0; rows * cols];
        let mut activations = vec![0; tokens * cols];
        match self {
            Self::Random => {
                codes.fill_with(|| random.below(3) as u8);
                activations.fill_with(|| random.below(256) as u8 as i8);
            }
            Self::Constant { code, activation } => {
                codes.fill(code);
                activations.fill(activation);
            }
            Self::Aligned => {
                for (i, q) in activations.iter_mut().enumerate() {
                    *q = if (i % cols).is_multiple_of(3) { -128 } else { 127 };
                }
                for (i, code) in codes.iter_mut().enumerate() {
                    *code = if (i % cols).is_multiple_of(3) { 0 } else { 2 };
                }
            }
        }
        (codes, activations)
    }
}
