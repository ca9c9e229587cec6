//! Comparison of the kernels that serve with their rivals.

use bitnet_codegen::Phase;
use bitnet_profiles::{KernelId, Objective, Pick, Profile, Role, Shape};

use super::verdict::{PhaseCheck, Ratio, Rival, RivalKind, RoleCheck, Skipped, SparseCheck};
use crate::measure::{Excluded, JobMeasurements, Measurements, Timing, phase_name, weights};

/// Kernels that serve a choice of the profile on this host.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Serving {
    /// The role.
    pub role: Role,
    /// Its matrices.
    pub parts: Vec<Shape>,
    /// Decode kernel.
    pub decode: KernelId,
    /// Prefill kernel; none for the head.
    pub prefill: Option<KernelId>,
}

/// Returns the pick of a phase; attention has one for both.
pub(super) fn pick(choice: &bitnet_profiles::Choice, phase: Phase) -> Option<&Pick> {
    match phase {
        Phase::Prefill if choice.role != Role::Attention => choice.prefill.as_ref(),
        _ => Some(&choice.decode),
    }
}

/// Compares the kernels that serve with their rivals. The same measurements give the same verdicts.
pub(super) fn judge(
    profile: &Profile,
    served: &[Serving],
    measurements: &Measurements,
) -> Vec<RoleCheck> {
    let role = |serving: &Serving| {
        let choice = profile.choice(serving.role, &serving.parts)?;
        let same = |job: &&JobMeasurements| job.role == serving.role && job.parts == serving.parts;
        let job = measurements.jobs.iter().find(same);
        let role = Judge { profile, choice, serving, job, excluded: &measurements.excluded };
        let phases = [(Phase::Decode, Some(serving.decode)), (Phase::Prefill, serving.prefill)];
        let phases = phases.into_iter().filter_map(|(phase, id)| role.phase(phase, id?));
        Some(RoleCheck {
            role: serving.role,
            parts: serving.parts.clone(),
            count: choice.count,
            layout: serving.decode.op.packing(),
            phases: phases.collect(),
            together: role.together(),
            sparse: role.sparse(),
        })
    };
    served.iter().filter_map(role).collect()
}

/// One role with its measurements.
struct Judge<'a> {
    profile: &'a Profile,
    choice: &'a bitnet_profiles::Choice,
    serving: &'a Serving,
    job: Option<&'a JobMeasurements>,
    excluded: &'a [Excluded],
}

impl<'a> Judge<'a> {
    /// Returns the timing of a kernel.
    fn timing(&self, phase: Phase, kernel: &KernelId) -> Option<&'a Timing> {
        let layouts = self.job?.layouts.iter();
        layouts.flat_map(|layout| layout.timings(phase)).find(|timing| timing.kernel == *kernel)
    }

    /// Returns the time over the default's, and half its 95 % interval.
    fn ratio(&self, phase: Phase, kernel: &KernelId) -> Option<(f64, f64)> {
        if self.job?.default_kernel(phase) == Some(*kernel) {
            return Some((1.0, 0.0));
        }
        self.timing(phase, kernel).map(|timing| (timing.ratio, timing.half_width))
    }

    /// True if a rival can only be chosen for both phases together.
    fn is_joint(&self, kind: RivalKind) -> bool {
        let default = self.job.map(|job| job.default_decode.op.packing());
        let elsewhere = default.is_some_and(|layout| layout != self.serving.decode.op.packing());
        self.serving.role == Role::Attention || (kind == RivalKind::Default && elsewhere)
    }

    /// Lists the rivals of a phase that were timed.
    fn rivals(&self, phase: Phase, serves: KernelId) -> Vec<(RivalKind, KernelId)> {
        let pick = pick(self.choice, phase);
        let timed = |id: &KernelId| *id != serves && self.ratio(phase, id).is_some();
        let runner_up = pick.and_then(Pick::runner_up).filter(timed);
        let built_in = pick.map(|pick| pick.built_in).filter(timed);
        let second = match (runner_up, built_in) {
            (Some(id), _) => Some((RivalKind::RunnerUp, id)),
            (None, built_in) => built_in.map(|id| (RivalKind::BuiltIn, id)),
        };
        let default = self.job.and_then(|job| job.default_kernel(phase)).filter(timed);
        // A runner-up that is the default stands once.
        let second = second.filter(|(_, id)| Some(*id) != default);
        second.into_iter().chain(default.map(|id| (RivalKind::Default, id))).collect()
    }

    fn phase(&self, phase: Phase, serves: KernelId) -> Option<PhaseCheck> {
        let own = self.ratio(phase, &serves);
        let timing = self.timing(phase, &serves);
        let rival = |(kind, id): (RivalKind, KernelId)| {
            let ratio = Ratio::of(own?, self.ratio(phase, &id)?);
            Some(Rival::of(kind, id, ratio, !self.is_joint(kind)))
        };
        let pick = pick(self.choice, phase)?;
        let absent = |id: &KernelId| *id != serves && self.ratio(phase, id).is_none();
        Some(PhaseCheck {
            phase: phase_name(phase),
            pick: pick.kernel,
            absent_runner_up: pick.runner_up().filter(absent),
            serves,
            median_us: timing.map(|timing| timing.median_us),
            rivals: self.rivals(phase, serves).into_iter().filter_map(rival).collect(),
            wrong: self.excluded.iter().find(|excluded| excluded.kernel == serves).cloned(),
        })
    }

    /// Judges activation sparsity, where the profile uses it.
    fn sparse(&self) -> Option<SparseCheck> {
        let pick = self.choice.sparse.clone()?;
        let timed = self.job.and_then(|job| job.sparse.as_ref());
        let timed = timed.filter(|sparse| !sparse.timings.is_empty());
        let all = || timed.into_iter().flat_map(|sparse| &sparse.timings).map(Skipped::of);
        let lags = all().filter(|skipped| skipped.density <= pick.below && skipped.lags());
        Some(SparseCheck {
            serves: timed.map(|sparse| sparse.default),
            quarter: all().find(|skipped| skipped.density == 0.25),
            lag: lags.max_by(|a, b| a.ratio.total_cmp(&b.ratio)),
            pick,
        })
    }

    /// Compares both phases together with the rivals that must be.
    fn together(&self) -> Vec<Rival> {
        let (Some(job), Some(prefill)) = (self.job, self.serving.prefill) else {
            return Vec::new();
        };
        let objective: Objective = self.profile.tool.objective;
        let (of_decode, of_prefill) = weights(objective);
        let decode_us = of_decode * job.default_us(Phase::Decode);
        let prefill_us = of_prefill * job.default_us(Phase::Prefill);
        let cost = |decode: &KernelId, prefill: &KernelId| {
            let d = self.ratio(Phase::Decode, decode)?;
            let p = self.ratio(Phase::Prefill, prefill)?;
            let half_width = (decode_us * d.1).hypot(prefill_us * p.1);
            Some((decode_us * d.0 + prefill_us * p.0, half_width))
        };
        let own = cost(&self.serving.decode, &prefill);
        let rivals = self.rivals(Phase::Decode, self.serving.decode).into_iter();
        let joint = rivals.filter(|(kind, _)| self.is_joint(*kind)).filter_map(|(kind, id)| {
            let many = match kind {
                RivalKind::Default => job.default_prefill?,
                _ => id,
            };
            Some(Rival::of(kind, id, Ratio::of(own?, cost(&id, &many)?), true))
        });
        joint.collect()
    }
}

/// Drops the lags of the first measurement that the second does not show.
pub(super) fn confirm(roles: &mut [RoleCheck], again: Vec<RoleCheck>) {
    for mut second in again {
        let same =
            |first: &&mut RoleCheck| first.role == second.role && first.parts == second.parts;
        let first = roles.iter_mut().find(same).filter(|first| first.lags());
        let Some(first) = first else { continue };
        let lagged = |phase: Option<&str>, kind: RivalKind| {
            first.lost().any(|(lost, rival)| lost == phase && rival.kind == kind)
        };
        for phase in &mut second.phases {
            for rival in &mut phase.rivals {
                rival.lags &= lagged(Some(phase.phase), rival.kind);
            }
        }
        for rival in &mut second.together {
            rival.lags &= lagged(None, rival.kind);
        }
        // Of the two parts of a role that were timed again the other says nothing new.
        match (&mut first.sparse, second.sparse.take()) {
            (Some(first), Some(second)) if second.quarter.is_some() => {
                let lagged = first.lag.is_some();
                *first = SparseCheck { lag: second.lag.filter(|_| lagged), ..second };
            }
            _ => {}
        }
        if first.lost().next().is_some() {
            second.sparse = first.sparse.take();
            *first = second;
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_profiles::{Choice, Sparse, Timed};

    use super::*;
    use crate::measure::{LayoutMeasurements, Limits, SparseMeasurements, SparseTiming, Why};
    use crate::plan::sparse;

    const D16: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0";
    const P16: &str = "i2_s_t16__avx512vnni__any__r32_c0_n8_u1_p0";
    const D32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n1_u1_p0";
    const D32_SECOND: &str = "i2_s_t32__avx512vnni__any__r64_c0_n1_u1_p0";
    const D32_MADE: &str = "i2_s_t32__avx512vnni__m256_k256__r32_c0_n1_u1_p0";
    const P32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n8_u1_p0";
    const A1: &str = "attention_f16__avx512__any__r1_c256_n1_u1_p0";
    const A8: &str = "attention_f16__avx512__any__r8_c256_n1_u1_p0";

    fn id(text: &str) -> KernelId {
        text.parse().unwrap()
    }

    fn timing(kernel: &str, ratio: f64, half_width: f64) -> Timing {
        Timing {
            kernel: id(kernel),
            samples: 20,
            min_us: 90.0 * ratio,
            median_us: 100.0 * ratio,
            mad_us: 1.0,
            ratio,
            half_width,
            finalist: true,
        }
    }

    fn pick(kernel: &str, runner_up: Option<&str>, built_in: &str) -> Pick {
        let timed = Timed {
            tokens: 1,
            median_us: 100.0,
            mad_us: 1.0,
            gb_per_s: 1.0,
            share_of_limit: 0.5,
            runner_up: runner_up.map(id),
            runner_up_ratio: None,
        };
        Pick { kernel: id(kernel), timed: Some(timed), built_in: id(built_in) }
    }

    /// A role with picks, defaults and timings; the defaults take 100 us for one token and 400 us
    /// for 32.
    struct Case {
        role: Role,
        decode: Pick,
        prefill: Option<Pick>,
        defaults: (&'static str, Option<&'static str>),
        timed: (Vec<Timing>, Vec<Timing>),
        excluded: Vec<Excluded>,
        objective: Objective,
        sparse: Option<(Sparse, SparseMeasurements)>,
    }

    impl Case {
        /// A decode pick in the default's own layout.
        fn decode(decode: Pick, timed: Vec<Timing>) -> Self {
            Self {
                role: Role::Down,
                decode,
                prefill: Some(pick(P32, None, P32)),
                defaults: (D32, Some(P32)),
                timed: (timed, vec![timing(P32, 1.0, 0.0)]),
                excluded: Vec::new(),
                objective: Objective::Balanced,
                sparse: None,
            }
        }

        fn judged(&self, serves: &str) -> RoleCheck {
            let mut profile =
                Profile::parse(include_str!("../../tests/data/profile.toml")).unwrap();
            let parts = vec![Shape::new(256, 256)];
            profile.tool.objective = self.objective;
            profile.ops = vec![Choice {
                role: self.role,
                parts: parts.clone(),
                count: 6,
                layout: self.decode.kernel.op.packing(),
                decode: self.decode.clone(),
                prefill: self.prefill.clone(),
                sparse: self.sparse.as_ref().map(|(pick, _)| pick.clone()),
            }];
            let (decode, prefill) = self.timed.clone();
            let many = match self.role {
                Role::Attention => Some(id(serves)),
                _ => self.prefill.as_ref().map(|pick| pick.kernel),
            };
            let job = JobMeasurements {
                role: self.role,
                parts: parts.clone(),
                count: 6,
                default_decode: id(self.defaults.0),
                default_prefill: self.defaults.1.map(id),
                default_decode_us: 100.0,
                default_prefill_us: 400.0,
                tokens: 32,
                layouts: vec![LayoutMeasurements {
                    layout: self.decode.kernel.op.packing(),
                    bytes: 1000,
                    limit_gb_per_s: 40.0,
                    decode,
                    prefill,
                }],
                sparse: self.sparse.as_ref().map(|(_, measured)| measured.clone()),
            };
            let limits = Limits {
                threads: 1,
                read_gb_per_s: 40.0,
                limit_gb_per_s: 40.0,
                limit_gmac_per_s: None,
                cold: true,
            };
            let excluded = self.excluded.clone();
            let jobs = vec![job];
            let measurements =
                Measurements { limits, noise: 0.01, disturbed: false, excluded, jobs };
            let serving = Serving { role: self.role, parts, decode: id(serves), prefill: many };
            let mut roles = judge(&profile, &[serving], &measurements);
            assert_eq!(roles.len(), 1);
            roles.remove(0)
        }
    }

    /// Phases and rivals of the lost comparisons.
    fn lost(role: &RoleCheck) -> Vec<(Option<&'static str>, RivalKind)> {
        role.lost().map(|(phase, rival)| (phase, rival.kind)).collect()
    }

    #[test]
    fn a_lag_beyond_the_noise_is_one() {
        // The pick's ratio to the default and half its interval, the runner-up's; what is lost.
        type Row = ((f64, f64), (f64, f64), &'static [RivalKind]);
        let rows: [Row; 8] = [
            ((0.90, 0.01), (0.95, 0.01), &[]),
            ((0.90, 0.01), (0.85, 0.01), &[RivalKind::RunnerUp]),
            // Within the noise of one or of both.
            ((0.90, 0.06), (0.85, 0.01), &[]),
            ((0.90, 0.04), (0.85, 0.04), &[]),
            // No noise, but no more than being simpler may cost.
            ((0.90, 0.001), (0.89, 0.001), &[]),
            ((1.05, 0.02), (1.20, 0.02), &[RivalKind::Default]),
            ((1.05, 0.06), (1.20, 0.02), &[]),
            ((1.05, 0.01), (0.90, 0.01), &[RivalKind::RunnerUp, RivalKind::Default]),
        ];
        for (own, second, kinds) in rows {
            let decode = pick(D32_MADE, Some(D32_SECOND), D32);
            let timed = vec![
                timing(D32_MADE, own.0, own.1),
                timing(D32_SECOND, second.0, second.1),
                timing(D32, 1.0, 0.0),
            ];
            let role = Case::decode(decode, timed).judged(D32_MADE);
            let expected: Vec<_> = kinds.iter().map(|&kind| (Some("decode"), kind)).collect();
            assert_eq!(lost(&role), expected, "{own:?} {second:?}");
            assert_eq!(role.holds(), kinds.is_empty());
            assert!(role.together.is_empty());
        }
    }

    #[test]
    fn rivals_that_are_not_here_are_replaced_or_left_out() {
        let kinds = |role: &RoleCheck| -> Vec<RivalKind> {
            role.phases[0].rivals.iter().map(|rival| rival.kind).collect()
        };
        // The runner-up was made for the run that is over: the best built-in kernel serves.
        let decode = pick(D32_MADE, Some("i2_s_t32__avx512vnni__m256_k256__r64_c0_n1_u1_p0"), D32);
        let mut case = Case::decode(
            pick(D32_MADE, decode.runner_up().map(|id| id.to_string()).as_deref(), D32_SECOND),
            vec![timing(D32_MADE, 0.9, 0.01), timing(D32_SECOND, 0.8, 0.01)],
        );
        let role = case.judged(D32_MADE);
        assert_eq!(kinds(&role), [RivalKind::BuiltIn, RivalKind::Default]);
        assert_eq!(role.phases[0].absent_runner_up, decode.runner_up());
        assert_eq!(lost(&role), [(Some("decode"), RivalKind::BuiltIn)]);
        // No second at all, and the default itself.
        case = Case::decode(pick(D32, None, D32), vec![timing(D32, 1.0, 0.0)]);
        let role = case.judged(D32);
        assert!(kinds(&role).is_empty() && role.holds());
        // A runner-up that is the default stands once.
        let timed = vec![timing(D32_MADE, 0.9, 0.01), timing(D32, 1.0, 0.0)];
        let role = Case::decode(pick(D32_MADE, Some(D32), D32), timed).judged(D32_MADE);
        assert_eq!(kinds(&role), [RivalKind::Default]);
        assert_eq!(role.phases[0].absent_runner_up, None);
    }

    #[test]
    fn a_fallback_is_judged_as_what_runs() {
        let timed = vec![timing(D32_SECOND, 1.1, 0.01), timing(D32, 1.0, 0.0)];
        let role = Case::decode(pick(D32_MADE, None, D32_SECOND), timed).judged(D32_SECOND);
        let phase = &role.phases[0];
        assert_eq!((phase.pick, phase.serves), (id(D32_MADE), id(D32_SECOND)));
        assert_eq!(lost(&role), [(Some("decode"), RivalKind::Default)]);
    }

    #[test]
    fn a_layout_is_held_against_the_default_with_both_its_kernels() {
        // Of another layout than the default's: a tenth slower for a token, a quarter faster for
        // a prompt. A token costs 110 of 100, four prompt tokens 37.5 of 50.
        let mut case = Case {
            defaults: (D16, Some(P16)),
            timed: (vec![timing(D32, 1.1, 0.01)], vec![timing(P32, 0.75, 0.01)]),
            ..Case::decode(pick(D32, None, D32), vec![])
        };
        for (objective, holds, ratio) in [
            (Objective::Balanced, true, 147.5 / 150.0),
            (Objective::Prefill, true, 0.75),
            (Objective::Decode, false, 1.1),
        ] {
            case.objective = objective;
            let role = case.judged(D32);
            assert_eq!(role.holds(), holds, "{objective}");
            assert!((role.together[0].ratio - ratio).abs() < 1e-9, "{role:?}");
            assert!(role.phases.iter().flat_map(|p| &p.rivals).all(|rival| !rival.counts));
        }
    }

    #[test]
    fn attention_is_held_against_its_rivals_in_both_phases_together() {
        let mut case = Case {
            role: Role::Attention,
            decode: pick(A1, Some(A8), A1),
            prefill: None,
            defaults: (A8, Some(A8)),
            timed: (
                vec![timing(A1, 0.7, 0.01), timing(A8, 1.0, 0.0)],
                vec![timing(A1, 1.6, 0.01), timing(A8, 1.0, 0.0)],
            ),
            excluded: Vec::new(),
            objective: Objective::Decode,
            sparse: None,
        };
        let role = case.judged(A1);
        assert_eq!((role.phases.len(), role.together.len()), (2, 1));
        assert!(role.holds());
        // 70 + 4 * 1.6 * 12.5 are as much as 100 + 50.
        case.objective = Objective::Balanced;
        assert!(case.judged(A1).holds());
        case.objective = Objective::Prefill;
        assert_eq!(lost(&case.judged(A1)), [(None, RivalKind::Default)]);
    }

    /// Ratios are to dense decode, one for each density.
    #[test]
    fn a_sparse_kernel_lags_where_it_serves_and_dense_is_faster() {
        let kernel = id("columns_i2_s_l64__avx512vnni__any__r256_c32_n1_u1_p32");
        let role = |below: f64, ratios: [f64; 4]| {
            let mut case = Case::decode(pick(D32, None, D32), vec![timing(D32, 1.0, 0.0)]);
            let densities = sparse::DENSITIES.into_iter().zip(ratios);
            let timings = densities.map(|(density, ratio)| SparseTiming {
                density,
                timing: Timing { kernel, ..timing(D32, ratio, 0.01) },
            });
            let pick = Sparse { kernel, built_in: kernel, below, ratio_at_quarter: None };
            let timings = timings.collect();
            let measured = SparseMeasurements { dense: id(D32), default: kernel, timings };
            case.sparse = Some((pick, measured));
            case.judged(D32)
        };
        for (below, ratios, lag) in [
            (0.6, [0.2, 0.4, 0.8, 1.2], None),
            (0.8, [0.2, 0.4, 0.8, 1.2], Some(0.75)),
            (0.8, [1.1, 1.2, 1.3, 1.2], Some(0.5)),
            // Within the noise and what simplicity may cost.
            (0.8, [0.2, 0.4, 0.8, 1.025], None),
            (0.0, [2.0; 4], None),
        ] {
            let role = role(below, ratios);
            let own = role.sparse.as_ref().unwrap();
            assert_eq!(own.lag.map(|lag| lag.density), lag, "{below} {ratios:?}");
            assert_eq!(own.quarter.map(|quarter| quarter.ratio), Some(ratios[1]));
            assert_eq!((role.holds(), own.serves), (lag.is_none(), Some(kernel)));
        }
        // Only what lags twice does.
        let (good, bad) = ([0.2, 0.4, 0.8, 0.9], [0.2, 0.4, 0.8, 1.2]);
        for (first, second, holds) in
            [(bad, bad, false), (bad, good, true), (good, bad, true), (good, good, true)]
        {
            let mut roles = vec![role(0.8, first)];
            confirm(&mut roles, vec![role(0.8, second)]);
            assert_eq!(roles[0].holds(), holds, "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_pick_that_errs_does_not_hold() {
        let mut case = Case::decode(pick(D32_MADE, None, D32), vec![timing(D32, 1.0, 0.0)]);
        case.excluded =
            vec![Excluded { kernel: id(D32_MADE), why: Why::Wrong, found: "row 1".into() }];
        let role = case.judged(D32_MADE);
        assert!(!role.holds() && role.phases[0].median_us.is_none());
        assert_eq!(role.wrong().next().unwrap().why, Why::Wrong);
    }

    #[test]
    fn what_lags_once_only_does_not_lag() {
        let role = |own: f64| {
            let timed = vec![timing(D32_MADE, own, 0.01), timing(D32, 1.0, 0.0)];
            Case::decode(pick(D32_MADE, None, D32), timed).judged(D32_MADE)
        };
        for (first, second, holds) in
            [(1.2, 1.2, false), (1.2, 0.9, true), (0.9, 1.2, true), (0.9, 0.9, true)]
        {
            let mut roles = vec![role(first)];
            confirm(&mut roles, vec![role(second)]);
            assert_eq!(roles[0].holds(), holds, "{first} {second}");
        }
    }
}
