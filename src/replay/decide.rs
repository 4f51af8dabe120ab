//! The decision table: evidence in, exactly one decision out. Pure.

use crate::spill::Phase;

/// What may be done by itself (`--recover`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Safe,
    Publish,
    Keep,
}

/// What the session file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// There is none.
    Missing,
    /// It cannot be read.
    Damaged,
    /// The file was unlinked while it was open, or all that is left of the session is to go.
    Unlinked,
    /// Being written when the process ended.
    Open,
    /// fsynced or closed: publication was promised.
    Promised,
    /// Kept for a reason of its own.
    Kept,
}

impl Record {
    /// What a session that was read counts as.
    pub fn of(phase: &Phase, has_key: bool) -> Self {
        match phase {
            _ if !has_key => Self::Unlinked,
            Phase::Over => Self::Unlinked,
            Phase::Open => Self::Open,
            Phase::Kept(_) => Self::Kept,
            Phase::Synced | Phase::Closing | Phase::Completing => Self::Promised,
        }
    }
}

/// What stands at the key now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// The service was not asked: nothing hangs on it.
    NotAsked,
    /// What the session began from: nothing, or the object it edits or replaces.
    AsBefore,
    /// The very object that the session was to become.
    Published,
    /// Something that another client put there, or took away.
    Changed,
}

/// All that is known of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    pub record: Record,
    /// Its spill files are as the session file says.
    pub intact: bool,
    /// All its bytes are local: none would have to come from the object it edits.
    pub whole: bool,
    pub remote: Remote,
    pub mode: Mode,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Ask the service what stands at the key, then decide again.
    Look,
    /// Send what is missing and complete it at its name.
    Finish,
    /// Publish it beside the object, as a conflict copy.
    Beside,
    /// It is in the bucket already: end the session.
    AlreadyDone,
    /// Leave it for `recover`.
    Keep,
    /// Leave it for `recover`: what it edits was changed by another client.
    KeepConflict,
    /// Nothing of it is wanted: take it away.
    Discard,
    /// It cannot be read or trusted: set it aside.
    Quarantine,
}

/// The table.
///
/// - No session file, or one that cannot be read: quarantine, whatever else.
/// - An unlinked file: discard; nobody can reach it any more.
/// - Kept for a reason of its own, or `--recover keep`: keep.
/// - Neither closed nor fsynced: keep, unless `--recover publish`.
/// - Spill files that are not what was promised: quarantine.
/// - The object is there already: done. As before: finish. Changed by another client: beside it, if all bytes are
///   local; else keep.
pub fn decide(evidence: &Evidence) -> Decision {
    match evidence.record {
        Record::Missing | Record::Damaged => return Decision::Quarantine,
        Record::Unlinked => return Decision::Discard,
        Record::Kept => return Decision::Keep,
        Record::Open if evidence.mode != Mode::Publish => return Decision::Keep,
        Record::Promised if evidence.mode == Mode::Keep => return Decision::Keep,
        Record::Open | Record::Promised => {}
    }
    if !evidence.intact {
        return Decision::Quarantine;
    }
    match evidence.remote {
        Remote::NotAsked => Decision::Look,
        Remote::Published => Decision::AlreadyDone,
        Remote::AsBefore => Decision::Finish,
        Remote::Changed if evidence.whole => Decision::Beside,
        Remote::Changed => Decision::KeepConflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Evidence> {
        use {Mode as M, Record as R, Remote as O};
        let records = [R::Missing, R::Damaged, R::Unlinked, R::Open, R::Promised, R::Kept];
        let remotes = [O::NotAsked, O::AsBefore, O::Published, O::Changed];
        let modes = [M::Safe, M::Publish, M::Keep];
        records.into_iter().flat_map(move |record| {
            remotes.into_iter().flat_map(move |remote| {
                modes.into_iter().flat_map(move |mode| {
                    [(true, true), (true, false), (false, true), (false, false)]
                        .into_iter()
                        .map(move |(intact, whole)| Evidence { record, intact, whole, remote, mode })
                })
            })
        })
    }

    #[test]
    fn what_was_promised_is_finished_and_nothing_else_by_itself() {
        for evidence in all() {
            let decision = decide(&evidence);
            let published = matches!(decision, Decision::Finish | Decision::Beside | Decision::Look);
            if published {
                assert!(evidence.intact, "{evidence:?}");
                assert_ne!(evidence.mode, Mode::Keep, "{evidence:?}");
                assert!(matches!(evidence.record, Record::Open | Record::Promised), "{evidence:?}");
                assert!(evidence.record == Record::Promised || evidence.mode == Mode::Publish, "{evidence:?}");
            }
            if evidence.record == Record::Promised && evidence.mode != Mode::Keep && evidence.intact {
                assert!(
                    published || matches!(decision, Decision::AlreadyDone | Decision::KeepConflict),
                    "{evidence:?}"
                );
            }
        }
    }

    #[test]
    fn bytes_are_only_discarded_where_nobody_can_want_them() {
        for evidence in all() {
            let gone = matches!(decide(&evidence), Decision::Discard);
            assert_eq!(gone, evidence.record == Record::Unlinked, "{evidence:?}");
        }
    }

    #[test]
    fn an_object_of_another_client_is_never_replaced() {
        for evidence in all().filter(|evidence| evidence.remote == Remote::Changed) {
            assert_ne!(decide(&evidence), Decision::Finish, "{evidence:?}");
            assert_ne!(decide(&evidence), Decision::AlreadyDone, "{evidence:?}");
        }
    }
}
