//! The report of a recorded measurement, read as a browser would.

use std::time::Duration;

use bitnet_codegen::Phase;
use bitnet_profiles::{Objective, Pinning, Profile, Run};
use bitnet_tuner::choose::choose;
use bitnet_tuner::measure::{
    Comparison, Excluded, Measurements, PhaseTiming, PlacementTiming, Speed, Why,
};
use bitnet_tuner::report::{Extras, html};
use html5gum::{Token, Tokenizer};

const HOSTILE: &str = "</style></title><script>alert('1')</script>\" onload=\"x\" & <img src=x>";

fn record() -> Measurements {
    serde_json::from_str(include_str!("data/bard-11m-one-thread.json")).unwrap()
}

fn profile() -> Profile {
    Profile::parse(include_str!("data/profile.toml")).unwrap()
}

fn comparison() -> Comparison {
    let speed = |before, ratio| Speed { before, after: before / ratio, ratio, half_width: 0.01 };
    Comparison {
        decode: speed(5000.0, 0.8),
        prefill: speed(20_000.0, 1.0),
        loads: 15,
        limit_gb_per_s: 50.0,
    }
}

fn page(measurements: &Measurements, profile: &Profile, extras: &Extras<'_>) -> String {
    html(measurements, &choose(measurements, profile.tool.objective), profile, extras)
}

/// A page, taken apart.
#[derive(Default)]
struct Page {
    /// Elements: the name, and the attributes as `name=value`.
    elements: Vec<(String, Vec<(String, String)>)>,
    /// The text that a reader sees, without style.
    text: String,
}

impl Page {
    /// Reads a page. Every element must be closed where it was opened, those that cannot hold
    /// anything excepted, and nothing may be wrong.
    fn read(html: &str) -> Self {
        const EMPTY: [&str; 2] = ["meta", "wbr"];
        let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut page = Self::default();
        let mut open: Vec<String> = Vec::new();
        for Ok(token) in Tokenizer::new(html) {
            match token {
                Token::StartTag(tag) => {
                    let name = string(&tag.name);
                    if !tag.self_closing && !EMPTY.contains(&name.as_str()) {
                        open.push(name.clone());
                    }
                    let attributes = tag.attributes.iter();
                    let attributes = attributes.map(|(name, value)| (string(name), string(value)));
                    page.elements.push((name, attributes.collect()));
                }
                Token::EndTag(tag) => {
                    let name = string(&tag.name);
                    assert_eq!(open.pop().as_ref(), Some(&name), "closed, not open: {open:?}");
                }
                Token::String(text) if open.last().is_none_or(|name| name != "style") => {
                    page.text += &string(&text);
                    page.text.push('\n');
                }
                Token::Error(error) => panic!("{error:?}"),
                _ => {}
            }
        }
        assert!(open.is_empty(), "{open:?}");
        page
    }

    fn of_class(&self, element: &str, class: &str) -> usize {
        let has = |attributes: &[(String, String)]| {
            let classes = attributes.iter().filter(|(name, _)| name == "class");
            classes.flat_map(|(_, all)| all.split(' ')).any(|one| one == class)
        };
        self.elements.iter().filter(|(name, own)| name == element && has(own)).count()
    }

    fn titles(&self) -> impl Iterator<Item = &str> {
        let attributes = self.elements.iter().flat_map(|(_, attributes)| attributes);
        attributes.filter(|(name, _)| name == "title").map(|(_, value)| value.as_str())
    }

    /// True if nothing is fetched and nothing runs.
    fn assert_alone(&self) {
        for (name, attributes) in &self.elements {
            assert!(!["script", "img", "link", "iframe", "object"].contains(&name.as_str()));
            for (attribute, value) in attributes {
                let harmless = match attribute.as_str() {
                    "href" => value == "#star",
                    name => name != "src" && name != "style" && !name.starts_with("on"),
                };
                assert!(harmless, "{name} {attribute}={value}");
            }
        }
        let policy = self.elements.iter().flat_map(|(_, attributes)| attributes);
        let policy = policy.filter(|(_, value)| value.contains("default-src 'none'"));
        assert_eq!(policy.count(), 1);
    }
}

#[test]
fn a_record_makes_a_whole_page() {
    let (measurements, profile) = (record(), profile());
    let extras = Extras { budget: Some(Duration::from_secs(25)), ..Extras::default() };
    let text = page(&measurements, &profile, &extras);
    assert_eq!(text, page(&record(), &profile.clone(), &extras), "the same twice");
    assert!(text.len() < 200_000, "{} bytes", text.len());
    for outside in ["http:", "https:", "url(", "@import"] {
        assert!(!text.contains(outside), "{outside}");
    }
    let page = Page::read(&text);
    page.assert_alone();
    for part in ["bard-11m", "A CPU of no kind", "2026-11-20", "not quiet", "25.0 s", "0.8 %"] {
        assert!(page.text.contains(part), "{part}");
    }
    let choices = choose(&measurements, Objective::Balanced);
    assert_eq!(choices.len(), 2);
    for job in &measurements.jobs {
        assert!(page.text.contains(job.role.name()), "{}", job.role);
        // A cell for each kernel.
        for phase in [Phase::Decode, Phase::Prefill] {
            for timing in job.layouts.iter().flat_map(|layout| layout.timings(phase)) {
                let id = format!("{}: ", timing.kernel);
                assert!(page.titles().any(|title| title.starts_with(&id)), "{id}");
            }
        }
    }
    // The legend's, and one for each role and phase.
    assert_eq!(page.of_class("td", "winner"), 1 + 4);
    assert_eq!(page.of_class("span", "default"), 1 + 4);
    let second = choices.iter().flat_map(|choice| [Some(choice.decode), choice.prefill]);
    let second = second.filter(|chosen| chosen.unwrap().runner_up.is_some()).count();
    assert_eq!(page.of_class("td", "second"), 1 + second);
    assert_eq!(page.of_class("td", "out"), 1);
    // The roofline is drawn twice, and holds every kernel.
    let timed = measurements.jobs.iter().flat_map(|job| &job.layouts);
    let timed: usize = timed.map(|layout| layout.decode.len() + layout.prefill.len()).sum();
    let points = ["circle", "path"].map(|shape| page.of_class(shape, "point"));
    let picks = ["circle", "path"].map(|shape| page.of_class(shape, "pick"));
    assert_eq!(picks, [2 * 2 + 1; 2]);
    assert_eq!(points.iter().sum::<usize>() + 2 * 4, 2 * timed + 2);
}

#[test]
fn what_was_run_and_left_out_is_told() {
    let mut measurements = record();
    measurements.disturbed = false;
    let wrong = "i2_s_t16__avx512vnni__any__r16_c0_n1_u4_p4096";
    measurements.excluded = vec![Excluded {
        kernel: wrong.parse().unwrap(),
        why: Why::Crashed,
        found: format!("signal 4 {HOSTILE}"),
    }];
    let profile = profile();
    let timing = |ratio| PhaseTiming { median_us: 100.0 * ratio, ratio, half_width: 0.01 };
    let placement = |threads, ratio| PlacementTiming {
        run: Run { threads, pinning: Pinning::None, huge_pages: true },
        decode: timing(ratio),
        prefill: timing(ratio),
    };
    let (comparison, placements) = (comparison(), [placement(4, 1.0), placement(2, 0.5)]);
    let extras = Extras {
        comparison: Some(&comparison),
        placements: &placements,
        kept_default: true,
        budget: None,
    };
    let page = Page::read(&page(&measurements, &profile, &extras));
    page.assert_alone();
    for part in [
        "6250",
        "1.25×",
        "against the untuned 5000",
        "no difference",
        "lost on the model itself",
        "4 threads, not pinned",
        "2.00×",
        "crashed",
        HOSTILE,
    ] {
        assert!(page.text.contains(part), "{part}\n{}", page.text);
    }
    assert!(!page.text.contains("not quiet"));
    // The legend's, and one for each role.
    assert_eq!(page.of_class("td", "out"), 1 + 2);
    let title = format!("{wrong}: crashed");
    assert_eq!(page.titles().filter(|own| *own == title).count(), 2);
}

#[test]
fn names_are_text_whatever_they_hold() {
    let mut profile = profile();
    for text in [
        &mut profile.model.name,
        &mut profile.model.architecture,
        &mut profile.host.cpu,
        &mut profile.host.vendor,
        &mut profile.tool.date,
        &mut profile.tool.version,
    ] {
        *text = HOSTILE.into();
    }
    let plain = Page::read(&page(&record(), &self::profile(), &Extras::default()));
    let hostile = Page::read(&page(&record(), &profile, &Extras::default()));
    hostile.assert_alone();
    assert!(hostile.text.matches(HOSTILE).count() >= 6, "{}", hostile.text);
    // Nothing of it became an element or an attribute.
    assert_eq!(hostile.elements, plain.elements);
}

#[test]
fn little_or_nothing_makes_a_page_too() {
    let mut measurements = record();
    measurements.limits.limit_gmac_per_s = None;
    measurements.limits.cold = true;
    let without_limit = Page::read(&page(&measurements, &profile(), &Extras::default()));
    assert!(!without_limit.text.contains("G multiply-adds/s"));
    // An interval that reaches zero has no end.
    for timing in &mut measurements.jobs[0].layouts[0].decode {
        timing.half_width = timing.ratio;
    }
    Page::read(&page(&measurements, &profile(), &Extras::default()));
    for layout in measurements.jobs.iter_mut().flat_map(|job| &mut job.layouts) {
        layout.decode.clear();
        layout.prefill.clear();
    }
    let untimed = Page::read(&page(&measurements, &profile(), &Extras::default()));
    assert!(untimed.text.contains("No kernel was timed"), "{}", untimed.text);
    measurements.jobs.clear();
    let empty = Page::read(&page(&measurements, &profile(), &Extras::default()));
    assert!(empty.text.contains("Not measured"), "{}", empty.text);
}
