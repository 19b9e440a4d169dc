//! The store's promises, one by one, in one thread.

use keyfence::tier::store::{Id, Store};

const MIB: usize = 1 << 20;

fn id(key: &[u8]) -> Id<'_> {
    Id { upstream: 0, tenant: 1, key }
}

fn get(store: &Store, key: &[u8], variant: &[u8], now: u64) -> Option<Vec<u8>> {
    let mut out = b"before".to_vec();
    let hit = store.get(id(key), variant, now, &mut out);
    assert!(out.starts_with(b"before"), "what stood in the buffer stays");
    hit.then(|| out[6..].to_vec())
}

fn fill(store: &Store, key: &[u8], variant: &[u8], reply: &[u8], expires: u64) -> bool {
    store.ticket(id(key)).is_some_and(|t| store.fill(t, id(key), variant, reply, expires))
}

#[test]
fn a_filled_reply_is_served_per_variant() {
    let store = Store::new(4 * MIB, MIB);
    assert_eq!(get(&store, b"k", b"get", 0), None);
    assert!(fill(&store, b"k", b"get", b"$1\r\nv\r\n", u64::MAX));
    assert!(fill(&store, b"k", b"strlen", b":1\r\n", u64::MAX));
    assert_eq!(get(&store, b"k", b"get", 0).as_deref(), Some(&b"$1\r\nv\r\n"[..]));
    assert_eq!(get(&store, b"k", b"strlen", 0).as_deref(), Some(&b":1\r\n"[..]));
    assert_eq!(get(&store, b"k", b"type", 0), None);
    assert_eq!(get(&store, b"K", b"get", 0), None);
    assert!(fill(&store, b"k", b"get", b"$1\r\nv\r\n", 1000), "the same again takes its place");
    assert_eq!(get(&store, b"k", b"get", 0).as_deref(), Some(&b"$1\r\nv\r\n"[..]));
    assert_eq!(store.stats(1).entries, 2);
    assert_eq!(get(&store, b"k", b"get", 1000), None, "with its own time");
}

/// Two reads of one reply, with a change between them that is yet to be told.
#[test]
fn of_two_replies_that_differ_neither_is_kept() {
    for (first, second) in [(b"new", b"old"), (b"old", b"new")] {
        let store = Store::new(4 * MIB, MIB);
        let tickets = [(); 3].map(|()| store.ticket(id(b"k")).unwrap());
        assert!(fill(&store, b"k", b"strlen", b":3", u64::MAX));
        assert!(store.fill(tickets[0], id(b"k"), b"get", first, u64::MAX));
        assert!(!store.fill(tickets[1], id(b"k"), b"get", second, u64::MAX));
        assert_eq!(get(&store, b"k", b"get", 0), None);
        assert_eq!(get(&store, b"k", b"strlen", 0), None, "which may be from before it as well");
        assert!(!store.holds(&tickets[2], id(b"k")));
        assert!(!store.fill(tickets[2], id(b"k"), b"get", b"old", u64::MAX));
        assert!(fill(&store, b"k", b"get", b"new", u64::MAX));
    }
}

#[test]
fn an_invalidation_drops_all_variants_and_voids_the_ticket() {
    let store = Store::new(4 * MIB, MIB);
    assert!(fill(&store, b"k", b"get", b"old", u64::MAX));
    assert!(fill(&store, b"k", b"strlen", b"old", u64::MAX));
    let ticket = store.ticket(id(b"k")).unwrap();
    assert!(store.holds(&ticket, id(b"k")));
    assert!(!store.holds(&ticket, id(b"j")), "of another key");
    store.invalidate(0, b"k");
    assert!(!store.holds(&ticket, id(b"k")));
    assert_eq!(get(&store, b"k", b"get", 0), None);
    assert_eq!(get(&store, b"k", b"strlen", 0), None);
    assert!(!store.fill(ticket, id(b"k"), b"get", b"old", u64::MAX));
    assert_eq!(store.stats(1).entries, 0);
    assert_eq!(store.stats(1).bytes, 0);
}

#[test]
fn a_mark_stops_hits_and_tickets_until_the_last_unmark() {
    let store = Store::new(4 * MIB, MIB);
    assert!(fill(&store, b"k", b"get", b"old", u64::MAX));
    let before = store.ticket(id(b"k")).unwrap();
    let marks = [store.mark(0, b"k"), store.mark(0, b"k")];
    assert!(!store.holds(&before, id(b"k")));
    assert_eq!(get(&store, b"k", b"get", 0), None);
    assert!(store.ticket(id(b"k")).is_none());
    assert!(!store.fill(before, id(b"k"), b"get", b"old", u64::MAX));
    store.unmark(marks[0]);
    assert!(store.ticket(id(b"k")).is_none());
    store.unmark(marks[1]);
    assert!(!store.holds(&before, id(b"k")));
    assert!(!store.fill(before, id(b"k"), b"get", b"old", u64::MAX), "void for ever, not only while marked");
    assert!(fill(&store, b"k", b"get", b"new", u64::MAX));
    assert_eq!(get(&store, b"k", b"get", 0).as_deref(), Some(&b"new"[..]));
}

#[test]
fn clearing_voids_entries_and_tickets() {
    for clear in [(|s: &Store| s.clear_upstream(0)) as fn(&Store), |s| s.clear_tenant(1)] {
        let store = Store::new(4 * MIB, MIB);
        assert!(fill(&store, b"k", b"get", b"old", u64::MAX));
        let ticket = store.ticket(id(b"j")).unwrap();
        clear(&store);
        assert!(!store.holds(&ticket, id(b"j")));
        assert_eq!(get(&store, b"k", b"get", 0), None);
        assert!(!store.fill(ticket, id(b"j"), b"get", b"old", u64::MAX));
        assert!(fill(&store, b"k", b"get", b"new", u64::MAX));
        assert_eq!(get(&store, b"k", b"get", 0).as_deref(), Some(&b"new"[..]));
    }
}

#[test]
fn clearing_one_leaves_the_others() {
    let store = Store::new(4 * MIB, MIB);
    assert!(fill(&store, b"k", b"get", b"kept", u64::MAX));
    store.clear_upstream(1);
    store.clear_tenant(2);
    assert!(get(&store, b"k", b"get", 0).is_some());
}

#[test]
fn an_entry_is_gone_at_its_millisecond() {
    let store = Store::new(4 * MIB, MIB);
    assert!(fill(&store, b"k", b"get", b"v", 1000));
    assert!(get(&store, b"k", b"get", 999).is_some());
    assert_eq!(get(&store, b"k", b"get", 1000), None);
    assert_eq!(store.stats(1).entries, 0, "and it was taken back");
}

#[test]
fn sweeping_takes_back_what_expired_or_was_cleared() {
    let store = Store::new(16 * MIB, MIB);
    for n in 0..1000_u32 {
        assert!(fill(&store, &n.to_be_bytes(), b"get", b"v", if n < 300 { 1000 } else { u64::MAX }));
    }
    while store.sweep(1000, 100_000) > 0 {}
    assert_eq!(store.stats(1).entries, 700);
    store.clear_tenant(1);
    while store.sweep(1000, 100_000) > 0 {}
    assert_eq!(store.stats(1).entries, 0);
    assert_eq!(store.stats(1).bytes, 0);
}

#[test]
fn a_reply_over_max_value_is_not_kept() {
    let store = Store::new(16 * MIB, 100);
    assert!(fill(&store, b"k", b"get", &[b'x'; 100], u64::MAX));
    assert!(!fill(&store, b"k", b"get", &[b'x'; 101], u64::MAX));
}

#[test]
fn an_unmark_too_many_does_no_harm() {
    let store = Store::new(4 * MIB, MIB);
    let mark = store.mark(0, b"k");
    store.unmark(mark);
    store.unmark(mark);
    let _mark = store.mark(0, b"k");
    assert!(store.ticket(id(b"k")).is_none());
}

#[test]
fn a_key_keeps_a_thousand_variants_and_no_more() {
    let store = Store::new(16 * MIB, MIB);
    for field in 0..3000_u32 {
        assert!(fill(&store, b"hash", &field.to_be_bytes(), b"$1\r\nv\r\n", u64::MAX));
    }
    let kept = (0..3000_u32).filter(|f| get(&store, b"hash", &f.to_be_bytes(), 0).is_some());
    assert_eq!(kept.collect::<Vec<_>>(), std::iter::once(0).chain(3000 - 1023..3000).collect::<Vec<_>>());
    assert_eq!(store.stats(1).entries, 1024);
    assert_eq!(store.stats(1).evictions, 3000 - 1024);
    store.invalidate(0, b"hash");
    assert_eq!(store.stats(1).entries, 0);
}

#[test]
fn one_key_of_two_tenants_is_kept_for_each() {
    let store = Store::new(4 * MIB, MIB);
    let ids = [1, 2].map(|tenant| Id { upstream: 0, tenant, key: b"k" });
    for (id, reply) in ids.iter().zip([b"one", b"two"]) {
        let ticket = store.ticket(*id).unwrap();
        assert!(store.fill(ticket, *id, b"get", reply, u64::MAX));
    }
    store.clear_tenant(1);
    let mut out = Vec::new();
    assert!(!store.get(ids[0], b"get", 0, &mut out));
    assert!(store.get(ids[1], b"get", 0, &mut out));
    assert_eq!(out, b"two");
    store.invalidate(0, b"k");
    assert!(!store.get(ids[1], b"get", 0, &mut out));
}

#[test]
fn more_tenants_than_slots_all_get_their_turn() {
    let store = Store::new(256 << 10, 1024);
    for tenant in 0..2000 {
        let id = Id { upstream: 0, tenant, key: &tenant.to_be_bytes() };
        let kept = (0..100).any(|_| {
            let ticket = store.ticket(id).unwrap();
            store.fill(ticket, id, b"get", b"v", u64::MAX)
        });
        assert!(kept && store.get(id, b"get", 0, &mut Vec::new()), "tenant {tenant}");
    }
}

#[test]
fn any_size_is_taken_or_refused_and_nothing_panics() {
    for memory in [0, 1, 63, 1 << 10, 5 << 10, 100 << 10, 3 * MIB] {
        for max_value in [0, 1, 1 << 20, usize::MAX] {
            let store = Store::new(memory, max_value);
            for key in [0, 1, 8, 63, 64, 65, 65_535, 65_536, 200_000] {
                for variant in [0, 1, 65_535, 65_536] {
                    for reply in [0, 1, 64, 100_000] {
                        let (key, variant, reply) = (vec![b'k'; key], vec![b'v'; variant], vec![b'r'; reply]);
                        store.invalidate(0, &key);
                        let filled = fill(&store, &key, &variant, &reply, u64::MAX);
                        assert_eq!(get(&store, &key, &variant, 0), filled.then_some(reply));
                    }
                }
            }
            store.sweep(0, usize::MAX);
        }
    }
}
