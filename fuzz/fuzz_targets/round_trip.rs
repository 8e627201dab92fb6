//! Every message that fits a frame comes back as it was; cut short, prolonged or damaged, it is a message or a typed error.
#![no_main]

use std::ffi::CString;
use std::fmt::Debug;

use ipnet::IpNet;
use libfuzzer_sys::arbitrary::{Error, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use pyspawner::error::{Failure, Step};
use pyspawner::layer::Layer;
use pyspawner::protocol::{
    ChildAddress, ChildNetwork, Companion, CpuBudget, FileOrder, Filesystem, FromZygote, Message, MountOrder,
    Order, Orders, ProtocolError, Report, Request, Rlimits, Spawn, Start, ToZygote, View, Watch,
};
use pyspawner::protocol::{decode, encode};

fuzz_target!(|input: &[u8]| {
    // An error is the end of the input, before there was a message to try.
    let _ = try_one(&mut Unstructured::new(input));
});

fn try_one(input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=6)? {
        0 => to_zygote(input).and_then(|message| check(&message, input)),
        1 => check(&request(input)?, input),
        2 => from_zygote(input).and_then(|message| check(&message, input)),
        3 => order(input).and_then(|message| check(&message, input)),
        4 => report(input).and_then(|message| check(&message, input)),
        5 => watch(input).and_then(|message| check(&message, input)),
        _ => companion(input).and_then(|message| check(&message, input)),
    }
}

fn check<M: Message + Debug + PartialEq>(message: &M, input: &mut Unstructured<'_>) -> Result<()> {
    let frame = match encode(message) {
        Ok(frame) => frame,
        Err(ProtocolError::Oversized { length, limit }) => {
            assert!(length > limit && limit == M::MAX_FRAME);
            return Ok(());
        }
        Err(error) => panic!("{error}: {message:?}"),
    };
    assert!(frame.len() <= M::MAX_FRAME);
    assert_eq!(decode::<M>(&frame).as_ref(), Ok(message));

    let length = input.int_in_range(0..=frame.len())?;
    assert_eq!(decode::<M>(&frame[..length]).is_ok(), length == frame.len(), "{length} bytes of {message:?}");
    assert!(
        decode::<M>(&[&frame[..], &[input.arbitrary()?]].concat()).is_err(),
        "a byte more than {message:?}"
    );

    let mut damaged = frame;
    let at = input.choose_index(damaged.len())?;
    damaged[at] = input.arbitrary()?;
    if let Ok(other) = decode::<M>(&damaged) {
        let again = encode(&other).expect("what has been decoded can be encoded");
        assert_eq!(decode::<M>(&again), Ok(other));
    }
    Ok(())
}

fn list<T>(
    input: &mut Unstructured<'_>,
    item: impl Fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..input.int_in_range(0..=8)?).map(|_| item(input)).collect()
}

fn optional<T>(
    input: &mut Unstructured<'_>,
    item: impl Fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Option<T>> {
    if input.arbitrary()? { item(input).map(Some) } else { Ok(None) }
}

/// Mostly short; at times longer than any frame.
fn text(input: &mut Unstructured<'_>) -> Result<String> {
    let text: String = input.arbitrary()?;
    Ok(if input.ratio(1, 50)? { text.repeat(1 << 13) } else { text })
}

fn layer(input: &mut Unstructured<'_>) -> Result<Layer> {
    input.choose(&Layer::ALL).copied()
}

fn failure(input: &mut Unstructured<'_>) -> Result<Failure> {
    let step = *input.choose(&[Step::Clone, Step::WriteUidMap, Step::CreateVeth, Step::ReceiveOrders])?;
    Ok(Failure::new(layer(input)?, step, input.arbitrary()?))
}

fn request(input: &mut Unstructured<'_>) -> Result<Request> {
    if input.arbitrary()? {
        return Ok(Request::Derive);
    }
    let (trees, namespaces) = input.arbitrary()?;
    let (cgroup, cpu_microseconds) = input.arbitrary()?;
    Ok(Request::Spawn(Spawn { trees, namespaces, cgroup, cpu_microseconds }))
}

fn rlimits(input: &mut Unstructured<'_>) -> Result<Rlimits> {
    Ok(Rlimits {
        data_bytes: input.arbitrary()?,
        cpu_seconds: input.arbitrary()?,
        processes: input.arbitrary()?,
        open_files: input.arbitrary()?,
        file_bytes: input.arbitrary()?,
        nice: input.arbitrary()?,
    })
}

fn to_zygote(input: &mut Unstructured<'_>) -> Result<ToZygote> {
    if input.arbitrary()? {
        return Ok(ToZygote::Proceed);
    }
    Ok(ToZygote::Start(Start {
        caller: input.arbitrary()?,
        child_main: text(input)?,
        preload_imports: list(input, text)?,
        sys_path: input.arbitrary()?,
        memory_image: input.arbitrary()?,
        warm_up: optional(input, text)?,
    }))
}

fn from_zygote(input: &mut Unstructured<'_>) -> Result<FromZygote> {
    Ok(match input.int_in_range(0..=6)? {
        6 => FromZygote::Derived { pid: input.arbitrary()? },
        0 => FromZygote::Hello { watchdog: input.arbitrary()? },
        1 => FromZygote::Importing { module: text(input)? },
        2 => FromZygote::Failed { summary: text(input)?, traceback: text(input)? },
        3 => FromZygote::HandOver,
        4 => FromZygote::HandedOver { pid: input.arbitrary()? },
        _ => FromZygote::Ready {
            threads: list(input, |input| Ok((text(input)?, list(input, text)?)))?,
            no_memory_image: optional(input, text)?,
        },
    })
}

fn order(input: &mut Unstructured<'_>) -> Result<Order> {
    match input.int_in_range(0..=2)? {
        0 => return Ok(Order::Run),
        1 => return Ok(Order::Wake { process_name: text(input)? }),
        _ => {}
    }
    let network = |input: &mut Unstructured<'_>| {
        let address = |input: &mut Unstructured<'_>| {
            let address = IpNet::new(input.arbitrary()?, input.int_in_range(0..=32)?);
            Ok(ChildAddress { address: address.map_err(|_| Error::IncorrectFormat)?, gateway: input.arbitrary()? })
        };
        Ok(ChildNetwork {
            interface: optional(input, text)?,
            addresses: list(input, address)?,
            ping: input.arbitrary()?,
        })
    };
    Ok(Order::Enter(Orders {
        process_name: optional(input, text)?,
        working_dir: optional(input, path)?,
        view: optional(input, view)?,
        network: optional(input, network)?,
        optional_layers: list(input, layer)?,
        landlock_abi: input.arbitrary()?,
        rlimits: rlimits(input)?,
        parks: input.arbitrary()?,
    }))
}

fn path(input: &mut Unstructured<'_>) -> Result<CString> {
    let bytes: Vec<u8> = list(input, |input| input.int_in_range(1..=255))?;
    Ok(CString::new(bytes).unwrap_or_default())
}

fn view(input: &mut Unstructured<'_>) -> Result<View> {
    let mount = |input: &mut Unstructured<'_>| {
        let filesystem = match input.int_in_range(0..=5)? {
            0 => Filesystem::Tree { number: input.arbitrary()?, is_directory: input.arbitrary()? },
            1 => Filesystem::Sent,
            2 => Filesystem::Tmpfs { size_bytes: input.arbitrary()?, max_inodes: input.arbitrary()? },
            3 => Filesystem::Overlay { size_bytes: input.arbitrary()? },
            4 => Filesystem::Proc,
            _ => Filesystem::Dev { ptmx: input.arbitrary()? },
        };
        Ok(MountOrder { target: path(input)?, filesystem })
    };
    let file = |input: &mut Unstructured<'_>| Ok(FileOrder { target: path(input)?, content: text(input)? });
    Ok(View {
        chroot: input.arbitrary()?,
        proc: input.arbitrary()?,
        tmp_bytes: input.arbitrary()?,
        files: list(input, file)?,
        mounts: list(input, mount)?,
    })
}

fn report(input: &mut Unstructured<'_>) -> Result<Report> {
    Ok(match input.int_in_range(0..=7)? {
        0 => Report::Born,
        1 => Report::Spawned { pid: input.arbitrary()?, first_id: input.arbitrary()? },
        2 => Report::NotSpawned { failure: failure(input)?, pid: input.arbitrary()? },
        3 => Report::Entered { layers: list(input, |input| Ok((layer(input)?, input.arbitrary()?)))? },
        4 => Report::Failed(failure(input)?),
        5 => Report::Parked,
        6 => Report::WarmUpFailed { summary: text(input)? },
        _ => Report::Running,
    })
}

fn budget(input: &mut Unstructured<'_>) -> Result<CpuBudget> {
    let (microseconds, of_cgroup, pid) = input.arbitrary()?;
    Ok(CpuBudget { microseconds, of_cgroup, pid })
}

fn watch(input: &mut Unstructured<'_>) -> Result<Watch> {
    Ok(match input.int_in_range(0..=2)? {
        0 => Watch::This { budget: optional(input, budget)? },
        1 => Watch::Watching,
        _ => Watch::Refused { errno: input.arbitrary()? },
    })
}

fn companion(input: &mut Unstructured<'_>) -> Result<Companion> {
    Ok(match input.int_in_range(0..=5)? {
        0 => Companion::Run { program: path(input)?, arguments: list(input, text)? },
        1 => Companion::Running,
        2 => Companion::Refused { errno: input.arbitrary()? },
        3 => Companion::EndAll,
        4 => Companion::Limit { budget: budget(input)? },
        _ => Companion::Ended,
    })
}
