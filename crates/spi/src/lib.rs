//! What the Winsock crates share: error tables, catalog entries, types that windows-sys lacks.
