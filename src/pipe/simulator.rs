//! [`State`] under random interleavings of an upstream, a client and a disk, none of which is real. No threads, no
//! time: an interleaving is a list of [`Step`]s, and proptest shrinks it.

use super::limits::Memory;
use super::state::{Done, End, Job, Read, Room, State};
use super::{Limits, PipeConf};
use crate::error::{Error, ErrorKind};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Step {
    /// The upstream has sent so many bytes.
    Receive(usize),
    /// A driver brings a chunk of so many bytes.
    Push(usize),
    /// A read is cancelled, and its buffer is lost.
    DropBuffer,
    ClientReads,
    ClientAccepts,
    /// The disk is done with its oldest write, or with reading.
    WriteDone(bool),
    ReadDone(bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Complete,
    Truncated,
    ClientGone,
}

#[derive(Clone, Debug)]
struct Scenario {
    conf: PipeConf,
    buffer_memory_max: usize,
    temp_files_max: u64,
    preread: Option<(usize, usize)>,
    body: usize,
    steps: Vec<Step>,
    ending: Ending,
    /// What the client does behind the steps: nothing until the upstream is done, or its share.
    client_waits: bool,
    /// How much the upstream sends at a time behind the steps.
    pace: usize,
    pushes: bool,
    disk_last: bool,
}

struct Simulator {
    state: State,
    limits: Arc<Limits>,
    memory_max: usize,
    file_max: u64,
    busy: usize,
    body: usize,
    sent: usize,
    received: usize,
    unaccepted: usize,
    jobs: VecDeque<Job>,
    disk: Vec<u8>,
    disk_failed: bool,
    writer_sleeps: bool,
    reader_sleeps: bool,
    failed: Option<ErrorKind>,
    finished: bool,
    last_seen: bool,
    /// The disk is slow to answer.
    disk_last: bool,
    /// Other responses, which take all memory that is left whenever they can.
    others: Option<Memory>,
}

/// The body's byte at `i`: never the same for long, not even at block borders.
fn byte(i: usize) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}

impl Simulator {
    fn new(scenario: &Scenario) -> Self {
        let conf = &scenario.conf;
        let limits = Limits::new(scenario.buffer_memory_max, scenario.temp_files_max, "");
        let (number, size) = match conf.buffering {
            true => (conf.buffers_number.max(1), conf.buffers_size.max(2)),
            false => (1, conf.buffer_size.max(2)),
        };
        let mut simulator = Simulator {
            state: State::new(conf, &limits),
            memory_max: number * size,
            file_max: if conf.buffering { conf.max_temp_file_size } else { 0 },
            busy: if conf.buffering { conf.busy_buffers_size.max(1) } else { usize::MAX },
            body: scenario.body,
            sent: 0,
            received: 0,
            unaccepted: 0,
            jobs: VecDeque::new(),
            disk: Vec::new(),
            disk_failed: false,
            writer_sleeps: false,
            reader_sleeps: false,
            failed: None,
            finished: false,
            last_seen: false,
            disk_last: scenario.disk_last,
            others: None,
            limits,
        };
        if let Some((capacity, len)) = scenario.preread {
            simulator.preread(capacity, len, conf.buffering);
        }
        simulator
    }

    fn preread(&mut self, capacity: usize, len: usize, buffering: bool) {
        let mut body = BytesMut::with_capacity(capacity);
        self.send(&mut body, len.min(capacity));
        self.memory_max = match buffering {
            true => self.memory_max + body.capacity(),
            false => self.memory_max.max(body.capacity()),
        };
        self.state.preread(body);
        self.follow_up();
    }

    fn send(&mut self, into: &mut BytesMut, n: usize) {
        let n = n.min(self.body - self.sent);
        into.extend((self.sent..self.sent + n).map(byte));
        self.sent += n;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Receive(n) => drop(self.receive(*n)),
            Step::Push(n) => drop(self.push(*n)),
            Step::DropBuffer => {
                if !self.writer_sleeps && !self.finished && !self.state.is_dead() {
                    let room = self.state.buffer();
                    self.granted(room);
                }
            }
            Step::ClientReads => drop(self.client_reads()),
            Step::ClientAccepts => self.client_accepts(),
            Step::WriteDone(fails) => drop(self.job_done(false, *fails)),
            Step::ReadDone(fails) => drop(self.job_done(true, *fails)),
        }
        self.follow_up();
    }

    fn granted<T>(&mut self, room: Room<T>) -> Option<T> {
        match room {
            Room::Granted(room) => Some(room),
            Room::AfterTheClient => None,
            Room::Wait => {
                self.writer_sleeps = true;
                None
            }
        }
    }

    fn writer_is_idle(&self) -> bool {
        self.writer_sleeps || self.finished || self.state.is_dead()
    }

    fn receive(&mut self, n: usize) -> bool {
        if self.writer_is_idle() {
            return false;
        }
        let room = self.state.buffer();
        let Some(mut buffer) = self.granted(room) else { return true };
        assert!(buffer.is_empty() && buffer.capacity() > 0, "a buffer to read into");
        let capacity = buffer.capacity();
        self.send(&mut buffer, n.min(capacity));
        assert_eq!(buffer.capacity(), capacity);
        self.state.commit(buffer);
        true
    }

    fn push(&mut self, n: usize) -> bool {
        if self.writer_is_idle() {
            return false;
        }
        let room = self.state.room();
        let Some(room) = self.granted(room) else { return true };
        assert!(room > 0);
        let mut chunk = BytesMut::new();
        self.send(&mut chunk, n.min(room));
        self.state.push(chunk.freeze());
        true
    }

    fn client_reads(&mut self) -> bool {
        if self.reader_sleeps || self.last_seen || self.failed.is_some() {
            return false;
        }
        match self.state.read() {
            Read::Dry => self.reader_sleeps = true,
            Read::Failed(error) => self.failed = Some(error.kind()),
            Read::Bufs(bufs) => {
                assert!(!bufs.is_empty() || bufs.is_last());
                for (i, got) in bufs.iter().flatten().enumerate() {
                    assert_eq!(*got, byte(self.received + i), "byte {} of the body", self.received + i);
                }
                self.received += bufs.len();
                self.unaccepted += bufs.len();
                self.last_seen = bufs.is_last();
            }
        }
        true
    }

    fn client_accepts(&mut self) {
        self.unaccepted = 0;
        self.reader_sleeps = false;
        self.state.accepted();
    }

    fn job_done(&mut self, reading: bool, fails: bool) -> bool {
        let Some(i) = self.jobs.iter().position(|job| matches!(job, Job::Read { .. }) == reading) else {
            return false;
        };
        let job = self.jobs.remove(i).unwrap();
        self.disk_failed |= fails;
        let result = if fails { Err(io::Error::other("the simulated disk")) } else { Ok(()) };
        let done = match job {
            Job::Write { at, chunks } => Done::Wrote(result.map(|()| self.write(at as usize, &chunks))),
            Job::Read { at, len } => {
                let at = at as usize;
                Done::Read(result.map(|()| BytesMut::from(&self.disk[at..at + len])))
            }
            Job::Truncate => Done::Truncated(result.map(|()| self.disk.clear())),
        };
        self.state.job_done(done);
        true
    }

    fn write(&mut self, mut at: usize, chunks: &[Bytes]) {
        for chunk in chunks {
            self.disk.resize(self.disk.len().max(at + chunk.len()), 0);
            self.disk[at..at + chunk.len()].copy_from_slice(chunk);
            at += chunk.len();
        }
        assert!(self.disk.len() as u64 <= self.limits.temp_file_bytes(), "the file is longer than is accounted for");
    }

    /// What the shell does after each event, and the invariants.
    fn follow_up(&mut self) {
        self.jobs.extend(std::iter::from_fn(|| self.state.take_job()));
        let writes = self.jobs.iter().filter(|job| !matches!(job, Job::Read { .. })).count();
        assert!(writes <= 1 && self.jobs.len() - writes <= 1, "jobs under way: {:?}", self.jobs);
        let wake = self.state.take_wake();
        self.writer_sleeps &= !wake.writer;
        self.reader_sleeps &= !wake.reader;

        let held = self.state.held();
        assert!(held <= self.memory_max, "{held} bytes of memory held, {} allowed", self.memory_max);
        if let Some(others) = &mut self.others {
            while others.try_take(1) {}
        }
        let others = self.others.as_ref().map_or(0, Memory::held);
        assert_eq!(self.limits.memory_bytes(), held + others);
        assert!(self.state.file_used() <= self.file_max);
        assert!(self.state.file_length() <= self.file_max, "the file is longer than its limit");
        assert!(self.unaccepted <= self.busy, "{} bytes are with the client", self.unaccepted);
        assert!(self.received <= self.sent);
        if self.last_seen || self.state.is_complete() {
            assert!(self.finished && self.received == self.body, "a part was taken for the whole");
        }
    }

    /// The upstream and the disk go on, and the client unless it waits, each only when it is awake.
    fn round(&mut self, scenario: &Scenario, client_waits: bool) -> bool {
        let mut moved = !self.disk_last && self.disk_goes_on();
        if self.sent < self.body {
            moved |= if scenario.pushes { self.push(scenario.pace) } else { self.receive(scenario.pace) };
            self.follow_up();
        } else if !self.finished {
            self.finish(scenario.ending);
            moved = true;
        }
        if !client_waits {
            moved |= self.client_reads();
            self.follow_up();
            if self.unaccepted > 0 {
                self.client_accepts();
                self.follow_up();
                moved = true;
            }
        }
        moved | (self.disk_last && self.disk_goes_on())
    }

    fn disk_goes_on(&mut self) -> bool {
        let read = self.job_done(true, false);
        self.follow_up();
        let wrote = self.job_done(false, false);
        self.follow_up();
        read | wrote
    }

    fn finish(&mut self, ending: Ending) {
        self.finished = true;
        self.state.end(match ending {
            Ending::Truncated => End::Failed(Error::new(ErrorKind::Truncated, "simulated")),
            _ => End::Complete(None),
        });
        self.follow_up();
    }

    /// Until nobody can do anything.
    fn run_on(&mut self, scenario: &Scenario, client_waits: bool) {
        while self.round(scenario, client_waits) {}
    }
}

fn run(scenario: &Scenario) {
    let mut simulator = Simulator::new(scenario);
    simulator.follow_up();
    for step in &scenario.steps {
        simulator.step(step);
    }
    if scenario.client_waits {
        simulator.run_on(scenario, true);
    }
    match scenario.ending {
        Ending::ClientGone => client_goes(&mut simulator),
        _ => to_the_end(&mut simulator, scenario),
    }
    let (limits, jobs) = (simulator.limits.clone(), simulator.jobs.len());
    assert_eq!(jobs, 0, "the disk is idle");
    assert_eq!(simulator.state.held(), 0, "nothing is held after the end");
    if !simulator.disk_failed && scenario.ending != Ending::ClientGone {
        assert_eq!(limits.temp_file_bytes(), 0, "the file was truncated");
    }
    drop(simulator);
    assert_eq!((limits.memory_bytes(), limits.temp_file_bytes()), (0, 0));
}

fn to_the_end(simulator: &mut Simulator, scenario: &Scenario) {
    simulator.run_on(scenario, false);
    let broken = simulator.failed == Some(ErrorKind::Internal);
    if broken {
        assert!(simulator.disk_failed && !simulator.last_seen);
        simulator.client_accepts();
        simulator.finish(Ending::Truncated);
        simulator.step(&Step::WriteDone(false));
        return;
    }
    assert_eq!(simulator.received, simulator.body, "no stall, nothing lost");
    match scenario.ending {
        Ending::Truncated => assert_eq!(simulator.failed, Some(ErrorKind::Truncated)),
        _ => assert!(simulator.last_seen && simulator.state.is_complete()),
    }
}

fn client_goes(simulator: &mut Simulator) {
    simulator.state.reader_gone();
    assert!(simulator.state.take_wake().writer);
    assert!(!simulator.state.is_complete());
    simulator.unaccepted = 0;
    simulator.step(&Step::ReadDone(false));
    simulator.step(&Step::WriteDone(false));
    simulator.state.push(Bytes::from_static(b"too late"));
    simulator.finish(Ending::Truncated);
}

fn conf() -> impl Strategy<Value = PipeConf> {
    let sizes = (2..40usize, 1..10usize, 1..40usize, 1..120usize);
    (prop::bool::weighted(0.9), sizes, prop_oneof![Just(0u64), 1..400u64, Just(10_000)], 1..100usize).prop_map(
        |(buffering, (buffer_size, number, size, busy), max_temp_file_size, temp_file_write_size)| PipeConf {
            buffering,
            buffer_size,
            buffers_number: number,
            buffers_size: size,
            busy_buffers_size: busy,
            max_temp_file_size,
            temp_file_write_size,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let fails = || prop::bool::weighted(0.03);
    prop_oneof![
        6 => prop_oneof![0..4usize, 1..60usize, Just(1000)].prop_map(Step::Receive),
        2 => prop_oneof![1..4usize, 1..300usize].prop_map(Step::Push),
        1 => Just(Step::DropBuffer),
        3 => Just(Step::ClientReads),
        3 => Just(Step::ClientAccepts),
        3 => fails().prop_map(Step::WriteDone),
        3 => fails().prop_map(Step::ReadDone),
    ]
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let limits = (
        prop_oneof![0..300usize, Just(100_000)],
        prop_oneof![Just(0u64), 0..500u64, Just(1_000_000)],
        prop::option::of((1..60usize, 0..60usize)),
    );
    let ending = prop_oneof![4 => Just(Ending::Complete), 1 => Just(Ending::Truncated), 1 => Just(Ending::ClientGone)];
    let after = (ending, any::<bool>(), prop_oneof![1..5usize, 1..200usize], prop::bool::weighted(0.2), any::<bool>());
    (conf(), limits, prop_oneof![0..100usize, 0..3000usize], prop::collection::vec(step(), 0..150), after).prop_map(
        |(conf, (buffer_memory_max, temp_files_max, preread), body, steps, after)| {
            let (ending, client_waits, pace, pushes, disk_last) = after;
            Scenario {
                conf,
                buffer_memory_max,
                temp_files_max,
                preread,
                body,
                steps,
                ending,
                client_waits,
                pace,
                pushes,
                disk_last,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_interleaving_keeps_the_invariants(scenario in scenario()) {
        run(&scenario);
    }

    /// Whatever the numbers are: when the client stops taking anything, with whatever it then has, and the disk is
    /// fine, the upstream is read until the file has no room for another area.
    #[test]
    fn a_stalled_client_leaves_no_room_unused(
        conf in conf(), body in 0..3000usize, pace in 1..200usize, pushes: bool, takes: bool,
        disk_last: bool, others: bool,
        buffer_memory_max in prop_oneof![0..300usize, Just(100_000)], stalls_at in 0..40usize,
    ) {
        let conf = PipeConf { buffering: true, buffers_number: conf.buffers_number + 1, ..conf };
        let file_max = conf.max_temp_file_size;
        let scenario = Scenario {
            conf, buffer_memory_max, temp_files_max: 1_000_000, preread: None, body, steps: Vec::new(),
            ending: Ending::Complete, client_waits: true, pace, pushes, disk_last,
        };
        let mut simulator = Simulator::new(&scenario);
        // Who has nothing but its own block may have all of it with the client, and has to wait.
        let takes = takes && buffer_memory_max == 100_000;
        for _ in 0..stalls_at {
            simulator.round(&scenario, !takes);
        }
        simulator.others = (others && !takes).then(|| Memory::new(simulator.limits.clone(), buffer_memory_max, 0));
        loop {
            let took = takes && simulator.client_reads();
            if !simulator.round(&scenario, true) && !took {
                break;
            }
        }
        if simulator.sent < body && file_max > 0 {
            let next = simulator.state.next_spill();
            let used = simulator.state.file_used();
            let no_slot = simulator.state.file_length() + simulator.state.slot_size() > file_max;
            let full = no_slot || next.is_some_and(|next| used + next as u64 > file_max);
            prop_assert!(full, "{next:?} would go to {used}");
        }
    }
}

fn small_file() -> Scenario {
    let conf = PipeConf {
        buffering: true,
        buffer_size: 16,
        buffers_number: 8,
        buffers_size: 16,
        busy_buffers_size: 32,
        max_temp_file_size: 256,
        temp_file_write_size: 32,
    };
    Scenario {
        conf,
        buffer_memory_max: 100_000,
        temp_files_max: 100_000,
        preread: None,
        body: 20_000,
        steps: Vec::new(),
        ending: Ending::Complete,
        client_waits: true,
        pace: 1000,
        pushes: false,
        disk_last: false,
    }
}

/// nginx's file only grows; ours serves a response of any length.
#[test]
fn a_small_file_is_used_again_and_again() {
    let scenario = small_file();
    let mut simulator = Simulator::new(&scenario);
    while !simulator.last_seen {
        simulator.run_on(&scenario, true);
        simulator.step(&Step::ClientReads);
        simulator.step(&Step::ClientAccepts);
    }
    let stats = simulator.state.stats();
    assert_eq!(simulator.received, 20_000);
    assert!(stats.spilled_bytes > 15_000, "{stats:?}");
    assert!(stats.file_high_water <= 256 + 32, "{stats:?}");
}

#[test]
fn room_that_reading_back_makes_wakes_the_writer() {
    let scenario = small_file();
    let mut simulator = Simulator::new(&scenario);
    simulator.run_on(&scenario, true);
    simulator.step(&Step::ClientReads);
    simulator.step(&Step::ClientAccepts);
    simulator.step(&Step::Receive(1000));
    assert!(simulator.writer_sleeps && matches!(simulator.jobs[0], Job::Read { .. }));
    simulator.step(&Step::ReadDone(false));
    assert!(!simulator.writer_sleeps);
}

#[test]
fn a_block_that_the_client_has_begun_is_not_spilled() {
    let mut scenario = small_file();
    scenario.conf.busy_buffers_size = 5;
    let mut simulator = Simulator::new(&scenario);
    simulator.step(&Step::Receive(16));
    simulator.step(&Step::ClientReads);
    assert_eq!(simulator.received, 5);
    while simulator.jobs.is_empty() {
        simulator.step(&Step::Receive(1000));
    }
    let Job::Write { chunks, .. } = &simulator.jobs[0] else { panic!("{:?}", simulator.jobs) };
    assert_eq!(chunks[0][0], byte(16));
}
