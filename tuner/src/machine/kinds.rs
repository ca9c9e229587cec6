//! What CPUs can do: a table.
//!
//! Ports and latencies of x86 and of Neoverse are LLVM's scheduling models as `llvm-mca` 22 prints them
//! (`llvm-mca -mcpu=<name> -instruction-info`), except where those are known to be off: AVX-512 on Intel
//! joins ports 0 and 1; `vpdpbusd` with 512 bits is one a cycle on Zen 4 and two on Zen 5 (measured).
//! Cortex-A76 is the core of Neoverse N1; Apple's and Qualcomm's are as their makers tell. Bandwidths are
//! what one core and a usual machine of the kind sustain, rounded; those of Zen 5, and everything else
//! that [`Kind`] holds for it, are fitted to timings of this project's kernels on two cores of an EPYC of
//! family 26. A tuner that has probed a host replaces the bandwidths ([`super::Cpu`]).

use super::mix::Class;

/// The ports that execute an operation, as bits, and how often it takes one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ports {
    /// Any of these.
    pub any_of: u8,
    /// So many cycles of one of them.
    pub cycles: f64,
}

/// Once on any of some ports.
const fn on(any_of: u8) -> Ports {
    Ports { any_of, cycles: 1.0 }
}

/// For some cycles.
const fn for_cycles(cycles: f64, any_of: u8) -> Ports {
    Ports { any_of, cycles }
}

/// Where vectors of one width are executed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Vectors {
    /// Loads of whole vectors a cycle.
    pub loads: f64,
    /// Loads that repeat a few bytes a cycle.
    pub broadcasts: f64,
    /// Stores a cycle.
    pub stores: f64,
    logic: Ports,
    shift: Ports,
    add: Ports,
    dot: Ports,
    /// Cycles of a product of matrices (`smmla`) on one of those ports, over those of a dot product; 1
    /// where there is none.
    matrix: f64,
    multiply: Ports,
    shuffle: Ports,
    permute: Ports,
    extend: Ports,
    convert: Ports,
    float: Ports,
    fma: Ports,
}

impl Vectors {
    /// The ports of a class; none for what no vector port executes.
    pub fn ports(&self, class: Class) -> Option<Ports> {
        Some(match class {
            Class::Logic => self.logic,
            Class::Shift => self.shift,
            Class::Add => self.add,
            Class::Dot => self.dot,
            Class::Matrix => Ports { cycles: self.matrix * self.dot.cycles, ..self.dot },
            Class::Multiply => self.multiply,
            Class::Shuffle => self.shuffle,
            Class::Permute => self.permute,
            Class::Extend => self.extend,
            Class::Convert => self.convert,
            Class::Float => self.float,
            Class::Fma => self.fma,
            Class::Load | Class::Broadcast | Class::Store | Class::Prefetch | Class::Control => {
                return None;
            }
        })
    }
}

/// What software prefetch does: times of reading over those without.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prefetch {
    /// The distance in bytes.
    pub ahead: usize,
    /// From memory.
    pub from_memory: f64,
    /// From a cache.
    pub from_cache: f64,
}

/// One line of a table.
const fn ahead(ahead: usize, from_memory: f64, from_cache: f64) -> Prefetch {
    Prefetch { ahead, from_memory, from_cache }
}

/// A kind of CPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// The name of its shipped profile.
    pub name: &'static str,
    /// What it is.
    pub cpu: &'static str,
    /// The usual clock in vector code, in 10^9 cycles per second.
    pub ghz: f64,
    /// Instructions a cycle.
    pub issue: f64,
    /// Cycles from a byte product sum to the next on the same accumulator.
    pub dot_latency: f64,
    /// Cycles of a float multiply-add.
    pub fma_latency: f64,
    /// Vectors of the kernels for its best tier.
    pub best: Vectors,
    /// Vectors of half that width, where the best have 512 bits.
    pub half: Option<Vectors>,
    /// Bytes of the L1 data cache.
    pub l1: u64,
    /// Bytes of L2 cache of a core.
    pub l2: u64,
    /// Bytes of the cache that cores share; 0: there is none.
    pub l3: u64,
    /// Bytes that the L2 cache sustains a cycle.
    pub l2_bytes_per_cycle: f64,
    /// 10^9 bytes per second from the shared cache, one core.
    pub l3_gb_per_s: f64,
    /// From memory, one core.
    pub core_gb_per_s: f64,
    /// From memory, all cores.
    pub socket_gb_per_s: f64,
    /// Cores of a usual machine.
    pub cores: u32,
    /// How well reading from memory and computing overlap: `(c^p + m^p)^(1/p)` with this `p`; 1 is
    /// one after the other.
    pub overlap: f64,
    /// Software prefetch; empty where nobody has measured it.
    pub prefetch: &'static [Prefetch],
}

impl Kind {
    /// The kind of a shipped profile: its own, or the one that stands for an ISA class.
    pub fn of_profile(name: &str) -> &'static Self {
        let name = CLASSES.iter().find(|(class, _)| *class == name).map_or(name, |(_, kind)| kind);
        KINDS.iter().find(|kind| kind.name == name).unwrap_or(&KINDS[0])
    }
}

/// The kinds that stand for ISA classes, whose CPUs may be anything.
pub const CLASSES: &[(&str, &str)] = &[
    ("avx512vnni", "ice-lake"),
    ("avx512", "skylake-x"),
    ("avxvnni", "alder-lake"),
    ("avx2", "skylake"),
    ("neoni8mm", "neoverse-n2"),
    ("neondot", "neoverse-n1"),
    ("neon", "cortex-a76"),
    ("generic", "haswell"),
];

/// Vector ports of Intel: 0, 1 and 5.
const P0: u8 = 1;
const P1: u8 = 2;
const P5: u8 = 4;
const P01: u8 = P0 | P1;
const P05: u8 = P0 | P5;
const P15: u8 = P1 | P5;
const P015: u8 = P0 | P1 | P5;
/// Vector pipes of Zen: 0 to 3.
const F0: u8 = 1;
const F2: u8 = 4;
const F01: u8 = 0b0011;
const F12: u8 = 0b0110;
const F23: u8 = 0b1100;
const F03: u8 = 0b1001;
const F013: u8 = 0b1011;
const F0123: u8 = 0b1111;

const HASWELL: Vectors = Vectors {
    loads: 2.0,
    broadcasts: 2.0,
    stores: 1.0,
    logic: on(P015),
    shift: on(P0),
    add: on(P15),
    dot: on(P0),
    matrix: 1.0,
    multiply: for_cycles(2.0, P0),
    shuffle: on(P5),
    permute: on(P5),
    extend: on(P5),
    convert: on(P1),
    float: on(P01),
    fma: on(P01),
};

const SKYLAKE: Vectors = Vectors {
    shift: on(P01),
    add: on(P015),
    dot: on(P01),
    multiply: for_cycles(2.0, P01),
    convert: on(P01),
    ..HASWELL
};

/// Shuffles within 128 bits have two ports since Ice Lake.
const ICE_LAKE: Vectors = Vectors { shuffle: on(P15), ..SKYLAKE };

const GOLDEN_COVE: Vectors = Vectors { loads: 3.0, broadcasts: 3.0, stores: 2.0, ..ICE_LAKE };

/// 512 bits on ports 0 (with 1) and 5.
const SKYLAKE_X: Vectors = Vectors {
    loads: 2.0,
    broadcasts: 2.0,
    stores: 1.0,
    logic: on(P05),
    shift: on(P0),
    add: on(P05),
    dot: on(P05),
    matrix: 1.0,
    multiply: for_cycles(2.0, P05),
    shuffle: on(P5),
    permute: for_cycles(2.0, P5),
    extend: on(P5),
    convert: on(P05),
    float: on(P05),
    fma: on(P05),
};

const ZEN2: Vectors = Vectors {
    loads: 2.0,
    broadcasts: 2.0,
    stores: 1.0,
    logic: on(F0123),
    shift: on(F2),
    add: on(F013),
    dot: on(F0),
    matrix: 1.0,
    multiply: for_cycles(2.0, F0),
    shuffle: on(F12),
    permute: on(F12),
    extend: on(F12),
    convert: on(F23),
    float: on(F23),
    fma: on(F01),
};

const ZEN3: Vectors =
    Vectors { shift: on(F12), add: on(F0123), dot: on(F03), multiply: on(F03), ..ZEN2 };

/// 512 bits take every pipe, and a load port, twice.
const ZEN4: Vectors = Vectors {
    loads: 1.0,
    broadcasts: 2.0,
    stores: 0.5,
    logic: for_cycles(2.0, F0123),
    shift: for_cycles(2.0, F12),
    add: for_cycles(2.0, F0123),
    dot: for_cycles(2.0, F01),
    matrix: 1.0,
    multiply: for_cycles(2.0, F03),
    shuffle: for_cycles(2.0, F12),
    permute: for_cycles(2.0, F12),
    extend: for_cycles(2.0, F12),
    convert: for_cycles(2.0, F23),
    float: for_cycles(2.0, F23),
    fma: for_cycles(2.0, F01),
};

const ZEN5: Vectors = Vectors {
    loads: 2.0,
    broadcasts: 2.0,
    stores: 1.0,
    logic: on(F0123),
    shift: on(F12),
    add: on(F0123),
    dot: on(F01),
    matrix: 1.0,
    multiply: on(F01),
    shuffle: on(F12),
    permute: on(F12),
    extend: on(F12),
    convert: on(F23),
    float: on(F23),
    fma: on(F01),
};

/// Pipes of ARM: 0 to 3, or 0 and 1.
const V0: u8 = 0b0001;
const V1: u8 = 0b0010;
const V01: u8 = 0b0011;
const V02: u8 = 0b0101;
const V13: u8 = 0b1010;
const V0123: u8 = 0b1111;

const NEOVERSE_N1: Vectors = Vectors {
    loads: 2.0,
    broadcasts: 2.0,
    stores: 1.0,
    logic: on(V01),
    shift: on(V1),
    add: on(V01),
    dot: on(V01),
    matrix: 1.0,
    multiply: on(V0),
    shuffle: on(V01),
    permute: on(V01),
    extend: on(V1),
    convert: for_cycles(2.0, V0),
    float: on(V01),
    fma: on(V01),
};

const NEOVERSE_N2: Vectors = Vectors { loads: 3.0, broadcasts: 2.0, stores: 2.0, ..NEOVERSE_N1 };

const NEOVERSE_V1: Vectors = Vectors {
    loads: 3.0,
    broadcasts: 3.0,
    stores: 2.0,
    logic: on(V0123),
    shift: on(V13),
    add: on(V0123),
    dot: on(V0123),
    matrix: 1.0,
    multiply: on(V02),
    shuffle: on(V01),
    permute: for_cycles(2.0, V01),
    extend: on(V13),
    convert: for_cycles(2.0, V02),
    float: on(V0123),
    fma: on(V0123),
};

const NEOVERSE_V2: Vectors = Vectors { permute: on(V01), ..NEOVERSE_V1 };

/// Apple's and Qualcomm's: four pipes that do nearly everything. LLVM models the first as a core of 2013
/// with three. `smmla` takes as long as two `sdot`, by LLVM's model of the second, and by a benchmark on an
/// M3 that did as many products a cycle with either (rten, pull request 827).
const FOUR_PIPES: Vectors = Vectors {
    loads: 3.0,
    broadcasts: 3.0,
    stores: 2.0,
    logic: on(V0123),
    shift: on(V0123),
    add: on(V0123),
    dot: on(V0123),
    matrix: 2.0,
    multiply: on(V0123),
    shuffle: on(V0123),
    permute: for_cycles(2.0, V0123),
    extend: on(V0123),
    convert: on(V0123),
    float: on(V0123),
    fma: on(V0123),
};

/// The performance cores of Apple's first chip.
const APPLE_M1: Kind = Kind {
    name: "apple-m1",
    cpu: "Apple M1, performance cores",
    ghz: 3.2,
    issue: 8.0,
    dot_latency: 3.0,
    fma_latency: 4.0,
    best: FOUR_PIPES,
    half: None,
    l1: 128 << 10,
    l2: 3 << 20,
    l3: 8 << 20,
    l2_bytes_per_cycle: 32.0,
    l3_gb_per_s: 60.0,
    core_gb_per_s: 55.0,
    socket_gb_per_s: 60.0,
    cores: 4,
    overlap: 4.0,
    prefetch: &[],
};

/// The core of Ampere Altra and Graviton 2.
const N1: Kind = Kind {
    name: "neoverse-n1",
    cpu: "Arm Neoverse N1",
    ghz: 2.6,
    issue: 4.0,
    dot_latency: 2.0,
    fma_latency: 4.0,
    best: NEOVERSE_N1,
    half: None,
    l1: 64 << 10,
    l2: 1 << 20,
    l3: 32 << 20,
    l2_bytes_per_cycle: 24.0,
    l3_gb_per_s: 20.0,
    core_gb_per_s: 14.0,
    socket_gb_per_s: 150.0,
    cores: 32,
    overlap: 3.0,
    prefetch: &[],
};

/// Every kind, each with a shipped profile of its name. A test looks for all of them.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "zen2",
        cpu: "AMD Zen 2",
        ghz: 3.4,
        issue: 5.0,
        dot_latency: 4.0,
        fma_latency: 5.0,
        best: ZEN2,
        half: None,
        l1: 32 << 10,
        l2: 512 << 10,
        l3: 32 << 20,
        l2_bytes_per_cycle: 24.0,
        l3_gb_per_s: 50.0,
        core_gb_per_s: 22.0,
        socket_gb_per_s: 40.0,
        cores: 8,
        overlap: 4.0,
        prefetch: &[],
    },
    Kind {
        name: "zen3",
        cpu: "AMD Zen 3",
        ghz: 3.6,
        issue: 6.0,
        dot_latency: 3.0,
        fma_latency: 4.0,
        best: ZEN3,
        half: None,
        l1: 32 << 10,
        l2: 512 << 10,
        l3: 32 << 20,
        l2_bytes_per_cycle: 28.0,
        l3_gb_per_s: 60.0,
        core_gb_per_s: 26.0,
        socket_gb_per_s: 42.0,
        cores: 8,
        overlap: 4.0,
        prefetch: &[],
    },
    Kind {
        name: "zen4",
        cpu: "AMD Zen 4",
        ghz: 3.65,
        issue: 6.0,
        dot_latency: 4.0,
        fma_latency: 4.0,
        best: ZEN4,
        half: Some(ZEN3),
        l1: 32 << 10,
        l2: 1 << 20,
        l3: 32 << 20,
        l2_bytes_per_cycle: 32.0,
        l3_gb_per_s: 77.0,
        core_gb_per_s: 38.0,
        socket_gb_per_s: 66.0,
        cores: 8,
        overlap: 8.0,
        prefetch: &[
            ahead(1024, 1.33, 1.0),
            ahead(2048, 1.23, 1.0),
            ahead(4096, 1.14, 1.0),
            ahead(8192, 1.07, 1.0),
        ],
    },
    Kind {
        name: "zen5",
        cpu: "AMD Zen 5",
        ghz: 4.02,
        issue: 8.0,
        dot_latency: 4.0,
        fma_latency: 4.0,
        best: ZEN5,
        half: Some(Vectors { loads: 3.0, broadcasts: 3.0, ..ZEN5 }),
        l1: 48 << 10,
        l2: 1 << 20,
        l3: 32 << 20,
        l2_bytes_per_cycle: 40.0,
        l3_gb_per_s: 90.0,
        core_gb_per_s: 34.0,
        socket_gb_per_s: 55.0,
        cores: 2,
        overlap: 3.0,
        prefetch: &[
            ahead(1024, 1.1, 0.88),
            ahead(2048, 1.0, 0.82),
            ahead(4096, 0.93, 0.88),
            ahead(8192, 0.89, 0.95),
        ],
    },
    Kind {
        name: "haswell",
        cpu: "Intel Haswell",
        ghz: 3.2,
        issue: 4.0,
        dot_latency: 5.0,
        fma_latency: 5.0,
        best: HASWELL,
        half: None,
        l1: 32 << 10,
        l2: 256 << 10,
        l3: 8 << 20,
        l2_bytes_per_cycle: 25.0,
        l3_gb_per_s: 35.0,
        core_gb_per_s: 15.0,
        socket_gb_per_s: 23.0,
        cores: 4,
        overlap: 4.0,
        prefetch: &[],
    },
    Kind {
        name: "skylake",
        cpu: "Intel Skylake",
        ghz: 3.6,
        issue: 4.0,
        dot_latency: 5.0,
        fma_latency: 4.0,
        best: SKYLAKE,
        half: None,
        l1: 32 << 10,
        l2: 256 << 10,
        l3: 12 << 20,
        l2_bytes_per_cycle: 28.0,
        l3_gb_per_s: 40.0,
        core_gb_per_s: 20.0,
        socket_gb_per_s: 35.0,
        cores: 6,
        overlap: 4.0,
        prefetch: &[],
    },
    Kind {
        name: "alder-lake",
        cpu: "Intel Alder Lake, P-cores",
        ghz: 4.6,
        issue: 6.0,
        dot_latency: 5.0,
        fma_latency: 4.0,
        best: GOLDEN_COVE,
        half: None,
        l1: 48 << 10,
        l2: 1280 << 10,
        l3: 25 << 20,
        l2_bytes_per_cycle: 36.0,
        l3_gb_per_s: 55.0,
        core_gb_per_s: 38.0,
        socket_gb_per_s: 70.0,
        cores: 8,
        overlap: 4.0,
        prefetch: &[],
    },
    Kind {
        name: "sapphire-rapids",
        cpu: "Intel Sapphire Rapids",
        ghz: 3.0,
        issue: 6.0,
        dot_latency: 5.0,
        fma_latency: 4.0,
        best: Vectors { stores: 1.0, ..SKYLAKE_X },
        half: Some(GOLDEN_COVE),
        l1: 48 << 10,
        l2: 2 << 20,
        l3: 60 << 20,
        l2_bytes_per_cycle: 40.0,
        l3_gb_per_s: 25.0,
        core_gb_per_s: 14.0,
        socket_gb_per_s: 200.0,
        cores: 32,
        overlap: 3.0,
        prefetch: &[],
    },
    Kind {
        name: "ice-lake",
        cpu: "Intel Ice Lake",
        ghz: 2.9,
        issue: 5.0,
        dot_latency: 5.0,
        fma_latency: 4.0,
        best: SKYLAKE_X,
        half: Some(ICE_LAKE),
        l1: 48 << 10,
        l2: 1280 << 10,
        l3: 48 << 20,
        l2_bytes_per_cycle: 40.0,
        l3_gb_per_s: 25.0,
        core_gb_per_s: 13.0,
        socket_gb_per_s: 150.0,
        cores: 24,
        overlap: 3.0,
        prefetch: &[],
    },
    Kind {
        name: "cascade-lake",
        cpu: "Intel Cascade Lake",
        ghz: 2.8,
        issue: 4.0,
        dot_latency: 5.0,
        fma_latency: 4.0,
        best: SKYLAKE_X,
        half: Some(SKYLAKE),
        l1: 32 << 10,
        l2: 1 << 20,
        l3: 32 << 20,
        l2_bytes_per_cycle: 40.0,
        l3_gb_per_s: 22.0,
        core_gb_per_s: 12.0,
        socket_gb_per_s: 105.0,
        cores: 20,
        overlap: 3.0,
        prefetch: &[],
    },
    Kind {
        name: "skylake-x",
        cpu: "Intel Skylake-X",
        ghz: 2.7,
        issue: 4.0,
        dot_latency: 5.0,
        fma_latency: 4.0,
        best: SKYLAKE_X,
        half: Some(SKYLAKE),
        l1: 32 << 10,
        l2: 1 << 20,
        l3: 25 << 20,
        l2_bytes_per_cycle: 40.0,
        l3_gb_per_s: 22.0,
        core_gb_per_s: 12.0,
        socket_gb_per_s: 95.0,
        cores: 16,
        overlap: 3.0,
        prefetch: &[],
    },
    APPLE_M1,
    Kind {
        name: "apple-m2",
        cpu: "Apple M2, performance cores",
        ghz: 3.5,
        l2: 4 << 20,
        l3_gb_per_s: 80.0,
        core_gb_per_s: 80.0,
        socket_gb_per_s: 90.0,
        ..APPLE_M1
    },
    Kind {
        name: "apple-m3",
        cpu: "Apple M3, performance cores",
        ghz: 4.0,
        issue: 9.0,
        l2: 4 << 20,
        l3_gb_per_s: 85.0,
        core_gb_per_s: 85.0,
        socket_gb_per_s: 92.0,
        ..APPLE_M1
    },
    Kind {
        name: "apple-m4",
        cpu: "Apple M4, performance cores",
        ghz: 4.4,
        issue: 10.0,
        l2: 4 << 20,
        l3_gb_per_s: 95.0,
        core_gb_per_s: 95.0,
        socket_gb_per_s: 110.0,
        ..APPLE_M1
    },
    Kind {
        name: "cortex-a76",
        cpu: "Arm Cortex-A76, as in Raspberry Pi 5",
        ghz: 2.4,
        l2: 512 << 10,
        l3: 2 << 20,
        l3_gb_per_s: 14.0,
        core_gb_per_s: 9.0,
        socket_gb_per_s: 11.0,
        cores: 4,
        ..N1
    },
    N1,
    Kind {
        name: "neoverse-v1",
        cpu: "Arm Neoverse V1",
        issue: 8.0,
        dot_latency: 3.0,
        best: NEOVERSE_V1,
        l2_bytes_per_cycle: 32.0,
        l3_gb_per_s: 30.0,
        core_gb_per_s: 25.0,
        socket_gb_per_s: 220.0,
        ..N1
    },
    Kind {
        name: "neoverse-n2",
        cpu: "Arm Neoverse N2",
        ghz: 3.0,
        issue: 5.0,
        dot_latency: 3.0,
        best: NEOVERSE_N2,
        l2_bytes_per_cycle: 32.0,
        l3_gb_per_s: 30.0,
        core_gb_per_s: 20.0,
        socket_gb_per_s: 200.0,
        ..N1
    },
    Kind {
        name: "neoverse-v2",
        cpu: "Arm Neoverse V2",
        ghz: 3.0,
        issue: 6.0,
        dot_latency: 3.0,
        best: NEOVERSE_V2,
        l2: 2 << 20,
        l3: 64 << 20,
        l2_bytes_per_cycle: 32.0,
        l3_gb_per_s: 40.0,
        core_gb_per_s: 30.0,
        socket_gb_per_s: 350.0,
        ..N1
    },
    Kind {
        name: "snapdragon-x",
        cpu: "Qualcomm Snapdragon X",
        ghz: 3.4,
        l1: 96 << 10,
        l3: 6 << 20,
        l3_gb_per_s: 80.0,
        core_gb_per_s: 70.0,
        socket_gb_per_s: 110.0,
        cores: 8,
        ..APPLE_M1
    },
];
