//! What the process's heap does with memory that was freed.

/// Larger allocations are mapped by themselves, and given back at once.
const MAPPED_BYTES_MIN: libc::c_int = 16 << 20;
/// Freed memory at the end of a heap that is kept for the next allocation.
const KEPT_BYTES_MAX: libc::c_int = 64 << 20;

/// Has the heap keep some of what is freed, for a process that takes and frees megabytes all the time.
///
/// glibc gives the end of a heap back to the system when more than a few hundred KiB of it are free, and maps what is
/// larger by itself; each new buffer of a megabyte then costs 256 page faults. Nothing is done with other C libraries.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (option, bytes) in
        [(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN), (libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX)]
    {
        // SAFETY: `mallopt` takes two numbers, no pointers; glibc's may be called from any thread (it locks the main
        // arena), and refuses values that it does not know.
        if unsafe { libc::mallopt(option, bytes) } == 0 {
            tracing::debug!(option, "the heap gives freed memory back at once");
        }
    }
}

/// Gives the system what is free in all heaps, also between what is in use: after a start that took and freed much for once.
///
/// Nothing is done with other C libraries.
pub fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: `malloc_trim` takes a number, no pointers; it locks each arena while it looks at it, and gives back whole
        // pages of chunks that are free, so nothing that anybody holds is touched.
        let given_back = unsafe { libc::malloc_trim(0) } != 0;
        tracing::debug!(given_back, "what a start has freed");
    }
}
