//! Parts whose spill files are known to hold what was sent, without reading them again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::file::DirtyFile;
use crate::base::PartNumber;
use crate::base::crash;
use crate::base::time::{micros, now};
use crate::upload::{PartOutcome, Transfer};

/// How long after a write any later one has another time on the local disk, with room to spare.
const STABLE_AFTER: Duration = Duration::from_millis(30);

impl DirtyFile {
    /// Records, once time enough has passed to tell a later write by its time, that the spill files of a part hold what
    /// was sent: whoever takes the session up need not read them.
    pub(super) fn note_when_stable(self: &Arc<Self>, transfer: Arc<Transfer>, number: PartNumber, generation: u64) {
        let file = self.clone();
        self.engine.runtime().spawn(async move {
            tokio::time::sleep(STABLE_AFTER).await;
            let Some(outcome) = file.sent_quietly(number, generation) else { return };
            let Some(at) = file.last_written(number).filter(|at| now() > *at + STABLE_AFTER) else { return };
            // Looked at twice: nobody has written between the two looks.
            if file.sent_quietly(number, generation).is_some() {
                transfer.note(number, generation, &outcome, Some(micros(at)));
                crash::point("part-stable");
            }
        });
    }

    /// What was sent of a part, if that is what its spill files hold and nobody is writing to them.
    fn sent_quietly(&self, number: PartNumber, generation: u64) -> Option<PartOutcome> {
        let state = self.state.lock();
        let (sent, outcome) = state.parts.get(&number).filter(|part| part.generation == generation)?.sent.as_ref()?;
        let mut pieces = state.plan.pieces_in(state.plan.part_range(number)?);
        let quiet = pieces.all(|index| state.pieces.get(&index).is_none_or(|piece| piece.writers == 0));
        (*sent == generation && quiet).then(|| outcome.clone())
    }

    /// When any spill file of a part was last written.
    fn last_written(&self, number: PartNumber) -> Option<SystemTime> {
        let (dir, pieces) = {
            let state = self.state.lock();
            (state.dir.clone()?, state.plan.pieces_in(state.plan.part_range(number)?))
        };
        let written = pieces.filter_map(|index| std::fs::metadata(dir.piece_path(index)).ok()?.modified().ok());
        written.max()
    }
}
