//! Room on the disk when `--spill-limit` presses, or the disk is full: writers wait, what was sent leaves.
//!
//! A file written front to back keeps its first and its last part, and the one being written; the others may go
//! once the service has them. Only where nothing can leave, or is on its way, is the limit overstepped: a write
//! never fails for it. On a full disk that is ENOSPC.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::file::DirtyFile;
use super::state::{Piece, State};
use super::{WriteEngine, WriteError};
use crate::base::{PartNumber, crash};

/// How long to wait for word of progress before looking again: a service that fails says nothing.
const LOOK: Duration = Duration::from_millis(200);

/// What was done for more room.
#[derive(Debug, Default)]
struct Pressed {
    freed: bool,
    /// Something is on its way that makes room when it has arrived.
    coming: bool,
}

impl WriteEngine {
    /// Waits until `bytes` more fit into the limit; `false` where they never will by waiting.
    pub(super) async fn make_room(&self, bytes: u64) -> bool {
        let gauge = self.spill().gauge();
        loop {
            let changed = gauge.changed().notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if gauge.has_room(bytes) {
                return true;
            }
            let pressed = self.press().await;
            if gauge.has_room(bytes) {
                return true;
            }
            if !pressed.coming {
                log::debug!("nothing can leave the disk; {bytes} bytes are written over --spill-limit");
                return false;
            }
            // Either way it is looked again.
            drop(tokio::time::timeout(LOOK, changed).await);
        }
    }

    /// Waits until the full disk has room again.
    ///
    /// # Errors
    /// ENOSPC: nothing can leave it.
    pub(super) async fn wait_for_disk(&self) -> Result<(), WriteError> {
        let gauge = self.spill().gauge();
        let changed = gauge.changed().notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let pressed = self.press().await;
        if pressed.freed {
            return Ok(());
        }
        if !pressed.coming {
            let place = self.spill().layout().root().display().to_string();
            log::error!("{place}: the disk is full, and nothing on it can be sent");
            return Err(WriteError::Spill { message: format!("{place}: the disk is full"), errno: Some(libc::ENOSPC) });
        }
        drop(tokio::time::timeout(LOOK, changed).await);
        Ok(())
    }

    /// Lets leave what can, and sends what could leave then.
    async fn press(&self) -> Pressed {
        let _one = self.0.pressing.lock().await;
        let engine = self.clone();
        // Writes session files durably: not on a thread of the network.
        self.runtime().spawn_blocking(move || engine.press_all()).await.unwrap_or_default()
    }

    fn press_all(&self) -> Pressed {
        let mut pressed = Pressed::default();
        // What is closed and waits for a better name is sent at once.
        self.hurry();
        let live = self.live();
        for file in &live {
            match file.shed() {
                Ok(freed) => pressed.freed |= freed,
                Err(error) => log::warn!("{}: no part can leave the disk: {error}", file.name()),
            }
            pressed.coming |= file.send_for_room(State::is_full) || file.is_leaving();
        }
        if !pressed.freed && !pressed.coming {
            // Files not written front to back: better sent twice than the disk full.
            for file in &live {
                pressed.coming |= file.send_for_room(State::is_whole);
            }
        }
        pressed
    }
}

impl DirtyFile {
    /// Whether the file is being sent, so that it will leave the disk as a whole or in part.
    fn is_leaving(&self) -> bool {
        let sending = self.state.lock().parts.values().any(|part| part.sending.is_some());
        sending || self.publishing.try_lock().is_err() || self.retrying.load(Ordering::Acquire)
    }

    /// Sends, in the background, parts that may leave the disk afterwards; whether there are any.
    fn send_for_room(self: &Arc<Self>, may_go: impl Fn(&State, PartNumber) -> bool) -> bool {
        let due = {
            let mut state = self.state.lock();
            if state.retired.is_some() || state.ended {
                return false;
            }
            let due = state.inner_parts(|state, part| may_go(state, part) && !state.has(part));
            // An upload to the name itself cannot hold what is nowhere else: it is begun anew at a hidden key.
            let unhidden = !state.hidden && (!due.is_empty() || !state.inner_parts(State::has).is_empty());
            if unhidden && self.publishing.try_lock().is_ok() {
                state.hidden = true;
                self.give_up(state.let_go());
                state.inner_parts(may_go)
            } else {
                due
            }
        };
        for number in &due {
            self.send_in_background(*number);
        }
        !due.is_empty()
    }

    /// Takes parts off the disk that the service has. Before the first byte goes, the session file says where it
    /// is, durably. Blocks on the local disk; whether room was made.
    fn shed(&self) -> Result<bool, WriteError> {
        let _structure = self.structure.lock();
        let (dir, record, taken) = {
            let mut state = self.state.lock();
            let Some(dir) = state.dir.clone().filter(|_| state.hidden && state.retired.is_none() && !state.ended)
            else {
                return Ok(false);
            };
            let parts = state.inner_parts(State::can_leave);
            if parts.is_empty() {
                return Ok(false);
            }
            let taken = state.take_away(&parts);
            (dir, state.record.clone(), taken)
        };
        if let Err(error) = dir.write_record(&record, true) {
            self.state.lock().bring_back(taken);
            return Err(error.into());
        }
        crash::point("leaving-noted");
        let mut freed = 0;
        for (index, piece) in taken.pieces {
            dir.remove_piece(index)?;
            crash::point("part-left");
            freed += piece.len;
        }
        self.state.lock().lease.shrink(freed);
        Ok(freed > 0)
    }
}

/// Parts that leave, until the session file says so.
#[derive(Debug)]
struct Taken {
    parts: Vec<PartNumber>,
    pieces: Vec<(u64, Piece)>,
}

impl State {
    /// The parts, neither the first nor the last nor the one being written, of which `want` holds.
    fn inner_parts(&self, want: impl Fn(&Self, PartNumber) -> bool) -> Vec<PartNumber> {
        let last = self.size.checked_sub(1).and_then(|at| self.plan.part_at(at));
        let is_inner = |number: &PartNumber| {
            number.get() > 1 && Some(*number) != last && Some(*number) != self.cursor && !self.away.contains(number)
        };
        let has_bytes = |number: &PartNumber| {
            let range = self.plan.part_range(*number);
            range.is_some_and(|range| self.pieces.range(self.plan.pieces_in(range)).next().is_some())
        };
        self.parts.keys().copied().filter(is_inner).filter(has_bytes).filter(|number| want(self, *number)).collect()
    }

    /// Whether the part lies inside the file, and none of it comes from the base.
    fn is_whole(&self, number: PartNumber) -> bool {
        let Some(range) = self.plan.part_range(number) else { return false };
        range.end <= self.size && self.plan.pieces_in(range).all(|index| self.remote(index).is_empty())
    }

    /// Whether the service has the part, or is getting it.
    fn has(&self, number: PartNumber) -> bool {
        let len = self.plan.part_range(number).map_or(0, |range| range.len());
        self.due(number, len).is_none()
    }

    /// Whether the bytes of a part are on the service as they are here, and nobody is changing them.
    fn can_leave(&self, number: PartNumber) -> bool {
        let Some(range) = self.plan.part_range(number) else { return false };
        let idle = self.parts.get(&number).is_some_and(|part| part.sending.is_none());
        let mut pieces = self.plan.pieces_in(range).filter_map(|index| self.pieces.get(&index)).peekable();
        idle && self.has(number) && self.is_whole(number) && pieces.peek().is_some() && pieces.all(|p| p.writers == 0)
    }

    /// Notes parts as gone; the room that they had is still counted.
    fn take_away(&mut self, parts: &[PartNumber]) -> Taken {
        let mut pieces = Vec::new();
        for number in parts {
            for index in self.plan.part_range(*number).map_or(0..0, |range| self.plan.pieces_in(range)) {
                self.forget_open(index);
                pieces.extend(self.pieces.remove(&index).map(|piece| (index, piece)));
            }
            self.away.insert(*number);
        }
        self.record.upload = self.held_upload();
        if self.is_noted() {
            self.record.pieces = self.notes();
        }
        Taken { parts: parts.to_vec(), pieces }
    }

    fn bring_back(&mut self, taken: Taken) {
        self.pieces.extend(taken.pieces);
        for number in taken.parts {
            self.away.remove(&number);
        }
        self.record.upload = if self.away.is_empty() { None } else { self.held_upload() };
        if self.is_noted() {
            self.record.pieces = self.notes();
        }
    }
}
