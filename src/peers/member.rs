//! [`Member`]: one peer of a group, with its settings; and its [`Record`], which outlives a reload.

use super::peer::Peer;
use super::standing::{Health, Rules, Standing};
use crate::conf;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::Instant;

/// What the operator wants of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub(crate) enum State {
    /// It serves.
    Up,
    /// It gets no further requests; those it has end.
    Drain,
    /// The same, and it is not looked after: no health checks.
    Down,
}

/// A peer in its group.
pub(crate) struct Member {
    pub(crate) peer: Peer,
    /// Its entry in `servers`.
    pub(super) server: usize,
    pub(super) rules: Rules,
    pub(super) backup: bool,
    max_conns: u32,
    /// What the configuration says of `down`.
    down: bool,
    /// What changes when the group is used, not before.
    state_at_start: Option<State>,
    pub(super) record: Arc<Record>,
}

/// What is known of a peer. It stays while the peer stays, whatever becomes of the configuration around it.
pub(super) struct Record {
    /// Attempts that hold a connection to it.
    active: AtomicU32,
    state: AtomicU8,
    /// The operator has named the server, not this address of it: whatever addresses it will have are meant too.
    of_server: AtomicBool,
    standing: Mutex<Standing>,
}

impl Member {
    pub(super) fn new(peer: Peer, server: usize, conf: &conf::Server, alone: bool) -> Self {
        let state = if conf.down { State::Down } else { State::Up };
        let record = Record {
            active: AtomicU32::new(0),
            state: AtomicU8::new(state as u8),
            of_server: AtomicBool::new(false),
            standing: Mutex::default(),
        };
        let rules = Rules {
            weight: i64::from(conf.weight),
            // A peer without company is never rested: there is nothing better to try.
            max_fails: if alone { 0 } else { conf.max_fails },
            fail_timeout: conf.fail_timeout,
            slow_start: conf.slow_start,
        };
        Member {
            peer,
            server,
            rules,
            backup: conf.backup,
            max_conns: conf.max_conns,
            down: conf.down,
            state_at_start: None,
            record: Arc::new(record),
        }
    }

    /// The same peer was in the group before: what is known of it stays, but for a `down` that the file has changed.
    pub(super) fn continues(&mut self, before: &Member) {
        self.state_at_start = (self.down != before.down).then_some(self.state());
        self.record = before.record.clone();
    }

    /// Its group is in use from now on.
    pub(super) fn begin(&self) {
        if let Some(state) = self.state_at_start {
            self.set_state(state, false);
        }
    }

    /// It joins a group that serves already, `before`: what the operator wants of its server is wanted of it too.
    pub(super) fn joins(&self, before: &[Arc<Member>]) {
        self.standing().serves_again();
        let same_server = |other: &&Arc<Member>| other.peer.name() == self.peer.name() && other.down == self.down;
        if let Some(state) = before.iter().filter(same_server).find_map(|other| other.state_of_server()) {
            self.set_state(state, true);
        }
    }

    fn state_of_server(&self) -> Option<State> {
        self.record.of_server.load(Relaxed).then(|| self.state())
    }

    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.record.standing.lock()
    }

    /// Requests that it serves.
    pub(super) fn active(&self) -> u32 {
        self.record.active.load(Relaxed)
    }

    /// A request more, until [`leave`](Self::leave).
    pub(super) fn enter(&self) {
        self.record.active.fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self) {
        self.record.active.fetch_sub(1, Relaxed);
    }

    fn is_full(&self) -> bool {
        self.max_conns > 0 && self.active() >= self.max_conns
    }

    pub(crate) fn state(&self) -> State {
        match self.record.state.load(Relaxed) {
            0 => State::Up,
            1 => State::Drain,
            _ => State::Down,
        }
    }

    /// `of_server`: it is wanted of all addresses of its server. `true` if it was another one.
    pub(super) fn set_state(&self, state: State, of_server: bool) -> bool {
        self.record.of_server.store(of_server, Relaxed);
        let before = self.record.state.swap(state as u8, Relaxed);
        if before != State::Up as u8 && state == State::Up {
            self.standing().serves_again();
        }
        before != state as u8
    }

    /// May it be chosen, as far as failures, health and the operator go?
    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.state() == State::Up && self.standing().is_up(&self.rules, now)
    }

    /// May it be chosen now?
    pub(super) fn is_free(&self, now: Instant) -> bool {
        self.is_up(now) && !self.is_full()
    }

    /// A verdict of the health checks. `true` if it is another one than before.
    pub(super) fn set_health(&self, health: Health) -> bool {
        self.standing().set_health(health)
    }

    /// What the health checks have found.
    pub(super) fn health(&self) -> Health {
        self.standing().health()
    }

    /// The same peer, perhaps in another generation of the group?
    pub(super) fn is(&self, other: &Member) -> bool {
        Arc::ptr_eq(&self.record, &other.record)
    }

    /// For the operator.
    pub(super) fn status(&self, now: Instant) -> serde_json::Value {
        let health = match self.health() {
            Health::Unchecked => "unchecked",
            Health::Up => "up",
            Health::Down => "down",
        };
        serde_json::json!({
            "address": **self.peer.address_text(),
            "name": **self.peer.name(),
            "state": self.state(),
            "up": self.is_up(now),
            "health": health,
            "fails": self.standing().fails(),
            "active": self.active(),
            "weight": self.rules.weight,
            "backup": self.backup,
        })
    }
}
