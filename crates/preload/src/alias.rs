//! Second names that the C library exports of functions that we interpose.

macro_rules! aliases {
    ($($alias:ident => $name:path;)*) => {$(
        /// # Safety
        /// As the C function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C-unwind" fn $alias() {
            // Whatever its arguments are.
            std::arch::naked_asm!("jmp {name}", name = sym $name)
        }
    )*};
}
aliases! {
    __read => crate::receive::read;
    __write => crate::send::write;
    __send => crate::send::send;
    __poll => crate::poll::poll;
    __select => crate::select::select;
    __connect => crate::setup::connect;
    __close => crate::setup::close;
    __dup2 => crate::setup::dup2;
    __fcntl => crate::options::fcntl;
    __fork => crate::process::fork;
    __vfork => crate::process::vfork::vfork;
    __clone => crate::thread::clone;
    __sigaction => crate::signals::sigaction;
    ssignal => crate::signals::signal;
    _IO_fdopen => crate::stdio::fdopen;
    _IO_fclose => crate::stdio::fclose;
    _IO_popen => crate::process::exec::popen;
}
