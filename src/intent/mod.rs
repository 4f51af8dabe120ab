//! Operations of several steps on the bucket that must be finished once they are begun.
//!
//! An *intent* is a small file in the state folder, written before the first step and taken away after the last;
//! what a crash leaves there is done by the next mount, again from wherever it was. The promise lies with the
//! file; how far the work has come lies in the journal, and losing that costs repeated requests, never a byte.
//! Knows keys and objects; which inode or session they belong to is the business of the layer above.

mod copy;
mod lister;
mod record;
mod store;
mod tree_move;

pub use copy::copy_any;
pub use record::{IntentRecord, MetaChange, Phase, Swap, Work};
pub use store::IntentStore;
pub use tree_move::{MoveError, Moved, TreeMove};
