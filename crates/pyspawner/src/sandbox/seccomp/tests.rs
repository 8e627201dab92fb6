//! The program against the table, in an interpreter of classic BPF that knows nothing of either.

use proptest::prelude::*;

use super::filter::{Instruction, program};
use super::table::{Check, Rule, rules};

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// Runs the program on one call, as the kernel does; panics where the kernel's checker would refuse.
fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(architecture.to_le_bytes());
    data.extend(0_u64.to_le_bytes());
    for argument in arguments {
        data.extend(argument.to_le_bytes());
    }
    let mut accumulator = 0_u32;
    let mut at = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |condition| usize::from(if condition { jt } else { jf });
        match code {
            0x20 => {
                let offset = k as usize;
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().expect("four bytes"));
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x35 => at += branch(accumulator >= k),
            0x45 => at += branch(accumulator & k != 0),
            0x06 => return k,
            other => panic!("no such operation: {other:#x}"),
        }
    }
}

/// What the table and its comments say, in plain Rust.
#[expect(clippy::cast_possible_truncation, reason = "the kernel reads the low 32 bits of these arguments")]
fn expected(number: u32, arguments: [u64; 6]) -> u32 {
    let low = |index: u32| arguments[index as usize] as u32;
    let allow_if = |condition, refusal| if condition { ALLOW } else { refusal };
    let device = |mode: u32| matches!(mode & 0o170_000, 0o020_000 | 0o060_000);
    match rules().into_iter().find(|(ruled, _)| *ruled == number).map(|(_, rule)| rule) {
        None => errno(38),
        Some(Rule::Allow) => ALLOW,
        Some(Rule::Errno(number)) => errno(number.unsigned_abs()),
        Some(Rule::Trap) => TRAP,
        Some(Rule::Check(check)) => match check {
            Check::CloneFlags => allow_if(low(0) & 0x7e02_0000 == 0, errno(1)),
            Check::SocketFamily => match low(0) {
                1 => ALLOW,
                2 | 10 => {
                    allow_if(matches!(low(1) & 0xf, 1 | 2) && matches!(low(2), 0 | 1 | 6 | 17 | 58), errno(1))
                }
                _ => errno(97),
            },
            Check::SocketPairFamily => allow_if(low(0) == 1, errno(97)),
            Check::FcntlCommand => allow_if(!matches!(low(1), 1024 | 1026), errno(1)),
            Check::IoctlRequest => allow_if(!matches!(low(1), 0x5412 | 0x541c | 0x5423), errno(1)),
            Check::PrctlOption => allow_if(
                matches!(low(0), 1..=4 | 7 | 15 | 16 | 21 | 23 | 27 | 29 | 30 | 36..=42 | 0x5356_4d41),
                errno(1),
            ),
            Check::Personality => allow_if(matches!(low(0), 0 | u32::MAX), errno(1)),
            Check::NodeMode(mode) => allow_if(!device(low(mode)) && low(mode) & 0o6000 == 0, errno(1)),
            Check::FileMode(mode) => allow_if(low(mode) & 0o6000 == 0, errno(1)),
            Check::OpenMode(flags) => {
                allow_if(low(flags) & 0x40_0040 == 0 || low(flags + 1) & 0o6000 == 0, errno(1))
            }
            Check::MincoreLength => allow_if(arguments[1] >> 32 == 0, errno(12)),
            Check::SetrlimitResource => allow_if(low(0) != 4, errno(0)),
            Check::PrlimitResource => allow_if(low(1) != 4 || arguments[2] == 0, errno(0)),
            Check::QueuedSignal(signal) => allow_if(low(signal) != 31, errno(1)),
            Check::Sigaction => allow_if(low(0) != 31 || arguments[1] == 0, errno(0)),
        },
    }
}

/// Arguments near the values that rules compare with, with any high half.
fn argument() -> impl Strategy<Value = u64> {
    let interesting = prop_oneof![
        Just(0_u64),
        Just(1),
        Just(2),
        Just(3),
        Just(4),
        Just(10),
        Just(16),
        Just(17),
        Just(31),
        Just(38),
        Just(40),
        Just(58),
        Just(0x5412),
        Just(0x541c),
        Just(0x5423),
        Just(0x1000_0000),
        Just(0x2_0000),
        Just(0o020_644),
        Just(0o060_644),
        Just(0o100_644),
        Just(0o104_755),
        Just(0o2_755),
        Just(0o102),
        Just(0xffff_ffff),
        0_u64..64,
        any::<u32>().prop_map(u64::from),
        (0_u32..32).prop_map(|bit| 1 << bit),
    ];
    (interesting, prop_oneof![3 => Just(0_u64), 1 => any::<u32>().prop_map(u64::from)])
        .prop_map(|(low, high)| low | high << 32)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_program_answers_as_the_table_says(
        number in prop_oneof![0_u32..600, any::<u32>().prop_map(|number| number & 0x3fff_ffff)],
        arguments in prop::array::uniform6(argument()),
    ) {
        prop_assert_eq!(run(&program(), NATIVE, number, arguments), expected(number, arguments));
    }

    #[test]
    fn another_architecture_kills(architecture in any::<u32>(), number in any::<u32>()) {
        prop_assume!(architecture != NATIVE);
        prop_assert_eq!(run(&program(), architecture, number, [0; 6]), KILL);
    }

    #[test]
    fn x32_kills(number in 0x4000_0000_u32..) {
        prop_assert_eq!(run(&program(), NATIVE, number, [0; 6]), KILL);
    }
}

#[test]
fn every_call_with_a_rule_is_answered_as_the_table_says() {
    let program = program();
    for (number, _) in rules() {
        for first in [0_u64, 1, 2, 4, 31, 38, 0x1000_0000, 1 << 32, (1 << 32) | 2] {
            for second in [0_u64, 1, 2, 3, 4, 0x5412, (1 << 32) | 0x5412, 0o020_600] {
                let arguments = [first, second, 0o060_600, 0, 0, 0];
                assert_eq!(
                    run(&program, NATIVE, number, arguments),
                    expected(number, arguments),
                    "call {number}"
                );
            }
        }
    }
}

#[test]
fn the_compared_path_is_short() {
    let program = program();
    assert!(program.len() < 600, "{} instructions", program.len());
}
