//! A profile without timing anything.

use bitnet_profiles::{Choice, Pick, Profile};
use bitnet_runtime::cpu::host::Host;
use bitnet_runtime::cpu::kernels;

use super::outcome::Options;
use super::profile::empty;
use crate::Result;
use crate::model::ModelInfo;
use crate::plan::defaults::{serving, untuned};
use crate::plan::{JobPlan, plan};

/// Makes the profile of `--effort estimate`: for every job of `model` the kernels that would serve it
/// untuned, as they ship for this CPU. Nothing is timed or called.
///
/// # Errors
/// A ceiling that this CPU lacks.
pub fn estimate(model: &ModelInfo, options: &Options) -> Result<Profile> {
    let untuned = untuned(options.ceiling)?;
    let choice = |JobPlan { role, parts, count, .. }: JobPlan| -> Result<Choice> {
        let (decode, prefill) = serving(&untuned, model, (role, &parts))?;
        let layout = decode.op.packing();
        let prefill = prefill.filter(|_| layout.is_some()).map(Pick::untimed);
        let sparse = kernels::shipped().lines(role, &parts, None, options.ceiling).cloned();
        let decode = Pick::untimed(decode);
        Ok(Choice { role, parts, count, layout, decode, prefill, sparse })
    };
    // The candidates play no part.
    let jobs = plan(model, &[], options.ceiling, options.effort);
    let ops = jobs.into_iter().map(choice).collect::<Result<Vec<_>>>()?;
    Ok(Profile { ops, ..empty(model, &Host::detect(), options) })
}
