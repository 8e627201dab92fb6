//! Whatever arrives ends in a message or in a typed error, for every type of message.

use std::ffi::CString;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Every value of an enum without fields: postcard numbers them from 0.
fn all<T: DeserializeOwned>() -> Vec<T> {
    (0..128_u8).map_while(|number| postcard::from_bytes(&[number]).ok()).collect()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z_.]{1,20}", any::<String>()]
}

fn failure() -> impl Strategy<Value = Failure> {
    (select(all()), select(all()), any::<i32>())
        .prop_map(|(layer, step, errno)| Failure::new(layer, step, errno))
}

fn to_zygote() -> impl Strategy<Value = ToZygote> {
    let sys_path = option::of(vec(vec(any::<u8>(), 0..40), 0..6));
    let start = (any::<i32>(), text(), vec(text(), 0..6), sys_path, any::<bool>(), option::of(text()))
        .prop_map(|(caller, child_main, preload_imports, sys_path, memory_image, warm_up)| Start {
            caller,
            child_main,
            preload_imports,
            sys_path,
            memory_image,
            warm_up,
        });
    prop_oneof![Just(ToZygote::Proceed), start.prop_map(ToZygote::Start)]
}

fn from_zygote() -> impl Strategy<Value = FromZygote> {
    let threads = vec((text(), vec(text(), 0..4)), 0..4);
    prop_oneof![
        any::<i32>().prop_map(|pid| FromZygote::Derived { pid }),
        any::<i32>().prop_map(|watchdog| FromZygote::Hello { watchdog }),
        text().prop_map(|module| FromZygote::Importing { module }),
        (text(), text()).prop_map(|(summary, traceback)| FromZygote::Failed { summary, traceback }),
        Just(FromZygote::HandOver),
        any::<i32>().prop_map(|pid| FromZygote::HandedOver { pid }),
        (threads, option::of(text()))
            .prop_map(|(threads, no_memory_image)| FromZygote::Ready { threads, no_memory_image }),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    let address = (any::<IpAddr>(), 0..=32_u8, any::<IpAddr>()).prop_map(|(address, length, gateway)| {
        ChildAddress { address: IpNet::new(address, length).expect("a length for both families"), gateway }
    });
    let network = (option::of(text()), vec(address, 0..3), any::<bool>())
        .prop_map(|(interface, addresses, ping)| ChildNetwork { interface, addresses, ping });
    let network = option::of(network);
    let layers = (vec(select(all()), 0..6), any::<u8>(), any::<bool>());
    let orders = (option::of(text()), option::of(path()), option::of(view()), network, layers, rlimits());
    let orders = orders.prop_map(
        |(process_name, working_dir, view, network, (optional_layers, landlock_abi, parks), rlimits)| {
            Orders { process_name, working_dir, view, network, optional_layers, landlock_abi, rlimits, parks }
        },
    );
    let wake = text().prop_map(|process_name| Order::Wake { process_name });
    prop_oneof![orders.prop_map(Order::Enter), Just(Order::Run), wake]
}

fn rlimits() -> impl Strategy<Value = Rlimits> {
    any::<([Option<u64>; 5], u8)>().prop_map(
        |([data_bytes, cpu_seconds, processes, open_files, file_bytes], nice)| Rlimits {
            data_bytes,
            cpu_seconds,
            processes,
            open_files,
            file_bytes,
            nice,
        },
    )
}

fn path() -> impl Strategy<Value = CString> {
    vec(1_u8.., 0..20).prop_map(|bytes| CString::new(bytes).expect("no NUL"))
}

fn view() -> impl Strategy<Value = View> {
    let filesystem = prop_oneof![
        any::<(u8, bool)>().prop_map(|(number, is_directory)| Filesystem::Tree { number, is_directory }),
        Just(Filesystem::Sent),
        any::<(u64, u64)>().prop_map(|(size_bytes, max_inodes)| Filesystem::Tmpfs { size_bytes, max_inodes }),
        any::<Option<u64>>().prop_map(|size_bytes| Filesystem::Overlay { size_bytes }),
        Just(Filesystem::Proc),
        any::<bool>().prop_map(|ptmx| Filesystem::Dev { ptmx }),
    ];
    let mounts =
        vec((path(), filesystem).prop_map(|(target, filesystem)| MountOrder { target, filesystem }), 0..6);
    let files = vec((path(), text()).prop_map(|(target, content)| FileOrder { target, content }), 0..3);
    (any::<(bool, bool, u64)>(), files, mounts).prop_map(|((chroot, proc, tmp_bytes), files, mounts)| View {
        chroot,
        proc,
        tmp_bytes,
        files,
        mounts,
    })
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        Just(Report::Born),
        (any::<i32>(), any::<Option<u32>>()).prop_map(|(pid, first_id)| Report::Spawned { pid, first_id }),
        (failure(), option::of(any::<i32>())).prop_map(|(failure, pid)| Report::NotSpawned { failure, pid }),
        vec((select(all()), any::<u32>()), 0..10).prop_map(|layers| Report::Entered { layers }),
        failure().prop_map(Report::Failed),
        Just(Report::Parked),
        text().prop_map(|summary| Report::WarmUpFailed { summary }),
        Just(Report::Running),
    ]
}

fn watch() -> impl Strategy<Value = Watch> {
    let refused = any::<i32>().prop_map(|errno| Watch::Refused { errno });
    let budget = any::<(u64, bool, i32)>().prop_map(|(microseconds, of_cgroup, pid)| CpuBudget {
        microseconds,
        of_cgroup,
        pid,
    });
    let this = option::of(budget).prop_map(|budget| Watch::This { budget });
    prop_oneof![this, Just(Watch::Watching), refused]
}

fn companion() -> impl Strategy<Value = Companion> {
    let run =
        (path(), vec(text(), 0..6)).prop_map(|(program, arguments)| Companion::Run { program, arguments });
    let refused = any::<i32>().prop_map(|errno| Companion::Refused { errno });
    let limit = any::<(u64, bool, i32)>().prop_map(|(microseconds, of_cgroup, pid)| Companion::Limit {
        budget: CpuBudget { microseconds, of_cgroup, pid },
    });
    prop_oneof![run, refused, limit, select(vec![Companion::Running, Companion::EndAll, Companion::Ended])]
}

/// A frame with the header of `message` and another body.
fn framed<M: Message>(message: &M, body: &[u8]) -> Vec<u8> {
    let mut frame = encode(message).expect("a frame");
    frame.truncate(HEADER);
    frame.extend_from_slice(body);
    frame
}

/// What decodes is a message: as good as new when it is sent on.
fn decodes_soundly<M: Message + PartialEq + std::fmt::Debug>(frame: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = decode::<M>(frame) {
        let again = encode(&message)?;
        prop_assert!(again.len() <= frame.len(), "ours is the shortest encoding");
        prop_assert_eq!(decode::<M>(&again), Ok(message));
    }
    Ok(())
}

/// The same properties for every type of message.
macro_rules! conversations {
    ($($name:ident: $message:ty,)+) => {
        /// Every type by name, and whether a frame decodes as one.
        const DECODERS: &[(&str, fn(&[u8]) -> bool)] =
            &[$((stringify!($name), |frame| decode::<$message>(frame).is_ok()),)+];

        $(mod $name {
            use super::*;

            proptest! {
                #[test]
                fn comes_back_as_it_was(message in super::$name()) {
                    let frame = encode(&message)?;
                    prop_assert!(frame.len() <= <$message>::MAX_FRAME);
                    prop_assert_eq!(decode::<$message>(&frame), Ok(message));
                }

                #[test]
                fn cut_short_anywhere_is_an_error(message in super::$name()) {
                    let frame = encode(&message)?;
                    for length in 0..frame.len() {
                        match decode::<$message>(&frame[..length]) {
                            Err(ProtocolError::Truncated { length: said }) if length < HEADER => prop_assert_eq!(said, length),
                            Err(ProtocolError::Body(_)) if length >= HEADER => {}
                            other => prop_assert!(false, "{} of {} bytes: {:?}", length, frame.len(), other),
                        }
                    }
                }

                #[test]
                fn bytes_after_it_are_an_error(message in super::$name(), extra in vec(any::<u8>(), 1..20)) {
                    let mut frame = encode(&message)?;
                    frame.extend_from_slice(&extra);
                    let limit = <$message>::MAX_FRAME;
                    let expected = if frame.len() > limit {
                        ProtocolError::Oversized { length: frame.len(), limit }
                    } else {
                        ProtocolError::TrailingBytes { extra: extra.len() }
                    };
                    prop_assert_eq!(decode::<$message>(&frame), Err(expected));
                }

                #[test]
                fn another_magic_or_version_is_an_error(
                    message in super::$name(), at in 0..MAGIC.len(), flip in 1..=u8::MAX, theirs in any::<u16>(),
                ) {
                    let mut frame = encode(&message)?;
                    frame[MAGIC.len()..MAGIC.len() + 2].copy_from_slice(&theirs.to_le_bytes());
                    if theirs != VERSION {
                        prop_assert_eq!(decode::<$message>(&frame), Err(ProtocolError::Version { theirs }));
                    }
                    frame[at] ^= flip;
                    prop_assert_eq!(decode::<$message>(&frame), Err(ProtocolError::Magic));
                }

                #[test]
                fn in_another_conversation_it_is_an_error(message in super::$name()) {
                    let frame = encode(&message)?;
                    for (other, decodes) in DECODERS {
                        prop_assert_eq!(decodes(&frame), *other == stringify!($name), "as {}", other);
                    }
                }

                #[test]
                fn comes_with_its_descriptors_or_is_an_error(message in super::$name(), got in 0..10_usize) {
                    let expected = message.descriptors();
                    let answer = check_descriptors(&message, got);
                    if got == expected {
                        prop_assert_eq!(answer, Ok(()));
                    } else {
                        prop_assert_eq!(answer, Err(ProtocolError::DescriptorCount { expected, got }));
                    }
                }

                #[test]
                fn any_bytes_are_a_message_or_an_error(
                    message in super::$name(), bytes in vec(any::<u8>(), 0..64),
                ) {
                    decodes_soundly::<$message>(&bytes)?;
                    decodes_soundly::<$message>(&framed(&message, &bytes))?;
                }

                #[test]
                fn longer_than_its_limit_is_an_error(message in super::$name(), extra in 1..100_000_usize) {
                    let limit = <$message>::MAX_FRAME;
                    let length = limit + extra;
                    let frame = framed(&message, &vec![0; length - HEADER]);
                    prop_assert_eq!(decode::<$message>(&frame), Err(ProtocolError::Oversized { length, limit }));
                }

                #[test]
                fn changed_bytes_are_a_message_or_an_error(
                    message in super::$name(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
                ) {
                    let mut frame = encode(&message)?;
                    for (at, value) in changes {
                        let at = at.index(frame.len());
                        frame[at] = value;
                    }
                    decodes_soundly::<$message>(&frame)?;
                }
            }

        })+
    };
}

fn request() -> impl Strategy<Value = Request> {
    any::<Option<(u8, bool, bool, Option<u64>)>>().prop_map(|spawn| match spawn {
        Some((trees, namespaces, cgroup, cpu_microseconds)) => {
            Request::Spawn(Spawn { trees, namespaces, cgroup, cpu_microseconds })
        }
        None => Request::Derive,
    })
}

conversations! {
    to_zygote: ToZygote,
    request: Request,
    from_zygote: FromZygote,
    order: Order,
    report: Report,
    watch: Watch,
    companion: Companion,
}

#[test]
fn a_message_longer_than_its_limit_is_not_encoded() {
    let start = |length: usize| ToZygote::Start(Start { child_main: "x".repeat(length), ..Start::default() });
    let longest = (0..LARGE).find(|spare| encode(&start(LARGE - spare)).is_ok()).expect("some length fits");
    assert_eq!(encode(&start(LARGE - longest)).map(|frame| frame.len()), Ok(LARGE));
    assert_eq!(
        encode(&start(LARGE - longest + 1)),
        Err(ProtocolError::Oversized { length: LARGE + 1, limit: LARGE })
    );
}

#[test]
fn a_length_that_lies_costs_no_memory() {
    // Both end in a length of 0. Instead they claim 4 GiB, and that many threads.
    for message in [
        FromZygote::Importing { module: String::new() },
        FromZygote::Ready { threads: Vec::new(), no_memory_image: None },
    ] {
        let mut frame = encode(&message).expect("a frame");
        assert_eq!(frame.pop(), Some(0));
        frame.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
        let ends = ProtocolError::Body(postcard::Error::DeserializeUnexpectedEnd);
        assert_eq!(decode::<FromZygote>(&frame), Err(ends));
    }
}

#[test]
fn the_longest_traceback_fits_a_frame() {
    let message =
        FromZygote::Failed { summary: "x".repeat(MAX_TRACEBACK / 8), traceback: "x".repeat(MAX_TRACEBACK) };
    assert!(encode(&message).is_ok());
}

#[test]
fn every_step_and_layer_is_tried() {
    assert!(all::<crate::error::Step>().len() > 30);
    assert!(all::<Layer>().len() >= 9);
}
