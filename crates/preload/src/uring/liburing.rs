//! liburing makes its system calls in line, so its functions are hooked. (stub)
