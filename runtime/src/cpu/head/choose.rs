//! Which form the head takes in memory: its own blocks, or low-bit copies that are scanned.

use std::sync::Arc;

use bitnet_profiles::{Isa, SketchFormat};

use super::screen;
use crate::cpu::gather::Along;
use crate::cpu::head::sketch::{self, HeadSketch};
use crate::cpu::kernels::{GatherKernel, SketchKernel};
use crate::cpu::memory::Pages;
use crate::cpu::model::{Model, Session, SessionOptions};
use crate::cpu::threads::Pool;
use crate::cpu::weights;
use crate::error::{Error, Result};
use crate::numerics::reaches;
use crate::random::Random;

/// How the best logits are found where not all are needed. Logits are the same either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadMode {
    /// By a scan of a low-bit copy where that reads less, which is measured on the model.
    #[default]
    Auto,
    /// By such a scan.
    Exact,
    /// By reading all of the head.
    Full,
}

/// What [`Model::choose_head`] goes by.
#[derive(Clone, Copy, Debug)]
pub struct HeadOptions {
    /// What was asked for.
    pub mode: HeadMode,
    /// How many of the best logits will be needed.
    pub count: usize,
    /// The best instructions that may be used.
    pub ceiling: Isa,
    /// The pages of what is kept in memory.
    pub pages: Pages,
    /// Whether it is kept from being swapped out.
    pub lock: bool,
}

/// A smaller head stays in the cache, where reading less gains little.
const WORTHWHILE_BYTES: usize = 16 << 20;
/// What a scan may cost relative to the full head.
const WORTHWHILE: f64 = 0.9;
/// Tokens of a made-up prompt, and those after it, after each of which logits are looked at.
const TOKENS: (usize, usize) = (4, 2);
/// Rows that costs are estimated from.
const SAMPLE: usize = 1024;

impl Model {
    /// Decides how the best logits are found, and takes into memory what that reads. The head must
    /// not have been copied: see [`LoadOptions::copy_head`](crate::cpu::model::LoadOptions::copy_head).
    ///
    /// To decide, some tokens go through the model, and some rows are coded to see how many of them
    /// could not be ruled out: weights without structure leave no logit standing out, and ask for
    /// more bits than a trained head.
    ///
    /// # Errors
    /// [`Error::Runtime`] when there is not enough memory or a worker panicked.
    pub fn choose_head(mut self, pool: &Arc<Pool>, options: &HeadOptions) -> Result<Self> {
        let scan = match options.mode {
            HeadMode::Full => None,
            _ if options.count > screen::most(self.config.vocab) => None,
            HeadMode::Auto if !self.scan_could_pay() => None,
            mode => {
                let (model, (format, cost)) = self.cheapest(pool, options)?;
                self = model;
                (mode == HeadMode::Exact || cost < WORTHWHILE).then_some(format)
            }
        };
        let kept = match scan {
            Some(format) => {
                let (head, cols) = (&self.weights.head, self.config.hidden);
                let missing = || Error::Runtime(format!("no kernels for {format}"));
                let kernels = SketchKernel::defaults(format, options.ceiling, self.head(1));
                let refinement = refinement_kernel(options)
                    .filter(|_| !kernels.is_empty())
                    .ok_or_else(missing)?;
                let scan = (format, kernels);
                let sketch = HeadSketch::build(
                    &self.gguf,
                    head,
                    cols,
                    scan,
                    refinement,
                    pool,
                    options.pages,
                )?;
                self.sketch.insert(sketch).lock_if(options.lock)
            }
            None => {
                let tied = self.weights.head.tensor().name == self.weights.embedding.tensor().name;
                let head = self.weights.head.clone().copied(&self.gguf, pool, options.pages)?;
                if tied {
                    self.weights.embedding = head.clone();
                }
                self.weights.head = head;
                if options.lock { self.weights.head.lock() } else { Ok(()) }
            }
        };
        self.gguf.drop_all();
        self.warnings.extend(kept.err().map(|error| weights::not_locked(&error)));
        Ok(self)
    }

    /// Whether a scan that left over no row would be worthwhile.
    fn scan_could_pay(&self) -> bool {
        let (rows, cols) = (self.config.vocab, self.config.hidden);
        let scan = HeadSketch::sketch_bytes(SketchFormat::P4, rows, cols);
        let full = self.head_bytes();
        full >= WORTHWHILE_BYTES && (scan as f64) < WORTHWHILE * full as f64
    }

    /// The format whose scan reads least, and how much relative to the full head.
    fn cheapest(
        self,
        pool: &Arc<Pool>,
        options: &HeadOptions,
    ) -> Result<(Self, (SketchFormat, f64))> {
        let context = self.config.context.min(TOKENS.0 + TOKENS.1);
        let model = Arc::new(self);
        let session =
            SessionOptions { context: Some(context), batch: TOKENS.0, kv_type: None, sequences: 1 };
        let mut session = Session::new(Arc::clone(&model), Arc::clone(pool), session)?;
        let (rows, cols) = (model.config.vocab, model.config.hidden);
        let mut random = Random::new(1);
        let mut token = || random.below(rows as u64) as u32;
        let prompt: Vec<u32> = (0..TOKENS.0.min(context)).map(|_| token()).collect();
        let refinement_bytes = refinement_kernel(options)
            .map_or(0, |k| HeadSketch::refinement_bytes(k.layout(), cols));
        let sample = || (0..rows).step_by(rows.div_ceil(SAMPLE));
        let formats = [SketchFormat::P4, SketchFormat::P5];
        let residuals = formats.map(|format| {
            let coder = (format, options.ceiling);
            sketch::residuals(&model.gguf, &model.weights.head, cols, coder, sample())
        });
        // Of each format the rows that the scan, and then the refinement copy, do not rule out.
        let (mut left, mut seen) = ([[0usize; 2]; 2], 0);
        for i in 0..=context - prompt.len() {
            let logits = if i == 0 { session.prefill(&prompt)? } else { session.decode(token())? };
            let mut sorted: Vec<f32> = logits.iter().copied().filter(|l| !l.is_nan()).collect();
            let last = options.count.max(1) - 1;
            let least = if last < sorted.len() {
                *sorted.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1
            } else {
                f32::NEG_INFINITY
            };
            let logits: Vec<f32> = sample().map(|row| logits[row]).collect();
            let norm = session.head_input().iter().map(|x| x * x).sum::<f32>().sqrt();
            for (left, residuals) in left.iter_mut().zip(&residuals) {
                for (logit, residuals) in logits.iter().zip(residuals) {
                    for (left, residual) in left.iter_mut().zip(residuals) {
                        *left += usize::from(reaches(logit + residual * norm, least));
                    }
                }
            }
            seen += logits.len();
        }
        drop(session);
        let costs = formats.iter().zip(left).map(|(&format, left)| {
            let [refined, rescored] = left.map(|left| left as f64 / seen as f64);
            let scan = HeadSketch::sketch_bytes(format, rows, cols) as f64;
            let refinement = refined * (rows * refinement_bytes) as f64;
            let full = model.head_bytes() as f64;
            let rest = screen::alone(&model.weights.head) * rescored;
            (format, (scan + screen::ALONE * refinement) / full + rest)
        });
        let cheapest = costs.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((SketchFormat::P4, 1.0));
        let model = Arc::into_inner(model)
            .ok_or_else(|| Error::Runtime("the model is still in use".into()))?;
        Ok((model, cheapest))
    }
}

/// The kernel that reads refinement rows.
fn refinement_kernel(options: &HeadOptions) -> Option<GatherKernel> {
    GatherKernel::default(Along::Rows, None, options.ceiling)
}
