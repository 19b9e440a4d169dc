//! SCAN cursors as a tenant sees them: the upstream's, disguised, because their width tells how many keys all tenants have together.
//!
//! A keyed permutation of 52 bits: every client can hold the number exactly (a double has 53), 0 stays 0 (the end of a scan), and all
//! processes in front of one upstream agree on it, since the key is made of the prefix. It hides a size; it guards nothing: any cursor is
//! only ever used together with the tenant's own MATCH.

const HALF: u32 = 26;
const MASK: u64 = (1 << HALF) - 1;
const ROUNDS: u64 = 6;

/// Whether an upstream's cursor can be disguised.
pub(super) fn fits(cursor: u64) -> bool {
    cursor < 1 << (2 * HALF)
}

/// The tenant's form of an upstream's cursor.
pub(super) fn wrap(cursor: u64, prefix: &[u8]) -> u64 {
    let key = key(prefix);
    match (cursor, permute(cursor, key)) {
        (0, _) => 0,
        // Where 0 would have gone.
        (_, 0) => permute(0, key),
        (_, wrapped) => wrapped,
    }
}

/// The upstream's form of a tenant's cursor; `None` for a number that is none.
pub(super) fn unwrap(cursor: u64, prefix: &[u8]) -> Option<u64> {
    if !fits(cursor) {
        return None;
    }
    let key = key(prefix);
    Some(match (cursor, invert(cursor, key)) {
        (0, _) => 0,
        (_, 0) => invert(0, key),
        (_, unwrapped) => unwrapped,
    })
}

/// FNV-1a.
fn key(prefix: &[u8]) -> u64 {
    prefix.iter().fold(0xcbf2_9ce4_8422_2325, |h, &c| (h ^ u64::from(c)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// The round function: the mixer of splitmix64.
fn mix(half: u64, round: u64, key: u64) -> u64 {
    let mut x = half ^ key ^ (round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) & MASK
}

fn permute(n: u64, key: u64) -> u64 {
    let (mut left, mut right) = (n >> HALF, n & MASK);
    for round in 0..ROUNDS {
        (left, right) = (right, left ^ mix(right, round, key));
    }
    left << HALF | right
}

fn invert(n: u64, key: u64) -> u64 {
    let (mut left, mut right) = (n >> HALF, n & MASK);
    for round in (0..ROUNDS).rev() {
        (left, right) = (right ^ mix(left, round, key), left);
    }
    left << HALF | right
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_end_stays_the_end() {
        assert_eq!((wrap(0, b"a:"), unwrap(0, b"a:")), (0, Some(0)));
        assert_eq!(unwrap(u64::MAX, b"a:"), None);
    }

    #[test]
    fn e4_a_cursor_means_nothing_to_another_tenant() {
        for n in [1, 64, 1000, 1 << 30, (1 << 52) - 1] {
            assert_ne!(unwrap(wrap(n, b"a:"), b"b:"), Some(n));
        }
    }

    proptest! {
        #[test]
        fn comes_back_and_never_ends_early(n in 1u64..1 << 52, prefix in prop::collection::vec(any::<u8>(), 0..20)) {
            let wrapped = wrap(n, &prefix);
            prop_assert!(wrapped != 0 && wrapped < 1 << 52);
            prop_assert_eq!(unwrap(wrapped, &prefix), Some(n));
        }
    }
}
