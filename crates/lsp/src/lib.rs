//! The Windows front: `lsp.dll`, a non-IFS layered service provider.
#![cfg(windows)]
