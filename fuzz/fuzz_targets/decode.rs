//! Any bytes are a message or a typed error, for every type of message. The first byte chooses the type.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use pyspawner::protocol::{Companion, FromZygote, Message, Order, Report, Request, ToZygote, Watch};
use pyspawner::protocol::{check_descriptors, decode, encode};

fuzz_target!(|input: &[u8]| {
    let [choice, bytes @ ..] = input else { return };
    // Each with a message whose body is one byte.
    match choice % 7 {
        0 => try_both(&ToZygote::Proceed, bytes),
        1 => try_both(&Request::Derive, bytes),
        2 => try_both(&FromZygote::HandOver, bytes),
        3 => try_both(&Order::Run, bytes),
        4 => try_both(&Report::Born, bytes),
        5 => try_both(&Watch::Watching, bytes),
        _ => try_both(&Companion::Running, bytes),
    }
});

/// As a frame, and as the body of a frame whose header is right.
fn try_both<M: Message + Debug + PartialEq>(example: &M, bytes: &[u8]) {
    try_frame::<M>(bytes);
    let mut frame = encode(example).expect("a frame");
    frame.pop();
    frame.extend_from_slice(bytes);
    try_frame::<M>(&frame);
}

fn try_frame<M: Message + Debug + PartialEq>(frame: &[u8]) {
    match decode::<M>(frame) {
        Ok(message) => {
            let again = encode(&message).expect("what has been decoded can be encoded");
            assert!(again.len() <= frame.len(), "ours is the shortest encoding");
            assert_eq!(decode::<M>(&again).as_ref(), Ok(&message));
            let expected = message.descriptors();
            assert!((0..=4).all(|got| check_descriptors(&message, got).is_ok() == (got == expected)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
