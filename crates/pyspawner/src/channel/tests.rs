//! Frames and descriptors over real sockets: whatever arrives ends in a message or in a typed error, and no descriptor stays open
//! after an error.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit, getpid, getrlimit, setrlimit};

use super::*;
use crate::protocol::{FromZygote, Order, Orders, Report, Request, Spawn, ToZygote, Watch, encode};

/// A message with one descriptor.
const SPAWN: Request =
    Request::Spawn(Spawn { trees: 0, namespaces: false, cgroup: false, cpu_microseconds: None });

/// More than any message has, and than a receiver has room for.
const MANY: usize = 60;

/// Tells whether a descriptor that was sent is still open anywhere.
struct Witness {
    reader: OwnedFd,
}

impl Witness {
    /// With the descriptor to send.
    fn new() -> (Self, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        (Self { reader }, writer)
    }

    fn hangs_up_within(&self, seconds: i64) -> bool {
        let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let mut polled = [PollFd::from_borrowed_fd(self.reader.as_fd(), PollFlags::IN)];
        poll(&mut polled, Some(&timeout)).expect("poll");
        polled[0].revents().contains(PollFlags::HUP)
    }

    /// Every copy is closed. Not at once: a process that another test has just forked holds one until its exec.
    fn assert_closed(&self) {
        assert!(self.hangs_up_within(10), "a descriptor is left open");
    }
}

/// Sends any bytes with any descriptors.
fn send_raw(channel: &Channel, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MANY))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent = sendmsg(channel, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
}

/// Sends `bytes` with `count` copies of a descriptor, then one good message; returns what is received of the first. Nothing of it may be
/// left open, and the good message must arrive.
fn receive_raw<M: Message + std::fmt::Debug>(bytes: &[u8], count: usize) -> Result<(), ChannelError> {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let (witness, writer) = Witness::new();
    send_raw(&theirs, bytes, &vec![writer.as_fd(); count]);
    drop(writer);
    let received = ours.recv::<M>();
    let error = match received {
        Ok(Some(received)) => panic!("{received:?}"),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    witness.assert_closed();
    theirs.send(&Report::Born, &[]).expect("send");
    assert_eq!(ours.recv::<Report>().expect("received").expect("no end of file").message, Report::Born);
    error
}

fn protocol_error(result: Result<(), ChannelError>) -> ProtocolError {
    match result {
        Err(ChannelError::Protocol(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Runs `body` in a process of its own: the limit that it lowers is no other test's, whatever runs the tests.
fn alone(name: &str, body: impl FnOnce()) {
    const MARK: &str = "PYSPAWNER_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let this = std::env::current_exe().expect("the test binary");
    let path = format!("{}::{name}", module_path!().split_once("::").expect("a module").1);
    let output =
        Command::new(this).args([&path, "--exact", "--nocapture"]).env(MARK, "1").output().expect("run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Lowers `RLIMIT_NOFILE` so that only `free` more descriptors can be opened.
fn leave_room_for(free: usize) {
    let listed: Vec<u64> = fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    // Less the one that listed them.
    let open: BTreeSet<u64> = listed
        .into_iter()
        .filter(|number| fs::exists(format!("/proc/self/fd/{number}")).is_ok_and(|is| is))
        .collect();
    let room = |limit: u64| (0..limit).filter(|number| !open.contains(number)).count();
    let current = (0..1 << 16).find(|limit| room(*limit) == free).expect("some limit");
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).expect("setrlimit");
}

#[test]
fn a_message_arrives_with_its_descriptors_in_order() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let pipes: Vec<_> = (0..4).map(|_| pipe_with(PipeFlags::CLOEXEC).expect("a pipe")).collect();
    let writers: Vec<_> = pipes.iter().map(|(_, writer)| writer.as_fd()).collect();
    theirs.send(&Order::Run, &writers).expect("send");

    let received = ours.recv::<Order>().expect("received").expect("no end of file");
    assert!(!received.descriptors_lost);
    let (message, descriptors) = received.with::<4>().expect("four descriptors");
    assert_eq!(message, Order::Run);
    for (number, (descriptor, (reader, _))) in (0..).zip(descriptors.iter().zip(&pipes)) {
        assert!(fcntl_getfd(descriptor).expect("open").contains(FdFlags::CLOEXEC));
        rustix::io::write(descriptor, &[number]).expect("write");
        let mut byte = [u8::MAX];
        rustix::io::read(reader, &mut byte).expect("read");
        assert_eq!(byte, [number]);
    }
}

#[test]
fn descriptors_are_closed_with_the_message() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let (witness, writer) = Witness::new();
    theirs.send(&SPAWN, &[writer.as_fd()]).expect("send");
    drop(writer);
    assert!(!witness.hangs_up_within(0), "on its way it is open");
    let received = ours.recv::<Request>().expect("received").expect("no end of file");
    assert!(!witness.hangs_up_within(0), "received it is open");
    drop(received);
    witness.assert_closed();
}

#[test]
fn descriptors_that_nobody_receives_are_closed_with_the_socket() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let (witness, writer) = Witness::new();
    theirs.send(&SPAWN, &[writer.as_fd()]).expect("send");
    drop((writer, ours));
    witness.assert_closed();
}

#[test]
fn a_wrong_number_of_descriptors_is_an_error() {
    fn check<M: Message + std::fmt::Debug>(message: &M) {
        let expected = message.descriptors();
        for got in [0, 1, 2, 3, 4, 5, 6].into_iter().filter(|got| *got != expected) {
            let answer = protocol_error(receive_raw::<M>(&encode(message).expect("a frame"), got));
            assert_eq!(answer, ProtocolError::DescriptorCount { expected, got }, "{message:?}");
        }
    }
    check(&Report::Born);
    check(&SPAWN);
    check(&Request::Spawn(Spawn { trees: 2, namespaces: true, cgroup: true, cpu_microseconds: Some(1) }));
    check(&Request::Derive);
    check(&ToZygote::Start(crate::protocol::Start::default()));
    check(&Order::Run);
    check(&Order::Enter(Orders::default()));
}

#[test]
fn more_descriptors_than_a_receiver_has_room_for_are_an_error() {
    for sender_wanted in [false, true] {
        for count in [5, 13, 14, MANY] {
            let (ours, theirs) = Channel::pair().expect("a socket pair");
            if sender_wanted {
                ours.want_sender().expect("setsockopt");
            }
            let (witness, writer) = Witness::new();
            send_raw(&theirs, &encode(&Order::Run).expect("a frame"), &vec![writer.as_fd(); count]);
            drop(writer);
            let answer =
                ours.recv::<Order>().and_then(|received| received.expect("no end of file").with::<4>());
            assert!(answer.is_err(), "{count} descriptors pass for 4");
            witness.assert_closed();
        }
    }
}

#[test]
fn a_message_that_has_no_descriptors_does_not_lose_any() {
    let frame = encode(&Report::Born).expect("a frame");
    for count in [5, 14, MANY] {
        assert!(matches!(
            protocol_error(receive_raw::<Report>(&frame, count)),
            ProtocolError::DescriptorCount { expected: 0, .. }
        ));
    }
}

#[test]
fn a_sender_notices_a_wrong_number_of_descriptors_itself() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let (_witness, writer) = Witness::new();
    for (expected, got) in [(4, 0), (4, 1), (4, 5)] {
        let answer = theirs.send(&Order::Run, &vec![writer.as_fd(); got]);
        assert_eq!(protocol_error(answer), ProtocolError::DescriptorCount { expected, got });
    }
    drop(theirs);
    assert!(ours.recv::<Order>().expect("received").is_none(), "nothing was sent");
}

#[test]
fn a_receiver_without_room_for_descriptors_says_so() {
    alone("a_receiver_without_room_for_descriptors_says_so", || {
        let before = getrlimit(Resource::Nofile);
        for room in [0, 1, 3] {
            let (ours, theirs) = Channel::pair().expect("a socket pair");
            let (witness, writer) = Witness::new();
            theirs.send(&Order::Run, &[writer.as_fd(); 4]).expect("send");
            theirs.send(&Order::Enter(Orders::default()), &[]).expect("send");
            drop(writer);

            leave_room_for(room);
            let received = ours.recv::<Order>().expect("received").expect("no end of file");
            assert!(received.descriptors_lost);
            assert!(received.descriptors.len() <= room);
            let answer = received.with::<4>();
            let next = ours.recv::<Order>().expect("received").expect("no end of file");
            setrlimit(Resource::Nofile, before).expect("setrlimit");

            assert!(matches!(answer, Err(ChannelError::Io(Errno::MFILE))), "{answer:?}");
            assert_eq!(next.message, Order::Enter(Orders::default()), "the conversation goes on");
            witness.assert_closed();
        }
    });
}

#[test]
fn a_message_of_another_conversation_is_an_error() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let (_witness, writer) = Witness::new();
    theirs.send(&Watch::Watching, &[]).expect("send");
    assert!(matches!(ours.recv::<ToZygote>(), Err(ChannelError::Protocol(_))), "an answer of the watchdog");
    theirs.send(&FromZygote::HandOver, &[]).expect("send");
    assert!(matches!(ours.recv::<Report>(), Err(ChannelError::Protocol(_))), "a word of the zygote");
    theirs.send(&Watch::This { budget: None }, &[writer.as_fd()]).expect("send");
    assert!(matches!(ours.recv::<Request>(), Err(ChannelError::Protocol(_))), "a request to the watchdog");
    theirs.send(&SPAWN, &[writer.as_fd()]).expect("send");
    assert!(matches!(ours.recv::<Watch>(), Err(ChannelError::Protocol(_))), "a request to the zygote");
}

#[test]
fn half_a_frame_is_an_error() {
    let frame = encode(&Report::Spawned { pid: 1, first_id: Some(2) }).expect("a frame");
    for length in 1..frame.len() {
        let answer = protocol_error(receive_raw::<Report>(&frame[..length], 1));
        assert!(
            matches!(answer, ProtocolError::Truncated { .. } | ProtocolError::Body(_)),
            "{length} bytes: {answer:?}"
        );
    }
}

#[test]
fn two_frames_in_one_message_are_an_error() {
    let frame = encode(&SPAWN).expect("a frame");
    let answer = protocol_error(receive_raw::<Request>(&[&frame[..], &frame].concat(), 1));
    assert_eq!(answer, ProtocolError::TrailingBytes { extra: frame.len() });
}

#[test]
fn another_version_is_an_error() {
    let mut frame = encode(&SPAWN).expect("a frame");
    frame[4..6].copy_from_slice(&(protocol::VERSION + 1).to_le_bytes());
    let answer = protocol_error(receive_raw::<Request>(&frame, 1));
    assert_eq!(answer, ProtocolError::Version { theirs: protocol::VERSION + 1 });
}

#[test]
fn a_frame_longer_than_the_limit_is_an_error_with_its_length() {
    let limit = Request::MAX_FRAME;
    for length in [limit + 1, 1000 * limit] {
        let answer = protocol_error(receive_raw::<Request>(&vec![0; length], 1));
        assert_eq!(answer, ProtocolError::Oversized { length, limit });
    }
    let answer = protocol_error(receive_raw::<Request>(&vec![0; limit], 1));
    assert_eq!(answer, ProtocolError::Magic, "of the longest length it is read");
}

#[test]
fn a_frame_of_the_longest_length_arrives() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let message = |length| FromZygote::Importing { module: "x".repeat(length) };
    let longest = (0..=FromZygote::MAX_FRAME).rev().find(|length| encode(&message(*length)).is_ok());
    let message = message(longest.expect("some length fits"));
    theirs.send(&message, &[]).expect("send");
    let received = ours.recv::<FromZygote>().expect("received").expect("no end of file");
    assert_eq!(received.message, message);
}

#[test]
fn an_empty_frame_is_an_end_of_file() {
    assert!(receive_raw::<Report>(&[], 0).is_ok());
    assert!(receive_raw::<Report>(&[], 3).is_ok());
}

#[test]
fn an_end_that_is_gone_is_an_end_of_file() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    theirs.send(&Report::Born, &[]).expect("send");
    drop(theirs);
    assert!(ours.recv::<Report>().expect("received").is_some(), "what it has said is heard");
    assert!(ours.recv::<Report>().expect("received").is_none());

    let (ours, theirs) = Channel::pair().expect("a socket pair");
    ours.send(&Report::Born, &[]).expect("send");
    drop(theirs);
    assert!(ours.recv::<Report>().expect("received").is_none(), "with our words unread");
}

#[test]
fn sending_to_an_end_that_is_gone_is_an_error_and_no_signal() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    drop(theirs);
    let answer = ours.send(&Report::Born, &[]);
    assert!(matches!(answer, Err(ChannelError::Io(Errno::PIPE | Errno::CONNRESET))), "{answer:?}");
}

#[test]
fn after_shutting_down_what_is_queued_arrives_and_then_the_end() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    let copy = Channel::from(theirs.socket.try_clone().expect("dup"));
    theirs.send(&Report::Born, &[]).expect("send");
    theirs.shut_down();
    assert!(ours.recv::<Report>().expect("received").is_some());
    assert!(ours.recv::<Report>().expect("received").is_none(), "whoever else holds that end");
    assert!(matches!(copy.send(&Report::Born, &[]), Err(ChannelError::Io(Errno::PIPE))));
}

#[test]
fn the_sender_is_known_to_those_who_want_to_know() {
    let (ours, theirs) = Channel::pair().expect("a socket pair");
    theirs.send(&Report::Born, &[]).expect("send");
    assert_eq!(ours.recv::<Report>().expect("received").expect("no end of file").sender, None);
    ours.want_sender().expect("setsockopt");
    let (_witness, writer) = Witness::new();
    theirs.send(&Report::Spawned { pid: 1, first_id: Some(2) }, &[writer.as_fd()]).expect("send");
    let received = ours.recv::<Report>().expect("received").expect("no end of file");
    assert_eq!(received.sender, Some(getpid().as_raw_nonzero().get()));
    assert!(received.with::<1>().is_ok(), "and its descriptors");
}

proptest! {
    #[test]
    fn any_bytes_with_any_descriptors_end_in_a_message_or_an_error(
        ours_header in any::<bool>(), body in prop::collection::vec(any::<u8>(), 1..100), count in 0..8_usize,
    ) {
        let mut frame = if ours_header { encode(&SPAWN)? } else { Vec::new() };
        frame.extend(body);
        let (ours, theirs) = Channel::pair()?;
        let (witness, writer) = Witness::new();
        send_raw(&theirs, &frame, &vec![writer.as_fd(); count]);
        drop(writer);
        match ours.recv::<Report>() {
            Ok(Some(received)) => prop_assert_eq!(received.descriptors.len(), received.message.descriptors()),
            Ok(None) => prop_assert!(false, "no end of file was sent"),
            Err(_) => {}
        }
        witness.assert_closed();
    }
}
