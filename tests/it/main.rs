mod conformance;
mod model;
