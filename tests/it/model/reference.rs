//! Random histories of files, processes and other clients.
