//! Writes `seeds/decode`: one input for each shape of a message, as the target `decode` reads it. Run it when a message has changed.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use pyspawner::config::OPTIONAL_LAYERS;
use pyspawner::error::{Failure, Step};
use pyspawner::layer::Layer;
use pyspawner::protocol::{
    ChildAddress, ChildNetwork, Companion, CpuBudget, FileOrder, Filesystem, FromZygote, Message, MountOrder,
    Order, Orders, Report, Request, Rlimits, Spawn, Start, ToZygote, View, Watch, encode,
};

fn main() {
    let failure = Failure::new(Layer::Network, Step::CreateVeth, 1);
    let filesystems = [
        Filesystem::Tree { number: 1, is_directory: true },
        Filesystem::Sent,
        Filesystem::Tmpfs { size_bytes: 4096, max_inodes: 10 },
        Filesystem::Overlay { size_bytes: None },
        Filesystem::Proc,
        Filesystem::Dev { ptmx: true },
    ];
    let view = View {
        chroot: true,
        proc: true,
        tmp_bytes: 4096,
        files: vec![FileOrder { target: c"/a".into(), content: "b".into() }],
        mounts: filesystems.map(|filesystem| MountOrder { target: c"/a".into(), filesystem }).into(),
    };
    let orders = Orders {
        process_name: Some("name".into()),
        working_dir: Some(c"/".into()),
        view: Some(view),
        network: Some(ChildNetwork {
            interface: Some("veth".into()),
            addresses: vec![ChildAddress {
                address: "10.0.0.2/30".parse().expect("a network"),
                gateway: Ipv4Addr::new(10, 0, 0, 1).into(),
            }],
            ping: true,
        }),
        optional_layers: OPTIONAL_LAYERS.into(),
        landlock_abi: 7,
        rlimits: Rlimits { processes: Some(300), nice: 1, ..Rlimits::default() },
        parks: true,
    };
    let start = Start {
        caller: 1,
        child_main: "a.b".into(),
        preload_imports: vec!["c".into()],
        sys_path: Some(vec![b"/d".into()]),
        memory_image: true,
        warm_up: Some("e.f".into()),
    };
    let threads = vec![("a".into(), vec!["b".into()])];
    write(0, &ToZygote::Proceed, &[ToZygote::Start(start)]);
    let spawn = Spawn { trees: 0, namespaces: false, cgroup: false, cpu_microseconds: None };
    let fuller = Spawn { trees: 2, namespaces: true, cgroup: true, cpu_microseconds: Some(300) };
    write(1, &Request::Derive, &[Request::Spawn(spawn), Request::Spawn(fuller)]);
    write(
        2,
        &FromZygote::HandOver,
        &[
            FromZygote::Derived { pid: 300 },
            FromZygote::Hello { watchdog: 300 },
            FromZygote::Importing { module: "a".into() },
            FromZygote::Failed { summary: "a".into(), traceback: "b".into() },
            FromZygote::HandedOver { pid: -1 },
            FromZygote::Ready { threads, no_memory_image: Some("a".into()) },
        ],
    );
    write(3, &Order::Run, &[Order::Enter(orders), Order::Wake { process_name: "name".into() }]);
    write(
        4,
        &Report::Born,
        &[
            Report::Spawned { pid: 300, first_id: Some(65_536) },
            Report::NotSpawned { failure, pid: Some(300) },
            Report::Entered { layers: OPTIONAL_LAYERS.map(|layer| (layer, 300)).into() },
            Report::Failed(failure),
            Report::Parked,
            Report::WarmUpFailed { summary: "a".into() },
            Report::Running,
        ],
    );
    let budget = CpuBudget { microseconds: 300, of_cgroup: true, pid: 300 };
    write(
        5,
        &Watch::Watching,
        &[Watch::Refused { errno: 24 }, Watch::This { budget: None }, Watch::This { budget: Some(budget) }],
    );
    let run = Companion::Run { program: c"/a".into(), arguments: vec!["b".into()] };
    let others =
        [Companion::Refused { errno: 24 }, Companion::EndAll, Companion::Ended, run, Companion::Limit { budget }];
    write(6, &Companion::Running, &others);
}

/// `shortest` has a body of one byte: what is before it is the header, which the target adds itself.
fn write<M: Message>(choice: u8, shortest: &M, others: &[M]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/decode");
    fs::create_dir_all(&directory).expect("the directory");
    let header = encode(shortest).expect("a frame").len() - 1;
    for (number, message) in [shortest].into_iter().chain(others).enumerate() {
        let mut seed = encode(message).expect("a frame").split_off(header);
        seed.insert(0, choice);
        fs::write(directory.join(format!("{choice}-{number}")), seed).expect("written");
    }
}
