//! `bitnet-tune list`: prints the space of a model.

use std::path::PathBuf;

use bitnet_codegen::Phase;
use bitnet_profiles::{Effort, Isa, Role};

use super::answer;
use crate::measure::{PHASES, phase_name};
use crate::plan::plan;
use crate::{ModelInfo, Result};

/// List the candidates for a model: role, matrices, times per token, phase, kernel
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model, a GGUF file
    #[arg(long, short, value_name = "FILE")]
    model: PathBuf,
    /// The best ISA tier to list for; any, this CPU's by default
    #[arg(long, value_name = "ISA")]
    isa: Option<Isa>,
    /// measure: what is worth timing; patient: everything
    #[arg(long, default_value = "measure")]
    effort: Effort,
}

/// Prints one line for each role and candidate, its fields separated by tabs.
///
/// # Errors
/// The file is no ternary model, or stdout is closed.
pub fn run(args: &Args) -> Result<()> {
    let model = ModelInfo::open(&args.model)?;
    let kernels = bitnet_codegen::grid(Isa::ALL);
    let ceiling = args.isa.unwrap_or_else(Isa::best);
    let plan = plan(&model, &kernels, ceiling, args.effort);
    answer(|out| {
        for job in &plan {
            let parts: Vec<String> = job.parts.iter().map(ToString::to_string).collect();
            for phase in PHASES {
                // One kernel of attention serves both phases.
                if job.role == Role::Attention && phase == Phase::Prefill {
                    continue;
                }
                for id in job.layouts.iter().flat_map(|layout| layout.kernels(phase)) {
                    let (role, count, phase) = (job.role, job.count, phase_name(phase));
                    writeln!(out, "{role}\t{}\tx{count}\t{phase}\t{id}", parts.join(" "))?;
                }
            }
        }
        Ok(())
    })
}
