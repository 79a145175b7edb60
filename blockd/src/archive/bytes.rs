//! Reading fields out of bytes that somebody else may have written.

/// Why an object cannot be what it claims to be; the object's name is added by whoever knows it.
pub(super) type Parsed<T> = Result<T, String>;

/// Takes fields off the front of an object.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Checks magic and version, which every object begins with.
    pub(super) fn open(bytes: &'a [u8], magic: [u8; 8]) -> Parsed<Self> {
        let mut fields = Self { rest: bytes };
        if fields.array::<8>()? != magic {
            return Err(format!("it does not begin with {}", String::from_utf8_lossy(&magic)));
        }
        let version = fields.u32()?;
        if version == super::FORMAT_VERSION {
            return Ok(fields);
        }
        Err(format!("it has version {version}, this program knows {}", super::FORMAT_VERSION))
    }

    /// Fields without magic and version.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or("it ends too early")?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Parsed<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Parsed<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes not taken yet.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may follow.
    pub(super) fn end(self) -> Parsed<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(format!("{} bytes too many", self.rest.len())) }
    }
}

/// Magic and version, to which the fields are appended.
pub(super) fn head(magic: [u8; 8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&super::FORMAT_VERSION.to_le_bytes());
    bytes
}
