//! A Winsock 2 DLL with a provider catalog, for Wine.
#![cfg(windows)]
