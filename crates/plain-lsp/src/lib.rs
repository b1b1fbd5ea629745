//! The fall-through provider: `plain_lsp.dll`, an IFS layered service provider that changes nothing.
#![cfg(windows)]
