//! The machine model against recorded measurements: two threads of an AMD EPYC (family 26) on a quiet
//! machine, 2026-11-20, all candidates for the nine published shapes with f16 heads. Written by
//! `bitnet-tune --model M.gguf --record FILE`, to six digits.

use bitnet_tuner::machine::Cpu;
use bitnet_tuner::machine::check::{Checked, ENOUGH, check, share};
use bitnet_tuner::machine::kinds::Kind;
use bitnet_tuner::measure::Measurements;

const RECORDS: [&str; 9] = [
    include_str!("data/zen5/2b4t.json"),
    include_str!("data/zen5/large.json"),
    include_str!("data/zen5/3b.json"),
    include_str!("data/zen5/llama8b.json"),
    include_str!("data/zen5/falcon3-1b.json"),
    include_str!("data/zen5/falcon3-3b.json"),
    include_str!("data/zen5/falcon3-7b.json"),
    include_str!("data/zen5/falcon3-10b.json"),
    include_str!("data/zen5/100B.json"),
];

fn checked() -> Vec<Checked> {
    let cpu = Cpu::usual(Kind::of_profile("zen5"));
    let records = RECORDS.map(|text| serde_json::from_str::<Measurements>(text).unwrap());
    records.into_iter().flat_map(|record| check(&[record], &cpu)).collect()
}

#[test]
fn picks_are_nearly_always_among_the_fastest() {
    let checked = checked();
    for line in checked.iter().filter(|checked| !checked.is_within()) {
        println!("{line}");
    }
    assert!(checked.len() >= 20, "{}", checked.len());
    assert!(share(&checked) >= ENOUGH, "{:.2} of {}", share(&checked), checked.len());
    // Where it errs, it does not err by much.
    assert!(checked.iter().all(|checked| checked.ratio() < 1.5));
}

/// The times themselves are no promise, but of the right size.
#[test]
fn predicted_times_are_of_the_right_size() {
    for line in checked() {
        let ratio = line.predicted_us / line.pick_us;
        assert!((0.2..3.0).contains(&ratio), "{line}");
    }
}
