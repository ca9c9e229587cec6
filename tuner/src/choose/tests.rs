//! Choices from made-up measurements.

use bitnet_codegen::Phase;
use bitnet_profiles::{Layout, Objective, Op, Packing, Pinning, Role, Run, Shape};

use super::gather::choose_gather;
use super::settle::{WORTHWHILE, luck};
use super::total::total_ratio;
use super::*;
use crate::measure::{
    JobMeasurements, LayoutMeasurements, Limits, Measurements, PlacementTiming, SparseMeasurements,
    SparseTiming, Timing,
};
use crate::stats::Gain;

fn timing(kernel: &str, ratio: f64, half_width: f64) -> Timing {
    Timing {
        kernel: kernel.parse().unwrap(),
        samples: 20,
        min_us: 90.0 * ratio,
        median_us: 100.0 * ratio,
        mad_us: 1.0,
        ratio,
        half_width,
        finalist: true,
    }
}

const D: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0";
const D_U1: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u1_p0";
const D_U4: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p0";
const D_P: &str = "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p4096";
const P: &str = "i2_s_t16__avx512vnni__any__r32_c0_n8_u1_p0";
const P_N12: &str = "i2_s_t16__avx512vnni__any__r32_c0_n12_u1_p0";
const D_T32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n1_u1_p0";
const P_T32: &str = "i2_s_t32__avx512vnni__any__r32_c0_n8_u1_p0";

/// One job of one matrix: the default takes 100 us for a token, and 400 us for 32.
fn measurements(layouts: Vec<(Layout, Vec<Timing>, Vec<Timing>)>) -> Measurements {
    let layout = |(layout, decode, prefill)| LayoutMeasurements {
        layout: Some(Packing::Ternary(layout)),
        bytes: 2_000_000,
        limit_gb_per_s: 40.0,
        decode,
        prefill,
    };
    Measurements {
        limits: Limits {
            threads: 2,
            read_gb_per_s: 40.0,
            limit_gb_per_s: 40.0,
            limit_gmac_per_s: Some(800.0),
            cold: true,
        },
        noise: 0.01,
        disturbed: false,
        excluded: Vec::new(),
        jobs: vec![JobMeasurements {
            role: Role::Down,
            parts: vec![Shape::new(2000, 4000)],
            count: 10,
            default_decode: D.parse().unwrap(),
            default_prefill: Some(P.parse().unwrap()),
            default_decode_us: 100.0,
            default_prefill_us: 400.0,
            tokens: 32,
            layouts: layouts.into_iter().map(layout).collect(),
            sparse: None,
        }],
    }
}

fn decode_of(timings: Vec<Timing>) -> String {
    let measurements = measurements(vec![(Layout::I2sT16, timings, vec![timing(P, 1.0, 0.0)])]);
    choose(&measurements, Objective::Balanced)[0].decode.timing.kernel.to_string()
}

#[test]
fn the_fastest_wins_and_ties_go_to_the_default_then_to_the_simpler() {
    let default = || timing(D, 1.0, 0.0);
    let clear = vec![timing(D_U1, 0.97, 0.01), default(), timing(D_U4, 0.90, 0.01)];
    assert_eq!(decode_of(clear), D_U4);
    let tied_with_default = vec![default(), timing(D_U4, 0.99, 0.02)];
    assert_eq!(decode_of(tied_with_default), D);
    let tied = vec![
        default(),
        timing(D_P, 0.900, 0.01),
        timing(D_U4, 0.902, 0.01),
        timing(D_U1, 0.908, 0.01),
    ];
    assert_eq!(decode_of(tied), D_U1);
    // The simplest ties with the best, but with the default as well: it proves nothing.
    let vague = vec![default(), timing(D_U4, 0.90, 0.01), timing(D_U1, 0.97, 0.08)];
    assert_eq!(decode_of(vague), D_U4);
    // Being simpler is not worth a tenth, however little is known.
    let unknown = vec![timing(D_U4, 0.90, 0.5), timing(D_U1, 1.00, 0.01)];
    assert_eq!(decode_of(unknown), D_U4);
}

#[test]
fn another_distance_from_memory_must_gain_much() {
    let chosen = |kernel: &str, ratio, cold| {
        let decode = vec![timing(D, 1.0, 0.0), timing(kernel, ratio, 0.002)];
        let mut measurements =
            measurements(vec![(Layout::I2sT16, decode, vec![timing(P, 1.0, 0.0)])]);
        measurements.limits.cold = cold;
        choose(&measurements, Objective::Balanced)[0].decode.timing.kernel.to_string()
    };
    for (kernel, ratio, cold, expected) in [
        (D_P, 0.93, true, D),
        (D_P, 0.93, false, D_P),
        (D_P, 0.89, true, D_P),
        (D_U4, 0.93, true, D_U4),
        (D_U4, 0.98, true, D),
    ] {
        assert_eq!(chosen(kernel, ratio, cold), expected, "{kernel} {ratio} {cold}");
    }
}

#[test]
fn what_was_cut_is_not_chosen() {
    let cut = Timing { finalist: false, ..timing(D_U1, 0.5, 0.3) };
    assert_eq!(decode_of(vec![cut, timing(D, 1.0, 0.0), timing(D_U4, 0.9, 0.01)]), D_U4);
}

/// A clock that stands still, jumps or goes backwards.
#[test]
fn t12_times_that_cannot_be_break_nothing() {
    let absurd = [0.0, 1e-3, 1e300, f64::MAX, f64::INFINITY, f64::NAN, -1.0];
    for &ratio in &absurd {
        for &half_width in &absurd {
            let odd = timing(D_U4, ratio, half_width);
            let decode = vec![timing(D, 1.0, 0.0), odd.clone(), timing(D_U1, 0.9, 0.01)];
            let prefill = vec![timing(P, ratio, half_width), timing(P_N12, ratio, half_width)];
            let mut measurements = measurements(vec![(Layout::I2sT16, decode, prefill)]);
            for us in absurd {
                measurements.jobs[0].default_decode_us = us;
                measurements.jobs[0].default_prefill_us = us;
                for &objective in Objective::ALL {
                    let choices = choose(&measurements, objective);
                    for phase in [Phase::Decode, Phase::Prefill] {
                        let _ = per_token_us(&choices, phase);
                        let _ = total_ratio(&choices, phase);
                        let _ = total_share_of_limit(&choices, &measurements.limits, phase);
                    }
                }
            }
            // It wins if it is told from the default by something worthwhile, and only then.
            let won = decode_of(vec![timing(D, 1.0, 0.0), odd]);
            let told = ratio >= 0.0 && 1.0 - ratio > luck(2) * half_width.abs();
            let told = told && 1.0 > (1.0 + WORTHWHILE) * ratio;
            assert_eq!(won == D_U4, told, "{ratio} {half_width}: {won}");
        }
    }
}

#[test]
fn a_layout_is_chosen_with_both_its_kernels() {
    // 32 rows: a tenth slower for a token, a third faster for a prompt.
    let measurements = measurements(vec![
        (Layout::I2sT16, vec![timing(D, 1.0, 0.0)], vec![timing(P, 1.0, 0.0)]),
        (Layout::I2sT32, vec![timing(D_T32, 1.1, 0.01)], vec![timing(P_T32, 0.67, 0.01)]),
    ]);
    let layout = |objective| choose(&measurements, objective)[0].layout.layout.unwrap();
    assert_eq!(layout(Objective::Decode), Packing::Ternary(Layout::I2sT16));
    assert_eq!(layout(Objective::Prefill), Packing::Ternary(Layout::I2sT32));
    // A token costs 100 and 110, four prompt tokens 50 and 33.5.
    assert_eq!(layout(Objective::Balanced), Packing::Ternary(Layout::I2sT32));
    // Both kernels of a choice read its layout.
    for objective in Objective::ALL {
        let choice = choose(&measurements, *objective)[0];
        let layout = choice.layout.layout;
        let ops = [choice.decode, choice.prefill.unwrap()].map(|chosen| chosen.timing.kernel.op);
        assert_eq!(ops.map(Op::packing), [layout; 2]);
    }
}

#[test]
fn tied_layouts_keep_the_default() {
    let measurements = measurements(vec![
        (Layout::I2sT32, vec![timing(D_T32, 0.99, 0.02)], vec![timing(P_T32, 0.99, 0.02)]),
        (Layout::I2sT16, vec![timing(D, 1.0, 0.0)], vec![timing(P, 1.0, 0.0)]),
    ]);
    for &objective in Objective::ALL {
        let choice = choose(&measurements, objective)[0];
        assert_eq!(choice.layout.layout, Some(Packing::Ternary(Layout::I2sT16)));
    }
}

#[test]
fn the_runner_up_is_the_second_best_of_the_layout() {
    let measurements = measurements(vec![(
        Layout::I2sT16,
        vec![timing(D, 1.0, 0.0), timing(D_U4, 0.8, 0.01), timing(D_U1, 0.9, 0.01)],
        vec![timing(P, 1.0, 0.0)],
    )]);
    let choice = choose(&measurements, Objective::Balanced)[0];
    assert_eq!(choice.decode.runner_up.unwrap().kernel.to_string(), D_U1);
    assert_eq!(choice.prefill.unwrap().runner_up, None);
}

const ROWS: &str = "rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p16";
const ROWS_P8: &str = "rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p8";
const ROWS_R2: &str = "rows_t5_l64__avx512vbmi__any__r2_c0_n1_u1_p16";
const DENSITIES: [f64; 4] = [0.1, 0.25, 0.5, 0.75];

/// Choice where kernels showed these ratios, all with the same half-width.
fn gather(found: &[(&str, [f64; 4])], half_width: f64) -> Option<ChosenGather> {
    let timings = found.iter().flat_map(|(kernel, ratios)| {
        let timing = move |ratio| timing(kernel, ratio, half_width);
        DENSITIES
            .into_iter()
            .zip(ratios)
            .map(move |(density, &ratio)| SparseTiming { density, timing: timing(ratio) })
    });
    let measured = SparseMeasurements {
        dense: D.parse().unwrap(),
        default: ROWS.parse().unwrap(),
        timings: timings.collect(),
    };
    choose_gather(&measured, true)
}

#[test]
fn a_sparse_kernel_serves_up_to_break_even() {
    for (ratios, half_width, below) in [
        // Between two densities, in a straight line.
        ([0.2, 0.4, 0.8, 1.2], 0.0, 0.625),
        // Noise is against it.
        ([0.2, 0.4, 0.8, 1.2], 0.1, 0.5625),
        ([0.2, 0.4, 0.95, 1.2], 0.1, 0.25 + 0.25 * 0.5 / 0.55),
        // The first crossing counts.
        ([0.2, 1.2, 0.8, 1.2], 0.0, 0.1 + 0.15 * 0.8),
        // Beyond the last as steep as before, and no more than all.
        ([0.4, 0.5, 0.6, 0.7], 0.0, 1.0),
        ([0.2, 0.4, 0.6, 0.9], 0.0, 0.75 + 0.1 / 1.2),
        // A last step that is flat by chance: as steep as all of it.
        ([0.3, 0.8, 0.95, 0.95], 0.0, 0.75 + 0.05 / 1.0),
        // It pays nowhere, or nobody knows.
        ([1.0001, 1.2, 1.5, 2.0], 0.0, 0.0),
        ([0.9, 1.2, 1.5, 2.0], 0.2, 0.0),
        ([f64::NAN, 0.5, 0.6, 0.7], 0.0, 0.0),
    ] {
        let found = gather(&[(ROWS, ratios)], half_width).unwrap();
        assert_eq!(found.kernel.to_string(), ROWS);
        assert!((found.below - below).abs() < 1e-9, "{ratios:?} {half_width}: {found:?}");
        let quarter = found.gain.unwrap().times;
        assert!((quarter - 1.0 / ratios[1]).abs() < 1e-9, "{quarter}");
    }
    assert_eq!(gather(&[], 0.01), None);
}

#[test]
fn the_best_sparse_kernel_on_average_is_taken_and_noise_is_a_tie() {
    let default = (ROWS, [0.5, 0.6, 0.8, 1.1]);
    let kernel = |others: &[(&str, [f64; 4])], half_width| {
        let all: Vec<_> = [default].into_iter().chain(others.iter().copied()).collect();
        gather(&all, half_width).unwrap().kernel.to_string()
    };
    let better = [0.4, 0.5, 0.65, 0.9];
    assert_eq!(kernel(&[(ROWS_R2, better)], 0.005), ROWS_R2);
    assert_eq!(kernel(&[(ROWS_R2, better)], 0.2), ROWS);
    // Where reading all is faster anyway it may be as slow as it likes.
    assert_eq!(kernel(&[(ROWS_R2, [0.4, 0.5, 0.65, 9.0])], 0.005), ROWS_R2);
    // Another distance alone must gain more than the weather may take away.
    assert_eq!(kernel(&[(ROWS_P8, [0.48, 0.57, 0.77, 1.0])], 0.001), ROWS);
    assert_eq!(kernel(&[(ROWS_P8, better)], 0.001), ROWS_P8);
    // One that was timed at some densities only is none.
    let mut measured = SparseMeasurements {
        dense: D.parse().unwrap(),
        default: ROWS.parse().unwrap(),
        timings: vec![SparseTiming { density: 0.25, timing: timing(ROWS_R2, 0.1, 0.001) }],
    };
    for (density, ratio) in DENSITIES.into_iter().zip(default.1) {
        let timing = timing(ROWS, ratio, 0.001);
        measured.timings.push(SparseTiming { density, timing });
    }
    assert_eq!(choose_gather(&measured, true).unwrap().kernel.to_string(), ROWS);
    measured.timings.iter_mut().for_each(|own| own.timing.finalist = false);
    assert_eq!(choose_gather(&measured, true), None);
}

#[test]
fn a_sparse_kernel_belongs_to_the_dense_one_it_was_timed_beside() {
    let decode = vec![timing(D, 1.0, 0.0), timing(D_U4, 0.8, 0.01)];
    let mut all = measurements(vec![(Layout::I2sT16, decode, vec![timing(P, 1.0, 0.0)])]);
    let of = |dense: &str| SparseMeasurements {
        dense: dense.parse().unwrap(),
        default: ROWS.parse().unwrap(),
        timings: vec![SparseTiming { density: 0.25, timing: timing(ROWS, 0.5, 0.01) }],
    };
    for (dense, skips) in [(D_U4, true), (D, false)] {
        all.jobs[0].sparse = Some(of(dense));
        let choice = choose(&all, Objective::Balanced)[0];
        assert_eq!(choice.gather.is_some(), skips);
        assert_eq!(defaults(&all)[0].gather, None);
    }
}

#[test]
fn a_job_without_layouts_is_left_out() {
    assert!(choose(&measurements(vec![]), Objective::Balanced).is_empty());
}

#[test]
fn attention_has_one_kernel_and_the_head_no_prefill() {
    const A1: &str = "attention_f16__avx512__any__r1_c256_n1_u1_p0";
    const A4: &str = "attention_f16__avx512__any__r4_c256_n1_u1_p0";
    const A8: &str = "attention_f16__avx512__any__r8_c256_n1_u1_p0";
    let default = timing(A8, 1.0, 0.0);
    let mut attention = measurements(vec![(
        Layout::I2sT16,
        vec![default.clone(), timing(A4, 0.8, 0.01), timing(A1, 0.7, 0.01)],
        vec![default.clone(), timing(A4, 0.9, 0.01), timing(A1, 1.6, 0.01)],
    )]);
    let job = &mut attention.jobs[0];
    (job.role, job.layouts[0].layout) = (Role::Attention, None);
    (job.default_decode, job.default_prefill) = (default.kernel, Some(default.kernel));
    let kernels = |objective| {
        let choice = choose(&attention, objective)[0];
        let prefill = choice.prefill.unwrap().timing.kernel;
        assert_eq!(choice.decode.timing.kernel, prefill);
        assert_eq!(choice.share_of_limit(&attention.limits, Phase::Prefill), None);
        prefill.to_string()
    };
    assert_eq!(kernels(Objective::Decode), A1);
    assert_eq!(kernels(Objective::Prefill), A4);
    assert_eq!(kernels(Objective::Balanced), A4);
    // Timed after 512 positions, run after 128 and none.
    let choices = choose(&attention, Objective::Decode);
    for (phase, us, comparison, timed) in
        [(Phase::Decode, 1000.0, 144.5, 513.0), (Phase::Prefill, 125.0, 64.5, 512.0 + 16.5)]
    {
        let (_, default) = per_token_us(&choices, phase);
        assert!((default - us * comparison / timed).abs() < 1e-9, "{phase:?} {default}");
    }

    let head = |rows| format!("head_q6_k__avx512vnni__any__r{rows}_c0_n1_u1_p0");
    let timings = vec![timing(&head(1), 1.0, 0.0), timing(&head(4), 0.9, 0.01)];
    let mut measured = measurements(vec![(Layout::I2sT16, timings, vec![])]);
    let job = &mut measured.jobs[0];
    (job.role, job.layouts[0].layout) = (Role::LmHead, None);
    (job.default_decode, job.default_prefill) = (head(1).parse().unwrap(), None);
    job.default_prefill_us = 0.0;
    for &objective in Objective::ALL {
        let choices = choose(&measured, objective);
        assert_eq!(choices[0].decode.timing.kernel.to_string(), head(4), "{objective}");
        assert!(choices[0].prefill.is_none());
        assert_eq!(per_token_us(&choices, Phase::Prefill), (0.0, 0.0));
    }
}

#[test]
fn the_untuned_setting_stays_unless_another_is_better() {
    use crate::measure::PhaseTiming;
    let timing = |threads, decode: f64, prefill: f64| {
        let phase = |ratio| PhaseTiming { median_us: 100.0 * ratio, ratio, half_width: 0.02 };
        let run = Run { threads, pinning: Pinning::None, huge_pages: true };
        PlacementTiming { run, decode: phase(decode), prefill: phase(prefill) }
    };
    let threads = |timings: &[PlacementTiming], objective| {
        placement(timings, objective).map(|run| run.threads)
    };
    let all = [timing(8, 1.0, 1.0), timing(4, 0.9, 1.9), timing(16, 0.99, 0.9)];
    assert_eq!(threads(&all, Objective::Decode), Some(4));
    assert_eq!(threads(&all, Objective::Prefill), Some(16));
    assert_eq!(threads(&all[..2], Objective::Balanced), Some(8));
    assert_eq!(threads(&all[..1], Objective::Decode), Some(8));
    assert_eq!(threads(&[], Objective::Decode), None);
}

#[test]
fn gains_and_shares() {
    let measurements = measurements(vec![(
        Layout::I2sT16,
        vec![timing(D, 1.0, 0.0), timing(D_U4, 0.8, 0.04)],
        vec![timing(P, 1.0, 0.0), timing(P_N12, 0.96, 0.01)],
    )]);
    let choices = choose(&measurements, Objective::Balanced);
    let gain = choices[0].gain(Phase::Decode).unwrap();
    assert!((gain.times - 1.25).abs() < 1e-9 && gain.is_difference());
    assert_eq!(gain.to_string(), "1.25x [1.19, 1.32]");
    assert_eq!(Gain::of(1.0, 0.02).to_string(), "no difference [0.98, 1.02]");
    assert_eq!(Gain::of(0.5, 0.6).to_string(), "too noisy to say");
    assert!(Gain::of(1.1, 0.02).is_difference());
    // 2 MB at 40 GB/s are 50 us, 8 M multiply-adds at 800 G/s are 10 us: of 80 us.
    let share = choices[0].share_of_limit(&measurements.limits, Phase::Decode).unwrap();
    assert!((share - 50.0 / 80.0).abs() < 1e-9, "{share}");
    // 32 tokens: 320 us of 96 us, a clock that cannot be right, shown as it is.
    let share = choices[0].share_of_limit(&measurements.limits, Phase::Prefill).unwrap();
    assert!((share - 320.0 / 96.0).abs() < 1e-9, "{share}");
    assert_eq!(per_token_us(&choices, Phase::Decode), (800.0, 1000.0));
    assert_eq!(per_token_us(&choices, Phase::Prefill), (120.0, 125.0));
    // Of one job, the same as its own.
    let share = total_share_of_limit(&choices, &measurements.limits, Phase::Decode);
    assert!((share.unwrap() - 50.0 / 80.0).abs() < 1e-9, "{share:?}");
    assert_eq!(total_share_of_limit(&[], &measurements.limits, Phase::Decode), None);
    let run = Run { threads: 2, pinning: Pinning::None, huge_pages: true };
    let total = Prediction::of(&choices, &[], &run, Phase::Decode).unwrap();
    assert_eq!((total.before, total.after), (1000.0, 1250.0));
    assert!((total.gain.times - 1.25).abs() < 1e-9 && total.gain.low < 1.25, "{total:?}");
}
