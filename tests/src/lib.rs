//! Drives built programs only: suites, programs, apps.
