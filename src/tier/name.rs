//! The name of a kept reply: upstream, tenant, variant and key in one run of bytes.

use super::store::Id;

/// Bytes before the variant: upstream (2), tenant (4), length of the variant (4).
const HEAD: usize = 10;
/// Longest name: longer ones are not worth their keeping.
pub const LONGEST: usize = 16 * 1024;

/// See the module. The variant tells the replies of one key apart: database, version of the protocol, command, arguments behind the key.
/// Invalidations name no database, so that is a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name(Vec<u8>);

impl Name {
    /// Begins another name, in the same memory.
    pub fn begin(&mut self, upstream: u16, tenant: u32, db: u32, proto: u8, row: u16) {
        let ([a, b], [c, d, e, f]) = (upstream.to_le_bytes(), tenant.to_le_bytes());
        let ([g, h, i, j], [k, l]) = (db.to_le_bytes(), row.to_le_bytes());
        self.0.clear();
        self.0.extend_from_slice(&[a, b, c, d, e, f, 0, 0, 0, 0, g, h, i, j, proto, k, l]);
    }

    /// Adds an argument to the variant.
    pub fn argument(&mut self, arg: &[u8]) {
        let len = u32::try_from(arg.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&len.to_le_bytes());
        self.0.extend_from_slice(arg);
    }

    /// Ends it with the key, which stands upstream behind `prefix`.
    pub fn key(&mut self, prefix: &[u8], key: &[u8]) {
        let variant = u32::try_from(self.0.len() - HEAD).unwrap_or(u32::MAX);
        self.0[6..HEAD].copy_from_slice(&variant.to_le_bytes());
        self.0.extend_from_slice(prefix);
        self.0.extend_from_slice(key);
    }

    /// Another key in the place of the one it ends with.
    pub fn other_key(&mut self, prefix: &[u8], key: &[u8]) {
        let end = self.split();
        self.0.truncate(end);
        self.0.extend_from_slice(prefix);
        self.0.extend_from_slice(key);
    }

    fn split(&self) -> usize {
        let variant = self.0.get(6..HEAD).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        (HEAD + variant as usize).min(self.0.len())
    }

    /// The key and whose it is.
    pub fn id(&self) -> Id<'_> {
        let upstream = self.0.get(..2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
        let tenant = self.0.get(2..6).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        Id { upstream, tenant, key: &self.0[self.split()..] }
    }

    /// What tells this reply from others of the key.
    pub fn variant(&self) -> &[u8] {
        self.0.get(HEAD..self.split()).unwrap_or_default()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_apart_as_it_was_put_together() {
        let mut name = Name::default();
        for (args, key) in [(&[][..], &b"k"[..]), (&[&b"0"[..], b"-1"], b""), (&[b""], b"\0\xff")] {
            name.begin(7, 9, 3, 2, 500);
            args.iter().for_each(|arg| name.argument(arg));
            name.key(b"t:", key);
            assert_eq!((name.id().upstream, name.id().tenant), (7, 9));
            assert_eq!(name.id().key, [b"t:", key].concat());
            assert_eq!(name.variant().len(), 7 + args.iter().map(|a| a.len() + 4).sum::<usize>());
            let variant = name.variant().to_vec();
            name.other_key(b"t:", b"another");
            assert_eq!((name.id().key, name.variant()), (&b"t:another"[..], &variant[..]));
        }
    }

    #[test]
    fn arguments_are_told_apart_by_their_lengths() {
        let of = |args: &[&[u8]], key: &[u8]| {
            let mut name = Name::default();
            name.begin(1, 1, 0, 2, 1);
            args.iter().for_each(|arg| name.argument(arg));
            name.key(b"", key);
            name
        };
        assert_ne!(of(&[b"ab", b"c"], b"k"), of(&[b"a", b"bc"], b"k"));
        assert_ne!(of(&[b"a"], b"k"), of(&[], b"ak"));
    }
}
