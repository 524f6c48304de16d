//! Writing to a batch that lies in shared memory: the pages become this process's own, in place of a crash.
//!
//! A tensor of torch cannot be read-only, and an augmentation in place is a sensible thing to do. The ring is mapped read-only, so such a
//! write is a fault; the handler here has [`mixd::ring::make_private`] map the slot anew, privately, and the write happens again. The daemon,
//! other trainers and later batches never see it. Faults anywhere else go to whoever handled them before.
#![expect(unsafe_code, reason = "installs a signal handler")]

use libc::{SA_NODEFER, SA_ONSTACK, SA_SIGINFO, SIG_DFL, SIGSEGV, c_int, c_void, sigaction, siginfo_t};
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// A write, or a read, that the mapping does not allow (`SEGV_ACCERR`); the others are of addresses that are not mapped.
const NOT_ALLOWED: c_int = 2;

/// Who handled faults before. What it points to is never freed: a handler may be looking at it.
static BEFORE: AtomicPtr<sigaction> = AtomicPtr::new(std::ptr::null_mut());
/// Whether a fault was passed on. Should it come back, nobody wants it.
static PASSED_ON: AtomicBool = AtomicBool::new(false);
static INSTALLING: Mutex<()> = Mutex::new(());

const FORKED: &[u8] =
    b"mixd: a process that was forked from a trainer touched a batch of its parent, which it does not have \
    (copy what the child needs before the fork, or open a feed in the child)\n";

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the system passes a valid `info` to a handler that was installed with SA_SIGINFO.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    if code == NOT_ALLOWED && mixd::ring::make_private(address) {
        return;
    }
    // SAFETY: only calls that are async-signal-safe, with valid arguments. `BEFORE` was set before this handler was installed.
    unsafe {
        if code > 0 && mixd::ring::is_of_batch(address) {
            libc::write(2, FORKED.as_ptr().cast(), FORKED.len());
        }
        // Whoever handled faults before gets this one: the access is tried again when this returns.
        if PASSED_ON.swap(true, Ordering::Relaxed) {
            libc::signal(signal, SIG_DFL);
        } else {
            libc::sigaction(signal, BEFORE.load(Ordering::Acquire), std::ptr::null_mut());
        }
        // It was sent by somebody, not by an access.
        if code <= 0 {
            libc::raise(signal);
        }
    }
}

/// Installs the handler where it is not the one that is installed: others, such as Python's `faulthandler`, may have come after it.
pub fn catch_writes() {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
    let mut current = MaybeUninit::<sigaction>::uninit();
    // SAFETY: `current` is written by the call; SIGSEGV has an action.
    let current = unsafe {
        libc::sigaction(SIGSEGV, std::ptr::null(), current.as_mut_ptr());
        current.assume_init()
    };
    if current.sa_sigaction == handler as usize {
        return;
    }
    let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    BEFORE.store(Box::leak(Box::new(current)), Ordering::Release);
    // SAFETY: a zeroed action is a valid one; the handler is async-signal-safe (see above) and has the signature of SA_SIGINFO.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        libc::sigaction(SIGSEGV, &raw const action, std::ptr::null_mut());
    }
}
