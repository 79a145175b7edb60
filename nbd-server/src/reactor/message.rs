//! What the kernel reads of a vectored socket operation besides the data.

/// Pieces of one vectored socket operation (the kernel's UIO_MAXIOV).
pub(super) const IOVECS_MAX: usize = 1024;
/// Bytes of one send. A send ends when all of it is in the socket, and only then is it known that the peer
/// reads: a slow one must not be taken for one that has stalled.
const SEND_BYTES_MAX: usize = 1 << 20;

/// A header and the pieces that it points at. Boxed, because the address of the header goes to the kernel.
pub(super) struct Message {
    header: libc::msghdr,
    iovecs: Vec<libc::iovec>,
}

impl Message {
    /// One without pieces.
    pub(super) fn new() -> Box<Self> {
        // SAFETY: a msghdr is a C struct of integers and pointers, for which all zeroes is a valid value.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self { header, iovecs: Vec::with_capacity(8) })
    }

    /// Points at memory to receive into. It must stay where it is until the operation is over: it belongs to
    /// buffers that the table owns.
    pub(super) fn receiving(&mut self, parts: [&mut [u8]; 2]) -> *mut libc::msghdr {
        self.iovecs.clear();
        self.iovecs.extend(parts.map(|part| iovec(part.as_mut_ptr(), part.len())));
        self.point()
    }

    /// Points at what is to be sent next, as far as one operation goes; the same holds for that memory.
    pub(super) fn sending<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) -> *const libc::msghdr {
        self.iovecs.clear();
        let mut room = SEND_BYTES_MAX;
        for part in parts.take(IOVECS_MAX) {
            let bytes = part.len().min(room);
            self.iovecs.push(iovec(part.as_ptr().cast_mut(), bytes));
            room -= bytes;
            if room == 0 {
                break;
            }
        }
        self.point()
    }

    fn point(&mut self) -> *mut libc::msghdr {
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len() as _;
        &raw mut self.header
    }
}

/// Memory, as the kernel is told of it.
pub(super) fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}
