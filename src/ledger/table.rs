//! What the records of a ledger come to.
//!
//! Pure: records in, tables out, and back into the fewest records that come to the same.

use std::collections::{HashMap, HashSet, VecDeque};

use super::record::{HowRecord, KeptRecord, ObjectRecord, Record, RequestState};
use crate::base::SessionId;

/// Requests whose effects are remembered. Only those that the kernel still waits for are ever asked about, and of
/// these the kernel has far fewer.
const REQUESTS_MAX: usize = 8192;

/// An inode that the kernel may know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InodeState {
    /// The directory it is in, and its name there.
    pub place: Option<(u64, Box<str>)>,
    /// Type bits of its mode.
    pub kind: u32,
    pub lookups: u64,
    pub object: Option<Box<ObjectRecord>>,
    pub session: Option<SessionId>,
    pub unlinked: bool,
    pub kept: Option<Box<KeptRecord>>,
}

/// A file's handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandleState {
    pub ino: u64,
    pub how: HowRecord,
}

/// A directory's handle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirState {
    pub ino: u64,
    /// The entries that were told, in order from offset 0.
    pub names: Vec<Box<str>>,
}

/// Everything that the kernel was told and may come back to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    pub inodes: HashMap<u64, InodeState>,
    pub handles: HashMap<u64, HandleState>,
    pub dirs: HashMap<u64, DirState>,
    pub requests: HashMap<u64, RequestState>,
    pub killed: HashSet<SessionId>,
    /// Requests in the order in which they were met.
    order: VecDeque<u64>,
}

impl Table {
    /// Takes one step.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Placed { ino, parent, name, kind } => {
                let inode = self.inodes.entry(ino).or_default();
                (inode.place, inode.kind) = (Some((parent, name)), kind);
            }
            Record::Unplaced { ino } => self.with(ino, |inode| inode.place = None),
            Record::Dropped { ino } => drop(self.inodes.remove(&ino)),
            Record::Told { ino, unique } => {
                self.with(ino, |inode| inode.lookups += 1);
                self.request(unique, |state| state.told.push(ino));
            }
            Record::Forgotten { ino, count } => {
                self.with(ino, |inode| inode.lookups = inode.lookups.saturating_sub(count));
            }
            Record::Object { ino, object } => self.with(ino, |inode| inode.object = Some(object)),
            Record::Session { ino, session } => self.with(ino, |inode| inode.session = session),
            Record::Killed { session } => drop(self.killed.insert(session)),
            Record::Unlinked { ino, kept } => self.with(ino, |inode| (inode.unlinked, inode.kept) = (true, kept)),
            Record::Rejoined { ino } => self.with(ino, |inode| inode.unlinked = false),
            Record::Opened { unique, fh, ino, how } => {
                self.handles.insert(fh, HandleState { ino, how });
                self.request(unique, |state| state.handle = Some(fh));
            }
            Record::Closed { fh } => drop(self.handles.remove(&fh)),
            Record::DirOpened { unique, fh, ino } => {
                self.dirs.insert(fh, DirState { ino, names: Vec::new() });
                self.request(unique, |state| state.handle = Some(fh));
            }
            Record::DirClosed { fh } => drop(self.dirs.remove(&fh)),
            Record::Listed { fh, first, names } => {
                if let Some(dir) = self.dirs.get_mut(&fh) {
                    dir.names.truncate(first as usize);
                    if dir.names.len() as u64 == first {
                        dir.names.extend(names);
                    }
                }
            }
            Record::Begun { unique } => self.request(unique, |state| state.begun = true),
            Record::Done { unique, effect } => self.request(unique, |state| state.effect = Some(effect)),
            Record::Counted { ino, lookups } => self.with(ino, |inode| inode.lookups = lookups),
            Record::Remembered { unique, state } => self.request(unique, |known| *known = *state),
        }
    }

    fn with(&mut self, ino: u64, change: impl FnOnce(&mut InodeState)) {
        change(self.inodes.entry(ino).or_default());
    }

    /// What is remembered of a request. Number 0 is none of the kernel's.
    fn request(&mut self, unique: u64, change: impl FnOnce(&mut RequestState)) {
        if unique == 0 {
            return;
        }
        if !self.requests.contains_key(&unique) {
            self.order.push_back(unique);
            if self.order.len() > REQUESTS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.requests.remove(&oldest);
            }
        }
        change(self.requests.entry(unique).or_default());
    }

    /// Records that come to this table.
    pub fn records(self) -> impl Iterator<Item = Record> {
        let Self { inodes, handles, dirs, mut requests, killed, order } = self;
        let inodes = inodes.into_iter().flat_map(|(ino, state)| inode_records(ino, state));
        let handles =
            handles.into_iter().map(|(fh, state)| Record::Opened { unique: 0, fh, ino: state.ino, how: state.how });
        let dirs = dirs.into_iter().flat_map(|(fh, state)| {
            let opened = Record::DirOpened { unique: 0, fh, ino: state.ino };
            let listed = (!state.names.is_empty()).then_some(Record::Listed { fh, first: 0, names: state.names });
            std::iter::once(opened).chain(listed)
        });
        let killed = killed.into_iter().map(|session| Record::Killed { session });
        let requests = order.into_iter().map(move |unique| {
            let state = Box::new(requests.remove(&unique).unwrap_or_default());
            Record::Remembered { unique, state }
        });
        inodes.chain(handles).chain(dirs).chain(killed).chain(requests)
    }
}

fn inode_records(ino: u64, state: InodeState) -> Vec<Record> {
    let mut records = Vec::with_capacity(2);
    match state.place {
        Some((parent, name)) => records.push(Record::Placed { ino, parent, name, kind: state.kind }),
        None => {
            records.push(Record::Placed { ino, parent: 0, name: "".into(), kind: state.kind });
            records.push(Record::Unplaced { ino });
        }
    }
    records.extend(state.object.map(|object| Record::Object { ino, object }));
    if state.session.is_some() {
        records.push(Record::Session { ino, session: state.session });
    }
    if state.unlinked || state.kept.is_some() {
        records.push(Record::Unlinked { ino, kept: state.kept });
        if !state.unlinked {
            records.push(Record::Rejoined { ino });
        }
    }
    records.push(Record::Counted { ino, lookups: state.lookups });
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::record::Effect;

    fn placed(ino: u64, name: &str) -> Record {
        Record::Placed { ino, parent: 1, name: name.into(), kind: 0o100_000 }
    }

    fn applied(records: impl IntoIterator<Item = Record>) -> Table {
        let mut table = Table::default();
        records.into_iter().for_each(|record| table.apply(record));
        table
    }

    fn sample() -> Table {
        let how = HowRecord { readable: true, writable: false, append: false, opener: Some((7, 8)) };
        let names = |range: std::ops::Range<u64>| range.map(|i| i.to_string().into()).collect();
        applied([
            placed(10, "a"),
            Record::Told { ino: 10, unique: 2 },
            Record::Told { ino: 10, unique: 4 },
            Record::Forgotten { ino: 10, count: 1 },
            Record::Opened { unique: 6, fh: 1, ino: 10, how },
            placed(11, "b"),
            Record::Unplaced { ino: 11 },
            Record::Unlinked {
                ino: 11,
                kept: Some(Box::new(KeptRecord::Local { id: SessionId::generate(1), len: 3 })),
            },
            Record::Session { ino: 10, session: Some(SessionId::generate(2)) },
            Record::DirOpened { unique: 8, fh: 2, ino: 1 },
            Record::Listed { fh: 2, first: 0, names: names(0..5) },
            Record::Listed { fh: 2, first: 3, names: names(3..9) },
            Record::Begun { unique: 10 },
            Record::Done { unique: 10, effect: Effect::Entry(10) },
            placed(12, "c"),
            Record::Dropped { ino: 12 },
        ])
    }

    #[test]
    fn records_come_to_what_was_told() {
        let table = sample();
        assert_eq!(table.inodes[&10].lookups, 1);
        assert_eq!(table.requests[&2].told, [10]);
        assert_eq!(table.requests[&6].handle, Some(1));
        assert_eq!(table.dirs[&2].names.len(), 9);
        assert!(table.inodes[&11].unlinked && table.inodes[&11].place.is_none());
        assert!(!table.inodes.contains_key(&12));
        assert_eq!(table.requests[&10].effect, Some(Effect::Entry(10)));
    }

    #[test]
    fn a_table_is_the_same_after_it_was_put_together_anew() {
        let table = sample();
        assert_eq!(applied(table.clone().records()), table);
    }

    #[test]
    fn only_the_latest_requests_are_remembered() {
        let table = applied((1..20_000).map(|unique| Record::Told { ino: 1, unique }));
        assert_eq!(table.requests.len(), REQUESTS_MAX);
        assert!(table.requests.contains_key(&19_999) && !table.requests.contains_key(&1));
    }
}
