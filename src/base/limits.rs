//! Every bound of the service and of the program in one place, with the relations between them asserted.

/// Bytes in a KiB, MiB, GiB.
pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;

/// Longest object key in bytes (OSS limits, "object key").
pub const KEY_BYTES_MAX: usize = 1023;
/// Longest path component the kernel hands over (NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Smallest part but the last (OSS limits, "part").
pub const PART_BYTES_MIN: u64 = 100 * KIB;
/// Largest part, and the largest body of one PutObject.
pub const PART_BYTES_MAX: u64 = 5 * GIB;
/// Part numbers run from 1 to this.
pub const PARTS_MAX: u32 = 10_000;
/// Parts a base may be cut into, so that numbers remain for what is appended.
pub const BASE_PARTS_MAX: u64 = 9_000;
/// Largest spill file (`--part-size`).
pub const PIECE_BYTES_MAX: u64 = GIB;
/// All user metadata of an object, names and values (OSS limits, "user metadata").
pub const USER_META_BYTES_MAX: usize = 8 * 1024;
/// Of these, what is kept free of extended attributes: mode, owner and times change after them.
pub const USER_META_BYTES_RESERVE: usize = 256;
/// Most keys in a page of a listing, parts in a page of ListParts, keys in one DeleteMultipleObjects.
pub const PAGE_MAX: u32 = 1000;
/// Largest XML body of the service that is read; a page of 1000 long keys, escaped threefold, stays under it.
pub const XML_BYTES_MAX: usize = 8 << 20;
/// Deepest nesting of elements that is parsed.
pub const XML_DEPTH_MAX: usize = 16;
/// Largest `write` the kernel is asked to send at once.
pub const FUSE_WRITE_MAX: u32 = 1 << 20;
/// The program's own passing keys lie under this, relative to the mounted prefix, and are never listed.
pub const PRIVATE_DIR: &str = ".ossfuse-tmp/";

const _: () = assert!(PIECE_BYTES_MAX <= PART_BYTES_MAX);
const _: () = assert!(BASE_PARTS_MAX < PARTS_MAX as u64);
const _: () = assert!(XML_BYTES_MAX > PAGE_MAX as usize * KEY_BYTES_MAX * 3);
