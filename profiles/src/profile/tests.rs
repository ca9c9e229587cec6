use super::*;
use crate::{Format, Layout, Packing};

fn pick(kernel: &str, built_in: &str) -> Pick {
    let timed = Timed {
        tokens: 1,
        median_us: 101.5,
        mad_us: 1.25,
        gb_per_s: 43.5,
        share_of_limit: 0.875,
        runner_up: None,
        runner_up_ratio: None,
    };
    let (kernel, built_in) = (kernel.parse().unwrap(), built_in.parse().unwrap());
    Pick { kernel, timed: Some(timed), built_in }
}

/// A profile with every field in use: two thirds of the rows of up or fewer are read one by one.
fn profile() -> Profile {
    let mut decode = pick(
        "i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u4_p0",
        "i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0",
    );
    let timed = decode.timed.as_mut().unwrap();
    timed.runner_up = Some("tl1_t32__avx2__any__r32_c240_n1_u2_p0".parse().unwrap());
    timed.runner_up_ratio = Some(1.0625);
    let mut prefill = pick(
        "i2_s_t16__avx512vnni__any__r32_c0_n8_u1_p0",
        "i2_s_t16__avx2__any__r16_c256_n4_u1_p0",
    );
    prefill.timed.as_mut().unwrap().tokens = 128;
    let gate_up = Choice {
        role: Role::GateUp,
        parts: vec![Shape::new(6912, 2560); 2],
        count: 30,
        layout: Some(Packing::Ternary(Layout::I2sT16)),
        decode,
        prefill: Some(prefill),
        sparse: Some(Sparse {
            kernel: "rows_i2_s_l64__avx512vnni__m6912_k2560__r4_c0_n1_u1_p12".parse().unwrap(),
            built_in: "rows_i2_s_l64__avx2__any__r4_c0_n1_u1_p8".parse().unwrap(),
            below: 0.625,
            ratio_at_quarter: Some(0.75),
        }),
    };
    let head =
        pick("head_q6_k__avx2__any__r1_c0_n1_u1_p0", "head_q6_k__scalar__any__r1_c0_n1_u1_p0");
    let lm_head = Choice {
        role: Role::LmHead,
        parts: vec![Shape::new(128_256, 2560)],
        count: 1,
        layout: None,
        decode: head,
        prefill: None,
        sparse: None,
    };
    Profile {
        schema: Profile::SCHEMA,
        tool: Tool {
            version: "0.1.0".into(),
            fingerprint: Some("0123456789abcdef".into()),
            objective: Objective::Balanced,
            effort: Effort::Measure,
            date: "2026-11-20".into(),
            library_sha256: Some("ab".repeat(32)),
            provenance: Provenance::Measured,
        },
        host: Host {
            cpu: "A CPU \"of\" \\ some é kind".into(),
            vendor: "GenuineVendor".into(),
            family: 25,
            model: 97,
            stepping: 2,
            isa: vec![Isa::Scalar, Isa::Avx2],
            physical_cores: 2,
            threads: 4,
            l2: 1 << 20,
            l3: 32 << 20,
            read_gb_per_s: Some(51.5),
            noise: Some(0.015625),
        },
        model: Model {
            name: "2B-4T".into(),
            architecture: "bitnet-b1.58".into(),
            shapes: "fedcba9876543210".into(),
            path: Some("models/m.gguf".into()),
        },
        run: Run { threads: 2, pinning: Pinning::Cores, huge_pages: true },
        ops: vec![gate_up, lm_head],
    }
}

/// The item and the problem of the error that `text` must give.
fn refused(text: &str) -> (String, String) {
    match Profile::parse(text) {
        Err(ProfileError::Content { item, problem }) => (item, problem),
        other => panic!("{other:?} from:\n{text}"),
    }
}

#[test]
fn round_trips() {
    let full = profile();
    assert_eq!(Profile::parse(&full.to_text()).unwrap(), full);
    let mut least = profile();
    least.tool.fingerprint = None;
    least.tool.library_sha256 = None;
    least.model.path = None;
    (least.host.read_gb_per_s, least.host.noise) = (None, None);
    for op in &mut least.ops {
        op.decode.timed = None;
        op.sparse = None;
    }
    least.ops[0].prefill.as_mut().unwrap().timed = None;
    assert_eq!(Profile::parse(&least.to_text()).unwrap(), least);
    assert!(!least.to_text().contains("_us"));
    least.ops.clear();
    assert_eq!(Profile::parse(&least.to_text()).unwrap(), least);
    let parts = [Shape::new(6912, 2560); 2];
    assert_eq!(full.choice(Role::GateUp, &parts), Some(&full.ops[0]));
    assert_eq!(full.choice(Role::GateUp, &parts[..1]), None);
    assert_eq!(full.choice(Role::Qkv, &parts), None);
}

#[test]
fn lines_serve_where_they_may_and_say_when() {
    let sparse = profile().ops[0].sparse.clone().unwrap();
    assert_eq!(sparse.to_string(), "below 62 % needed; 1.33x as fast at 25 %");
    let kernel = "rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p16".parse().unwrap();
    let t5 = Sparse { kernel, built_in: kernel, below: 0.0, ratio_at_quarter: None };
    assert_eq!(t5.to_string(), "never");
    for (format, ceiling, expected) in [
        (None, Isa::Avx512Vbmi, [true, true]),
        (None, Isa::Avx512Vnni, [true, false]),
        (None, Isa::Avx2, [false, false]),
        (Some(Format::T5), Isa::Avx512Vbmi, [true, true]),
        (Some(Format::I2S), Isa::Avx512Vbmi, [true, false]),
    ] {
        let found = [&sparse, &t5].map(|own| own.serves(format, ceiling));
        assert_eq!(found, expected, "{format:?} {ceiling}");
    }
}

/// One edit of a good profile each: what is replaced, by what, the item named, and a part of
/// what is said about it. The ids P01 to P21 are those of the project's list of hostile inputs;
/// those that take a file, a CPU or a model are in `runtime/tests/hostile_profiles.rs`.
#[test]
fn wrong_fields_are_refused_by_name() {
    let deep = "[".repeat(100_000);
    let long = format!("version = \"{}\"", "9".repeat(300));
    let name = format!("kernel = \"{}\"", "i".repeat(1 << 20));
    let kernel = "kernel = \"i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u4_p0\"";
    let tile = |tile: &str| format!("kernel = \"i2_s_t16__avx2__any__{tile}\"");
    let tiles = [
        tile("r0_c256_n1_u1_p0"),
        tile("r-1_c256_n1_u1_p0"),
        tile("r1000000000_c256_n1_u1_p0"),
        tile("r16.0_c256_n1_u1_p0"),
        tile("rnan_c256_n1_u1_p0"),
    ];
    let id = |text: &str| format!("kernel = \"{text}\"");
    let ids = [
        id(""),
        id("fn"),
        id("std::process::exit(0)"),
        id("i2_s_t16__avx2__any__r16_c256_n1_u2_p0; exit"),
        id("i2_s_t16__avx2__any__r16_c256_n1_u2_p0\\n"),
        id("../../i2_s_t16__avx2__any__r16_c256_n1_u2_p0"),
        id("\u{456}2_s_t16__avx2__any__r16_c256_n1_u2_p0"),
        "kernel = 7".into(),
        name,
    ];
    let runner_up = "runner_up = \"tl1_t32__avx2__any__r32_c240_n1_u2_p0\"";
    let built_in = "built_in = \"i2_s_t16__avx512vnni__any__r16_c0_n1_u2_p0\"";
    let tl1 = "kernel = \"tl1_t32__avx2__any__r32_c240_n1_u2_p0\"";
    let attention = "kernel = \"attention_f16__avx2__any__r1_c256_n1_u1_p0\"";
    let other_shape = "kernel = \"i2_s_t16__avx2__m6912_k2561__r16_c256_n1_u2_p0\"";
    let two_tokens = "kernel = \"i2_s_t16__avx2__any__r16_c256_n2_u1_p0\"";
    let shaped = "built_in = \"i2_s_t16__avx512vnni__m6912_k2560__r16_c0_n1_u2_p0\"";
    let other_layout = "built_in = \"i2_s_t32__avx2__any__r32_c256_n1_u1_p0\"";
    let head_runner_up = "runner_up = \"head_f32__avx2__any__r1_c0_n1_u1_p0\"";
    let rows = "kernel = \"rows_i2_s_l64__avx512vnni__m6912_k2560__r4_c0_n1_u1_p12\"";
    let rows_of_t5 = "kernel = \"rows_t5_l64__avx512vbmi__any__r4_c0_n1_u1_p12\"";
    let rows_of_others = "kernel = \"rows_i2_s_l64__avx2__m6912_k2561__r4_c0_n1_u1_p0\"";
    let columns = "kernel = \"columns_i2_s_l64__avx2__any__r64_c32_n1_u1_p0\"";
    let rows_built_in = "built_in = \"rows_i2_s_l64__avx2__any__r4_c0_n1_u1_p8\"";
    let rows_shaped = "built_in = \"rows_i2_s_l64__avx2__m6912_k2560__r4_c0_n1_u1_p8\"";
    let quarter = "ratio_at_quarter = 0.75";
    let parts = "parts = [[6912, 2560], [6912, 2560]]";
    let nine = format!("parts = [{}]", ["[1, 1]"; 9].join(", "));
    let mut cases: Vec<(&str, &str, &str, &str)> = vec![
        // P04 to P06, P14, P17, P21: grammar, and what is no field.
        ("schema = 1", "schema = 2", "schema", "reads 1"),
        ("schema = 1", "schema = 4294967296", "line 1", ""),
        ("schema = 1", "schema = \"1\"", "line 1", ""),
        ("schema = 1", "", "line 1", "schema"),
        ("schema = 1", "schema = 1\nschema = 1", "line 2", "duplicate"),
        ("schema = 1", "schema = 1\nhook = \"rm\"", "line 2", "unknown field `hook`"),
        ("schema = 1", &deep, "line 1", ""),
        ("[run]", "[run]\n\"\\u001b[2J\\n\u{202e}\" = 1", "line", "`\\u{1b}[2J\\n\\u{202e}`"),
        ("[run]", "[run]\nlibrary = \"/tmp/x.so\"", "line", "unknown field `library`"),
        ("[run]", "[run]\n[run]", "line", "duplicate"),
        ("[run]", "[jog]", "line", "unknown field `jog`"),
        ("[tool]", "[tool", "line", ""),
        ("role = \"lm_head\"", "role = \"head\"", "line", "lm_head"),
        ("role = \"gate_up\"", "role = \"gate\"", "line", "gate_up"),
        ("below = 0.625", "below = 1.5", "op 1 (gate_up).sparse.below", "0 to 1"),
        ("below = 0.625", "below = nan", "op 1 (gate_up).sparse.below", "NaN"),
        ("below = 0.625", "", "line", "below"),
        (quarter, "ratio_at_quarter = -1.0", "op 1 (gate_up).sparse.ratio_at_quarter", "0 to"),
        (quarter, "ratio_at_quarter = inf", "op 1 (gate_up).sparse.ratio_at_quarter", "inf"),
        (rows, rows_of_t5, "op 1 (gate_up).sparse", "another packing"),
        (rows, rows_of_others, "op 1 (gate_up).sparse", "other shapes"),
        (rows, columns, "op 1 (gate_up).sparse", "a rows kernel"),
        (rows_built_in, rows_shaped, "op 1 (gate_up).sparse", "no built-in kernel"),
        ("pinning = \"cores\"", "pinning = \"all\"", "line", "none, cores"),
        // P08: text.
        ("version = \"0.1.0\"", &long, "tool.version", "256 bytes"),
        ("name = \"2B-4T\"", "name = \"a\\u001b[2Jb\"", "model.name", "control"),
        ("\"models/m.gguf\"", "\"a\\u001b[2Jb\"", "model.path", "control"),
        ("\"0123456789abcdef\"", "\"0123456789abcdeg\"", "tool.fingerprint", "16 hex"),
        ("\"fedcba9876543210\"", "\"fedcba98765432\"", "model.shapes", "16 hex"),
        ("\"ababab", "\"ab", "tool.library_sha256", "64 hex"),
        // P09, P15: numbers.
        ("threads = 2\n", "threads = 0\n", "run.threads", "1 to 1024"),
        ("threads = 2\n", "threads = 1025\n", "run.threads", "1 to 1024"),
        ("threads = 2\n", "threads = -1\n", "line", ""),
        ("threads = 2\n", "threads = 2.0\n", "line", ""),
        ("read_gb_per_s = 51.5", "read_gb_per_s = nan", "host.read_gb_per_s", "NaN"),
        ("read_gb_per_s = 51.5", "read_gb_per_s = -1.0", "host.read_gb_per_s", "-1"),
        ("noise = 0.015625", "noise = inf", "host.noise", "inf"),
        ("median_us = 101.5", "median_us = nan", "op 1 (gate_up).decode.median_us", "NaN"),
        ("mad_us = 1.25", "mad_us = -inf", "op 1 (gate_up).decode.mad_us", "-inf"),
        ("gb_per_s = 43.5", "gb_per_s = 1e300", "op 1 (gate_up).decode.gb_per_s", "1e300, but"),
        ("share_of_limit = 0.875", "share_of_limit = -0.5", "decode.share_of_limit", "-0.5"),
        ("runner_up_ratio = 1.0625", "runner_up_ratio = nan", "decode.runner_up_ratio", "NaN"),
        ("tokens = 128", "tokens = 0", "op 1 (gate_up).prefill", "1 to 4096"),
        ("tokens = 128", "tokens = 4097", "op 1 (gate_up).prefill", "1 to 4096"),
        ("median_us = 101.5\n", "", "line", "stand together"),
        ("share_of_limit = 0.875\n", "", "line", "stand together"),
        ("count = 30", "count = 0", "op 1 (gate_up)", "count 0"),
        ("count = 30", "count = 65537", "op 1 (gate_up)", "count 65537"),
        // P09: shapes.
        (parts, "parts = []", "op 1 (gate_up)", "0 parts"),
        (parts, &nine, "op 1 (gate_up)", "9 parts"),
        (parts, "parts = [[0, 2560]]", "op 1 (gate_up)", "0x2560"),
        (parts, "parts = [[6912, 0]]", "op 1 (gate_up)", "6912x0"),
        (parts, "parts = [[16777217, 2560]]", "op 1 (gate_up)", "16777217"),
        (parts, "parts = [[6912, 262145]]", "op 1 (gate_up)", "262145"),
        (parts, "parts = [[6912]]", "line", ""),
        (parts, "parts = [[-6912, 2560]]", "line", ""),
        // Kernels that do not serve the role, the layout or the shape.
        ("layout = \"i2_s_t16\"\n", "", "op 1 (gate_up)", "takes a layout"),
        ("layout = \"i2_s_t16\"", "layout = \"i2_s_t32\"", "op 1 (gate_up).decode", "i2_s_t32"),
        ("layout = \"i2_s_t16\"", "layout = \"i2_s\"", "line", "i2_s_t16"),
        ("role = \"gate_up\"", "role = \"lm_head\"", "op 1 (lm_head)", "takes no layout"),
        ("role = \"lm_head\"", "role = \"down\"", "op 2 (down)", "takes a layout"),
        ("role = \"lm_head\"", "role = \"attention\"", "op 2 (attention).decode", "head_q6_k"),
        (kernel, tl1, "op 1 (gate_up).decode", "reads tl1_t32"),
        (kernel, attention, "op 1 (gate_up).decode", "does not serve"),
        (kernel, other_shape, "op 1 (gate_up).decode", "other shapes"),
        (kernel, two_tokens, "op 1 (gate_up).decode", "2 tokens"),
        (runner_up, head_runner_up, "op 1 (gate_up).decode", "does not serve"),
        (built_in, shaped, "op 1 (gate_up).decode", "no built-in kernel"),
        (built_in, other_layout, "op 1 (gate_up).decode", "reads i2_s_t32"),
        (built_in, "", "line", "built_in"),
    ];
    cases.extend(tiles.iter().map(|tile| (kernel, tile.as_str(), "line", "")));
    cases.extend(ids.iter().map(|id| (kernel, id.as_str(), "line", "")));
    let good = profile().to_text();
    for (from, to, item, problem) in cases {
        assert!(good.contains(from), "`{from}` is not in:\n{good}");
        let (found_item, found_problem) = refused(&good.replacen(from, to, 1));
        let shown: String = to.chars().take(80).collect();
        assert!(found_item.contains(item), "`{shown}`: {found_item} is not {item}");
        assert!(found_problem.contains(problem), "`{shown}`: {found_problem}");
        assert!(found_problem.len() < 1000, "`{shown}`: {} bytes", found_problem.len());
        assert!(!found_problem.chars().any(char::is_control), "`{shown}`: {found_problem:?}");
    }
}

#[test]
fn a_role_and_its_parts_stand_once() {
    let mut twice = profile();
    twice.ops.push(twice.ops[0].clone());
    let (item, problem) = refused(&twice.to_text());
    assert_eq!(item, "op 3 (gate_up)");
    assert!(problem.contains("twice"), "{problem}");
    // The same role with other parts is another job.
    twice.ops[2].parts[0].rows += 1;
    assert_eq!(Profile::parse(&twice.to_text()).unwrap(), twice);
}

/// A kernel that the CPU lacks is one that would run: those of the picks and their fallbacks.
#[test]
fn p11_what_needs_an_isa_that_the_cpu_lacks_is_refused() {
    let profile = profile();
    for (best, item, isa) in [
        (Isa::Scalar, "op 1 (gate_up).decode", "avx512vnni"),
        (Isa::Avx2, "op 1 (gate_up).decode", "avx512vnni"),
        (Isa::Avx512Vnni, "", ""),
    ] {
        match profile.check_isa(|isa| isa <= best) {
            Ok(()) => assert_eq!(item, "", "{best}"),
            Err(ProfileError::Content { item: found, problem }) => {
                assert_eq!(found, item, "{best}");
                assert!(problem.contains(&format!("needs {isa}, which")), "{best}: {problem}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    // Each place alone.
    let scalar = Profile { ops: profile.ops[1..].to_vec(), ..profile.clone() };
    let lacks = |isa: Isa| move |other: Isa| other != isa;
    assert!(scalar.check_isa(lacks(Isa::Avx512Vnni)).is_ok());
    assert!(scalar.check_isa(lacks(Isa::Avx2)).is_err());
    assert!(scalar.check_isa(lacks(Isa::Scalar)).is_err());
    // The second best is told, never run.
    let mut told = scalar;
    told.ops[0].decode.timed.as_mut().unwrap().runner_up =
        Some("head_q6_k__avx512__any__r1_c0_n1_u1_p0".parse().unwrap());
    assert!(told.check_isa(lacks(Isa::Avx512)).is_ok());
}

/// P03: a file cut short at any byte is refused, or is a profile by itself: whole `[[op]]` tables
/// may be missing at its end, and nothing else.
#[test]
fn every_prefix_is_refused_or_whole() {
    let text = profile().to_text();
    let whole = profile();
    let mut parsed = 0;
    for end in 0..text.len() {
        let prefix = Profile::from_bytes(text.as_bytes()[..end].to_vec());
        assert!(prefix.is_err() || text.is_char_boundary(end), "cut at {end}");
        if let Ok(prefix) = prefix {
            assert_eq!(prefix.run.threads, whole.run.threads, "cut at {end}");
            assert!(prefix.ops.len() <= whole.ops.len());
            parsed += 1;
        }
    }
    assert!(parsed > 0 && parsed < text.len() / 10, "{parsed} of {}", text.len());
}

#[test]
fn files_that_are_no_profile_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    let content = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Profile::load(&path).expect_err("no profile").to_string()
    };
    for (bytes, says) in [
        (&b""[..], "schema"),
        (&b"\n# nothing\n"[..], "schema"),
        (&b"GGUF\x03\0\0\0"[..], "line 1"),
        (&b"{\"schema\": 1}"[..], "line 1"),
        (&b"schema = 1\nname = \"\xff\""[..], "byte 19: not UTF-8"),
    ] {
        let error = content(bytes);
        assert!(error.contains(says), "{error}");
    }
    // A gigabyte, though a hole.
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    let error = Profile::load(&path).expect_err("too big").to_string();
    assert!(error.contains("1073741824 bytes") && error.contains("1048576"), "{error}");
    let error = Profile::load(folder.path()).expect_err("a folder").to_string();
    assert!(error.contains("not a regular file"), "{error}");
    let missing = folder.path().join("none.toml");
    let error = Profile::load(&missing).expect_err("missing");
    assert!(matches!(error, ProfileError::Io { action: "open", .. }), "{error}");
    assert!(error.to_string().contains("none.toml"), "{error}");
}

#[test]
fn what_is_said_of_a_hostile_file_is_one_line_of_text() {
    let good = profile().to_text();
    let escape = "\\u001b[2J\\r\\n\\u202e\\u009b";
    for (from, to) in [
        ("[run]", format!("[run]\n\"{escape}\" = 1")),
        ("role = \"lm_head\"", format!("role = \"{escape}\"")),
        ("kernel = \"i2_s_t16", format!("kernel = \"{escape}i2_s_t16")),
        ("threads = 2\n", format!("threads = \"{escape}\"\n")),
    ] {
        assert!(good.contains(from), "{from}");
        let (item, problem) = refused(&good.replacen(from, &to, 1));
        let said = format!("{item}: {problem}");
        assert_eq!(said, printable(&said));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn saving_replaces_the_whole_file_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    let mut saved = profile();
    saved.save(&path).unwrap();
    assert_eq!(Profile::load(&path).unwrap(), saved);
    saved.run.threads = 7;
    saved.save(&path).unwrap();
    assert_eq!(Profile::load(&path).unwrap(), saved);
    // What another process of the same number left behind is in nobody's way.
    let stale = format!("host.toml.{}.tmp", std::process::id());
    std::fs::write(folder.path().join(&stale), "half").unwrap();
    saved.save(&path).unwrap();
    assert_eq!(names(folder.path()), ["host.toml", stale.as_str()]);
    std::fs::remove_file(folder.path().join(&stale)).unwrap();
    // A new profile is as public as any new file of this user.
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let permissions = |path: &Path| std::fs::metadata(path).unwrap().permissions();
    assert_eq!(permissions(&path), permissions(&plain));
    std::fs::remove_file(&plain).unwrap();

    // Where a folder has the name, it stays, and so does what it holds.
    let taken = folder.path().join("taken.toml");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("kept"), "kept").unwrap();
    let error = saved.save(&taken).expect_err("a folder");
    assert!(matches!(error, ProfileError::Io { action: "write", .. }), "{error}");
    assert_eq!(names(&taken), ["kept"]);
    assert_eq!(names(folder.path()), ["host.toml", "taken.toml"]);

    let error = saved.save(&folder.path().join("none/host.toml")).expect_err("no such folder");
    assert!(matches!(error, ProfileError::Io { action: "write", .. }), "{error}");
}

/// Of so long a name, that none is left for the file that is to take its place: unlike a folder
/// without write permission, that stops root too.
#[cfg(unix)]
#[test]
fn a_profile_that_cannot_be_replaced_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("{}.toml", "x".repeat(245));
    let path = folder.path().join(&name);
    let old = profile();
    std::fs::write(&path, old.to_text()).unwrap();
    let new = Profile { ops: vec![], ..profile() };
    let result = new.save(&path);
    assert!(matches!(result, Err(ProfileError::Io { action: "write", .. })), "{result:?}");
    assert_eq!(Profile::load(&path).unwrap(), old);
    assert_eq!(names(folder.path()), [name]);
}

#[test]
fn shapes_are_named_by_all_that_matters() {
    let a = [Shape::new(6912, 2560)];
    let b = [Shape::new(2560, 6912)];
    let both = [a[0], b[0]];
    let jobs: [&[(Role, &[Shape], u32)]; 7] = [
        &[],
        &[(Role::Qkv, &a, 30)],
        &[(Role::Qkv, &a, 31)],
        &[(Role::Qkv, &b, 30)],
        &[(Role::GateUp, &a, 30)],
        &[(Role::Qkv, &both, 30)],
        &[(Role::Qkv, &a, 30), (Role::Down, &b, 30)],
    ];
    let hashes = jobs.map(|jobs| shapes_hash(jobs.iter().copied()));
    for (i, hash) in hashes.iter().enumerate() {
        assert!(hash.len() == 16 && !hashes[..i].contains(hash), "{hash} stands twice");
    }
    // Written into profiles: must not change from version to version.
    assert_eq!(hashes[0], "cbf29ce484222325");
}
