//! The one integration test binary: the dev server over the wire, and the form of the code itself.

mod conformance;
mod tidy;
