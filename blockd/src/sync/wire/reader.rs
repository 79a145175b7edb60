//! Takes a payload apart. Nothing is allocated for more than is there.

use super::{
    Begin, CANDIDATES_MAX, FETCH_CLUSTERS_MAX, Fetch, Found, HaveVolume, Hello, KeepWish, MAGIC, Mode,
    NAME_BYTES_MAX, NewestSnapshot, OfferedVolume, Received, VALUES_MAX, Values, WireError,
};
use crate::catalog::format::Point;
use crate::units::{CLUSTER_BYTES, HostId, Lineage, SnapshotUid};

type Decoded<T> = Result<T, WireError>;

const SHORT: WireError = WireError::Malformed("a frame is shorter than its kind");

/// What is left.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    pub(super) fn take<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn slice(&mut self, length: usize) -> Decoded<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> Decoded<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Decoded<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Decoded<u64> {
        self.take().map(u64::from_be_bytes)
    }

    pub(super) fn flag(&mut self) -> Decoded<bool> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(WireError::Malformed("a flag that is neither 0 nor 1")),
        }
    }

    fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> Decoded<T>) -> Decoded<Option<T>> {
        if self.flag()? { some(self).map(Some) } else { Ok(None) }
    }

    pub(super) fn count(&mut self, max: usize) -> Decoded<usize> {
        let count = usize::from(self.u16()?);
        if count > max { Err(WireError::Malformed("more items than there may be")) } else { Ok(count) }
    }

    pub(super) fn text(&mut self, max: usize) -> Decoded<String> {
        let length = self.count(max)?;
        let text = str::from_utf8(self.slice(length)?);
        text.map(str::to_owned).map_err(|_| WireError::Malformed("a text that is not UTF-8"))
    }

    /// Grows with what is there, not with what is announced.
    pub(super) fn list<T>(&mut self, max: usize, item: fn(&mut Self) -> Decoded<T>) -> Decoded<Vec<T>> {
        let count = self.count(max)?;
        (0..count).map(|_| item(self)).collect()
    }

    pub(super) fn bits(&mut self, count: usize) -> Decoded<Vec<bool>> {
        let bytes = self.slice(count.div_ceil(8))?;
        let bit = |at: usize| bytes[at / 8] >> (at % 8) & 1 == 1;
        if (count..bytes.len() * 8).any(bit) {
            return Err(WireError::Malformed("bits after the last one"));
        }
        Ok((0..count).map(bit).collect())
    }

    pub(super) fn end(&self) -> Decoded<()> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Malformed("a frame is longer than its kind")) }
    }

    fn uid(&mut self) -> Decoded<SnapshotUid> {
        self.take().map(SnapshotUid)
    }

    pub(super) fn hello(&mut self) -> Decoded<Hello> {
        if self.take()? != MAGIC {
            return Err(WireError::NotTheProtocol);
        }
        let (version_min, version_max) = (self.u16()?, self.u16()?);
        let [compression] = self.take()?;
        Ok(Hello { version_min, version_max, compression, host: HostId(self.take()?), nonce: self.take()? })
    }

    pub(super) fn offered(&mut self) -> Decoded<OfferedVolume> {
        Ok(OfferedVolume {
            lineage: Lineage(self.take()?),
            volume: self.text(NAME_BYTES_MAX)?,
            uid: self.uid()?,
            point: Point { epoch: self.u64()?, sequence: self.u64()? },
            name: self.text(NAME_BYTES_MAX)?,
            size: self.u64()?,
            created_ms: self.u64()?,
            candidates: self.list(CANDIDATES_MAX, Self::uid)?,
        })
    }

    pub(super) fn have(&mut self) -> Decoded<HaveVolume> {
        Ok(HaveVolume {
            known: self.list(CANDIDATES_MAX, |reader| Ok((reader.u16()?, reader.take()?)))?,
            newest: self.option(|reader| {
                Ok(NewestSnapshot { uid: reader.uid()?, root: reader.take()?, size: reader.u64()? })
            })?,
            received: self.option(Self::received)?,
        })
    }

    fn received(&mut self) -> Decoded<Received> {
        let token = self.take()?;
        let (has_base, base) = (self.flag()?, self.uid()?);
        if !has_base && base != SnapshotUid([0; 16]) {
            return Err(WireError::Malformed("a base where there is none"));
        }
        Ok(Received { token, base: has_base.then_some(base), cursor: self.u64()? })
    }

    pub(super) fn begin(&mut self) -> Decoded<Begin> {
        Ok(Begin {
            mode: self.mode()?,
            base: self.option(|reader| Ok((reader.uid()?, reader.take()?)))?,
            resume: self.option(|reader| Ok((reader.take()?, reader.u64()?)))?,
        })
    }

    fn mode(&mut self) -> Decoded<Mode> {
        match self.take::<1>()? {
            [0] => Ok(Mode::Changes),
            [1] => Ok(Mode::Compare),
            [2] => Ok(Mode::Mirror),
            _ => Err(WireError::Malformed("a mode that there is not")),
        }
    }

    pub(super) fn keep(&mut self) -> Decoded<KeepWish> {
        let mut counts = [0; 7];
        for count in &mut counts {
            *count = self.take().map(u32::from_be_bytes)?;
        }
        Ok(KeepWish { counts, within_s: self.u64()? })
    }

    pub(super) fn fetch(&mut self) -> Decoded<Fetch> {
        Ok(Fetch {
            lineage: Lineage(self.take()?),
            uid: self.uid()?,
            clusters: self.list(FETCH_CLUSTERS_MAX, |reader| Ok((reader.u32()?, reader.take()?)))?,
        })
    }

    pub(super) fn found(&mut self) -> Decoded<Found> {
        match self.take()? {
            [0] => Ok(Found::Here(self.slice(CLUSTER_BYTES as usize)?.to_vec())),
            [1] => Ok(Found::Missing),
            [2] => Ok(Found::Damaged),
            [3] => Ok(Found::Differs),
            _ => Err(WireError::Malformed("a cluster that is neither here nor not")),
        }
    }

    pub(super) fn values(&mut self) -> Decoded<Values> {
        let first = self.u64()?;
        let count = self.count(VALUES_MAX)?;
        let zeroes = self.bits(count)?;
        let value = |zero: bool| if zero { Ok(None) } else { self.take().map(Some) };
        Ok(Values { first, values: zeroes.into_iter().map(value).collect::<Result<_, _>>()? })
    }
}
