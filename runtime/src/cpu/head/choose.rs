//! Choice of the head's form in memory: its own blocks, or low-bit copies that are scanned.

use std::sync::Arc;

use bitnet_profiles::{Isa, SketchFormat};

use super::screen;
use crate::cpu::gather::Along;
use crate::cpu::head::sketch::{self, HeadSketch};
use crate::cpu::kernels::{GatherKernel, SketchKernel};
use crate::cpu::memory::Pages;
use crate::cpu::model::{Model, Session, SessionOptions};
use crate::cpu::table::Table;
use crate::cpu::threads::Pool;
use crate::cpu::weights;
use crate::error::{Error, Result};
use crate::file::packed::{Form, PackedFile};
use crate::numerics::reaches;
use crate::random::Random;

/// Method of finding the best logits where not all are needed. Logits are the same with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadMode {
    /// A scan of a low-bit copy where that reads less, as measured on the model.
    #[default]
    Auto,
    /// Always a scan.
    Exact,
    /// Always the full head.
    Full,
}

/// Options of [`Model::choose_head`].
#[derive(Clone, Copy, Debug)]
pub struct HeadOptions {
    /// The requested method.
    pub mode: HeadMode,
    /// Number of the best logits that will be needed.
    pub count: usize,
    /// The best instruction set that may be used.
    pub ceiling: Isa,
    /// Page size for the head or its copies.
    pub pages: Pages,
    /// Locks them in memory, so that they are not swapped out.
    pub lock: bool,
}

/// Smallest head, in bytes, that is worth scanning: a smaller one stays in the cache, where reading
/// less gains little.
const WORTHWHILE_BYTES: usize = 16 << 20;
/// Largest cost of a scan relative to the full head.
const WORTHWHILE: f64 = 0.9;
/// Tokens of a random prompt, and tokens decoded after it; logits are sampled after the prompt and
/// after each of these.
const TOKENS: (usize, usize) = (4, 2);
/// Rows sampled to estimate costs.
const SAMPLE: usize = 1024;

impl Model {
    /// Chooses how the best logits are found, and loads into memory what that reads. The head must
    /// not have been copied: see
    /// [`LoadOptions::copy_head`](crate::cpu::model::LoadOptions::copy_head).
    ///
    /// The choice is measured: some tokens go through the model, and some rows are coded to see how
    /// many of them could not be ruled out. In a model whose weights have no structure no logit
    /// stands out, so that it needs more bits than a trained head.
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
                let head = self.weights.head.clone().copied(&self.gguf, pool, options.pages)?;
                self.set_head(head);
                if options.lock { self.weights.head.lock() } else { Ok(()) }
            }
        };
        self.gguf.drop_all();
        self.warnings.extend(kept.err().map(|error| weights::not_locked(&error)));
        Ok(self)
    }

    /// Chooses as [`Model::choose_head`] did when the file of packed weights was made: its low-bit copies
    /// of the head are scanned where scans are asked for, and nothing is measured or loaded. A head that
    /// is read whole is the file's, if that has it, and else stays in the model's file.
    ///
    /// # Errors
    /// As [`Model::choose_head`]; [`Error::Model`] when the file is damaged.
    pub fn packed_head(
        mut self,
        file: &PackedFile,
        pool: &Arc<Pool>,
        options: &HeadOptions,
    ) -> Result<Self> {
        let scans =
            options.mode != HeadMode::Full && options.count <= screen::most(self.config.vocab);
        let sections = || file.table().sections.iter();
        let format = sections().find_map(|section| match section.form {
            Form::Sketch(format) if scans => Some(format),
            _ => None,
        });
        let kernels =
            format.map(|format| SketchKernel::defaults(format, options.ceiling, self.head(1)));
        let kernels = kernels.filter(|kernels| !kernels.is_empty());
        if let (Some(format), Some(kernels), Some(refinement)) =
            (format, kernels, refinement_kernel(options))
        {
            let (head, cols) = (&self.weights.head, self.config.hidden);
            let scan = (format, kernels);
            self.sketch = Some(HeadSketch::packed(file, head, cols, scan, refinement)?);
        } else if scans && options.mode == HeadMode::Exact {
            return self.choose_head(pool, options);
        } else if sections().any(|section| matches!(section.form, Form::Blocks(_))) {
            let head = self.weights.head.clone().packed(file)?;
            self.set_head(head);
        }
        Ok(self)
    }

    /// Replaces the head, which may be the embedding, too.
    fn set_head(&mut self, head: Table) {
        if self.weights.head.tensor().name == self.weights.embedding.tensor().name {
            self.weights.embedding = head.clone();
        }
        self.weights.head = head;
    }

    /// True if a scan that ruled out every row would be worthwhile.
    fn scan_could_pay(&self) -> bool {
        let (rows, cols) = (self.config.vocab, self.config.hidden);
        let scan = HeadSketch::sketch_bytes(SketchFormat::P4, rows, cols);
        let full = self.head_bytes();
        full >= WORTHWHILE_BYTES && (scan as f64) < WORTHWHILE * full as f64
    }

    /// Returns the format whose scan costs least, and its cost relative to the full head.
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
        // For each format the rows that are left after the scan, and after the refinement copy.
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

/// Returns the kernel that reads refinement rows.
fn refinement_kernel(options: &HeadOptions) -> Option<GatherKernel> {
    GatherKernel::default(Along::Rows, None, options.ceiling)
}
