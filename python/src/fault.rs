//! Writing to a batch that lies in shared memory: the pages become this process's own, in place of a crash.
//!
//! A tensor of torch cannot be read-only, and an augmentation in place is a sensible thing to do. The ring is mapped read-only, so such a
//! write is a fault; the handler here has [`mixd::ring::make_private`] map the slot anew, privately, and the write happens again. The daemon,
//! other trainers and later batches never see it. Faults anywhere else go to whoever handled them before.
#![expect(unsafe_code, reason = "installs a signal handler")]

use libc::{SA_NODEFER, SA_ONSTACK, SA_SIGINFO, SIG_DFL, SIG_IGN, SIGSEGV, c_int, c_void, sigaction, siginfo_t};
use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// A write, or a read, that the mapping does not allow (`SEGV_ACCERR`); the others are of addresses that are not mapped.
const NOT_ALLOWED: c_int = 2;

/// Who handled faults before. What it points to is never freed: a handler may be looking at it.
static BEFORE: AtomicPtr<sigaction> = AtomicPtr::new(std::ptr::null_mut());
/// The thread that has passed a fault on and has not come back from that.
static PASSING_ON: AtomicI32 = AtomicI32::new(0);
static INSTALLING: Mutex<()> = Mutex::new(());

const FORKED: &[u8] =
    b"mixd: a process that was forked from a trainer touched a batch of its parent, which it does not have \
    (copy what the child needs before the fork, or open a feed in the child)\n";
const NO_MEMORY: &[u8] = b"mixd: there is no memory for a copy of a batch that was written to\n";

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes a valid `info` to a handler that was installed with SA_SIGINFO.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    if code == NOT_ALLOWED && mixd::ring::make_private(address) {
        return;
    }
    let why = match mixd::ring::lessee(address).filter(|_| code > 0) {
        Some(pid) if pid == std::process::id() => NO_MEMORY,
        Some(_) => FORKED,
        None => &[],
    };
    // SAFETY: only calls that are async-signal-safe, with valid arguments. `BEFORE` was set before this handler was installed, and a handler
    // is of the kind that its flags say.
    unsafe {
        libc::write(2, why.as_ptr().cast(), why.len());
        let (before, thread) = (&*BEFORE.load(Ordering::Acquire), libc::gettid());
        let nobody = before.sa_sigaction == SIG_DFL || before.sa_sigaction == SIG_IGN;
        // Should it come back from whom it was passed on to, nobody wants it.
        if nobody || PASSING_ON.load(Ordering::Relaxed) == thread {
            libc::signal(signal, SIG_DFL);
            // An access happens again when this returns; what somebody has sent does not.
            if code <= 0 {
                libc::raise(signal);
            }
            return;
        }
        PASSING_ON.store(thread, Ordering::Relaxed);
        if before.sa_flags & SA_SIGINFO != 0 {
            type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
            std::mem::transmute::<usize, Handler>(before.sa_sigaction)(signal, info, context);
        } else {
            std::mem::transmute::<usize, extern "C" fn(c_int)>(before.sa_sigaction)(signal);
        }
        // It has mended what it wanted to.
        PASSING_ON.store(0, Ordering::Relaxed);
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
